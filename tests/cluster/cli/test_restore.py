"""`restorl restore` with its options, and how files are handed out to workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
import cluster.cli.restore_workers as workers
from cluster.cli.errors import USER_MISTAKE
from cluster.jobs import ClusterError
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import build_small
from restoration.base_models.interface import SamplerSettings
from restoration.images import ImageError, read_image
from restoration.pretrain.vae import VaeRecipe, build_vae
from restoration.restore import Job
from restoration.tiling import Tiling

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["restore", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    vae = build_vae(VaeRecipe(channels=(8, 16), crop=32)).eval()
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    build_small(vae, cleaner, channels=(16, 32), head_channels=16).save(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (41, 70, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


@pytest.mark.slow
def test_every_option_of_restoring_changes_the_picture_and_none_its_size(model: Path, photos: Path) -> None:
    def picture(*options: object) -> torch.Tensor:
        out = photos.parent / "out.png"
        result = run("--model", model, photos / "a.png", out, "--overwrite", "--device", "cpu", *options)
        assert result.exit_code == 0, result.output
        return read_image(out)

    plain = picture("--steps", 3)
    assert plain.shape == (3, 41, 70) and torch.equal(picture("--steps", 3), plain)
    assert torch.equal(picture("--steps", 3, "--tile", 96), plain)
    others = (
        ("--steps", 2),
        ("--steps", 3, "--tile", 32, "--tile-overlap", 16),
        ("--steps", 3, "--colour-fix", "adain"),
        ("--steps", 3, "--dtype", "bfloat16"),
        ("--steps", 3, "--seed", 1),
        ("--steps", 3, "--bits", 16),
    )
    for options in others:
        other = picture(*options)
        assert other.shape == plain.shape and not torch.equal(other, plain), options
    assert (picture("--steps", 3, "--bits", 16) - plain).abs().max() <= 0.5 / 255 + 1e-6


def test_auto_restores_in_what_the_processor_multiplies_and_a_slow_type_by_name_is_told_and_taken(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restored(dtype: str, native: bool) -> tuple[bytes, str]:
        monkeypatch.setattr("restoration.precision.multiplies_bf16", lambda device: native)
        out = photos.parent / f"{dtype}{native}.png"
        result = run("--model", model, photos / "a.png", out, "--steps", 2, "--device", "cpu", "--dtype", dtype)
        assert result.exit_code == 0, result.output
        return out.read_bytes(), result.stderr

    exact, near, unasked = restored("float32", False), restored("bfloat16", True), restored("bfloat16", False)
    assert restored("auto", False) == exact and restored("auto", True) == near and near[0] != exact[0]
    assert unasked[0] == near[0] and not near[1]
    assert "WARNING: --dtype bfloat16: bfloat16 takes about ten times as long" in unasked[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--guidance", 2), "use guidance_scale 1"),
        (("--steps", 5000), "training steps"),
        (("--colour-fix", "sepia"), "choose none, adain, wavelet"),
        (("--tile", 8, "--tile-overlap", 7), "choose larger tiles"),
        (("--tile-overlap", 7), "--tile-overlap 7: without --tile SIDE it does nothing"),
        (("--devices", 2, "--device", "cuda:1"), "choose cpu or cuda"),
    ],
)
def test_what_the_model_can_not_do_is_one_line(model: Path, photos: Path, options: Any, said: str) -> None:
    result = run("--model", model, photos, photos.parent / "out", *options)
    assert result.exit_code == USER_MISTAKE and said in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("restore", "--model", "MODEL", "PHOTOS", "OUT", "--device", "cuda:1"),
        ("evaluate", "PHOTOS", "PHOTOS", "--model", "MODEL", "--device", "cuda:1"),
        ("reward", "check", str(DEMO), "--device", "cuda:1"),
        ("score", "PHOTOS", "--scorer", "lite0_levels,device=cuda:1"),
    ],
    ids=lambda words: words[0],
)
def test_a_gpu_that_is_not_here_is_one_line(
    model: Path, photos: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    at = {"MODEL": str(model), "PHOTOS": str(photos), "OUT": str(photos.parent / "out")}
    result = CliRunner().invoke(cli.app, [at.get(word, word) for word in words])
    assert result.exit_code == USER_MISTAKE and "device=cuda:1: torch finds 1 GPU here" in result.stderr
    unknown = CliRunner().invoke(cli.app, [at.get(word, word).replace("cuda:1", "gpu") for word in words])
    assert unknown.exit_code == USER_MISTAKE and "device=gpu: no device; give cpu" in unknown.stderr


def test_a_worker_restores_what_one_process_does(model: Path, photos: Path, tmp_path: Path) -> None:
    assert run("--model", model, photos, tmp_path / "one", "--steps", 2, "--device", "cpu").exit_code == 0
    sampler = SamplerSettings(steps=2, spacing="linspace")
    worker = workers.RestoreWorker(spec(model, sampler=sampler))
    assert worker.ready() and worker.restore(Job(photos / "b.png", tmp_path / "b.png", "b")) is None
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "one" / "b.png").read_bytes()
    (photos / "b.png").write_bytes(b"damaged")
    error = worker.restore(Job(photos / "b.png", tmp_path / "c.png", "b"))
    assert isinstance(error, ImageError) and "b.png" in str(error)
    worker.model.condition = lambda *_: {}["of the code"]
    error = worker.restore(Job(photos / "a.png", tmp_path / "c.png", "a"))
    assert type(error) is ImageError and str(error) == f"{photos / 'a.png'}: KeyError: 'of the code'"


def spec(model: Path, sampler: SamplerSettings, tiling: Tiling | None = None) -> workers.RestoreSpec:
    return workers.RestoreSpec(model, "latest", None, sampler, "float32", 0, "cpu", tiling, 8)


class Death(Exception):
    """Stands for what Ray raises when an actor's process has ended."""


