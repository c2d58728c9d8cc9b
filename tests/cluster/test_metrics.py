"""What a driver exports: figures of steps and evaluations, and gauges for as long as it lives."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import metrics as module
from cluster.metrics import RunMetrics


class Exported:
    """Stands in for Ray: {(name, *values of tags): value}, and how often each was set."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.times: dict[str, int] = {}

    def make(self, name: str, kind: str, keys: tuple[str, ...], description: str, default: dict[str, str]) -> Any:
        exported = self

        class Metric:
            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tuple(tags) == keys
                exported.values[(name, *tags.values())] = value
                exported.times[name] = exported.times.get(name, 0) + 1

            inc = observe = set

        return Metric()


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    made = Exported()
    monkeypatch.setattr(module, "ray_is_running", lambda: True)
    monkeypatch.setattr(module, "_make", made.make)
    monkeypatch.setattr(module, "REPEAT_S", 0.01)
    yield made


def until(true: Any, limit_s: float = 5.0) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.005)
    return False


def test_a_step_is_exported_with_its_terms_its_ratios_and_its_time_and_what_it_lacks_is_not(exported: Exported) -> None:
    metrics = RunMetrics("driver", "a")
    record = {"term_iqa_mean": 2.5, "term_iqa_std_within": 9.0, "term_psnr_mean": 21, "iteration_s": 12.5}
    record |= {"ratio_mean": 1.0, "ratio_min": 0.9, "ratio_max": 1.2, "ratio_first": 1e-6, "clip_fraction": 0.25}
    metrics.step(record, 0.75)
    metrics.close()
    assert exported.values == {
        ("reward_term", "iqa"): 2.5,
        ("reward_term", "psnr"): 21.0,
        ("ratio", "mean"): 1.0,
        ("ratio", "min"): 0.9,
        ("ratio", "max"): 1.2,
        ("ratio_first_deviation",): 1e-6,
        ("clip_fraction",): 0.25,
        ("iteration_seconds",): 12.5,
        ("overlap",): 0.75,
    }
    exported.values.clear()
    lacking = RunMetrics("driver", "a")
    lacking.step({"ratio_mean": None, "term_iqa_mean": math.nan}, None)
    assert exported.values == {}


def test_an_evaluation_is_exported_without_figures_of_inputs_and_ground_truth(exported: Exported) -> None:
    metrics = RunMetrics("driver", "a")
    metrics.heldout("now", {"psnr": 20.0, "reward": 3.0, "input_psnr": 9.0, "gt_reward": 4.0, "lpips": math.nan})
    metrics.heldout_worse(0)
    metrics.store(5, None)
    metrics.close()
    assert exported.values == {
        ("heldout", "now", "psnr"): 20.0,
        ("heldout", "now", "reward"): 3.0,
        ("heldout_worse",): 0,
        ("store_used_bytes",): 5,
    }


def test_gauges_are_exported_again_and_again_until_the_run_ends_and_counters_once(exported: Exported) -> None:
    metrics = RunMetrics("driver", "a")
    metrics.begin(3, 10, 60.0, 0.2)
    metrics.dropped("stale", 2)
    assert until(lambda: exported.times["iteration"] > 3 and exported.times["clip"] > 3)
    assert exported.times["dropped_samples"] == 1 and exported.values[("iteration",)] == 3
    told = exported.values[("progress_timestamp_seconds",)]
    assert abs(time.time() - told) < 5
    metrics.progress(4, 4)
    assert until(lambda: exported.values[("iteration",)] == 4)
    metrics.close()
    assert until(lambda: not any(thread.name == "gauges" for thread in threading.enumerate()))
    times = dict(exported.times)
    metrics.progress(5, 5)  # of a step that ends while the run does
    time.sleep(0.05)
    assert exported.times["clip"] == times["clip"] and exported.times["iteration"] <= times["iteration"] + 1


def test_metrics_that_nobody_holds_end_their_thread(exported: Exported) -> None:
    metrics = RunMetrics("driver", "a")
    metrics.progress(1, 1)
    assert until(lambda: exported.times["iteration"] > 2)
    del metrics
    time.sleep(0.05)
    times = exported.times["iteration"]
    time.sleep(0.05)
    assert exported.times["iteration"] == times
