"""The scorers `deqa` and `qalign` on a tiny network with the golden files' weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.deqa import through_pillow
from benchmarks.owl2_published import published_levels
from reward_service.scorers import LEAST_SIDE, Scorer, make_scorer
from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.pixels import windows
from reward_service.scorers.mplug_owl2.scorer import OwlScorer
from tests.golden.case import Golden
from tests.golden.deqa import released_config
from tests.reward_service.owl2_folders import golden, vocabulary, write_full, write_sentencepiece

Q_ALIGN = (1.0, 0.75, 0.5, 0.25, 0.0)


@pytest.fixture(scope="module")
def source() -> Golden:
    torch.set_num_threads(1)
    return golden()


@pytest.fixture(scope="module")
def folder(source: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full(tmp_path_factory.mktemp("deqa"), source.state("model"), source)


@pytest.fixture
def scorer(folder: Path) -> OwlScorer:
    return made(folder)


def made(folder: Path, name: str = "deqa", **settings: Any) -> OwlScorer:
    found = make_scorer(name, "cpu", weights=str(folder), **({"dtype": "float32"} | settings))
    assert isinstance(found, OwlScorer) and isinstance(found, Scorer)
    return found


def pictures(count: int = 7, height: int = 70, width: int = 64) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def wanted(source: Golden, images: np.ndarray, values: tuple[float, ...] = (5.0, 4.0, 3.0, 2.0, 1.0)) -> np.ndarray:
    config = OwlConfig.from_json(released_config(source.config))
    pixels = torch.cat([through_pillow(image, 56) for image in images])
    levels = published_levels(source.state("model"), config, pixels)
    return (levels.softmax(-1) @ torch.tensor(values)).numpy()


def test_scores_are_those_of_the_published_forward_with_pillows_preparation(source: Golden, scorer: OwlScorer) -> None:
    images = pictures()
    scores = scorer.score(images)
    assert scores.dtype == np.float32 and scores.shape == (7,) and scorer.range == (1.0, 5.0)
    np.testing.assert_allclose(scores, wanted(source, images), atol=5e-5)
    assert scores.std() > 0.05


def test_qalign_is_the_same_with_its_own_levels(source: Golden, folder: Path) -> None:
    images = pictures()
    scorer = made(folder, "qalign", level_weights=list(Q_ALIGN))
    np.testing.assert_allclose(scorer.score(images), wanted(source, images, Q_ALIGN), atol=5e-5)
    assert scorer.range == (0.0, 1.0) and scorer.version.startswith("qalign-")
    assert made(folder, "qalign").range == (1.0, 5.0)


def test_deterministic_scores_have_equal_bits_in_any_company(folder: Path) -> None:
    images = pictures(9)
    scorer = made(folder, batch=4, deterministic=True)
    together = scorer.score(images)
    assert np.array_equal(together, np.concatenate([scorer.score(image[None]) for image in images]))
    assert np.array_equal(together, scorer.score(images[::-1].copy())[::-1])
    assert np.array_equal(together, made(folder, batch=4, deterministic=True).score(images))
    np.testing.assert_allclose(together, made(folder).score(images), atol=1e-5)


def test_deterministic_passes_have_one_shape(folder: Path) -> None:
    scorer = made(folder, batch=4, deterministic=True)
    rows, read = [], scorer._read
    scorer._read = lambda pixels: (rows.append(len(pixels)), read(pixels))[1]
    scorer.score(pictures(5))
    scorer.score(pictures(1))
    assert rows == [4, 4, 4]


def test_deterministic_is_refused_where_a_place_in_the_batch_changes_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = OwlScorer._scores

    def by_place(self: OwlScorer, pixels: Tensor) -> Tensor:
        return plain(self, pixels) + torch.arange(len(pixels)) * 1e-6

    monkeypatch.setattr(OwlScorer, "_scores", by_place)
    with pytest.raises(ValueError, match="deterministic=true, but on cpu .* set batch=1"):
        made(folder, batch=4, deterministic=True)
    made(folder, batch=1, deterministic=True)


def test_crops_are_scored_at_the_networks_size_and_weigh_as_much_as_the_whole_picture(
    folder: Path, scorer: OwlScorer
) -> None:
    images = pictures(3, 130, 100)
    cropped = made(folder, crops=2, batch=4)
    boxes = windows(130, 100, 56, 2)
    assert len(boxes) == 4
    of_crops = np.stack([scorer.score(images[:, a:b, c:d].copy()) for a, b, c, d in boxes])
    np.testing.assert_allclose(cropped.score(images), (scorer.score(images) + of_crops.mean(0)) / 2, atol=1e-5)
    small = pictures(3, 56, 40)
    np.testing.assert_allclose(cropped.score(small), scorer.score(small), atol=1e-6)


def test_the_version_tells_weights_and_settings_apart_but_not_the_batch(
    source: Golden, folder: Path, tmp_path: Path
) -> None:
    state = source.state("model")
    same = write_full(tmp_path / "same", state, source, 1, "bin")
    state["model.norm.weight"][3] += 0.01
    other = write_full(tmp_path / "other", state, source)
    version = made(folder).version
    assert made(same).version == made(folder, batch=5).version == version
    versions = [
        version,
        made(other).version,
        made(folder, "qalign").version,
        made(folder, level_weights=list(Q_ALIGN)).version,
        made(folder, crops=2).version,
        made(folder, dtype="bfloat16").version,
        made(folder, deterministic=True, batch=4).version,
        made(folder, deterministic=True, batch=5).version,
    ]
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_types_score_nearly_the_same(folder: Path, scorer: OwlScorer, dtype: str, near: float) -> None:
    images = pictures(3)
    assert 0 < np.abs(made(folder, dtype=dtype).score(images) - scorer.score(images)).max() < near


def test_a_picture_that_the_network_gives_no_number_for_is_nan_and_its_mates_keep_theirs(scorer: OwlScorer) -> None:
    images = pictures(5)
    before, read = scorer.score(images), scorer._read

    def overflowing(pixels: Tensor) -> Tensor:
        levels = read(pixels)
        levels[2, 1] = torch.inf
        return levels

    scorer._read = overflowing
    scores = scorer.score(images)
    assert np.isnan(scores[2])
    np.testing.assert_array_equal(np.delete(scores, 2), np.delete(before, 2))


def little_memory(scorer: OwlScorer, most: int) -> None:
    read = scorer._read

    def limited(pixels: Tensor) -> Tensor:
        if len(pixels) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return read(pixels)  # type: ignore[no-any-return]

    scorer._read = limited


def test_without_memory_for_its_batch_a_scorer_halves_it_says_so_and_scores_everything(scorer: OwlScorer) -> None:
    images = pictures(9)
    before = scorer.score(images)
    little_memory(scorer, 3)
    with pytest.warns(UserWarning, match="not enough memory on cpu for (9|4) pictures at once: (4|2) from here on"):
        scores = scorer.score(images)
    np.testing.assert_allclose(scores, before, atol=1e-5)
    assert scorer.batch == scorer.preferred_batch == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.score(images)


def test_without_memory_for_one_picture_or_a_kept_batch_it_ends_in_words(folder: Path) -> None:
    scorer = made(folder, batch=2)
    little_memory(scorer, 0)
    with (
        pytest.warns(UserWarning, match="1 from here on"),
        pytest.raises(MemoryError, match="for 1 pictures at once: give"),
    ):
        scorer.score(pictures(2))
    fixed = made(folder, batch=4, deterministic=True)
    little_memory(fixed, 3)
    with pytest.raises(MemoryError, match="deterministic=true keeps the batch: set batch=2"):
        fixed.score(pictures(2))


def test_weights_that_the_device_has_no_memory_for_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("reward_service.scorers.mplug_owl2.scorer.load_owl2", full)
    with pytest.raises(MemoryError, match="scorer deqa: the weights don't fit on cpu in torch.float32"):
        made(folder)


def test_other_errors_of_a_pass_are_not_taken_for_memory(scorer: OwlScorer) -> None:
    def broken(pixels: Tensor) -> Tensor:
        raise RuntimeError("device-side assert")

    scorer._read = broken
    with pytest.raises(RuntimeError, match="device-side assert"):
        scorer.score(pictures(2))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"level_weights": [5, 4, 3, 2]}, "one finite number for each of excellent"),
        ({"level_weights": [5, 4, 3, 2, float("nan")]}, "one finite number"),
        ({"level_weights": [1, 2, 3, 4, 5]}, "must fall from excellent to bad"),
        ({"crops": -1}, "crops=-1"),
        ({"crops": 2.5}, "crops=2.5"),
        ({"batch": 0}, "batch=0"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_bad_settings_are_refused_by_name_before_anything_is_read(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_scorer("deqa", weights="absent", **settings)


@pytest.mark.parametrize("name", ["deqa", "qalign"])
def test_absent_weights_are_told_by_the_scorers_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"scorer {name} needs `weights`, .* docs/reward.md"):
        make_scorer(name)
    with pytest.raises(ValueError, match=f"scorer {name}: .*absent is no folder"):
        make_scorer(name, weights=str(tmp_path / "absent"))


def test_a_vocabulary_of_another_model_is_refused(source: Golden, folder: Path, tmp_path: Path) -> None:
    state = source.state("model")
    own = write_full(tmp_path / "own", state, source)
    write_sentencepiece(own / "tokenizer.model", vocabulary())
    assert made(own).version == made(folder).version
    write_sentencepiece(own / "tokenizer.model", vocabulary()[::-1])
    with pytest.raises(
        ValueError, match="scorer deqa: .*tokenizer.model: 'excellent' has the token .*, expected 15129"
    ):
        made(own)


@pytest.mark.parametrize("name", ["deqa", "qalign"])
def test_the_least_side_is_what_it_takes(folder: Path, name: str) -> None:
    scorer, side = made(folder, name), LEAST_SIDE[name]
    assert scorer.least_side == side and scorer.native_side == 56
    assert np.isfinite(scorer.score(pictures(1, side, side))).all()
    with pytest.raises(ValueError, match="too small"):
        scorer.score(pictures(1, side, side - 1))
    with pytest.raises(ValueError, match="not float32"):
        scorer.score(pictures(1).astype(np.float32))
    with pytest.raises(ValueError, match="empty"):
        scorer.score(pictures(0))


def test_the_estimate_of_memory_counts_the_weights_and_grows_with_the_batch(source: Golden, scorer: OwlScorer) -> None:
    weights = 4 * sum(v.numel() for v in source.state("model").values())
    assert weights < scorer.memory_bytes(1) < scorer.memory_bytes(2) < scorer.memory_bytes()
    assert scorer.memory_bytes(2) - scorer.memory_bytes(1) == scorer.memory_bytes(3) - scorer.memory_bytes(2)


@pytest.mark.slow
def test_a_compiled_scorer_scores_the_same_in_passes_of_one_shape(folder: Path, scorer: OwlScorer) -> None:
    images = pictures(5)
    compiled = made(folder, compile=True, batch=4)
    np.testing.assert_allclose(compiled.score(images), scorer.score(images), atol=1e-4)


def test_where_torch_cannot_compile_that_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        def run(pixels: Tensor) -> Tensor:
            raise RuntimeError("no compiler found\nmore")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(RuntimeError, match=r"can't compile here \(no compiler found\); set compile=false"):
        made(folder, compile=True)