class OutOfMemory(Exception):
    """Stands for what Ray raises when it has ended a process itself, because the node's memory ran short."""


class FakeRay:
    """Calls finish in the order they were made, one a wait; a call of a job named "x" kills its worker."""

    exceptions = SimpleNamespace(RayActorError=Death, OutOfMemoryError=OutOfMemory)

    def __init__(self, stuck: bool = False) -> None:
        self.stuck, self.most = stuck, 0

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(refs))
        return ([], refs) if self.stuck else (refs[:1], refs[1:])

    def get(self, ref: Any, timeout: float) -> Any:
        if ref.job.name.startswith("x"):
            raise (OutOfMemory if ref.job.name == "xx" else Death)("the process ended\nand a trace")
        return ImageError("bad") if ref.job.name == "bad" else None


def fake_workers(count: int) -> list[Any]:
    return [SimpleNamespace(restore=SimpleNamespace(remote=Call)) for _ in range(count)]


class Call:
    def __init__(self, job: Job) -> None:
        self.job = job


def jobs(*names: str) -> list[Job]:
    return [Job(Path(f"{name}.png"), Path(f"out/{name}.png"), name) for name in names]


def hand_out(ray: FakeRay, count: int, *names: str) -> tuple[dict[str, Exception | None], int]:
    """What became of each job, and how many workers were started besides."""
    more: list[Any] = []

    def another() -> Any:
        more.extend(fake_workers(1))
        return more[-1]

    done = {job.name: error for job, error in workers._hand_out(ray, fake_workers(count), jobs(*names), another)}
    return done, len(more)


def test_each_file_is_handed_out_once_and_a_file_that_kills_its_worker_has_failed() -> None:
    ray = FakeRay()
    done, started = hand_out(ray, 2, *"abx", "bad", *"cde")
    assert sorted(done) == ["a", "b", "bad", "c", "d", "e", "x"] and ray.most == 2 and started == 1
    assert {name for name, error in done.items() if error is not None} == {"bad", "x"}
    assert str(done["x"]).startswith(
        "x.png: its worker died: the process ended; if memory ran out, restore it in tiles"
    )


def test_the_rest_goes_on_with_new_workers_where_files_have_killed_all() -> None:
    done, started = hand_out(FakeRay(), 2, "x", "xx", "a", "x3", "b")
    assert {name for name, error in done.items() if error is None} == {"a", "b"} and len(done) == 5 and started == 3


def test_it_ends_when_workers_only_die_or_none_finishes_in_time() -> None:
    with pytest.raises(ClusterError, match=r"3 workers in a row have died, at last of x3\.png"):
        hand_out(FakeRay(), 1, "x1", "x2", "x3", "a")
    with pytest.raises(ClusterError, match=r"no worker finished a file within 3600 s: a\.png, b\.png"):
        hand_out(FakeRay(stuck=True), 2, "a", "b", "c")


def test_an_output_named_like_a_picture_is_one_line(model: Path, photos: Path) -> None:
    result = run("--model", model, photos / "a.png", photos.parent / "out.jpg", "--device", "cpu")
    assert result.exit_code == USER_MISTAKE and "as PNG; give" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not (photos.parent / "out.jpg").exists()


def test_one_files_trouble_is_listed_at_the_end_with_status_1_and_what_is_left_out_is_one_line(
    model: Path, photos: Path
) -> None:
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:100])
    (photos / "d.heic").touch()
    result = run("--model", model, photos, photos.parent / "out", "--steps", 1, "--device", "cpu")
    assert result.exit_code == 1 and "2 restored, 0 skipped, 1 failed" in result.stdout
    assert str(photos / "b.png") in result.stdout.splitlines()[-1]
    assert result.stderr.strip().startswith(f"warning: {photos}: left out 1 .heic")
    assert len(result.stderr.strip().splitlines()) == 1
