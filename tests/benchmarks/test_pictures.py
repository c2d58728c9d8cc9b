"""Pages of whole photographs: their size, what stands on them, and whose photographs they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import pictures
from benchmarks.pictures import CROP, GAP, TEXT, TIMES, WIDTH, Photo, attributions, index, page, save, strip
from restoration.metrics import protocol


@pytest.fixture
def photo() -> Photo:
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 256, (180, 300, 3), dtype=np.uint8) for _ in range(4))
    return Photo("chelsea", images, (1.5, 2.25, 2.5, 3.125))


def test_captions_are_psnr_against_the_photograph_and_the_score(photo: Photo) -> None:
    whole, part = photo.captions(), photo.captions((10, 20, 30, 40))
    for i, image in enumerate(photo.images[:3]):
        psnr = protocol("lowlight_rgb").psnr(image, photo.images[3])[0]
        assert whole[i] == f"{psnr:.1f} dB  {photo.scores[i]:.2f}"
        cut = [np.ascontiguousarray(x[10:40, 20:60]) for x in (image, photo.images[3])]
        assert part[i] == f"{protocol('lowlight_rgb').psnr(*cut)[0]:.1f} dB"
    assert whole[3] == "3.12" and part[3] == ""


def test_a_page_has_four_whole_pictures_and_the_same_part_of_each_below(photo: Photo) -> None:
    sheet = page(photo)
    tall = round(180 * ((WIDTH - 3 * GAP) // 2) / 300)
    small = (WIDTH - 5 * GAP) // 4
    assert sheet.size == (WIDTH, GAP + 2 * (TEXT + GAP + tall + GAP) + small + GAP)


def test_the_strip_shows_pixels_enlarged_by_a_whole_factor(photo: Photo) -> None:
    sheet = np.asarray(strip([photo]))
    left, top, side = GAP, GAP + TEXT + GAP, CROP * TIMES
    shown = sheet[top : top + side, left : left + side]
    small = shown[::TIMES, ::TIMES]
    assert np.array_equal(small.repeat(TIMES, 0).repeat(TIMES, 1), shown)
    degraded = photo.images[0]
    places = np.argwhere((degraded[: 180 - CROP + 1, : 300 - CROP + 1] == small[0, 0]).all(2))
    assert any(np.array_equal(degraded[y : y + CROP, x : x + CROP], small) for y, x in places)


def test_a_page_stays_within_its_limit(photo: Photo, tmp_path: Path) -> None:
    noise = Image.fromarray(photo.images[0])
    save(tmp_path / "new" / "a.webp", noise, limit=60_000)
    assert 0 < (tmp_path / "new" / "a.webp").stat().st_size <= 60_000
    with pytest.raises(SystemExit, match="bytes at the lowest quality"):
        save(tmp_path / "b.webp", noise, limit=1000)
    assert not (tmp_path / "b.webp").exists()


def test_every_held_out_photograph_is_attributed_and_share_alike_is_named(
    photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {file.stem for file in Path("data/photos/heldout").glob("*.jpg")}
    assert held and held == attributions().keys()
    text = index([photo], "rain", 0.65)
    assert "| [chelsea.webp](chelsea.webp) | chelsea (cat) | Stefan van der Walt | CC0-1.0 |" in text
    (tmp_path / "ATTRIBUTION.md").write_text("| heldout/chelsea.jpg | Cat | A B | CC-BY-SA-4.0 **SA** | somewhere |\n")
    monkeypatch.setattr(pictures, "PHOTOS", tmp_path)
    assert "| Cat | A B | CC-BY-SA-4.0 **SA** |" in index([photo], "rain", 0.65)
    (tmp_path / "ATTRIBUTION.md").write_text("\n")
    with pytest.raises(SystemExit, match="says nothing of chelsea"):
        index([photo], "rain", 0.65)
