from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.report.records import MetricsLog, read_metrics, series, without_timings


def train(iteration: int, **more: object) -> dict[str, object]:
    return {"kind": "train", "iteration": iteration, **more}


def test_each_record_is_one_line_that_keeps_every_digit(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.append(
            train(1, reward=np.float64(0.1) + 0.2, steps=np.int64(3), loss=torch.tensor(0.5), by=[1, {"a": 2.5}])
        )
        # Visible to another reader before the log is closed.
        assert read_metrics(tmp_path) == [train(1, reward=0.1 + 0.2, steps=3, loss=0.5, by=[1, {"a": 2.5}])]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.append(train(1, a=math.nan, b=np.float32("inf"), c=torch.tensor([1.0, math.nan])))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == train(1, a=None, b=None, c=[1.0, None])
    assert series(read_metrics(tmp_path), "a") == ([], [])


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        with MetricsLog(tmp_path / name, tensorboard=False) as log:
            for i in range(1, 6 if name == "whole" else 5):
                log.append(train(i, reward=i / 3))
    path = tmp_path / "resumed" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "train", "itera')  # killed while writing
    assert len(read_metrics(tmp_path / "resumed")) == 4
    with MetricsLog(tmp_path / "resumed", tensorboard=False) as log:
        assert log.truncate_after(2) == 2
        for i in range(3, 6):
            log.append(train(i, reward=i / 3))
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_torn_line_alone_leaves_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind')
    MetricsLog(tmp_path, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_what_can_not_be_written_is_refused_and_leaves_no_half_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(ValueError, match="can't write a Path|can't write a PosixPath"):
            log.append(train(1, path=tmp_path))
        with pytest.raises(ValueError, match="needs 'kind' and 'iteration'"):
            log.append({"reward": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_damaged_line_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no metrics; give the folder of a run"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "iteration": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        read_metrics(tmp_path)


def test_records_are_selected_and_compared_without_their_timings(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.append(train(1, reward=1.0, step_s=3.0, seconds_learn=1.0, images_per_s=2.0, peak_mb=9.0))
        log.append({"kind": "eval", "who": "now", "iteration": 1, "psnr": 20.0})
    assert without_timings(read_metrics(tmp_path, "train")) == [train(1, reward=1.0)]
    assert series(read_metrics(tmp_path, where=lambda r: r.get("who") == "now"), "psnr") == ([1], [20.0])


def test_tensorboard_holds_the_same_scalars_and_forgets_what_a_resume_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        for i in (1, 2, 3):
            log.append(train(i, reward=float(i), bad=math.nan, grad={"rl": 0.5}))
        log.append({"kind": "eval", "who": "base", "iteration": 0, "psnr": 20.0})
    with MetricsLog(tmp_path) as log:
        log.truncate_after(1)
        log.append(train(2, reward=20.0))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward")] == [(1, 1.0), (2, 20.0)]
    assert [e.value for e in events.Scalars("eval/base/psnr")] == [20.0]
    assert set(events.Tags()["scalars"]) == {"train/reward", "train/grad/rl", "eval/base/psnr"}


def test_a_tensorboard_that_cannot_be_written_is_told_once_and_the_metrics_go_on(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    lost: list[Exception] = []
    with MetricsLog(tmp_path, lost=lost.append) as log:
        for i in (1, 2):
            log.append(train(i, reward=1.0))
    assert len(lost) == 1 and isinstance(lost[0], OSError) and len(read_metrics(tmp_path)) == 2
    (tmp_path / "metrics.jsonl").unlink()
    with (
        pytest.warns(UserWarning, match="no figures for TensorBoard any more: .*exists"),
        MetricsLog(tmp_path) as log,
    ):
        log.append(train(1, reward=1.0))


def test_a_tensorboard_whose_disk_fills_up_meanwhile_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lost: list[Exception] = []
    with MetricsLog(tmp_path, lost=lost.append) as log:
        log.append(train(1, reward=1.0))
        monkeypatch.setattr(log._writer, "flush", full)
        for i in (2, 3, 4):
            log.append(train(i, reward=1.0))
    assert [getattr(error, "errno", None) for error in lost] == [errno.ENOSPC]
    assert [r["iteration"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]
