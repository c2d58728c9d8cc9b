from __future__ import annotations

import pytest

from tests.cluster.run.checks.cases import alone


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["adapt.mode=full", "adapt.rank=4"], "adapt.rank=4"),
        (["objective.recipe=diff_sft", "objective.rl_coef=2"], "objective.rl_coef=2.0"),
        (["advantage.stats=batch", "advantage.track_length=8"], "advantage.track_length=8"),
        (["rollout.reward_at=final", "rollout.reward_stride=2"], "rollout.reward_stride=2"),
        (["cluster.address=auto", "cluster.num_gpus=1"], "cluster.num_gpus=1"),
        (["store.password_env=X"], "store.password_env=X"),
        (["optimiser.zero_stage=3", "ranks.count=2"], "learner.norms_every=10"),
        (["optimiser.zero_stage=2"], "optimiser.zero_stage=2"),
        (["optimiser.bucket_mb=50"], "optimiser.bucket_mb=50.0"),
        (["objective.recipe=diff_sft", "learner.old_log_probs=recompute"], "learner.old_log_probs=recompute"),
    ],
)
def test_a_key_that_has_no_effect_is_told(overrides: list[str], key: str) -> None:
    warnings = alone(*overrides).warnings
    assert any(w.startswith(f"{key}: ") or w.startswith(f"{key} with") for w in warnings), warnings
