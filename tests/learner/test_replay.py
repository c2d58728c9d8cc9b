from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal

from learner.advantage import AdvantageSettings, RewardTracks
from learner.batch import BatchError, GlobalBatch, assemble, make_work
from learner.loader import Loader
from learner.objective import ObjectiveSettings
from learner.prepared import Preparation
from learner.replay import Replay, sft_draw
from learner.settings import LearnerSettings
from learner.statistics import Statistics
from restoration.adapters import AdaptSettings, enable_checkpointing, make_trainable, trained_parameters
from restoration.base_models import load
from restoration.base_models.interface import Condition
from restoration.precision import set_frozen_dtype
from restoration.transition import predict_x0, transition_mean
from tests.learner.fakes import SAMPLER, FakeModel, fake_pairs, roll_out_group

OBJECTIVE = ObjectiveSettings(kl_beta=0.5)


def setup() -> tuple[FakeModel, Replay, Loader, GlobalBatch]:
    model = FakeModel()
    make_trainable(model, AdaptSettings(rank=2))
    groups = [roll_out_group(model, f"i{j}", seed=j, rollouts=2) for j in range(2)]
    schedule = model.schedule(SAMPLER)
    batch = assemble(groups, RewardTracks(AdvantageSettings()), schedule.fingerprint)
    replay = Replay(model, schedule, OBJECTIVE, 1.0)
    return model, replay, opened(model, batch), batch


def opened(model: FakeModel, batch: GlobalBatch, condition_batch: int = 8) -> Loader:
    """A loader that holds all of `batch`."""
    settings, schedule, cpu = LearnerSettings(sampler=SAMPLER, objective=OBJECTIVE), model.schedule(SAMPLER), "cpu"
    preparation = Preparation(settings, schedule, model.size_multiple, fake_pairs, 0, 1, torch.device(cpu))
    records = {g.meta.group_id: g for g in batch.groups}
    assert preparation.prepare(batch.groups, lambda ids: [records[i] for i in ids]) == []
    loader = Loader(model, schedule, torch.device(cpu), condition_batch)
    loader.open(batch, preparation.take(records), version=0)
    return loader


def test_a_micro_batch_of_mixed_steps_has_the_densities_of_torch_distributions() -> None:
    model, replay, loader, batch = setup()
    work = make_work(batch, range(2), OBJECTIVE)
    micro = loader.policy(work.policy)
    log_prob, _ = replay.log_prob_and_mean(micro)
    for i, item in enumerate(work.policy):
        group = batch.groups[item.group]
        step = replay.schedule.steps[int(group.step_index[item.position])]
        x = group.states[item.row, item.position][None]
        condition = model.condition(fake_pairs(group.meta.image_id)[0][None, :, 4:20, :16])
        mean = transition_mean(step, x, predict_x0(step, model.denoise(x, step.timestep, condition, 1.0), x))
        expected = Normal(mean, step.std).log_prob(group.targets[item.row, item.position][None]).mean()
        torch.testing.assert_close(log_prob[i], expected, rtol=0, atol=1e-6)


def test_the_first_replay_has_ratio_1() -> None:
    _, replay, loader, batch = setup()
    parts = replay(loader.policy(make_work(batch, range(2), OBJECTIVE).policy))[1]
    torch.testing.assert_close(parts["ratio"], torch.ones(12), rtol=0, atol=1e-6)
    assert float(parts["kl"].abs().max()) < 1e-10


def test_the_losses_of_any_split_add_up() -> None:
    model, replay, loader, batch = setup()
    with torch.no_grad():
        for p in model.policy.parameters():
            if p.requires_grad:
                p.add_(0.05)
    work = make_work(batch, range(2), OBJECTIVE)
    whole = replay(loader.policy(work.policy))[0] + replay(loader.sft(work.sft, (1, 2)))[0]
    parts = [replay(loader.policy([item]))[0] for item in work.policy]
    parts += [replay(loader.sft([item], (1, 2)))[0] for item in work.sft]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=0, atol=1e-5)


def test_a_filler_has_no_gradient() -> None:
    model, replay, loader, batch = setup()
    work = make_work(batch, range(2), OBJECTIVE)
    loss = replay(loader.policy(work.policy[:1], filler=True))[0]
    loss = loss + replay(loader.sft(work.sft[:1], (0,), filler=True))[0]
    gradients = torch.autograd.grad(loss, [p for p in model.policy.parameters() if p.requires_grad])
    assert all(float(g.abs().max()) == 0 for g in gradients)


def test_noise_depends_on_seed_iteration_and_sample_only() -> None:
    _, _, loader, batch = setup()
    work = make_work(batch, range(2), OBJECTIVE)
    whole = loader.sft(work.sft, (1, 2))
    alone = [loader.sft([item], (1, 2)) for item in work.sft]
    assert torch.equal(whole.noise, torch.cat([a.noise for a in alone]))
    assert torch.equal(whole.timestep, torch.cat([a.timestep for a in alone]))
    assert not torch.equal(whole.noise[0], whole.noise[1])
    assert not torch.equal(whole.noise, loader.sft(work.sft, (1, 3)).noise)


def test_only_the_policy_is_part_of_the_module_that_is_sharded() -> None:
    model, replay, _, _ = setup()
    assert {id(p) for p in replay.parameters()} == {id(p) for p in model.policy.parameters()}


