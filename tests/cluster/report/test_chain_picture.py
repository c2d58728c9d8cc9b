"""Animations and strips of chains, read back from their files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from cluster.report.chain_picture import (
    LAST_MS,
    LONGEST,
    MOST_STEPS,
    STEP_MS,
    Shown,
    _thinned,
    caption_of,
    draw_animation,
    draw_still,
    save_chains,
)
from restoration.chain import Frame


def shown(seed: int = 0, side: int = 32, steps: int = 3, labels: tuple[str, ...] = ("base", "RL")) -> Shown:
    """Noisy pictures with invented figures, other ones in each frame."""
    rng = np.random.default_rng(seed)

    def frame(row: int, step: int) -> Frame:
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        timestep = math.nan if step == 0 else 999.0 - step
        return Frame(image, step, timestep, 1.2 + row / 10 + step / 100 + seed, 20.0 + step)

    chains = {label: [frame(row, step) for step in range(steps + 1)] for row, label in enumerate(labels)}
    return Shown(f"picture{seed}", chains, rng.integers(0, 256, (side, side, 3), dtype=np.uint8), 3.5)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_has_a_page_for_the_input_and_each_step_and_stays_on_the_last(tmp_path: Path, suffix: str) -> None:
    path = save_chains(tmp_path / "new" / f"chain{suffix}", [shown(0), shown(1)], widths=(64,))
    with Image.open(path) as file:
        pages = [page.convert("RGB") for page in ImageSequence.Iterator(file)]
        durations = []
        for i in range(file.n_frames):  # type: ignore[attr-defined]
            file.seek(i)
            file.load()
            durations.append(file.info["duration"])
    assert len(pages) == 4 and len({page.size for page in pages}) == 1
    assert durations[1:] == [STEP_MS, STEP_MS, LAST_MS]


def test_a_page_shows_each_models_estimate_of_its_step_enlarged_by_a_whole_factor() -> None:
    one, width = shown(), 64
    for step, page in enumerate(draw_animation([one], width)):
        pixels = np.asarray(page)
        for frames in one.chains.values():
            enlarged = frames[step].image.repeat(2, 0).repeat(2, 1)
            assert any(
                np.array_equal(pixels[y : y + width, 6 : 6 + width], enlarged) for y in range(pixels.shape[0] - width)
            )


def test_under_each_picture_stand_its_own_score_and_psnr(written: list[str]) -> None:
    both = [shown(0), shown(1)]
    draw_animation(both, 64)
    captions = {caption_of(f.score, f.psnr) for one in both for frames in one.chains.values() for f in frames}
    assert captions <= set(written) and "1.23  23.0 dB" in captions and "2.31  21.0 dB" in captions
    assert {"input", "clean estimate after step 2 of 3", "base", "RL"} <= set(written)
    written.clear()
    draw_still(both, 64)
    steps = {caption_of(f.score, f.psnr) for one in both for frames in one.chains.values() for f in frames[1:]}
    assert steps <= set(written) and {"input", "ground truth", "base, 1 of 3", "RL, 3 of 3", "3.50"} <= set(written)


def test_a_score_that_can_not_be_had_is_a_dash_and_never_0() -> None:
    assert caption_of(math.nan, None) == "-" and caption_of(math.nan, 20.04) == "-  20.0 dB"
    assert caption_of(2.0, None) == "2.00"
    one = shown()
    lacking = [Frame(f.image, f.step, f.timestep, math.nan) for f in one.chains["base"]]
    assert draw_animation([Shown("x", {"base": lacking})], 64)  # nothing to plot


def test_a_strip_has_the_steps_of_a_model_in_a_row_beside_input_and_ground_truth() -> None:
    width = 64
    for labels, columns in ((("base", "RL"), 4), (("diffbir",), 5)):
        sheet = draw_still([shown(labels=labels)], width)
        assert sheet.width == 6 + columns * (width + 6)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png", ".jpg"])
def test_a_file_stays_within_its_limit_by_lower_quality_and_then_smaller_pictures(tmp_path: Path, suffix: str) -> None:
    one, widths = shown(side=48, steps=1), (48, 24, 16)
    free = save_chains(tmp_path / f"free{suffix}", [one], limit=10**8, widths=widths).stat().st_size
    tight = save_chains(tmp_path / f"tight{suffix}", [one], limit=free // 2, widths=widths)
    assert tight.stat().st_size <= free // 2
    with pytest.raises(ValueError, match="with pictures 16 px wide; show fewer"):
        save_chains(tmp_path / f"none{suffix}", [one], limit=500, widths=widths)
    assert not (tmp_path / f"none{suffix}").exists()


def test_of_a_chain_of_many_steps_some_are_left_out_evenly_and_each_says_which_it_is(
    tmp_path: Path, written: list[str]
) -> None:
    """As `restorl report --animate` of a model of fifty steps: noise becomes small in no format."""
    one = shown(side=16, steps=20)
    for suffix, limit in ((".png", 16_000), (".webp", 7_000)):
        path = save_chains(tmp_path / f"chain{suffix}", [one], limit=limit, widths=(32, 16))
        assert path.stat().st_size <= limit
    with Image.open(tmp_path / "chain.png") as still, Image.open(tmp_path / "chain.webp") as moving:
        assert 3 <= (still.width - 6) // (16 + 6) < 21
        assert 3 <= moving.n_frames < 21  # type: ignore[attr-defined]
    assert {"RL, 20 of 20", "clean estimate after step 20 of 20"} <= set(written)
    assert all(text.endswith(" of 20") for text in written if " of " in text)


def test_no_more_steps_are_drawn_than_somebody_looks_at(tmp_path: Path) -> None:
    path = save_chains(tmp_path / "chain.gif", [shown(side=16, steps=300, labels=("a",))], limit=10**8, widths=(16,))
    with Image.open(path) as file:
        assert file.n_frames == MOST_STEPS + 1  # type: ignore[attr-defined]


def test_a_strip_that_is_longer_than_its_format_can_be_shows_fewer_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LONGEST, ".jpg", 400)
    with Image.open(save_chains(tmp_path / "a.jpg", [shown(side=32, steps=20)], widths=(32,))) as file:
        assert file.width <= 400


def test_the_line_of_scores_has_its_steps_where_they_are_though_some_are_left_out() -> None:
    """The last page of a chain has the same lines, but for points, whether its frames are all there or not."""
    whole = shown(side=16, steps=8)
    halved = _thinned(whole, 4)
    assert [f.step for f in halved.chains["base"]] == [0, 2, 4, 6, 8]
    assert [f.step for f in _thinned(whole, 3).chains["base"]] == [0, 3, 6, 8]
    full, half = (np.asarray(draw_animation([one], 64)[-1]) for one in (whole, halved))
    plot = slice(full.shape[0] - 54, None)
    assert full.shape == half.shape and np.mean(full[plot] != half[plot]) < 0.15


def test_small_pictures_are_enlarged_by_whole_factors_only(tmp_path: Path) -> None:
    path = save_chains(tmp_path / "a.png", [shown(side=40)], widths=(100, 80, 60))
    with Image.open(path) as file:
        assert file.width == 6 + 4 * (80 + 6)


def test_what_can_not_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose a name that ends in \.webp, \.gif"):
        save_chains(tmp_path / "a.bmp", [shown()])
    for wrong in ([], [Shown("x", {})], [shown(), shown(steps=2)]):
        with pytest.raises(ValueError, match="equally many steps"):
            save_chains(tmp_path / "a.webp", wrong)
