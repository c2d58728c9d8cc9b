"""One photograph in whatever colour space is the same picture."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from restoration import colour_profiles, images
from restoration.evaluate import evaluate_folders
from restoration.images import read_image, read_pixels, read_with_alpha, to_uint8, write_image
from restoration.pretrain.crops import PhotoCrops
from tests.restoration import icc

SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def photo(photo_folder):
    """uint8 [H, W, 3] with dark, bright and saturated colours."""
    with Image.open(photo_folder / "heldout" / "coffee.jpg") as file:
        return np.asarray(file.convert("RGB"))


def levels(values, top=255):
    return np.rint(values * top).astype(np.uint8 if top == 255 else np.uint16)


SPACES = {"adobe": (icc.as_adobe, icc.ADOBE_PROFILE), "p3": (icc.as_p3, icc.P3_PROFILE)}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_a_photograph_in_another_space_is_read_as_in_srgb(tmp_path, photo, space, suffix):
    encode, profile = SPACES[space]
    path = tmp_path / f"a{suffix}"
    how = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    Image.fromarray(levels(encode(photo / 255))).save(path, icc_profile=profile, **how)
    difference = np.abs(read_pixels(path).astype(int) - photo)
    if suffix == ".jpg":  # rounds in YCbCr, which blue feels most: measured 9 at most, 87% within a level
        assert difference.max() <= 12 and difference.mean() < 0.8 and (difference <= 1).mean() > 0.85
    else:
        # The 8 bits of Display P3 are coarser than sRGB's in a few dark colours: two levels in 2 of 100,000 pixels.
        assert difference.max() <= (1 if space == "adobe" else 2) and (difference > 1).mean() < 3e-5


@pytest.mark.parametrize("space", ["srgb", *SPACES])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_photograph_of_16_bits_keeps_them_when_it_is_converted(tmp_path, photo, space, suffix):
    encode, profile = {**SPACES, "srgb": (lambda x: x, SRGB_PROFILE)}[space]
    deep = levels(encode(photo / 255), 65535)
    if suffix == ".png":
        icc.deep_png(tmp_path / "a.png", deep, iCCP=profile)
    else:
        icc.deep_tiff(tmp_path / "a.tif", deep, profile)
    seen = read_pixels(tmp_path / f"a{suffix}")
    assert seen.dtype == np.uint16
    assert np.abs(seen / 257 - photo).max() < 0.05  # of a level of 8 bits


def test_a_cmyk_photograph_with_a_profile_is_read_as_in_srgb(tmp_path, photo):
    ink = Image.frombytes("CMYK", photo.shape[1::-1], levels(icc.as_cmyk(photo / 255)).tobytes())
    ink.save(tmp_path / "a.tif", icc_profile=icc.cmyk_profile())
    ink.save(tmp_path / "a.jpg", icc_profile=icc.cmyk_profile(), quality=100)
    assert np.abs(read_pixels(tmp_path / "a.tif").astype(int) - photo).max() <= 1
    lossy = np.abs(read_pixels(tmp_path / "a.jpg").astype(int) - photo)
    assert lossy.max() <= 4 and (lossy <= 1).mean() > 0.99


def test_ink_without_a_profile_is_seen_as_pillow_sees_it_from_jpeg_and_tiff(tmp_path):
    """JPEGs of Adobe's programs store CMYK upside down."""
    paper = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    paper.paste((0, 255, 255, 0), (0, 0, 8, 16))
    for suffix in (".jpg", ".tif"):
        paper.save(tmp_path / f"a{suffix}")
        seen = read_pixels(tmp_path / f"a{suffix}").astype(int)
        assert np.abs(seen[:, :8] - (255, 0, 0)).max() < 3 and np.abs(seen[:, 8:] - 255).max() < 3


def test_colours_that_srgb_does_not_have_are_clipped(tmp_path):
    Image.new("RGB", (2, 2), (0, 255, 0)).save(tmp_path / "green.png", icc_profile=icc.P3_PROFILE)
    assert read_pixels(tmp_path / "green.png")[0, 0].tolist() == [0, 255, 0]
    green = np.broadcast_to(np.array([0, 65535, 0], np.uint16), (2, 2, 3))
    icc.deep_png(tmp_path / "deep.png", green, iCCP=icc.P3_PROFILE)
    assert read_pixels(tmp_path / "deep.png")[0, 0].tolist() == [0, 65535, 0]


def test_an_srgb_profile_costs_nothing(tmp_path, photo, monkeypatch):
    for n, profile in enumerate([SRGB_PROFILE, icc.matrix_profile(icc.SRGB, icc.SRGB_CURVE)]):
        Image.fromarray(photo).save(tmp_path / f"{n}.png", icc_profile=profile)
        read_pixels(tmp_path / f"{n}.png")  # recognised once
    monkeypatch.setattr(images, "to_srgb", None)
    for n in range(2):
        assert np.array_equal(read_pixels(tmp_path / f"{n}.png"), photo)


