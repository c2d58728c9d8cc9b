"""A scorer is held to the scores that are stored beside its weights."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_service.errors import ScorerFailed
from reward_service.probe import FILE, SHIPPED, Probe, write_probe
from reward_service.probe_pictures import probe_pictures
from reward_service.scorers import SCORERS, make_scorer
from reward_service.scorers.lite0_levels import DEFAULT_FOLDER, WEIGHTS_FILE
from tests.reward_service import makers
from tests.reward_service.makers import PARAMS, made
from tests.reward_service.owl2_folders import golden, write_full

DIGEST = "5b776129a9688e1bb3d55d3bf1523c189e5c794f671ae1b1e06f87aaeb8d66a0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def lite0(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEFAULT_FOLDER, tmp_path / "lite0"))


def probe_of(name: str, **params: Any) -> Probe:
    return Probe(make_scorer(name, **params), name, params)


def changed(folder: Path) -> None:
    """Other weights under the old name."""
    state = load_file(folder / WEIGHTS_FILE)
    key = next(key for key in sorted(state) if key.startswith("members.0"))
    state[key] = state[key] * 1.5 + 0.2
    save_file(state, folder / WEIGHTS_FILE)


def test_the_pictures_are_the_same_everywhere() -> None:
    assert hashlib.sha256(probe_pictures(96).tobytes()).hexdigest() == DIGEST


def test_the_pictures_look_like_photographs_to_the_trained_scorers() -> None:
    for name in ("brisque", "lite0_levels", "niqe"):
        clear, blurred, noisy = probe_of(name).scores()
        assert clear > blurred and clear > noisy, name


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_every_scorer_gives_them_scores_and_is_held_to_those_stored(name: str, folder: Path) -> None:
    params = PARAMS[name](folder)
    if name not in makers.SHIPPED:
        file, _ = write_probe(Probe(made(name, folder), name, params))
        weights = Path(params.get("weights", folder))
        assert file == weights / FILE
    probe = Probe(made(name, folder), name, params)
    assert probe.stored is not None and len(set(probe.stored.scores)) == 3
    assert probe.check() == probe.check() == pytest.approx(probe.stored.scores[0], abs=probe.own_tolerance)


@pytest.mark.parametrize("name", makers.SHIPPED)
def test_shipped_scorers_have_their_scores_in_the_package(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = probe_of(name)
        assert probe.file == SHIPPED and probe.stored is not None
        probe.check()


def test_weights_that_were_changed_beside_their_scores_are_refused(lite0: Path) -> None:
    write_probe(probe_of("lite0_levels", weights=str(lite0)))
    probe_of("lite0_levels", weights=str(lite0)).check()
    changed(lite0)
    with pytest.raises(ScorerFailed, match="it is version .*, and they are of .*: other weights .* --force"):
        probe_of("lite0_levels", weights=str(lite0)).check()


def test_a_swapped_network_of_billions_is_refused_in_any_type(folder: Path, tmp_path: Path) -> None:
    source = golden()
    state = source.state("model")
    own = write_full(tmp_path / "own", state, source)
    settings = {"weights": str(own)}
    write_probe(probe_of("deqa", **settings, dtype="float32"))
    for dtype in ("float32", "bfloat16", "float16"):
        probe_of("deqa", **settings, dtype=dtype, batch=2).check()
    state["lm_head.weight"] = state["lm_head.weight"].roll(1, 1)
    write_full(own, state, source)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ScorerFailed, match="more than .* apart"):
            probe_of("deqa", **settings, dtype=dtype).check()


def test_settings_that_change_scores_have_scores_of_their_own(folder: Path) -> None:
    params = PARAMS["deqa"](folder)
    keys = [
        Probe(made("deqa", folder, **more), "deqa", params | more).key
        for more in ({}, {"batch": 5}, {"dtype": "bfloat16"}, {"crops": 2}, {"level_weights": [9, 4, 3, 2, 1]})
    ]
    assert keys[0] == keys[1] == keys[2] and len(set(keys)) == 3


def test_without_stored_scores_the_first_are_the_replicas_own_and_the_command_is_told(lite0: Path) -> None:
    scorer = make_scorer("lite0_levels", weights=str(lite0), chunk=4)
    probe = Probe(scorer, "lite0_levels", {"weights": str(lite0), "chunk": 4})
    with pytest.warns(UserWarning, match=f"restorl reward probe lite0_levels,weights={lite0},chunk=4"):
        first = probe.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe.check() == first
    with torch.no_grad():
        scorer.head.members[0][-1].bias += torch.tensor([3.0, 0, 0, 0, 0])  # type: ignore[attr-defined]
    with pytest.raises(ScorerFailed, match="when it started: its device or its weights failed"):
        probe.check()


def test_a_device_that_computes_wrongly_is_told_from_swapped_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = probe_of("piqe")
    score = probe.scorer.score
    monkeypatch.setattr(probe.scorer, "score", lambda images: score(images) + 1, raising=False)
    with pytest.raises(ScorerFailed, match="its version is the stored one's, so that this device or a library"):
        probe.check()


def test_other_scores_are_not_overwritten_unless_forced(lite0: Path) -> None:
    name, settings = "lite0_levels", {"weights": str(lite0)}
    _, first = write_probe(probe_of(name, **settings))
    assert write_probe(probe_of(name, **settings))[1] == first
    changed(lite0)
    with pytest.raises(FileExistsError, match="--force replaces them"):
        write_probe(probe_of(name, **settings))
    assert write_probe(probe_of(name, **settings), force=True)[1] != first
    probe_of(name, **settings).check()


def test_scorers_that_share_a_folder_keep_their_scores(folder: Path) -> None:
    for name in ("deqa", "qalign"):
        write_probe(Probe(made(name, folder), name, PARAMS[name](folder)))
    assert {key.split()[0] for key in json.loads((folder / "owl2" / FILE).read_text())} == {"deqa", "qalign"}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a": {}}', '{"a": {"scores": [1, 2], "tolerance": 1, "version": ""}}', '{"a": 3}']
)
def test_a_damaged_file_is_told_and_never_passed_over(lite0: Path, content: str) -> None:
    (lite0 / FILE).write_text(content)
    with pytest.raises(ScorerFailed, match=f"{FILE} holds no scores of a probe.*put the file right, or delete it"):
        probe_of("lite0_levels", weights=str(lite0))


MINE = "tests.reward_service.fakes:Mine"


def test_a_users_class_without_weights_is_held_to_its_first_scores() -> None:
    probe = probe_of(MINE)
    with pytest.warns(UserWarning, match="nowhere to store its scores"):
        probe.check()
    with pytest.raises(ValueError, match="name no file or folder of weights"):
        write_probe(probe)


@pytest.mark.parametrize(
    ("give", "told"),
    [
        ("raise", "raised RuntimeError on the probe's pictures of 192 x 192: only 224 x 224; .* native_side"),
        ("nan", r"gave \[nan nan nan\] to the probe's 3 pictures"),
        ("one", "must be a finite number each"),
    ],
)
def test_a_scorer_that_cannot_score_the_pictures_is_not_ready(give: str, told: str) -> None:
    with pytest.raises(ScorerFailed, match=told):
        probe_of(MINE, give=give).check()


def test_pictures_have_the_scorers_own_size() -> None:
    scorer = make_scorer(MINE)
    scorer.native_side = 72  # type: ignore[attr-defined]
    assert Probe(scorer, MINE, {}).pictures.shape == (3, 72, 72, 3)


@pytest.mark.parametrize("side", [100, 400])
def test_the_first_check_tries_the_size_that_the_scorer_is_for_and_no_later_one(side: int) -> None:
    scorer, sizes = make_scorer(MINE), list[tuple[int, ...]]()
    score = scorer.score
    scorer.score = lambda images: (sizes.append(images.shape), score(images))[1]  # type: ignore[method-assign]
    probe = Probe(scorer, MINE, {}, side)
    with pytest.warns(UserWarning, match="nowhere to store"):
        probe.check()
    probe.check()
    assert sizes == [(3, 192, 192, 3), (1, side, side, 3), (3, 192, 192, 3)]


def test_a_size_that_the_scorer_refuses_is_told_with_what_names_it() -> None:
    with pytest.raises(ScorerFailed, match="raised ValueError on a picture of 64 x 64, .*rollout.crop.*sides of 96"):
        Probe(make_scorer("niqe"), "niqe", {}, 64).check()
