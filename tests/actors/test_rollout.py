"""The rollout as a pure function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from actors.rollout import PairBatch, Rollout, RolloutSettings, complete, rollout
from actors.terms import RewardTerms, Term
from restoration.base_models.interface import SamplerSettings
from restoration.images import to_uint8
from restoration.metrics.full_reference import full_reference
from restoration.transition import (
    Schedule,
    ddim_schedule,
    flow_schedule,
    gaussian_log_prob,
    one_step_schedule,
    scaled_linear_alphas,
    transition,
)
from tests.learner.fakes import FakeModel
from trajectories.schema import STORAGE_DTYPES, RecordMeta, decode, encode

SAMPLER = SamplerSettings(steps=5, eta=1.0)
ALONE = RewardTerms((Term("iqa"),))


class CountingModel(FakeModel):
    """Counts evaluations of the denoiser."""

    calls = 0

    def denoise(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.calls += 1
        return super().denoise(*args, **kwargs)


def batch(images: int = 2, side: int = 16) -> PairBatch:
    generator = torch.Generator().manual_seed(3)
    lq, gt = torch.rand(2, images, 3, side, side, generator=generator)
    return PairBatch([f"image{n}" for n in range(images)], [(0, 0, side, side)] * images, [False] * images, lq, gt)


def rolled(
    seed: int = 0, model: FakeModel | None = None, sampler: SamplerSettings = SAMPLER, **settings: object
) -> Rollout:
    chosen = RolloutSettings(images_per_batch=2, rollouts_per_image=3, crop=0, **settings)  # type: ignore[arg-type]
    return rollout(model or FakeModel(), batch(), sampler, chosen, torch.Generator().manual_seed(seed))


def metas(count: int = 2, dtype: str = "float32") -> list[RecordMeta]:
    one = RecordMeta(
        run_id="run", epoch=1, weights_version=0, reward_version="r", scheduler_fingerprint="f", dtype=dtype,
        actor="a", group_id="g", image_id="i", crop=(0, 0, 16, 16), flip=False, seed=0,
    )  # fmt: skip
    return [replace(one, group_id=f"g{n}", image_id=f"image{n}") for n in range(count)]


@pytest.mark.parametrize("target", ["enhanced", "sampled"])
def test_a_chain_of_T_steps_costs_T_evaluations_of_the_denoiser(target: str) -> None:
    model = CountingModel()
    rolled(model=model, action_target=target)
    assert model.calls == SAMPLER.steps


def test_equal_generators_give_equal_rollouts_and_other_seeds_others() -> None:
    one, same, other = rolled(1), rolled(1), rolled(2)
    assert torch.equal(one.targets, same.targets) and torch.equal(one.log_probs, same.log_probs)
    assert np.array_equal(one.blocks[3], same.blocks[3])
    assert not torch.equal(one.targets, other.targets)


def test_the_noiseless_last_step_is_executed_but_not_a_decision() -> None:
    assert rolled().states.shape[1] == SAMPLER.steps - 1


class OtherChain(FakeModel):
    """A policy with another kind of steps."""

    def __init__(self, chain: Schedule) -> None:
        super().__init__()
        self.chain = chain

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        return self.chain


ALPHAS = scaled_linear_alphas()
CHAINS = {
    **{kind: ddim_schedule(ALPHAS, 5, 1.0, kind) for kind in ("epsilon", "v_prediction", "sample")},  # type: ignore[arg-type]
    "zero terminal SNR": ddim_schedule(scaled_linear_alphas(zero_terminal_snr=True), 5, 0.7, "v_prediction"),
    "flow": flow_schedule([1.0, 0.8, 0.5, 0.2, 0.0], noise_level=0.7),
    "one step": one_step_schedule(999, 0.0, 1.0, std=0.1),
}


@pytest.mark.parametrize("dtype", list(STORAGE_DTYPES))
@pytest.mark.parametrize("target", ["enhanced", "sampled"])
@pytest.mark.parametrize("chain", CHAINS)
@torch.no_grad()
def test_a_replay_before_any_update_has_ratio_1_for_every_policy_and_storage_dtype(
    dtype: str, target: str, chain: str
) -> None:
    model = OtherChain(CHAINS[chain])
    result = rolled(model=model, storage_dtype=dtype, action_target=target)
    condition = model.condition(batch().lq).repeat_interleave(3)
    for position, step in enumerate(result.schedule.decisions):
        x_t = result.states[:, position].float()
        output = model.denoise(x_t, step.timestep, condition, 1.0)
        replay = transition(step, output, x_t, action=result.targets[:, position].float())
        ratio = (replay.log_prob - result.log_probs[:, position]).exp()
        assert (ratio - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("chain", CHAINS)
def test_every_policy_costs_one_evaluation_a_step_and_moves_all_targets_but_that_of_a_noisy_last_step(
    chain: str,
) -> None:
    model = OtherChain(CHAINS[chain])
    evaluate, calls = model.denoise, []
    model.denoise = lambda *given: calls.append(1) or evaluate(*given)  # type: ignore[method-assign, func-returns-value]
    result = rolled(model=model)
    assert len(calls) == len(CHAINS[chain])
    moved = [bool((shift > 0).all()) for shift in result.shift.T]
    assert moved == [step.index + 1 < len(CHAINS[chain]) for step in CHAINS[chain].decisions]


@torch.no_grad()
def test_a_replay_in_bf16_of_a_rollout_in_bf16_has_ratio_1_and_one_in_fp32_has_not() -> None:
    model = FakeModel()
    result = rolled(model=model, denoise_dtype="bfloat16")
    condition = model.condition(batch().lq).repeat_interleave(3)
    step, x_t = result.schedule.decisions[0], result.states[:, 0]
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model.denoise(x_t, step.timestep, condition, 1.0)
        replay = transition(step, output, x_t, action=result.targets[:, 0])
        off = float((replay.log_prob - result.log_probs[:, 0]).exp().sub(1).abs().max())
        assert off <= 1e-6 if enabled else off > 1e-6


@torch.no_grad()
def test_the_enhanced_action_is_the_mean_of_the_better_estimate_with_the_same_noise_draw() -> None:
    model = FakeModel()
    result = rolled(model=model)
    condition = model.condition(batch().lq).repeat_interleave(3)
    steps = result.schedule.steps
    for position in range(len(steps) - 2):
        step, x_t, action = steps[position], result.states[:, position], result.states[:, position + 1]
        here = transition(step, model.denoise(x_t, step.timestep, condition, 1.0), x_t, action=action)
        after = steps[position + 1]
        better = transition(after, model.denoise(action, after.timestep, condition, 1.0), action, action=action).x0
        mean = step.mean_from_x * x_t + step.mean_from_x0 * better
        expected = mean + (action - here.mean)
        torch.testing.assert_close(result.targets[:, position], expected, atol=1e-5, rtol=1e-5)
        shift = (expected - action).abs().flatten(1).mean(1) / step.std
        torch.testing.assert_close(result.shift[:, position], shift, atol=1e-5, rtol=1e-4)


def test_with_sampled_targets_the_trained_action_is_the_next_state() -> None:
    result = rolled(action_target="sampled")
    assert torch.equal(result.targets[:, :-1], result.states[:, 1:])
    assert result.shift.abs().max() == 0


def test_log_probs_are_densities_of_the_transition() -> None:
    model = FakeModel()
    result = rolled(model=model, action_target="sampled")
    step, x_t = result.schedule.steps[0], result.states[:, 0]
    with torch.no_grad():
        condition = model.condition(batch().lq).repeat_interleave(3)
        mean = transition(step, model.denoise(x_t, step.timestep, condition, 1.0), x_t, action=x_t).mean
    density = torch.distributions.Normal(mean, step.std).log_prob(result.states[:, 1]).flatten(1).mean(1)
    torch.testing.assert_close(result.log_probs[:, 0], density, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gaussian_log_prob(result.states[:, 1], mean, step.std), density)


@pytest.mark.parametrize(
    ("settings", "scored"),
    [({}, [0, 1, 2, 3]), ({"reward_stride": 2}, [0, 2, 3]), ({"reward_at": "final"}, [3])],
)
def test_the_stride_chooses_what_is_scored_and_the_last_estimate_always_is(
    settings: dict[str, object], scored: list[int]
) -> None:
    result = rolled(**settings)
    assert sorted(result.blocks) == scored
    assert all(block.shape == (6, 16, 16, 3) and block.dtype == np.uint8 for block in result.blocks.values())


def test_records_hold_one_image_each_and_survive_the_wire() -> None:
    result = rolled(reward_stride=2, storage_dtype="bfloat16")
    scores = {index: np.arange(6, dtype=np.float32) + index for index in result.blocks}
    gt_scores = np.array([4.0, 4.5], dtype=np.float32)
    first, second = complete(result, {"iqa": scores}, gt_scores, metas(dtype="bfloat16"), ALONE)
    assert first.rewards[:, 0].tolist() == [0, 1, 2] and second.rewards[:, 3].tolist() == [6, 7, 8]
    assert first.rewards[:, 1].isnan().all() and not first.scored[:, 1].any()
    assert not first.terms  # they are the rewards
    assert second.gt_reward == 4.5 and second.final_reward.tolist() == [6, 7, 8]
    again = decode(encode(second))
    assert torch.equal(again.states, second.states) and torch.equal(again.log_probs, second.log_probs)


def test_a_reward_of_two_terms_is_their_weighted_sum_and_the_record_has_both() -> None:
    result = rolled(reward_stride=2)
    gt, psnr = np.repeat(to_uint8(batch().gt), 3, 0), full_reference("psnr")
    scores = {index: np.arange(6, dtype=np.float32) + index for index in result.blocks}
    decibel = {index: psnr.score(block, gt) for index, block in result.blocks.items()}
    terms = RewardTerms((Term("iqa"), Term("psnr", 0.25, "psnr", served=False)))
    records = [decode(encode(r)) for r in complete(result, {"iqa": scores, "psnr": decibel}, None, metas(), terms)]
    rewards = torch.cat([r.rewards for r in records])
    for index, block in result.blocks.items():
        expected = np.array([peak_signal_noise_ratio(a, b) for a, b in zip(gt, block, strict=True)])
        assert np.allclose(rewards[:, index], scores[index] + 0.25 * expected, atol=1e-4)
        assert torch.cat([r.terms["iqa"] for r in records])[:, index].tolist() == scores[index].tolist()
        assert np.allclose(torch.cat([r.terms["psnr"] for r in records])[:, index], expected, atol=1e-4)
    assert rewards[:, 1].isnan().all() and all(t[:, 1].isnan().all() for r in records for t in r.terms.values())
    assert torch.cat([r.final_reward for r in records]).tolist() == scores[3].tolist()


def test_a_term_without_scores_is_an_error_and_no_zero() -> None:
    result, terms = rolled(), RewardTerms((Term("iqa"), Term("psnr", 1.0, "psnr", served=False)))
    scores = {index: np.arange(6, dtype=np.float32) for index in result.blocks}
    with pytest.raises(KeyError, match="psnr"):
        complete(result, {"iqa": scores}, None, metas(), terms)


def test_a_final_reward_stands_for_every_step() -> None:
    result = rolled(reward_at="final")
    record = complete(result, {"iqa": {3: np.arange(6, dtype=np.float32)}}, None, metas(), ALONE)[0]
    assert record.scored.all() and torch.equal(record.rewards, torch.arange(3.0)[:, None].expand(3, 4))


def test_the_error_is_the_distance_of_the_final_output_to_the_ground_truth() -> None:
    result = rolled()
    images = torch.from_numpy(result.blocks[3]).permute(0, 3, 1, 2).float() / 255
    expected = (images - batch().gt.repeat_interleave(3, 0)).flatten(1).norm(dim=1)
    torch.testing.assert_close(result.error_l2, expected, atol=0.1, rtol=0.02)


def test_images_are_scored_with_the_colours_that_they_are_restored_with() -> None:
    plain, fixed = (rolled(sampler=replace(SAMPLER, colour_fix=how)) for how in ("none", "adain"))
    clean = FakeModel().condition(batch().lq).clean.repeat_interleave(3, 0).mean((2, 3)) * 255
    means = [[torch.from_numpy(b).float().mean((1, 2)) for b in r.blocks.values()] for r in (plain, fixed)]
    assert all((m - clean).abs().max() > 10 for m in means[0]) and all((m - clean).abs().max() < 5 for m in means[1])
    assert torch.equal(plain.states, fixed.states) and torch.equal(plain.log_probs, fixed.log_probs)


@pytest.mark.parametrize("name", ["action_target", "reward_at", "storage_dtype", "denoise_dtype"])
def test_an_unknown_choice_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RolloutSettings(**{name: "nonsense"})  # type: ignore[arg-type]


class Watched(FakeModel):
    """Notes how many images are cleaned and decoded together, and under which type of products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[tuple[int, bool]]] = {"condition": [], "decode": [], "denoise": []}

    def note(self, what: str, count: int) -> None:
        self.seen[what].append((count, torch.is_autocast_enabled("cpu")))

    def condition(self, lq, image_ids=()):  # type: ignore[no-untyped-def]
        self.note("condition", len(lq))
        return super().condition(lq, image_ids)

    def decode(self, latents, condition=None):  # type: ignore[no-untyped-def]
        self.note("decode", len(latents))
        return super().decode(latents, condition)

    def denoise(self, x_t, *others):  # type: ignore[no-untyped-def]
        self.note("denoise", len(x_t))
        return super().denoise(x_t, *others)


