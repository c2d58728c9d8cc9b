"""When held-out evaluations are due, also over a stop."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.config.recipe import RunConfig
from cluster.metrics import RunMetrics
from cluster.report.records import MetricsLog, read_metrics
from cluster.run import heldout as module
from cluster.run.failures import Failure, Fatal, Kind
from cluster.run.heldout import HeldOut
from cluster.run.looking import ForLooking
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import Row, write_csv
from restoration.images import read_pixels, write_image

VALUES = {name: 1.0 for name in ("psnr", "ssim", "reward", "input_psnr", "input_ssim", "input_reward", "gt_reward")}


class Learning:
    """Checkpoints of iterations 2 and 4 are on disk."""

    def __init__(self) -> None:
        self.durable, self.protected = 4, set[int]()

    def on_disk(self) -> list[int]:
        return [2, 4]

    def weights_of(self, iteration: int) -> dict[str, Any]:
        return {"now": f"weights {iteration}", "ema": f"average {iteration}"}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "describe", lambda folder: SimpleNamespace(size_multiple=8))
    for kind in ("input", "target"):
        (tmp_path / kind).mkdir()
        for name in ("a", "b"):
            write_image(tmp_path / kind / f"{name}.png", np.zeros((16, 16, 3), np.uint8))
    log = MetricsLog(tmp_path, tensorboard=False)
    notes: list[str] = []
    display = SimpleNamespace(note=notes.append, update=lambda *_, **__: None, done=0)

    def made(**config: Any) -> HeldOut:
        optimiser = {"ema": 0.5}
        settings = RunConfig(
            model=tmp_path, iterations=4, optimiser=optimiser, evaluation={"every": 2, "strips": 0, **config}
        )
        pairs = PairedFolder(tmp_path / "input", tmp_path / "target")
        looking = ForLooking(notes.append)
        metrics = RunMetrics("driver", "demo")
        return HeldOut(settings, tmp_path, pairs, Learning(), log, display, looking, lambda: None, metrics)  # type: ignore[arg-type]

    made.notes, made.log = notes, log  # type: ignore[attr-defined]
    return made


def finish(held: HeldOut) -> list[Any]:
    """Do all parts; the weights of each."""
    weights = []
    while not held.advance():
        if (part := held.evaluations.take()) is None:  # its weights are being read
            continue
        weights.append(part.weights)
        held.evaluations.done(part, [Row(i, dict(VALUES)) for i in part.image_ids], {})
    return weights


def test_a_large_checkpoint_is_read_beside_the_run_and_again_where_the_learner_fell_back(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BRIEF_S", 0.01)
    held, there, read = make(), threading.Event(), list[int]()
    held.begin(0)
    finish(held)
    original = held.learning.weights_of

    def slowly(iteration: int) -> Any:
        read.append(iteration)
        assert there.wait(20)
        return original(iteration)

    held.learning.weights_of = slowly
    held.learned(2)
    assert not held.advance() and not held.advance() and held.backlog == 1 and held.evaluations.take() is None
    held.rewind(1)
    held.learned(2)
    assert not held.advance()
    there.set()
    assert finish(held) == ["weights 2", "average 2"] and read == [2, 2]  # the first of a learner that is no more


def recorded(folder: Path) -> list[tuple[int, str]]:
    return [(r["iteration"], r["who"]) for r in read_metrics(folder, "eval")]


def test_an_evaluation_waits_for_its_checkpoint_and_protects_it(make: Any, tmp_path: Path) -> None:
    held = make()
    held.begin(0)
    finish(held)
    held.learning.durable = 1
    held.learning.protected.add(2)
    held.learned(1)
    held.learned(2)
    assert held.backlog == 1 and not held.advance() and held.evaluations.take() is None
    held.learning.durable = 2
    assert finish(held) == ["weights 2", "average 2"]
    assert recorded(tmp_path) == [(0, "base"), (2, "now"), (2, "ema")] and held.learning.protected == set()


def test_a_stop_between_two_evaluations_of_one_iteration_loses_neither(make: Any, tmp_path: Path) -> None:
    write_csv(tmp_path / "evaluation" / "base.csv", [Row(i, dict(VALUES)) for i in "ab"])
    make.log.append({"kind": "eval", "iteration": 0, "who": "base"})
    write_csv(tmp_path / "evaluation" / "rl.csv", [Row(i, dict(VALUES)) for i in "ab"])
    make.log.append({"kind": "eval", "iteration": 2, "who": "now"})
    held = make()
    held.begin(4)
    assert held.learning.protected == {2, 4}
    assert finish(held) == ["average 2", "weights 4", "average 4"]


def test_an_evaluation_whose_checkpoint_is_gone_is_told_and_left_out(make: Any, tmp_path: Path) -> None:
    held = make(every=1)
    held.begin(4)
    finish(held)
    assert {i for i, _ in recorded(tmp_path)} == {0, 2, 4}
    assert sum("its checkpoint is gone" in note for note in make.notes) == 2  # 1 and 3


def test_evaluations_behind_a_learner_that_fell_back_come_again(make: Any) -> None:
    held = make()
    held.begin(0)
    finish(held)
    held.learned(4)
    held.rewind(3)
    assert held.backlog == 0
    held.learned(4)
    assert held.backlog == 1


def test_an_iteration_whose_step_ended_unseen_is_evaluated_all_the_same(make: Any) -> None:
    held = make()
    held.begin(0)
    finish(held)
    held.rewind(4)
    assert held.backlog == 1
    held.rewind(4)
    assert held.backlog == 1 and finish(held) == ["weights 4", "average 4"]
    held.rewind(4)
    assert held.backlog == 0


def test_a_picture_left_out_of_the_base_is_left_out_of_all_and_none_at_all_ends_the_run(make: Any) -> None:
    held = make(batch=1)
    held.begin(0)
    poison = Failure(Kind.POISON, "picture", "a.png is cut off")
    held.failed(held.evaluations.take(), poison)
    finish(held)
    held.learned(2)
    while not len(held.evaluations):  # its weights are being read
        held.advance()
    assert held.evaluations.queue[0].image_ids == ("b",) and any("a.png is cut off" in n for n in make.notes)
    held.failed(held.evaluations.take(), poison)
    with pytest.raises(Fatal, match="no held-out picture can be evaluated: a.png is cut off"):
        held.advance()


def test_the_parts_that_are_left_are_those_under_way_those_that_wait_and_those_that_will_be_due(make: Any) -> None:
    held = make(batch=1)  # two parts an evaluation, of weights and of their average
    held.begin(0)
    assert held.parts_left(0) == 2 + 2 * 2 * 2  # the base's; iterations 2 and 4
    part = held.evaluations.take()
    assert held.parts_left(0) == 2 + 2 * 2 * 2
    held.evaluations.done(part, [Row(i, dict(VALUES)) for i in part.image_ids], {})
    assert held.parts_left(1) == 1 + 2 * 2 * 2
    held.learned(2)
    assert held.parts_left(2) == 1 + 2 * 2 * 2
    finish(held)
    assert held.parts_left(2) == 2 * 2
    held.learned(4)
    finish(held)
    assert held.parts_left(4) == 0


def test_a_figure_that_a_held_out_picture_lacks_is_told_once_and_left_out_of_the_means(
    make: Any, tmp_path: Path
) -> None:
    held = make()
    held.begin(0)
    for _ in range(2):
        part = held.evaluations.take()
        assert part is not None
        lacking = VALUES | {"ssim": float("nan")}
        missing = {"ssim": "it is 8x8"}
        rows = [Row(i, lacking, missing) if i == "a" else Row(i, dict(VALUES)) for i in part.image_ids]
        held.evaluations.done(part, rows, {})
        held.learned(4)
        held.advance()
    told = [note for note in make.notes if "ssim" in note]
    assert told == ["held-out a has no ssim, and means leave it out: it is 8x8"]
    (first, *_) = read_metrics(tmp_path, "eval")
    assert first["ssim"] == 1 and first["psnr"] == 1


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", ["write_csv", "write_image", "its line"])
def test_a_driver_killed_at_any_point_of_recording_the_base_leaves_one_line_of_it_after_the_next_start(
    before: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the file and its line."""
    with monkeypatch.context() as patch:
        held = make(strips=2)
        if before == "its line":
            patch.setattr(held.log, "append", killed)
        else:
            patch.setattr(module, before, killed)
        held.begin(0)
        with pytest.raises(KeyboardInterrupt):
            with_images(held)
    held = make(strips=2)
    held.begin(0)
    again = with_images(held)
    assert again == (0 if before == "its line" else 1) and recorded(tmp_path) == [(0, "base")]
    (line,) = read_metrics(tmp_path, "eval")
    assert line["psnr"] == 1.0 and held.base_images.keys() == {"a", "b"}


