"""`restorl chain`: of a run and of a model, with and without originals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.errors import USER_MISTAKE
from cluster.report.chain_picture import caption_of
from restoration.images import read_image, to_uint8
from restoration.metrics import protocol
from restoration.tiling import Tiling
from tests.cluster.test_models import write_run

SCORER = "tests.cluster.cli.test_cli:Brightness"


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model with held-out pictures."""
    folder = write_run(tmp_path_factory.mktemp("run"), rank=2)
    rng = np.random.default_rng(0)
    for side in ("input", "target"):
        for split in ("train", "test"):
            where = folder / "data" / split / side
            where.mkdir(parents=True)
            for name in "abcde":
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(where / f"{name}.png")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"data": {"root": str(folder / "data")}, "reward": {"scorer": SCORER}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_of_a_run_some_held_out_pictures_are_shown_base_above_rl_with_the_runs_own_score(
    tuned: Path, tmp_path: Path, written: list[str]
) -> None:
    moving, still = tmp_path / "c.webp", tmp_path / "c.png"
    result = run("chain", tuned, "--count", 2, "--out", moving, "--out", still)
    assert result.exit_code == 0 and result.stdout.split() == [str(moving), str(still)], result
    with Image.open(moving) as file:
        assert file.n_frames == 3  # type: ignore[attr-defined]
    assert {"base, 1 of 2", "RL, 2 of 2", "ground truth"} <= set(written)
    lq, gt = (read_image(tuned / "data" / "test" / side / "a.png")[None] for side in ("input", "target"))
    psnr = protocol("lowlight_rgb").psnr(to_uint8(lq), to_uint8(gt))[0]
    assert caption_of(to_uint8(lq).mean(), psnr) in written


def test_the_last_caption_is_of_the_picture_that_restore_writes(
    tuned: Path, tmp_path: Path, written: list[str]
) -> None:
    source = tuned / "data" / "test" / "input" / "b.png"
    original = tuned / "data" / "test" / "target"
    for checkpoint in ("base", "2"):
        of = ("--model", tuned, "--checkpoint", checkpoint, "--device", "cpu")
        run("restore", *of, source, tmp_path / f"{checkpoint}.png")
    result = run("chain", tuned, source, "--gt", original, "--checkpoint", 2, "--out", tmp_path / "c.png")
    assert result.exit_code == 0, result.output
    truth = to_uint8(read_image(original / "b.png")[None])
    for name in ("base", "2"):
        restored = to_uint8(read_image(tmp_path / f"{name}.png")[None])
        assert caption_of(restored.mean(), protocol("lowlight_rgb").psnr(restored, truth)[0]) in written


def test_a_model_has_one_row_and_may_take_other_steps(tuned: Path, tmp_path: Path, written: list[str]) -> None:
    source = tuned / "data" / "test" / "input" / "b.png"
    words = ("--steps", 4, "--scorer", SCORER, "--out", tmp_path / "c.gif", "--tile", 32, "--tile-overlap", 16)
    result = run("chain", tuned / "base", source, *words)
    assert result.exit_code == 0, result.output
    assert "clean estimate after step 4 of 4" in written and not any("dB" in text for text in written)