@pytest.mark.parametrize(("pixels", "cleaned", "decoded"), [(10**9, 2, 6), (4 * 16 * 16, 2, 4), (1, 1, 1)])
def test_images_are_cleaned_and_decoded_within_a_bound_of_pixels(pixels: int, cleaned: int, decoded: int) -> None:
    model = Watched()
    result = rolled(model=model, decode_pixels=pixels)
    assert max(count for count, _ in model.seen["condition"]) == cleaned
    assert max(count for count, _ in model.seen["decode"]) == decoded
    unbounded = rolled()
    assert torch.allclose(result.targets, unbounded.targets, atol=1e-6)
    for index, block in unbounded.blocks.items():
        assert np.abs(result.blocks[index].astype(int) - block).max() <= 1


def test_eight_pictures_of_512_are_decoded_together_and_two_of_1024_by_default() -> None:
    from restoration.images import images_within

    settings = RolloutSettings()
    assert [images_within(settings.decode_pixels, side, side) for side in (256, 512, 1024, 2048)] == [32, 8, 2, 1]


def test_each_pass_computes_in_its_own_type_and_auto_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"condition": "condition_dtype", "decode": "decode_dtype", "denoise": "denoise_dtype"}
    for what, name in names.items():
        model = Watched()
        rolled(model=model, **{name: "bfloat16"})
        for other, seen in model.seen.items():
            assert {half for _, half in seen} == {other == what}
    for supported in (True, False):
        monkeypatch.setattr("restoration.precision.multiplies_bf16", lambda device, found=supported: found)
        model = Watched()
        rolled(model=model, **dict.fromkeys(names.values(), "auto"))
        assert {half for seen in model.seen.values() for _, half in seen} == {supported}


def test_a_chain_without_a_decision_is_refused_by_the_setting_that_makes_it() -> None:
    with pytest.raises(ValueError, match=r"sampler\.steps=1: .* at least 2 steps"):
        rolled(sampler=SamplerSettings(steps=1), model=OtherChain(ddim_schedule(ALPHAS, 1, 1.0, "epsilon")))


def test_an_image_that_is_not_finite_is_refused() -> None:
    model = FakeModel()
    model.decode = lambda latents, condition=None: torch.full((len(latents), 3, 16, 16), torch.nan)  # type: ignore
    with pytest.raises(ValueError, match="not finite"):
        rolled(model=model)
