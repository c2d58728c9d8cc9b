from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.paper.hours import Hours, hours_of
from cluster.paper.plan import make_plan
from cluster.paper.scales import SCALES
from cluster.plan.estimate import Arithmetic
from cluster.plan.gpus import gpu_kind
from cluster.run.machine import Machine
from tests.cluster.paper.places import SMALL, wanted

WORK = Arithmetic(condition=1e11, denoise=1e12, decode=1e12, replay=4e12, sft=4e12, forward=1e12, frozen_bytes=2e9,
                  trained=10**7, score={})  # fmt: skip
GPUS = ("actors.num_gpus=1", "ranks.num_gpus=1", "reward.num_gpus=1", "reward.scorer=piqe", "learner.micro_batch=2")


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic of a model, which takes seconds to count (`tests/restoration/test_flops.py`)."""
    monkeypatch.setattr("cluster.plan.counting.arithmetic", lambda *_: WORK)


def estimated(sets: Path, model: Path, out: Path, *words: str, scale: str = "tiny", kind: str = "h100") -> Hours:
    asked = wanted("3", out, [sets], [f"diffbir={model}"], models=frozenset({"diffbir"}), scale=SCALES[scale])
    plan = make_plan(replace(asked, words=(*SMALL, *words)))
    return hours_of(plan, gpu_kind(kind), Machine())


def test_hours_grow_with_iterations_and_on_slower_gpus(sets: Path, model: Path, tmp_path: Path) -> None:
    short, long = (estimated(sets, model, tmp_path, *GPUS, f"iterations={n}") for n in (100, 200))
    assert short.training > 0 and short.measuring > 0 and short.unknown == ()
    assert long.training == pytest.approx(2 * short.training, rel=0.1) and long.measuring == short.measuring
    assert short.unscored == 1  # of the training; the base model is only measured
    slow = estimated(sets, model, tmp_path, *GPUS, "iterations=100", kind="l4")
    assert slow.measuring > 2 * short.measuring


def test_what_computes_on_cpus_has_no_estimate_and_says_so(sets: Path, model: Path, tmp_path: Path) -> None:
    found = estimated(sets, model, tmp_path)
    assert (found.training, found.measuring) == (0.0, 0.0) and len(found.unknown) == 2
    assert all("it computes on CPUs" in why for why in found.unknown)


def test_fine_tuning_before_is_not_in_the_sum_and_that_is_told(sets: Path, model: Path, tmp_path: Path) -> None:
    asked = wanted(
        "3", tmp_path, [sets], [f"diffbir={model}"], models=frozenset({"diffbir"}), sft=Path("configs/sft.yaml")
    )
    plan = make_plan(replace(asked, words=(*SMALL, *GPUS)))
    found = hours_of(plan, gpu_kind("h100"), Machine())
    assert found.training > 0 and found.unknown == ("diffbir.rain13k.tune: fine-tuning isn't estimated",)
