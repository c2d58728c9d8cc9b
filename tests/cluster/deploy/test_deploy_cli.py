from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import cluster.cli.app as cli
from tests.cluster.deploy.cases import GPU, ROOT

RECIPE = str(ROOT / "configs" / "gpu" / "diffbir.yaml")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["deploy", *map(str, arguments)])


def render(target: str, out: Path, *more: object) -> Any:
    return run("render", target, *GPU, "--config", RECIPE, "--out", out, *more)


@pytest.mark.parametrize(
    ("target", "files"),
    [
        (
            "kuberay",
            {
                *("secrets.sh", "storage.yaml", "recipe.yaml", "rayjob.yaml", "network.yaml", "store.yaml"),
                *("standing/raycluster.yaml", "standing/rayservice.yaml"),
            },
        ),
        ("ray-up", {"secrets.sh", "recipe.yaml", "cloud.yaml", "hosts.yaml", "run.sh"}),
        ("slurm", {"recipe.yaml", "job.sh"}),
    ],
)
def test_the_files_of_a_target_are_written_and_told(target: str, files: set[str], tmp_path: Path) -> None:
    done = render(target, tmp_path / "out")
    assert done.exit_code == 0, done.output
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == files and all(str(tmp_path / "out" / file) in done.stdout for file in files)
    for file in files:
        text = (tmp_path / "out" / file).read_text()
        assert text.startswith("#")
        if file.endswith(".yaml"):
            assert list(yaml.safe_load_all(text))
    everything = "".join(p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert "Change:" in everything and "gpu-diffbir" in everything


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("kubernetes",), "kubernetes: no target; choose kuberay, ray-up, slurm"),
        (("kuberay", "--gpus", 4), "the 8 learner ranks of the recipe alone take 8"),
        (("kuberay", "--gpus", 16, "actors.count=20", "actors.min=10"), "actors.min=10; give more GPUs"),
        (("slurm", "--gpus", 16, "actors.count=20", "actors.min=10"), "actors.min=10; give more GPUs"),
        (("slurm", "--gpus", 12, "--gpus-per-node", 8), "give a multiple of 8"),
        (("kuberay", "--name", "A"), "--name 'A': small letters"),
        (("kuberay", "--work", "here"), "--work here: an absolute path"),
        (("kuberay", "rollout.crp=3"), "did you mean rollout.crop?"),
        (("kuberay", "--name", "reward-x"), "reward-x"),
        (("slurm", "--image", "mine:1"), "--image mine:1: slurm runs no containers; leave it out"),
        (("ray-up", "--image", "mine:1"), "--image mine:1: ray-up runs no containers; leave it out"),
    ],
)
def test_what_can_not_be_rendered_is_one_line_and_writes_nothing(
    arguments: tuple[object, ...], told: str, tmp_path: Path
) -> None:
    done = render(str(arguments[0]), tmp_path / "out", *arguments[1:])
    assert done.exit_code == 2 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rayjob.yaml").write_text("mine")
    done = render("kuberay", tmp_path)
    assert done.exit_code == 2 and "isn't empty; give a new folder" in done.stderr
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_recipe_and_folder_are_asked_for() -> None:
    done = run("render", "kuberay")
    assert done.exit_code == 2 and "give --config RECIPE and --out FOLDER" in done.stderr


def test_an_edited_folder_is_checked(tmp_path: Path) -> None:
    render("kuberay", tmp_path / "out")
    done = run("check", tmp_path / "out")
    assert done.exit_code == 0 and "8 objects, nothing known against them" in done.stdout, done.output
    file = tmp_path / "out" / "rayjob.yaml"
    file.write_text(file.read_text().replace("restartPolicy: Never", "restartPolicy: Always", 1))
    done = run("check", tmp_path / "out")
    assert done.exit_code == 2
    assert "problem: RayJob gpu-diffbir: headGroupSpec: restartPolicy=Always with autoscaler v2" in done.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "holds no YAML file"),
        ("a: [", "not YAML"),
        ("a: 2026-13-01", "not YAML (month must be"),
        ("- 1", "no object of Kubernetes"),
    ],
)
def test_a_folder_that_can_not_be_checked_is_one_line(text: str | None, told: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    done = run("check", tmp_path)
    assert done.exit_code == 2 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_store_without_a_password_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_PASSWORD", raising=False)
    done = run("store", tmp_path)
    assert done.exit_code == 2 and "--password-env STORE_PASSWORD: this variable is not set" in done.stderr


def test_nodes_that_do_not_come_are_told_in_time() -> None:
    done = run("wait", 2, "--address", "127.0.0.1:9", "--timeout-s", 0.1)
    assert done.exit_code == 2 and "127.0.0.1:9 can't be reached" in done.stderr
