from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.deqa import TINY, random_network
from cluster.run.reward_memory import reward_memory
from reward_service.settings import RewardSettings


def test_a_replica_of_deqa_holds_its_8_2_billion_numbers_and_the_work_of_a_batch() -> None:
    on_gpu = reward_memory(RewardSettings("deqa", num_gpus=0.5))
    assert on_gpu is not None and on_gpu.role == "reward"
    assert on_gpu.kept["weights"] == pytest.approx(16.4e9, rel=0.01)
    assert 1e9 < sum(on_gpu.passes.values()) < 3e9
    on_cpu = reward_memory(RewardSettings("qalign"))
    assert on_cpu is not None and on_cpu.kept["weights"] == 2 * on_gpu.kept["weights"]
    half = reward_memory(RewardSettings("deqa", params={"batch": 16, "dtype": "float16"}))
    assert half is not None and half.kept == on_gpu.kept
    assert 2 * sum(half.passes.values()) == pytest.approx(sum(on_gpu.passes.values()))


def test_sizes_are_those_of_the_folder_where_it_is_there(tmp_path: Path) -> None:
    visual = {"visual_model": vars(TINY.vision), "visual_abstractor": vars(TINY.abstractor)}
    own = {k: v for k, v in vars(TINY).items() if k not in ("vision", "abstractor")}
    (tmp_path / "config.json").write_text(json.dumps({**own, "visual_config": visual}))
    small = reward_memory(RewardSettings("deqa", params={"weights": str(tmp_path)}))
    assert small is not None
    assert small.kept["weights"] == sum(p.nbytes for p in random_network(TINY).parameters())


def test_of_another_scorer_nothing_is_said() -> None:
    assert reward_memory(RewardSettings("piqe")) is None