def test_grey_profiles_are_followed_and_a_grey_picture_may_have_one_for_colours(tmp_path):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 4, axis=0)
    of_gamma = levels(icc.encoded((ramp / 255) ** 1.8))
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=icc.grey_profile(icc.gamma_curve(1.8)))
    assert np.abs(read_pixels(tmp_path / "a.png")[..., 1].astype(int) - of_gamma).max() <= 1
    icc.deep_png(tmp_path / "b.png", ramp.astype(np.uint16) * 257, iCCP=icc.grey_profile(icc.gamma_curve(1.8)))
    assert np.abs(read_pixels(tmp_path / "b.png")[..., 1] / 257 - icc.encoded((ramp / 255) ** 1.8) * 255).max() < 0.05
    Image.fromarray(ramp).save(tmp_path / "c.png", icc_profile=icc.matrix_profile(icc.ADOBE, icc.gamma_curve(1.8)))
    assert np.abs(read_pixels(tmp_path / "c.png").astype(int) - of_gamma[..., None]).max() <= 1


def test_palettes_and_transparent_pictures_are_converted_and_alpha_stays(tmp_path):
    red = levels(icc.as_adobe(np.array([[[0.8, 0.2, 0.1]]])))[0, 0].tolist()
    expected = np.array([0.8, 0.2, 0.1])
    Image.new("RGBA", (3, 3), (*red, 128)).save(tmp_path / "a.png", icc_profile=icc.ADOBE_PROFILE)
    colours, alpha = read_with_alpha(tmp_path / "a.png")
    assert np.abs(colours[:, 0, 0].numpy() - expected).max() < 1.1 / 255
    assert alpha is not None and (alpha * 255 == 128).all()
    palette = Image.new("P", (3, 3), 1)
    palette.putpalette([0, 0, 0, *red])
    palette.save(tmp_path / "p.png", icc_profile=icc.ADOBE_PROFILE)
    assert np.abs(read_image(tmp_path / "p.png")[:, 0, 0].numpy() - expected).max() < 1.1 / 255


def test_a_camera_that_marks_adobe_rgb_in_exif_is_believed(tmp_path, photo):
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
    Image.fromarray(levels(icc.as_adobe(photo / 255))).save(tmp_path / "_A.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(read_pixels(tmp_path / "_A.jpg").astype(int) - photo).mean() < 0.8
    exif[0x8769] = {0xA001: 1, 0xA005: {1: "R98"}}
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_pixels(tmp_path / "a.png"), photo)


def test_avif_and_jpeg_2000_say_their_space_in_a_box(tmp_path, photo):
    other = Image.fromarray(levels(icc.as_p3(photo / 255)))
    other.save(tmp_path / "icc.avif", quality=100, subsampling="4:4:4", icc_profile=icc.P3_PROFILE)
    other.save(tmp_path / "plain.avif", quality=100, subsampling="4:4:4")
    plain = (tmp_path / "plain.avif").read_bytes()
    assert plain.count(b"colrnclx") == 1
    at = plain.index(b"colrnclx") + 8
    (tmp_path / "codes.avif").write_bytes(plain[:at] + struct.pack(">HH", 12, 13) + plain[at + 4 :])
    other.save(tmp_path / "plain.jp2")
    plain = (tmp_path / "plain.jp2").read_bytes()
    header, at = plain.index(b"jp2h") - 4, plain.index(b"colr") - 4
    (size, old), new = (struct.unpack_from(">I", plain, p)[0] for p in (header, at)), b"colr\2\0\0" + icc.P3_PROFILE
    longer = struct.pack(">I", size - old + 4 + len(new))
    box = struct.pack(">I", 4 + len(new)) + new
    (tmp_path / "icc.jp2").write_bytes(plain[:header] + longer + plain[header + 4 : at] + box + plain[at + old :])
    for name in ("icc.avif", "codes.avif", "icc.jp2"):
        assert np.abs(read_pixels(tmp_path / name).astype(int) - photo).mean() < 1, name
    for name in ("plain.avif", "plain.jp2"):
        assert np.abs(read_pixels(tmp_path / name).astype(int) - photo).mean() > 2, name


def test_pngs_own_mark_of_a_space_is_followed_and_its_gamma_is_not(tmp_path, photo):
    done, png = cv2.imencode(".png", levels(icc.as_p3(photo / 255))[..., ::-1])
    icc.write_chunks(tmp_path / "p3.png", bytes(png), cICP=bytes([12, 13, 0, 1]))
    assert np.abs(read_pixels(tmp_path / "p3.png").astype(int) - photo).max() <= 2
    gamma = {"gAMA": struct.pack(">I", 100000)}
    icc.deep_png(tmp_path / "deep.png", photo.astype(np.uint16) * 257, **gamma)
    assert np.array_equal(read_pixels(tmp_path / "deep.png"), photo.astype(np.uint16) * 257)
    done, png = cv2.imencode(".png", photo[..., ::-1])
    icc.write_chunks(tmp_path / "a.png", bytes(png), **gamma)
    assert np.array_equal(read_pixels(tmp_path / "a.png"), photo)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile at all" * 20,
        icc.ADOBE_PROFILE[:200],
        icc.cmyk_profile(),
        icc.grey_profile(icc.gamma_curve(1.8)),
        icc.profile(b"XYZ ", {}),
        icc.profile(b"RGB ", {}),
    ],
    ids=["noise", "cut", "for ink", "for grey", "unknown space", "without tags"],
)
@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_a_profile_that_can_not_be_used_is_told_once_by_name_and_the_colours_taken_as_srgb(
    tmp_path, photo, profile, deep, recwarn
):
    part = photo[:40, :60]
    if deep:
        icc.deep_png(tmp_path / "odd.png", part.astype(np.uint16) * 257, iCCP=profile)
    else:
        Image.fromarray(part).save(tmp_path / "odd.png", icc_profile=profile)
    for _ in range(2):
        assert np.array_equal(to_uint8(read_image(tmp_path / "odd.png")), part)
    told = [str(w.message) for w in recwarn if "profile" in str(w.message)]
    assert len(told) == 1 and "odd.png" in told[0] and "taken as sRGB" in told[0]