def test_gradient_checkpointing_keeps_the_gradient_and_stores_less() -> None:
    model = load(Path(__file__).parents[2] / "models/demo")
    make_trainable(model, AdaptSettings("lora", rank=2))
    model.policy.eval()
    generator = torch.Generator().manual_seed(0)
    condition = model.condition(torch.rand(1, 3, 64, 64, generator=generator))
    noise = torch.randn(condition.latent.shape, generator=generator)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model)
        stored = 0

        def store(t: torch.Tensor) -> torch.Tensor:
            nonlocal stored
            stored += t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(store, lambda t: t):
            loss = model.sft_loss(condition.latent, condition, torch.tensor([500]), noise).sum()
            bytes_for_backward = stored
        found.append((bytes_for_backward, torch.autograd.grad(loss, list(trained_parameters(model).values()))))
    (plain_bytes, plain), (checkpointed_bytes, checkpointed) = found
    assert checkpointed_bytes < plain_bytes / 2
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b)


class Counting(FakeModel):
    """Counts the pictures of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions: list[int] = []
        self.encoded: list[int] = []

    def condition(self, lq: torch.Tensor, image_ids: Sequence[str] = ()) -> Condition:
        self.conditions.append(len(image_ids))
        return Condition(clean=lq, latent=super().encode(lq))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded.append(len(images))
        return super().encode(images)


def test_conditions_and_latents_are_computed_in_batches_and_once_a_picture() -> None:
    model = Counting()
    make_trainable(model, AdaptSettings(rank=2))
    names = ["a", "b", "a", "c", "d", "b", "e"]  # seven groups of five pictures
    groups = [roll_out_group(model, name, seed=j) for j, name in enumerate(names)]
    mirrored = replace(groups[0], meta=replace(groups[0].meta, flip=True, group_id="z"), trajectory_ids=["z/0", "z/1"])
    tracks = RewardTracks(AdvantageSettings())
    batch = assemble([*groups, mirrored], tracks, model.schedule(SAMPLER).fingerprint)
    model.conditions.clear()
    model.encoded.clear()
    loader = opened(model, batch, condition_batch=4)
    work = make_work(batch, range(8), OBJECTIVE)
    for item in work.policy:
        loader.policy([item])
    for sample in work.sft:
        loader.sft([sample], (0,))
    assert model.conditions == model.encoded == [4, 2]


def test_a_batch_of_conditions_is_what_single_ones_are() -> None:
    model, _, loader, batch = setup()
    work = make_work(batch, range(2), OBJECTIVE)
    alone = opened(model, batch, condition_batch=1)
    for one, other in ((loader.policy(work.policy), alone.policy(work.policy)),):
        torch.testing.assert_close(one.condition.latent, other.condition.latent, rtol=0, atol=1e-6)
    one_sft, other_sft = loader.sft(work.sft, (1,)), alone.sft(work.sft, (1,))
    torch.testing.assert_close(one_sft.gt_latent, other_sft.gt_latent, rtol=0, atol=1e-6)


WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")


def test_no_micro_batch_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model, replay, loader, batch = setup()
    work, statistics = make_work(batch, range(2), OBJECTIVE), Statistics(torch.device("cpu"))
    draws = {i.index: sft_draw((1, i.index), model.train_timesteps, torch.Size((3, 4, 4))) for i in work.sft}
    # Draws are on the CPU whatever the device is.
    monkeypatch.setattr("learner.loader.sft_draw", lambda seed, *_: draws[seed[-1]])
    waited: list[str] = []
    for name in WAITS:
        original = getattr(torch.Tensor, name)

        def spy(*arguments: object, _name: str = name, _original: Any = original, **options: object) -> Any:
            waited.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, spy)
    original_tensor = torch.tensor

    def tensor(*arguments: Any, **options: Any) -> torch.Tensor:
        if options.get("device") is not None:
            waited.append("torch.tensor(device=...)")  # copies from memory that is not pinned
        return original_tensor(*arguments, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    for micro in (loader.policy(work.policy[:5]), loader.policy(work.policy, True), loader.sft(work.sft, (1,))):
        loss, parts = replay(micro)
        loss.backward()
        deviation = parts.pop("deviation", None)
        statistics.add(parts)
        if deviation is not None:
            statistics.add_first(deviation)
    assert waited == []
    assert float(loss.detach()) and waited  # the spies do see


def test_groups_of_other_weights_are_not_fresh() -> None:
    model, _, _, batch = setup()
    old = replace(batch.groups[1], meta=replace(batch.groups[1].meta, weights_version=4))
    mixed = replace(batch, groups=(batch.groups[0], old))
    micro = opened(model, mixed).policy(make_work(mixed, range(2), OBJECTIVE).policy)
    assert micro.fresh is not None and micro.fresh.tolist() == [1.0] * 6 + [0.0] * 6


def test_a_group_of_another_latent_shape_than_its_picture_s_is_refused() -> None:
    model, _, _, batch = setup()
    larger = replace(batch.groups[0], meta=replace(batch.groups[0].meta, crop=(0, 0, 20, 20)))
    with pytest.raises(BatchError, match="states have shape"):
        opened(model, replace(batch, groups=(larger, batch.groups[1])))


def test_frozen_weights_in_bf16_leave_no_second_copy_for_the_backward() -> None:
    copies = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, replay, loader, batch = setup()
        replay.autocast = torch.bfloat16
        trained = trained_parameters(model)
        set_frozen_dtype(model, dtype, keep=trained)
        frozen = {p.data_ptr(): p for n, p in model.policy.named_parameters() if n not in trained}
        shapes = {tuple(p.shape) for p in frozen.values() if p.ndim > 1} - {tuple(p.shape) for p in trained.values()}
        found = []

        def keep(t: torch.Tensor, frozen: Any = frozen, shapes: Any = shapes, found: Any = found) -> torch.Tensor:
            if tuple(t.shape) in shapes and t.data_ptr() not in frozen:
                found.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            replay(loader.policy(make_work(batch, range(2), OBJECTIVE).policy))
        copies[dtype] = len(found)
    assert copies[torch.bfloat16] == 0 < copies[torch.float32]
