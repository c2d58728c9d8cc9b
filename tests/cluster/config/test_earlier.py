"""Runs of earlier versions can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.models import load_run_config


@pytest.mark.parametrize(
    ("rollout", "terms"),
    [
        ("{reward: iqa, fidelity_coef: 0.0}", []),
        ("{reward: iqa, fidelity_coef: 0.3}", [("piqe", 1.0), ("psnr", 0.3)]),
        ("{reward: reconstruction, fidelity_coef: 0.0}", [("piqe", 0.0), ("reconstruction", 1.0)]),
        ("{crop: 64}", []),
    ],
)
def test_the_reward_of_a_run_before_there_were_terms_is_what_it_was(
    tmp_path: Path, rollout: str, terms: list[tuple[str, float]]
) -> None:
    (tmp_path / "config.yaml").write_text(f"model: m\nrollout: {rollout}\nreward: {{scorer: piqe}}\n")
    reward = load_run_config(tmp_path).reward
    assert [(t.name, t.weight) for t in reward.resolved.terms] == (terms or [("piqe", 1.0)])