def test_hdr_pictures_are_told(tmp_path, photo):
    done, png = cv2.imencode(".png", photo[..., ::-1])
    icc.write_chunks(tmp_path / "hdr.png", bytes(png), cICP=bytes([9, 16, 0, 1]))
    with pytest.warns(UserWarning, match=r"hdr\.png.*9/16.*HDR"):
        read_pixels(tmp_path / "hdr.png")


def test_a_profile_of_tables_is_followed_by_deep_pictures_to_half_a_level(photo):
    profile = icc.rgb_table_profile(icc.ADOBE, lambda x: x ** (563 / 256))
    seen = colour_profiles.deep_to_srgb(levels(icc.as_adobe(photo / 255), 65535), profile) / 257
    error = np.abs(seen - photo)
    assert error.mean() < 0.3 and np.quantile(error, 0.999) < 1 and error.max() < 4


@pytest.mark.parametrize("kind", range(5))
def test_every_kind_of_parametric_curve_is_as_littlecms_reads_it(kind):
    numbers = [(2.2,), (2.2, 0.9, 0.1), (2.2, 0.95 ** (1 / 2.2) - 0.1, 0.1, 0.05), (2.4, 0.948, 0.052, 0.0774, 0.04045)]
    numbers.append((2.4, 0.98 ** (1 / 2.4) - 0.052, 0.052, 0.0774, 0.04045, 0.02, 0.001))
    curve = b"para\0\0\0\0" + struct.pack(">HH", kind, 0)
    curve += struct.pack(f">{len(numbers[kind])}i", *map(icc.fixed, numbers[kind]))
    profile = icc.matrix_profile(icc.SRGB, curve)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, -1)
    ours = colour_profiles.deep_to_srgb(ramp.astype(np.uint16) * 257, profile) / 257
    theirs = np.asarray(colour_profiles.to_srgb(Image.fromarray(ramp), profile))
    assert np.abs(ours - theirs).max() < 1


def test_the_profiles_made_here_are_those_of_the_standards():
    for made, published in [
        (colour_profiles.adobe_rgb(), icc.ADOBE),
        (colour_profiles.matrix_profile(colour_profiles._P3, colour_profiles._D65, (2.2,)), icc.P3),
    ]:
        tags = colour_profiles._tags(made)
        columns = [np.array(struct.unpack(">3i", tags[n][8:])) / 65536 for n in (b"rXYZ", b"gXYZ", b"bXYZ")]
        assert np.abs(np.array(columns).T - icc.d50(published)).max() < 1e-4


def test_a_photograph_against_itself_in_another_space_evaluates_as_rounding_error(tmp_path, photo):
    (tmp_path / "srgb").mkdir()
    (tmp_path / "adobe").mkdir()
    Image.fromarray(photo).save(tmp_path / "srgb" / "a.png")
    other = Image.fromarray(levels(icc.as_adobe(photo / 255)))
    other.save(tmp_path / "adobe" / "a.png", icc_profile=icc.ADOBE_PROFILE)
    (row,) = evaluate_folders(tmp_path / "adobe", tmp_path / "srgb", {})
    assert row.values["psnr"] > 48


def test_crops_of_photographs_to_learn_from_are_in_srgb(tmp_path, photo):
    folders = [tmp_path / "srgb", tmp_path / "adobe"]
    for folder, pixels, profile in zip(
        folders, (photo, levels(icc.as_adobe(photo / 255))), (None, icc.ADOBE_PROFILE), strict=True
    ):
        folder.mkdir()
        Image.fromarray(pixels).save(folder / "a.png", icc_profile=profile)
    same, other = (PhotoCrops(folder, 64, (1.0, 1.0), seed=0).batch(4) for folder in folders)
    assert (same - other).abs().max() < 1.1 / 255


@pytest.mark.parametrize("bits", [8, 16])
def test_results_say_that_they_are_srgb(tmp_path, photo, bits):
    write_image(tmp_path / "a.png", images.to_float(photo), bits)
    with Image.open(tmp_path / "a.png") as file:
        assert file.info["srgb"] == 0
    assert np.array_equal(to_uint8(read_image(tmp_path / "a.png")), photo)
