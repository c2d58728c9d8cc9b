from dataclasses import replace

import pytest
import torch

from learner.advantage import AdvantageSettings, RewardTracks
from learner.batch import GlobalBatch, assemble
from learner.statistics import batch_summary
from tests.learner.fakes import SAMPLER, FakeModel, roll_out_group

MODEL = FakeModel()


def batch_of(*rollouts: int, **options: object) -> GlobalBatch:
    groups = [roll_out_group(MODEL, f"i{j}", j, rollouts=k, **options) for j, k in enumerate(rollouts)]  # type: ignore[arg-type]
    return assemble(groups, RewardTracks(AdvantageSettings()), MODEL.schedule(SAMPLER).fingerprint)


def test_the_summary_is_that_of_all_rows_however_many_a_group_has() -> None:
    batch = batch_of(2, 5, 1, unscored=(1,))
    summary = batch_summary(batch)
    final = torch.cat([g.final_reward for g in batch.groups]).double()
    rewards = torch.cat([g.rewards[g.scored] for g in batch.groups]).double()
    advantages = torch.tensor([a for g in batch.advantages for row in g for a in row.values()], dtype=torch.float64)
    within = [float(g.final_reward.double().std(correction=0)) for g in batch.groups]
    expected = {
        "groups": 3.0,
        "trajectories": 8.0,
        "reward_mean": float(final.mean()),
        "reward_std": float(final.std(correction=0)),
        "reward_std_within": sum(within) / 3,
        "reward_all_steps": float(rewards.mean()),
        "advantage_mean": float(advantages.mean()),
        "advantage_std": float(advantages.std(correction=0)),
        "advantage_max": float(advantages.abs().max()),
        "error_l2": float(torch.cat([g.error_l2 for g in batch.groups]).double().mean()),
        "error_l1": float(torch.cat([g.error_l1 for g in batch.groups]).double().mean()),
        "shift": 0.0,
    }
    assert summary == pytest.approx(expected, rel=1e-12)
    assert within[2] == 0 and within[1] > 0


def test_each_term_of_a_reward_has_its_mean_and_its_spread_within_groups_by_name() -> None:
    batch = batch_of(2, 5)
    groups = tuple(replace(g, terms={"psnr": g.rewards * 7 + 20}) for g in batch.groups)
    found = batch_summary(replace(batch, groups=groups))
    last = [g.terms["psnr"][:, -1].double() for g in groups]
    assert found["term_psnr_mean"] == pytest.approx(float(torch.cat(last).mean()))
    assert found["term_psnr_std_within"] == pytest.approx(sum(float(v.std(correction=0)) for v in last) / 2)
    assert not any(name.startswith("term_") for name in batch_summary(batch))


def test_what_was_not_measured_is_none_and_never_zero() -> None:
    batch = batch_of(2, unscored=(0, 1, 2))
    summary = batch_summary(batch)
    unknown = {name for name, value in summary.items() if value is None}
    assert unknown == {"reward_all_steps", "advantage_mean", "advantage_std", "advantage_max"}


def test_one_large_reward_offset_does_not_hide_the_spread_within_groups() -> None:
    batch = batch_of(4, 4)
    shifted = tuple(replace(g, final_reward=g.final_reward + 4096) for g in batch.groups)
    expected = [float(g.final_reward.double().std(correction=0)) for g in shifted]
    found = batch_summary(replace(batch, groups=shifted))["reward_std_within"]
    assert found == pytest.approx(sum(expected) / 2, rel=1e-9)
