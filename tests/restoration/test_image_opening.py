"""Pictures of any size and kind are opened, or refused by name with what to do."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, features

from restoration import image_opening, images
from restoration.images import ImageError, image_size, read_image, read_pixels, to_uint8


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(image_opening, "LARGE", 100)  # below the limit, as in truth


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".gif", ".bmp", ".avif", ".jp2"])
def test_a_picture_of_any_size_is_read_and_pillows_limit_stays_for_others(tmp_path, suffix, small_limit, recwarn):
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / f"a{suffix}")
    assert image_size(tmp_path / f"a{suffix}") == (30, 40)
    assert read_pixels(tmp_path / f"a{suffix}").shape == (30, 40, 3)
    assert not recwarn
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / f"a{suffix}")


def test_pillows_own_limit_does_not_hold_for_a_picture_of_200_million_pixels(tmp_path):
    Image.new("1", (20000, 10000)).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (10000, 20000)


def test_the_limit_comes_back_when_the_last_of_several_threads_is_done(small_limit):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with image_opening.any_size:
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(5)
    with image_opening.any_size:
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS is None
    leave.set()
    thread.join(5)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_picture_that_takes_more_than_half_of_the_free_memory_is_told_with_the_way_out(
    tmp_path, monkeypatch, recwarn
):
    monkeypatch.setattr(image_opening, "LARGE", 1000)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    free = 40 * 30 * image_opening.READ_BYTES * 2
    monkeypatch.setattr(image_opening, "free_memory", lambda: free)
    read_pixels(tmp_path / "a.png")
    assert not recwarn
    monkeypatch.setattr(image_opening, "free_memory", lambda: free - 1)
    for _ in range(2):
        read_pixels(tmp_path / "a.png")
    (told,) = (str(w.message) for w in recwarn)
    assert "a.png: 40x30 pixels take about" in told and "--tile" in told


def test_a_picture_for_which_there_is_no_memory_is_refused_by_name(tmp_path, monkeypatch):
    def short(photo):
        raise MemoryError

    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "load", short)
    with pytest.raises(ImageError, match=r"a\.png.*not enough memory"):
        read_pixels(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif", ".avif"])
def test_of_several_frames_the_first_is_read_and_the_others_told_once(tmp_path, suffix, recwarn):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    path = tmp_path / f"moving{suffix}"
    warnings.simplefilter("always")
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == ".webp" else {}))
    for _ in range(2):
        red, green, blue = read_pixels(path)[8, 8].tolist()
        assert red > 240 and green < 10 and blue < 10
        assert image_size(path) == (16, 16)
    (told,) = (str(w.message) for w in recwarn)
    assert f"{path} holds 3 frames or pages; only the first is read" in told


def test_the_second_view_of_a_stereo_photograph_and_the_small_copies_in_a_tiff_are_no_frames(tmp_path, recwarn):
    left, right = (Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0)))
    left.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[right])
    small = Image.new("RGB", (8, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    left.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    for name in ("a.jpg", "a.tif"):
        assert read_pixels(tmp_path / name)[8, 8, 0] > 240
    with Image.open(tmp_path / "a.tif") as file:
        assert file.n_frames == 2
    assert not recwarn


@pytest.mark.parametrize("suffix", [".gif", ".avif", ".jfif", ".jpe", ".jp2", ".j2k", ".jpx", ".pbm", ".pnm", ".tif"])
def test_the_rarer_kinds_of_files_are_read(tmp_path, suffix, photo_folder):
    with Image.open(photo_folder / "heldout" / "coffee.jpg") as file:
        photo = file.convert("1" if suffix == ".pbm" else "RGB").resize((60, 40))
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".jpx": "JPEG2000", ".pnm": "PPM", ".pbm": "PPM"}.get(suffix)
    photo.save(tmp_path / f"a{suffix}", format=kind, **({"big_tiff": True} if suffix == ".tif" else {}))
    if suffix == ".tif":
        assert (tmp_path / "a.tif").read_bytes()[2] == 43  # BigTIFF
    seen = to_uint8(read_image(tmp_path / f"a{suffix}"))
    assert np.abs(seen.astype(int) - np.asarray(photo.convert("RGB"))).mean() < 12


def test_a_kind_that_this_pillow_or_no_pillow_reads_is_named_with_the_way_out(tmp_path, monkeypatch):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.avif")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    for name, what in (
        ("a.heic", "HEIC files are not read; convert"),
        ("a.jxl", "JPEG XL files are not read; convert"),
    ):
        with pytest.raises(ImageError, match=rf"{name}: {what}"):
            read_pixels(tmp_path / name)
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(ImageError, match=r"a\.avif: this Pillow is built without AVIF; install"):
        read_pixels(tmp_path / "a.avif")


def test_a_link_to_nothing_is_told_with_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="a link to .*gone.png, which is not there"):
        read_image(tmp_path / "a.png")