def test_a_driver_killed_between_an_evaluation_and_its_line_makes_it_again_and_logs_it_and_its_alarm_once(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "alarms", lambda base, now: ["the reward rises while psnr falls"])
    held = make()
    held.begin(0)
    finish(held)
    held.learned(2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(held, "_log", killed)
        finish(held)
    held = make()
    held.begin(2)
    finish(held)
    assert recorded(tmp_path) == [(0, "base"), (2, "now"), (2, "ema")]
    assert [r["iteration"] for r in read_metrics(tmp_path, "alarm")] == [2]


def test_figures_of_an_evaluation_and_how_many_got_worse_are_exported_also_after_a_resume(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "alarms", lambda base, now: ["the reward rises while psnr falls"])
    told: list[Any] = []
    exported = SimpleNamespace(heldout=lambda who, of: told.append((who, of["psnr"])), heldout_worse=told.append)
    for version, wanted in ((0, [("base", 1.0), 1, ("now", 1.0), ("ema", 1.0)]), (2, [("base", 1.0), 1, ("now", 1.0)])):
        told.clear()
        held = make()
        held.metrics = exported
        held.begin(version)
        finish(held)
        if not version:
            held.learned(2)
            finish(held)
        assert sorted(map(str, told)) == sorted(map(str, wanted))


@pytest.mark.parametrize("name", ["base.csv", "rl.csv"])
def test_a_file_of_an_evaluation_that_cannot_be_read_is_made_again_and_gets_no_second_line(
    name: str, make: Any, tmp_path: Path
) -> None:
    """As a machine that lost power leaves it: empty."""
    held = make()
    held.begin(0)
    finish(held)
    for iteration in (2, 4):
        held.learned(iteration)
        finish(held)
    before = recorded(tmp_path)
    (tmp_path / "evaluation" / name).write_text("")
    held = make()
    held.begin(4)
    assert finish(held) == [None if name == "base.csv" else "weights 4"]
    assert recorded(tmp_path) == before and any(f"{name} is no evaluation" in note for note in make.notes)
    assert (tmp_path / "evaluation" / name).read_text()


def test_what_the_base_was_given_and_should_have_made_stands_beside_what_it_made(make: Any, tmp_path: Path) -> None:
    for kind, level in (("input", 50), ("target", 200)):
        write_image(tmp_path / kind / "a.png", np.full((16, 16, 3), level, np.uint8))
    held = make(strips=2)
    held.begin(0)
    with_images(held)
    for who, level in (("input", 50), ("gt", 200), ("base", 0)):
        assert sorted(p.name for p in (tmp_path / "evaluation" / who).iterdir()) == ["a.png", "b.png"]
        assert (read_pixels(tmp_path / "evaluation" / who / "a.png") == level).all()


def with_images(held: HeldOut) -> int:
    """Do all parts, with the outputs that are wanted; how many there were."""
    parts = 0
    while not held.advance():
        if (part := held.evaluations.take()) is None:
            continue
        images = {i: np.zeros((16, 16, 3), np.uint8) for i in part.keep}
        held.evaluations.done(part, [Row(i, dict(VALUES)) for i in part.image_ids], images)
        parts += 1
    return parts


@pytest.mark.parametrize("how", ["its pair is cut off", "its pair has another size", "the base has no output"])
def test_a_strip_whose_picture_cannot_be_shown_is_told_once_and_counted_and_the_others_are_drawn(
    how: str, make: Any, tmp_path: Path
) -> None:
    held = make(strips=2)
    held.begin(0)
    with_images(held)
    if how == "its pair is cut off":
        (tmp_path / "input" / "a.png").write_bytes((tmp_path / "input" / "a.png").read_bytes()[:40])
    elif how == "its pair has another size":
        for kind in ("input", "target"):
            write_image(tmp_path / kind / "a.png", np.zeros((24, 16, 3), np.uint8))
    else:
        (tmp_path / "evaluation" / "base" / "a.png").write_bytes(b"\x89PNG")
        held = make(strips=2)
        held.begin(0)
    for iteration in (2, 4):
        held.learned(iteration)
        with_images(held)
    assert sorted(p.name for p in (tmp_path / "strips").iterdir()) == ["iter_000002.png", "iter_000004.png"]
    assert held.looking.missing == {"a strip": 1 if how.startswith("the base") else 2}
    (told,) = [note for note in make.notes if "a strip is missing" in note]
    assert "a" in told and recorded(tmp_path)[-1] == (4, "ema")


def test_strips_that_a_disk_refuses_do_not_end_the_run(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strips").write_text("a file where the folder should be")
    held = make(strips=2)
    held.begin(0)
    with_images(held)
    held.learned(2)
    with_images(held)
    assert recorded(tmp_path)[-1] == (2, "ema") and held.looking.missing == {"a strip": 1}
    assert any("a strip is missing" in note and "strips/iter_000002.png" in note for note in make.notes)


def test_figures_that_a_disk_refuses_name_their_file(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("restoration.whole_files.os.replace", full)
    held = make()
    held.begin(0)
    with pytest.raises(OSError, match=r"No space left on device: '.*evaluation/base\.csv'"):
        finish(held)


def test_nothing_of_an_evaluation_is_written_when_the_folder_is_another_process_s(make: Any, tmp_path: Path) -> None:
    def overtaken() -> None:
        raise Fatal("the driver", Failure(Kind.FATAL, "epoch", "the run goes on in another process"))

    held = make()
    held.begin(0)
    held.own = overtaken
    with pytest.raises(Fatal, match="in another process"):
        finish(held)
    assert not (tmp_path / "evaluation").exists() and recorded(tmp_path) == []
