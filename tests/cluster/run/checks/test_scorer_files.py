from __future__ import annotations

from pathlib import Path

import pytest

from cluster.run.checks.scorer_files import BROUGHT, scorer_files
from reward_service.scorers import SCORERS
from tests.cluster.run.checks.cases import config_of

FOLDERS = {"deqa": "weights", "qalign": "weights", "level_tokens": "weights", "clip_iqa": "model"}


@pytest.mark.parametrize("scorer", FOLDERS)
def test_weights_that_are_not_there_are_told_with_what_to_supply(scorer: str, tmp_path: Path) -> None:
    key = f"reward.params.{FOLDERS[scorer]}"
    for given, said in (((), "not given"), ((f"{key}=/nowhere/x",), "/nowhere/x is not there")):
        (problem,) = scorer_files(config_of(f"reward.scorer={scorer}", *given))
        assert problem.key == key and said in str(problem) and "docs/reward.md" in str(problem)
        assert ("RN50.pt" if scorer == "clip_iqa" else "folder of") in str(problem)
    assert [*scorer_files(config_of(f"reward.scorer={scorer}", f"{key}={tmp_path}"))] == []


def test_the_network_below_a_lora_is_looked_for_where_one_is_named(tmp_path: Path) -> None:
    there = ("reward.scorer=deqa", f"reward.params.weights={tmp_path}")
    (problem,) = scorer_files(config_of(*there, "reward.params.base=/nowhere/base"))
    assert problem.key == "reward.params.base" and "mplug-owl2-llama2-7b" in str(problem)
    assert [*scorer_files(config_of(*there, f"reward.params.base={tmp_path}"))] == []


def test_other_scorers_need_nothing_and_of_other_machines_nothing_is_known() -> None:
    assert BROUGHT.keys() <= SCORERS.keys()
    assert [*scorer_files(config_of())] == []
    assert [*scorer_files(config_of("reward.scorer=deqa", "cluster.address=auto"))] == []
