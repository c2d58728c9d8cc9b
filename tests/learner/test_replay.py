from pathlib import Path

import torch
from torch.distributions import Normal

from learner.advantage import AdvantageSettings, RewardTracks
from learner.batch import GlobalBatch, assemble, make_work
from learner.loader import Loader
from learner.objective import ObjectiveSettings
from learner.prepared import Preparation
from learner.replay import Replay
from learner.settings import LearnerSettings
from restoration.adapters import AdaptSettings, enable_checkpointing, make_trainable, trained_parameters
from restoration.base_models import load
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
