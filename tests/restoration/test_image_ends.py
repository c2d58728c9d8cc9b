"""A file of which the end is missing is found without decoding it; one whose pixels are all there passes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from restoration import image_ends
from restoration.datasets.paired import PairedFolder
from restoration.datasets.readers import IMAGES
from restoration.image_ends import check_whole, undecodable
from restoration.images import ImageError, read_pixels

# Name of the file: how Pillow saves it.
KINDS = {
    "a.png": {},
    "a.jpg": {"quality": 90},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "a.webp": {"lossless": True},
    "lossy.webp": {},
    "a.bmp": {},
    "a.gif": {},
    "a.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "jpeg.tif": {"compression": "jpeg"},
    "big.tif": {"big_tiff": True},
    "a.avif": {},
    "a.jp2": {},
    "a.j2k": {},
    "a.ppm": {},
    "a.pgm": {},
    "a.pbm": {},
}
TELLS_HOW_MUCH = {"a.webp", "lossy.webp", "a.bmp", "a.tif", "big.tif", "a.avif", "a.jp2", "a.ppm", "a.pgm", "a.pbm"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name -> bytes, of a picture of noise."""
    folder = tmp_path_factory.mktemp("whole")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for name, how in KINDS.items():
        noise.convert({".pgm": "L", ".pbm": "1"}.get(name[-4:], "RGB")).save(folder / name, **how)
    return {name: (folder / name).read_bytes() for name in KINDS}


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(image_ends, "read_pixels", refuse)


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_passes_by_its_headers_and_end_alone(tmp_path, files, name, no_decoding):
    (tmp_path / name).write_bytes(files[name])
    check_whole(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cut", ["half", 100, 10])
def test_a_file_that_is_cut_off_is_refused_by_name_with_what_is_missing(tmp_path, files, name, cut):
    whole = files[name]
    missing = len(whole) // 2 if cut == "half" else cut
    (tmp_path / name).write_bytes(whole[: len(whole) - missing])
    if name == "a.png" and cut == 10:  # of its last mark; every pixel is there
        check_whole(tmp_path / name)
        return
    with pytest.raises(ImageError, match=rf"{name}: the file is cut off: .* missing; copy it again") as caught:
        check_whole(tmp_path / name)
    told = re.search(r"at least (\d+) bytes", str(caught.value))
    assert (name not in TELLS_HOW_MUCH) or (told is not None and int(told[1]) == missing)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("more", [bytes(5000), b"a video " * 600], ids=["zeros", "bytes"])
def test_what_a_program_appended_is_no_harm(tmp_path, files, name, more):
    (tmp_path / name).write_bytes(files[name] + more)
    check_whole(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
def test_whatever_can_be_read_passes_wherever_it_is_cut(tmp_path, files, name):
    whole = files[name]
    for length in [*range(len(whole) - 30, len(whole)), *np.linspace(60, len(whole), 12, endpoint=False).astype(int)]:
        (tmp_path / name).write_bytes(whole[:length])
        try:
            read_pixels(tmp_path / name)
        except ImageError:
            continue
        check_whole(tmp_path / name)


def test_an_end_that_a_thumbnail_has_is_not_that_of_the_photograph(tmp_path, files):
    exif = Image.Exif()
    exif[0x9286] = "thumbnail"
    thumbnail = b"Exif\0\0" + exif.tobytes()[6:] + files["a.jpg"]
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "a.jpg", exif=thumbnail[:60000])
    photo = (tmp_path / "a.jpg").read_bytes()
    check_whole(tmp_path / "a.jpg")
    scan = photo.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(photo[: scan + 100])
    with pytest.raises(ImageError, match="cut off"):
        check_whole(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(photo[: photo.index(b"\xff\xd9") + 2])
    with pytest.raises(ImageError, match="cut off"):
        check_whole(tmp_path / "a.jpg")


def test_a_file_that_is_gone_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: can't be read: No such file"):
        check_whole(tmp_path / "gone.png")


@pytest.mark.parametrize("side", ["input", "target"])
def test_a_pair_of_which_one_file_is_cut_in_half_is_found_when_the_folders_are_opened(tmp_path, files, side):
    for folder in ("input", "target"):
        (tmp_path / folder).mkdir()
        for name in ("a.jpg", "b.png"):
            (tmp_path / folder / name).write_bytes(files[f"a{name[1:]}"])
    PairedFolder(tmp_path / "input", tmp_path / "target")
    (tmp_path / side / "b.png").write_bytes(files["a.png"][: len(files["a.png"]) // 2])
    with pytest.raises(ImageError, match=rf"{side}.b\.png: the file is cut off"):
        PairedFolder(tmp_path / "input", tmp_path / "target")


def test_what_is_damaged_in_the_middle_decoding_finds(tmp_path, files):
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_bytes(files[name])
    damaged = bytearray(files["a.png"])
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "damaged.png").write_bytes(damaged)
    check_whole(tmp_path / "damaged.png")
    (error,) = undecodable((path, IMAGES) for path in sorted(tmp_path.iterdir()))
    assert isinstance(error, ImageError) and "damaged.png" in str(error)
