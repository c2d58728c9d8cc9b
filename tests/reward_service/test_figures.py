"""Figures of a replica, and how many replicas its load wants: plain arithmetic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reward_service.batching import BatchReport
from reward_service.figures import WINDOW_S, Figures, merged, percentile
from reward_service.scaling import wanted_replicas


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def report(images: int, *queued_s: float, errors: tuple[str, ...] = ()) -> BatchReport:
    return BatchReport(len(queued_s), images, 0.5, errors, 8, queued_s)


def test_figures_count_images_of_the_last_minute_fill_waits_and_failures() -> None:
    clock = Clock()
    figures = Figures(clock)
    clock.now += 10
    figures.observe(report(8, 0.1, 0.2))
    figures.observe(report(4, 0.4, errors=("scorer",)))
    figures.observe(BatchReport(1, 0, 0.0, ("timeout",)))
    found = merged([figures.summary()])
    assert (found["images"], found["images_per_s"], found["fill"]) == (12, 1.2, 0.75)
    assert found["failures"] == {"scorer": 1, "timeout": 1}
    assert (found["queue_p50_s"], found["queue_p99_s"], found["scorer_p50_s"]) == (0.2, 0.4, 0.5)
    clock.now += WINDOW_S + 1
    assert figures.summary()["images_per_s"] == 0


def test_figures_of_several_replicas_are_those_of_all_their_blocks() -> None:
    one, two = Figures(Clock()), Figures(Clock())
    one.observe(report(8, *[0.1] * 99))
    two.observe(report(2, 5.0))
    found = merged([one.summary(), two.summary()])
    assert (found["images"], found["queue_p50_s"], found["queue_p99_s"]) == (10, 0.1, 0.1)
    nothing = merged([Figures(Clock()).summary()])
    assert nothing["fill"] is nothing["queue_p50_s"] is None and nothing["images_per_s"] == 0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(share: float, value: float) -> None:
    assert percentile([4.0, 2.0, 1.0, 3.0], share) == value


@pytest.mark.parametrize(
    ("images", "requests", "queued", "wanted"),
    [
        ((), (), 0, 0.0),
        ((64.0,), (4.0,), 0, 0.5),
        ((128.0, 128.0), (2.0, 4.0), 0, 2.0),
        ((128.0,), (4.0,), 8, 3.0),  # requests that wait are as large as those that are served: 32 images
        ((), (), 256, 2.0),
    ],
)
def test_replicas_are_wanted_by_images_whatever_the_requests_that_bring_them(
    images: tuple[float, ...], requests: tuple[float, ...], queued: float, wanted: float
) -> None:
    context: Any = SimpleNamespace(
        current_num_replicas=max(len(images), 1),
        target_num_replicas=1,
        config=SimpleNamespace(target_ongoing_requests=128.0),
        aggregated_metrics={"images": dict(enumerate(images)), "requests": dict(enumerate(requests))},
        total_queued_requests=queued,
    )
    assert wanted_replicas(context)[0] == wanted


def test_without_a_replica_the_target_stays() -> None:
    context: Any = SimpleNamespace(current_num_replicas=0, target_num_replicas=2)
    assert wanted_replicas(context)[0] == 2
