"""Image files of every kind become RGB; bad ones are refused by name and reason."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from restoration import images
from restoration.images import ImageError, crop_back, image_size, pad_to_multiple, read_image, to_uint8, write_image


def gradient(height=20, width=30, levels=256):
    """RGB ramps, different in each channel, uint8 or uint16."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x / (width - 1), y / (height - 1), (x + y) / (height + width - 2)], -1)
    return np.round(ramps * (levels - 1)).astype(np.uint8 if levels == 256 else np.uint16)


def test_what_is_written_is_read_again_exactly(tmp_path):
    pixels = gradient()
    write_image(tmp_path / "a.png", pixels)
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.float32 and image.shape == (3, 20, 30)
    assert np.array_equal(to_uint8(image), pixels)
    write_image(tmp_path / "deep" / "b.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "b.png")), pixels)


def test_grey_and_palette_files_become_rgb(tmp_path):
    grey = gradient()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(to_uint8(read_image(tmp_path / "grey.png")), np.repeat(grey[..., None], 3, -1))
    palette = Image.fromarray(gradient()).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(to_uint8(read_image(tmp_path / "palette.png")), np.asarray(palette.convert("RGB")))


def test_alpha_is_composited_on_black(tmp_path):
    rgba = np.dstack([gradient(), np.full((20, 30), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    rgba[10, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    seen = to_uint8(read_image(tmp_path / "a.png"))
    assert (seen[:10] == 0).all()
    assert np.array_equal(seen[10], np.round(rgba[10, :, :3] * (128 / 255)).astype(np.uint8))
    assert np.array_equal(seen[11:], rgba[11:, :, :3])


def test_grey_with_alpha_and_a_palette_with_a_transparent_colour_are_composited_too(tmp_path):
    Image.merge("LA", [Image.new("L", (4, 4), 200), Image.new("L", (4, 4), 0)]).save(tmp_path / "la.png")
    assert (to_uint8(read_image(tmp_path / "la.png")) == 0).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=1)
    assert (to_uint8(read_image(tmp_path / "p.png")) == 0).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour_keeps_its_depth(tmp_path, suffix):
    deep = gradient(levels=65536)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), deep[..., ::-1])
    image = read_image(tmp_path / f"deep{suffix}")
    assert np.abs(image.permute(1, 2, 0).numpy() * 65535 - deep).max() < 0.02


def test_16_bit_grey_and_16_bit_alpha_are_read(tmp_path):
    deep = gradient(levels=65536)
    cv2.imwrite(str(tmp_path / "grey.png"), deep[..., 0])
    image = read_image(tmp_path / "grey.png")
    assert np.abs(image.permute(1, 2, 0).numpy() * 65535 - deep[..., :1]).max() < 0.02
    alpha = np.full((20, 30, 1), 65535, np.uint16)
    alpha[:5] = 0
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([deep[..., ::-1], alpha]))
    image = read_image(tmp_path / "alpha.png").permute(1, 2, 0).numpy() * 65535
    assert (image[:5] == 0).all() and np.abs(image[5:] - deep[5:]).max() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    photo = Image.fromarray(gradient())
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(to_uint8(read_image(tmp_path / "a.png")), expected)
    assert image_size(tmp_path / "a.png") == expected.shape[:2]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    for share in (0.02, 0.5, 0.9):
        (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=f"cut{suffix}"):
            read_image(tmp_path / f"cut{suffix}")


def test_a_truncated_16_bit_file_is_refused_by_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:9000])
    with pytest.raises(ImageError, match=r"cut\.png"):
        read_image(tmp_path / "cut.png")


def test_unreadable_files_are_refused_with_the_reason(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    cases = {"empty.png": "0 bytes", "text.png": "known kind", "gone.png": "No such file", "float.tif": "float pixels"}
    for name, reason in cases.items():
        with pytest.raises(ImageError, match=f"{name}.*{reason}"):
            read_image(tmp_path / name)
    for name in ("empty.png", "text.png", "gone.png"):
        with pytest.raises(ImageError, match=name):
            image_size(tmp_path / name)


def test_a_failed_write_leaves_neither_a_file_nor_a_temporary(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.Image.Image, "save", full)
    with pytest.raises(ImageError, match=r"a\.png.*No space left"):
        write_image(tmp_path / "a.png", gradient())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ImageError, match=r"\.png"):
        write_image(tmp_path / "a.jpg", gradient())


@pytest.mark.parametrize("stem", ["\u6587" * 73, "n" * 251], ids=["73 Chinese characters", "255 bytes"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_name_that_just_fits_the_file_system_can_be_written(tmp_path, stem, bits):
    write_image(tmp_path / f"{stem}.png", images.to_float(gradient()), bits)
    assert [p.name for p in tmp_path.iterdir()] == [f"{stem}.png"]
    assert np.array_equal(to_uint8(read_image(tmp_path / f"{stem}.png")), gradient())


def test_a_name_that_is_too_long_is_refused_by_name_and_leaves_nothing(tmp_path):
    with pytest.raises(ImageError, match=r"n\.png: can't be written: File name too long"):
        write_image(tmp_path / f"{'n' * 252}.png", gradient())
    with pytest.raises(ImageError, match=r"a\.png: can't be written: File name too long"):
        write_image(tmp_path / ("n" * 256) / "a.png", gradient())
    assert list(tmp_path.iterdir()) == []


def test_8_bit_conversion_rounds_clamps_and_refuses_what_is_not_finite():
    values = torch.tensor([-0.3, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.7]).view(1, 1, 6).expand(3, 1, 6)
    assert to_uint8(values)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(torch.full((3, 2, 2), float("nan")))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 16), (16, 16), (33, 17)])
def test_padding_reflects_to_the_multiple_and_is_cropped_back(size):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    padded = pad_to_multiple(image, 16)
    assert padded.shape[-2] % 16 == 0 and padded.shape[-1] % 16 == 0
    assert padded.shape[-2] - size[0] < 16 and padded.shape[-1] - size[1] < 16
    assert torch.equal(crop_back(padded, *size), image)
    expected = np.pad(
        image.numpy(), [(0, 0), (0, 0), (0, padded.shape[2] - size[0]), (0, padded.shape[3] - size[1])], mode="reflect"
    )
    assert np.array_equal(padded.numpy(), expected)
