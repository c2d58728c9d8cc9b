"""`restorl paper figure`: histograms with their distance, strips with crops, rewards of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.compare.courses import course, read_runs
from cluster.compare.opening import Named
from cluster.report.records import MetricsLog
from cluster.report.strips import BOX, GAP, TEXT
from tests.cluster.compare.folders import BAD, GOOD, GREYS, LEVEL, greys, textured, write


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["paper", "figure", *map(str, arguments)])


def rewards(folder: Path, values: list[float]) -> Path:
    with MetricsLog(folder, tensorboard=False) as log:
        log.append({"kind": "eval", "iteration": 0, "who": "base", "reward_mean": 99.0})
        for i, value in enumerate(values, 1):
            log.append({"kind": "train", "iteration": i, "reward_mean": value})
    return folder


@pytest.mark.parametrize("form", ["pdf", "svg"])
def test_figure_1_is_a_histogram_with_each_distance_to_the_originals(tmp_path: Path, form: str) -> None:
    gt = greys(tmp_path / "gt")
    out = tmp_path / "figures" / f"fig1.{form}"
    ended = run(
        1,
        f"SFT={greys(tmp_path / 'x', BAD)}",
        f"RL={greys(tmp_path / 'y', GOOD)}",
        "--gt",
        gt,
        "--scorer",
        LEVEL,
        "--out",
        out,
    )
    assert ended.exit_code == 0, ended.output
    mean = np.mean([*GREYS.values()])
    told = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines()[2:-1]}
    assert told == {
        "SFT": [f"{mean + BAD:.4f}", f"{BAD:.4f}"],
        "RL": [f"{mean + GOOD:.4f}", f"{GOOD:.4f}"],
        "GT": [f"{mean:.4f}", "-"],
    }
    begins = {"pdf": b"%PDF", "svg": b"<?xml"}[form]
    assert out.read_bytes().startswith(begins) and ended.stdout.splitlines()[-1] == str(out)
    if form == "svg":
        text = out.read_text()
        assert f"RL: mean {mean + GOOD:.3f}, W1 to GT {GOOD:.3f}" in text  # kept beside its outlines


@pytest.mark.parametrize(("number", "count"), [(2, 1), (5, 4)])
def test_figures_2_and_5_are_strips_of_input_methods_and_original_with_a_crop(
    tmp_path: Path, number: int, count: int
) -> None:
    truth = {f"{i}": textured(i, (40, 40)) for i in range(5)}
    folders = {
        name: write(
            tmp_path / name, {i: np.clip(x.astype(int) + off, 0, 255).astype(np.uint8) for i, x in truth.items()}
        )
        for name, off in (("gt", 0), ("lq", 30), ("base", 20), ("rec", 10), ("iqa", 5))
    }
    given = [number, *(folders[n] for n in ("base", "rec", "iqa")), "--gt", folders["gt"], "--lq", folders["lq"]]
    ended = run(*given, "--out", tmp_path / "all.png", "--width", 40)
    assert ended.exit_code == 0, ended.output
    sheet = np.asarray(Image.open(tmp_path / "all.png"))
    one = run(*given, "--crop", "3:8,4,16,12", "--out", tmp_path / "one.png", "--width", 40)
    assert one.exit_code == 0, one.output
    if number == 2:
        paper = run(number, folders["iqa"], "--gt", folders["gt"], "--out", tmp_path / "strip.pdf")
        assert paper.exit_code == 0 and (tmp_path / "strip.pdf").read_bytes().startswith(b"%PDF")
    strip = np.asarray(Image.open(tmp_path / "one.png"))
    assert strip.shape[1] == sheet.shape[1] == 8 + 5 * (40 + 8)
    boxes = (strip[:, 8 : 8 + 40] == BOX).all(-1)
    top = np.flatnonzero(boxes.any(1))[0]
    assert boxes[top].sum() == 16 and np.flatnonzero(boxes[top])[0] == 8  # x and width of the crop
    assert sheet.shape[0] > (count - 0.5) * (strip.shape[0] - 20) and sheet.shape[0] < (count + 0.5) * (
        strip.shape[0] + 20
    )


def test_figure_6_lays_the_rewards_of_runs_beside_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rising = rewards(tmp_path / "iqa", [3 + i / 50 + float(rng.normal(0, 0.05)) for i in range(100)])
    restless = rewards(tmp_path / "rec", [-9 + float(rng.normal(0, 0.5)) for _ in range(100)])
    ended = run(6, f"IQA={rising}", f"Rec.={restless}", "--out", tmp_path / "fig6.svg")
    assert ended.exit_code == 0, ended.output
    rows = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in ended.stdout.splitlines()[2:-1]}
    rise = rows["IQA"][2] - rows["IQA"][1]
    assert rows["IQA"][0] == 100 and rise == pytest.approx(1.8, abs=0.06)  # 90 iterations of 1/50
    assert rows["IQA"][4] > 5 and abs(rows["Rec."][4]) < 1
    text = (tmp_path / "fig6.svg").read_text()
    assert "IQA" in text and "Rec." in text and "iteration" in text


def test_a_course_is_its_ends_and_its_scatter(tmp_path: Path) -> None:
    flat = read_runs([Named("flat", rewards(tmp_path / "flat", [2.0] * 20))])["flat"]
    found = course("flat", flat)
    assert (found.iterations, found.first, found.last, found.rise) == (20, 2.0, 2.0, 0.0)
    assert found.scatter == pytest.approx(0, abs=1e-9)
    steps = course("steps", read_runs([Named("s", rewards(tmp_path / "s", [1.0] * 50 + [3.0] * 50))])["s"])
    assert steps.first == pytest.approx(1) and steps.last == pytest.approx(3) and steps.rise > 2
    with pytest.raises(ValueError, match="no reward_mean in its records"):
        course("none", [{"kind": "train", "iteration": 1}])


def test_a_picture_of_the_psnr_stands_in_its_caption(tmp_path: Path) -> None:
    gt, good = greys(tmp_path / "gt"), greys(tmp_path / "good", GOOD)
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for out, folder in ((first, good), (second, greys(tmp_path / "bad", GOOD + 1))):
        assert run(2, f"m={folder}", "--gt", gt, "--crop", "00690:8,8,16,16", "--out", out).exit_code == 0
    one, other = (np.asarray(Image.open(path)).astype(int) for path in (first, second))
    captions = slice(2 * GAP + TEXT, 2 * (GAP + TEXT))  # the line below the title
    assert (one[captions] != other[captions]).any() and np.array_equal(one[: captions.start], other[: captions.start])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([3, "a", "--out", "f.png"], "figure 3: choose 1 (scores), 2 or 5 (pictures), or 6 (rewards)"),
        ([1, "a", "--gt", "g", "--out", "f.jpg"], "give a name that ends in .png or .pdf"),
        ([2, "a", "--gt", "g", "--out", "f.svg"], "give a name that ends in .png or .pdf"),
        ([1, "a", "--out", "f.png"], "give --gt FOLDER"),
        ([1, "a", "--gt", "g", "--crop", "1", "--out", "f.png"], "leave out --crop and --pictures"),
        ([2, "a", "--gt", "g", "--scorer", "piqe", "--out", "f.png"], "leave out --scorer"),
        (
            [1, "a", "--gt", "g", "--scorer", "piqe", "--scorer", "niqe", "--out", "f.png"],
            "figure 1 is of one --scorer",
        ),
        ([6, "a", "--gt", "g", "--out", "f.png"], "--gt has no part in figure 6"),
        ([6, "/nowhere", "--out", "f.png"], "give the folder of a run that has trained"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[object], said: str) -> None:
    ended = run(*arguments)
    assert ended.exit_code == 2, ended
    (line,) = ended.stderr.strip().splitlines()
    assert said in line and "Traceback" not in ended.output


def test_a_run_of_one_iteration_is_no_course(tmp_path: Path) -> None:
    ended = run(6, rewards(tmp_path / "new", [1.0]), "--out", tmp_path / "f.png")
    assert ended.exit_code == 2 and "no reward_mean of two iterations" in ended.stderr
