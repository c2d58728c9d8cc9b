from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.configure import ConfigError, load_config, save_config
from cluster.config.recipe import RunConfig
from cluster.config.resume import FIXED, TOLD, check_resume, keep_config
from cluster.config.tree import valid_keys
from cluster.models import load_run_config
from cluster.run.state import RunState

OURS = Path(__file__).parents[3] / "configs" / "ours.yaml"
OTHER = {
    "model": "models/other",
    "adapt.mode": "full",
    "adapt.rank": "4",
    "adapt.alpha": "2",
    "adapt.targets": "unet",
    "adapt.seed": "1",
    "seed": "1",
    "rollout.images_per_batch": "2",
    "data.train": "val",
    "data.match": "sorted",
    "data.set": "lol_v1",
    "data.heldout": "val",
    "evaluation.limit": "1",
    "evaluation.protocol": "derain_y",
    "evaluation.scorers": "[brisque]",
    "evaluation.seed": "1",
    "evaluation.strips": "1",
}


def config_of(*overrides: str) -> RunConfig:
    return load_config(RunConfig, OURS, ["model=models/demo", *overrides])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that was stopped."""
    with RunState(config_of(), tmp_path / "run", resume=False):
        pass
    return tmp_path / "run"


def test_what_a_resumed_run_changes_is_its_configuration_from_then_on(folder: Path) -> None:
    before = (folder / "config.yaml").read_bytes()
    with RunState(load_run_config(folder, ("iterations=70", "optimiser.lr=1e-5")), folder, resume=True):
        pass
    kept = load_run_config(folder)  # what `restore --model RUN` and the next resume read
    assert (kept.iterations, kept.optimiser.lr) == (70, 1e-5)
    assert (folder / "config.yaml.1").read_bytes() == before
    keep_config(folder, load_run_config(folder, ("iterations=80",)))
    assert load_run_config(folder).iterations == 80 and load_config(RunConfig, folder / "config.yaml.2") == kept


def test_a_run_resumed_as_it_was_keeps_its_file(folder: Path) -> None:
    before = (folder / "config.yaml").stat()
    assert keep_config(folder, load_run_config(folder)) == []
    after = (folder / "config.yaml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # reading it changes its atime
    assert sorted(p.name for p in folder.glob("config*")) == ["config.yaml"]


@pytest.mark.parametrize("key", FIXED)
def test_a_key_that_a_run_keeps_for_good_is_refused_with_the_reason(key: str, folder: Path) -> None:
    before = (folder / "config.yaml").read_bytes()
    with (
        pytest.raises(ConfigError) as caught,
        RunState(load_run_config(folder, (f"{key}={OTHER[key]}",)), folder, resume=True),
    ):
        raise AssertionError("entered")
    (problem,) = caught.value.problems
    assert problem.key == key and FIXED[key] in str(problem) and str(problem).endswith("or leave it as it was")
    assert (folder / "config.yaml").read_bytes() == before and not list(folder.glob("config.yaml.*"))


def test_all_keys_that_cannot_change_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_resume(config_of(), config_of("seed=1", "adapt.rank=4", "iterations=9"))
    assert {p.key for p in caught.value.problems} == {"seed", "adapt.rank"}


def test_a_change_that_makes_old_figures_incomparable_is_told() -> None:
    (warning,) = check_resume(config_of(), config_of("sampler.steps=4"))
    assert warning.startswith("sampler.steps=4 in place of 6: the base model's figures are those of the old sampler")
    (warning,) = check_resume(config_of(), config_of("reward.scorer=piqe"))
    assert "the base model's reward is the old scorer's" in warning
    assert check_resume(config_of(), config_of("iterations=9", "actors.count=2", "rollout.storage_dtype=float16")) == []
    (warning,) = check_resume(config_of(), config_of("reward.terms=[{}, {scorer: psnr}]"))
    assert "tracks end" in warning


def test_trajectories_are_not_left_behind_in_another_store_and_no_password_is_shown() -> None:
    external = "store.url=redis://user:secret@a:1"
    with pytest.raises(ConfigError, match="store.url: the run's trajectories, its ledger and its epochs"):
        check_resume(config_of(), config_of(external))
    (warning,) = check_resume(config_of(external), config_of("store.url=redis://user:secret@b:1"))
    assert "the same store must be behind it" in warning and "secret" not in warning


def test_every_key_of_the_lists_exists() -> None:
    assert {*FIXED, *TOLD} <= set(valid_keys(RunConfig))


def test_a_configuration_that_cannot_be_written_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "config.yaml").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.config.resume.save_config", full)
    with pytest.raises(OSError, match="No space"):
        keep_config(folder, load_run_config(folder, ("iterations=9",)))
    assert (folder / "config.yaml").read_bytes() == before
    monkeypatch.setattr("cluster.config.resume.save_config", save_config)
    keep_config(folder, load_run_config(folder, ("iterations=9",)))
    assert load_run_config(folder).iterations == 9
