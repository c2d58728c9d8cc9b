from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from cluster.report.alarm import alarms
from restoration.evaluate import Row


def rows(reward: float, psnr: float, brightness: float, count: int = 12, draw: int = 0) -> list[Row]:
    """Images of the same qualities every time, measured with noise that `draw` decides."""
    noise, qualities = np.random.default_rng(draw), np.random.default_rng(7).normal(size=count)
    return [
        Row(
            str(i),
            {
                "psnr": psnr + quality + 0.02 * noise.normal(),
                "reward": reward + quality + 0.01 * noise.normal(),
                "brightness": brightness + 0.1 * quality,
                "gt_brightness": 0.5 + 0.1 * quality,
                "gt_reward": 4.0,
                "input_psnr": 15.0,
            },
        )
        for i, quality in enumerate(qualities)
    ]


def test_a_reward_that_rises_while_psnr_falls_raises_the_alarm() -> None:
    (found,) = alarms(rows(2, 25, 0.5), rows(2.1, 24.8, 0.5, draw=1))
    assert re.fullmatch(r"the reward rises while psnr falls by 0\.(19|20)\d\d", found)


def test_a_reward_that_rises_with_the_light_raises_the_alarm() -> None:
    found = alarms(rows(2, 25, 0.5), rows(2.1, 25, 0.47))
    assert found == ["the reward rises while brightness moves away from the ground truth's by 0.0300"]


def test_a_reward_that_only_compares_with_the_ground_truth_raises_no_alarm() -> None:
    without = [
        [replace(row, values={k: v for k, v in row.values.items() if k != "reward"}) for row in side]
        for side in (rows(2, 25, 0.5), rows(2.1, 24.8, 0.5, draw=1))
    ]
    assert alarms(*without) == []


def test_no_alarm_when_all_rise_or_the_reward_does_not() -> None:
    assert alarms(rows(2, 25, 0.45), rows(2.1, 25.1, 0.47)) == []
    assert alarms(rows(2, 25, 0.5), rows(1.9, 24, 0.4)) == []


def test_a_change_within_its_error_is_no_alarm() -> None:
    base, now = rows(2, 25, 0.5), rows(2.1, 25, 0.5)
    rng = np.random.default_rng(1)
    noisy = [Row(r.image_id, r.values | {"psnr": r.values["psnr"] + rng.normal()}) for r in now]
    assert alarms(base, noisy) == []


def test_a_single_image_or_none_proves_nothing() -> None:
    assert alarms(rows(2, 25, 0.5, 1), rows(3, 20, 0.1, 1)) == [] and alarms([], []) == []


def test_images_that_lack_a_figure_are_left_out_of_its_alarm_and_no_other() -> None:
    base, now = rows(2, 25, 0.5), rows(2.1, 24.8, 0.5, draw=1)
    base[3].values["psnr"] = float("nan")
    now[5].values["reward"] = float("nan")
    (found,) = alarms(base, now)
    assert re.fullmatch(r"the reward rises while psnr falls by 0\.(1[89]|2[01])\d\d", found)
    for row in base:
        row.values["psnr"] = float("nan")
    assert alarms(base, now) == []