def test_held_out_pictures_of_a_run_are_restored_and_measured_as_its_evaluations_do(
    tuned: Path, tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their protocol, noise, tiles and embeddings, so that a figure is that of the report; other pictures by the
    protocol only."""
    run_of = tmp_path / "run"
    shutil.copytree(tuned, run_of)
    config = yaml.safe_load((run_of / "config.yaml").read_text())
    config |= {"evaluation": {"protocol": "derain_y"}}
    (run_of / "config.yaml").write_text(yaml.safe_dump(config))
    result = run("chain", run_of, "--count", 1, "--out", tmp_path / "c.png")
    assert result.exit_code == 0, result.output
    lq, gt = (to_uint8(read_image(tuned / "data" / "test" / side / "a.png")[None]) for side in ("input", "target"))
    psnr = {name: protocol(name).psnr(lq, gt)[0] for name in ("derain_y", "lowlight_rgb")}
    assert caption_of(lq.mean(), psnr["derain_y"]) in written
    assert caption_of(lq.mean(), psnr["lowlight_rgb"]) not in written
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("cluster.report.chains.chains_of", lambda *_, **of: given.append(of) or [])
    monkeypatch.setattr("cluster.report.chain_picture.save_chains", lambda path, _: path)
    config |= {"data": config["data"] | {"embeddings": "/own"}}
    config["evaluation"] |= {"seed": 7, "tile": 32}
    (run_of / "config.yaml").write_text(yaml.safe_dump(config))
    source = tuned / "data" / "test" / "input" / "b.png"
    calls: tuple[tuple[object, ...], ...] = ((), ("--embeddings", "/e", "--seed", 3, "--tile", 0), (source,))
    for more in calls:
        assert run("chain", run_of, *more, "--out", tmp_path / "c.png").exit_code == 0
    ways = [{name: of.get(name) for name in ("protocol", "seed", "embeddings", "tiling")} for of in given]
    own = {"protocol": "derain_y", "seed": 7, "embeddings": Path("/own"), "tiling": Tiling(32, 8)}
    assert ways[0] == own
    assert ways[1] == {"protocol": "derain_y", "seed": 3, "embeddings": Path("/e"), "tiling": None}
    assert ways[2] == {"protocol": "derain_y", "seed": None, "embeddings": None, "tiling": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("RUN",), "--out FILE: where to?"),
        (("RUN", "A", "--count", 2, "--out", "c.png"), "--count 2: is of held-out pictures"),
        (("RUN", "--tile-overlap", 8, "--out", "c.png"), "--tile-overlap 8: without --tile SIDE it does nothing"),
        (("BASE", "A", "--checkpoint", "average", "--out", "c.png"), "checkpoint average: "),
        (("RUN", "--out", "c.bmp"), "--out c.bmp: choose a name that ends in .webp, .gif, .png, .jpg, .jpeg"),
        (("BASE", "--out", "c.png"), "only a run has held-out pictures of its own"),
        (("RUN", "--gt", "x", "--out", "c.png"), "--gt: held-out pictures have theirs"),
        (("RUN", "A", "B", "--gt", "A", "--out", "c.png"), "is one original for 2 pictures"),
        (("RUN", "A", "--gt", "OTHERS", "--out", "c.png"), "no originals named a; there must be one"),
        (("RUN", "A", "--steps", 5000, "--out", "c.png"), "training steps"),
        (("RUN", "A", "--scorer", "none", "--out", "c.png"), "no scorer named 'none'"),
        (("RUN", "A", "--device", "gpu", "--out", "c.png"), "device=gpu: no device"),
    ],
)
def test_what_can_not_be_shown_is_one_line(tuned: Path, tmp_path: Path, words: Any, said: str) -> None:
    inputs = tuned / "data" / "test" / "input"
    (tmp_path / "others").mkdir()
    Image.new("RGB", (48, 40)).save(tmp_path / "others" / "z.png")
    at = {"RUN": tuned, "BASE": tuned / "base", "A": inputs / "a.png", "B": inputs / "b.png"}
    at["OTHERS"] = tmp_path / "others"
    result = run("chain", *(at.get(word, word) for word in words))
    assert result.exit_code == USER_MISTAKE and said in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_report_shows_the_chain_that_animate_makes(tuned: Path) -> None:
    plain = run("report", tuned)
    assert plain.exit_code == 0 and "<h2>The chain</h2>" not in (tuned / "report.html").read_text()
    result = run("report", tuned, "--animate")
    assert result.exit_code == 0, result.output
    page = (tuned / "report.html").read_text()
    assert "<h2>The chain</h2>" in page and 'src="data:image/webp;base64,' in page and (tuned / "chain.png").is_file()
    lost = run("report", tuned, "--scorer", SCORER)
    assert lost.exit_code == USER_MISTAKE and "--animate" in lost.stderr
