"""Images of any size and kind are restored to PNG files; bad ones are reported and the rest goes on."""

from __future__ import annotations

import os
import unicodedata

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from restoration import restore as restore_module
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.images import ImageError, read_image
from restoration.restore import restore, restore_folder, sample, seeded_generator
from tests.restoration.tiny_model import TinyModel

SAMPLER = SamplerSettings(steps=3)


def put(path, size=(20, 9), level=120, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode in ("L", "P", "I;16") else (level,) * len(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.jpg", "sub/c.png"):
        put(tmp_path / "in" / name)
    return tmp_path / "in"


def test_the_tiny_model_is_a_base_model():
    assert isinstance(TinyModel(), BaseModel)


def test_a_chain_ends_in_what_the_network_predicts():
    lq = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    model = TinyModel(gain=0.5)
    restored = sample(model, lq, SAMPLER, seeded_generator("x", 0))
    assert restored.dtype == torch.float32
    assert torch.allclose(restored, model.decode(model.encode(lq) * 0.5), atol=1e-6)


def test_equal_seeds_give_equal_images_and_other_seeds_others():
    lq, model = torch.full((1, 3, 16, 16), 0.5), TinyModel(noise=0.1)
    first, again, other = (sample(model, lq, SAMPLER, seeded_generator("x", s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_with_a_generator_an_image_its_company_does_not_matter():
    lq, model = torch.rand(3, 3, 16, 16), TinyModel(noise=0.1)
    together = sample(model, lq, SAMPLER, [seeded_generator(str(i), 0) for i in range(3)])
    alone = sample(model, lq[2:], SAMPLER, [seeded_generator("2", 0)])
    assert torch.allclose(together[2:], alone, atol=1e-6)
    with pytest.raises(ValueError, match="1 generators for 3 images"):
        sample(model, lq, SAMPLER, [seeded_generator("0", 0)])


def test_sampling_refuses_a_size_that_is_no_multiple():
    with pytest.raises(ValueError, match="20x16 is no multiple of 8"):
        sample(TinyModel(), torch.zeros(1, 3, 16, 20), SAMPLER, seeded_generator("x", 0))


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (16, 16), (31, 9)])
def test_any_size_is_padded_for_the_model_and_cropped_back(size):
    model, lq = TinyModel(), torch.full((3, *size), 0.25)
    restored = restore(model, lq, SAMPLER, seeded_generator("x", 0))
    assert restored.shape == lq.shape and torch.allclose(restored, lq, atol=1e-5)
    assert model.seen == [(1, 3, -(-size[0] // 8) * 8, -(-size[1] // 8) * 8)]


def test_a_folder_is_restored_with_its_structure_and_progress(folder, tmp_path):
    calls = []
    summary = restore_folder(
        TinyModel(), folder, tmp_path / "out", sampler=SAMPLER, progress=lambda *call: calls.append(call)
    )
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written == ["a.png", "b.png", "sub/c.png"]
    assert len(summary.restored) == 3 and summary.exit_status == 0
    assert [(done, total) for done, total, _ in calls] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert read_image(tmp_path / "out" / "sub" / "c.png").shape == (3, 9, 20)


def test_a_result_depends_on_name_and_seed_only(folder, tmp_path):
    model = TinyModel(noise=0.1)
    for out, seed in (("1", 5), ("2", 5), ("3", 6)):
        restore_folder(model, folder, tmp_path / out, sampler=SAMPLER, seed=seed)
    (folder / "a.png").unlink()
    restore_folder(model, folder, tmp_path / "4", sampler=SAMPLER, seed=5)
    first, again, other, fewer = ((tmp_path / n / "sub" / "c.png").read_bytes() for n in "1234")
    assert first == again == fewer != other
    assert not torch.equal(read_image(tmp_path / "1" / "a.png"), read_image(tmp_path / "1" / "sub" / "c.png"))


def test_existing_results_are_skipped_only_when_asked(folder, tmp_path):
    put(tmp_path / "out" / "a.png", level=1)
    kept = (tmp_path / "out" / "a.png").read_bytes()
    summary = restore_folder(TinyModel(), folder, tmp_path / "out", sampler=SAMPLER, skip_existing=True)
    assert len(summary.restored) == 2 and [p.name for p in summary.skipped] == ["a.png"]
    assert (tmp_path / "out" / "a.png").read_bytes() == kept
    summary = restore_folder(TinyModel(), folder, tmp_path / "out", sampler=SAMPLER, skip_existing=False)
    assert len(summary.restored) == 3 and (tmp_path / "out" / "a.png").read_bytes() != kept


def test_unreadable_files_in_a_folder_are_reported_and_the_rest_goes_on(folder, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "truncated.png")
    (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:900])
    (folder / "empty.jpg").touch()
    summary = restore_folder(TinyModel(), folder, tmp_path / "out", sampler=SAMPLER)
    assert len(summary.restored) == 3 and summary.exit_status == 1
    assert sorted(p.name for p, _ in summary.failed) == ["empty.jpg", "truncated.png"]
    assert "3 restored, 0 skipped, 2 failed" in str(summary) and "0 bytes" in str(summary)
    assert not (tmp_path / "out" / "truncated.png").exists()


def test_a_single_file_is_restored_to_a_file_or_into_a_folder(folder, tmp_path):
    restore_folder(TinyModel(), folder / "b.jpg", tmp_path / "x" / "named.png", sampler=SAMPLER)
    restore_folder(TinyModel(), folder / "b.jpg", tmp_path / "y", sampler=SAMPLER)
    assert (tmp_path / "x" / "named.png").read_bytes() == (tmp_path / "y" / "b.png").read_bytes()
    (folder / "b.jpg").write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"b\.jpg"):
        restore_folder(TinyModel(), folder / "b.jpg", tmp_path / "z", sampler=SAMPLER)


class Choosy(TinyModel):
    """Fails on pictures less than 9 pixels high."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def condition(self, lq, image_ids=()):
        if image_ids == ("small",):
            raise self.error
        return super().condition(lq, image_ids)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("sides of 16 at least"), "small.png: sides of 16 at least"),
        (PermissionError(13, "Permission denied"), "small.png: Permission denied"),
        (OSError(36, "File name too long"), "small.png: File name too long"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "small.png: not enough memory for it; restore it in",
        ),
        (MemoryError(), "tiles (--tile 512, or smaller)"),
        (torch.cuda.OutOfMemoryError("CUDA"), "tiles (--tile 512, or smaller)"),
        (KeyError("of the code"), "small.png: KeyError: 'of the code'"),
    ],
)
def test_whatever_befalls_one_file_of_a_folder_is_recorded_with_its_name_and_the_rest_goes_on(
    folder, tmp_path, error, said
):
    put(folder / "small.png", size=(8, 8))
    summary = restore_folder(Choosy(error), folder, tmp_path / "out", sampler=SAMPLER)
    assert len(summary.restored) == 3 and summary.exit_status == 1
    ((source, reason),) = summary.failed
    assert source == folder / "small.png" and said in reason and said in str(summary)


def test_a_single_files_trouble_is_an_error_that_names_it_and_a_fault_of_the_code_stays_one(folder, tmp_path):
    put(folder / "small.png", size=(8, 8))
    for error, kind, said in (
        (ValueError("sides of 16 at least"), ImageError, r"small\.png: sides of 16"),
        (MemoryError(), ImageError, r"small\.png: not enough memory"),
        (KeyError("of the code"), KeyError, "of the code"),
    ):
        with pytest.raises(kind, match=said):
            restore_folder(Choosy(error), folder / "small.png", tmp_path / "out", sampler=SAMPLER)


def test_links_to_nothing_are_recorded_and_the_rest_goes_on(folder, tmp_path):
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.warns(UserWarning, match="2 links lead nowhere"):
        summary = restore_folder(TinyModel(), folder, tmp_path / "out", sampler=SAMPLER)
    assert len(summary.restored) == 3 and sorted(p.name for p, _ in summary.failed) == ["gone.png", "loop.png"]


def test_linked_subfolders_are_restored_and_what_is_left_out_is_told(folder, tmp_path):
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "linked").symlink_to(folder, target_is_directory=True)
    (folder / "raw.nef").touch()
    with pytest.warns(UserWarning, match="left out 1 .nef"):
        summary = restore_folder(TinyModel(), tmp_path / "top", tmp_path / "out", sampler=SAMPLER)
    assert len(summary.restored) == 3 and (tmp_path / "out" / "linked" / "sub" / "c.png").is_file()


def test_the_noise_of_a_name_is_the_same_in_both_forms_of_unicode(folder, tmp_path):
    for form in ("NFC", "NFD"):
        put(tmp_path / form / unicodedata.normalize(form, "caf\u00e9.png"))
        restore_folder(TinyModel(noise=0.1), tmp_path / form, tmp_path / f"out{form}", sampler=SAMPLER)
    composed, decomposed = (next((tmp_path / f"out{form}").iterdir()) for form in ("NFC", "NFD"))
    assert composed.name != decomposed.name and composed.read_bytes() == decomposed.read_bytes()


def test_a_name_that_is_no_utf_8_is_restored_and_its_trouble_can_be_printed(folder, tmp_path):
    put(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / os.fsdecode(b"bad\xe9.png")).touch()
    summary = restore_folder(TinyModel(), folder, tmp_path / "out", sampler=SAMPLER)
    assert len(summary.restored) == 4 and b"caf\xe9.png" in os.listdir(os.fsencode(tmp_path / "out"))
    assert r"bad\udce9.png: the file is empty" in str(summary).encode().decode()


@pytest.mark.parametrize("name", ["out.jpg", "out.JPEG", "out.tif", "out.webp", "out.heic"])
def test_an_output_named_like_another_kind_of_picture_is_refused_and_no_folder_is_made(folder, tmp_path, name):
    with pytest.raises(ImageError, match=rf"{name}: results are written lossless, as PNG; give .*out\.png or a folder"):
        restore_folder(TinyModel(), folder / "a.png", tmp_path / name, sampler=SAMPLER)
    for one in (name, "out.png"):
        with pytest.raises(ImageError, match=rf"{one} is the name of one picture, .*give a folder"):
            restore_folder(TinyModel(), folder, tmp_path / one, sampler=SAMPLER)
        assert not (tmp_path / one).exists()


def test_an_output_that_is_a_file_is_refused_and_a_folder_of_any_name_is_taken(folder, tmp_path):
    (tmp_path / "notes").touch()
    for source in (folder, folder / "a.png"):
        with pytest.raises(ImageError, match="notes is a file; give a folder"):
            restore_folder(TinyModel(), source, tmp_path / "notes", sampler=SAMPLER)
    for name in ("old.png", "old.jpg"):
        (tmp_path / name).mkdir()
        restore_folder(TinyModel(), folder / "a.png", tmp_path / name, sampler=SAMPLER)
        assert (tmp_path / name / "a.png").is_file()


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_grey_palette_and_16_bit_files_are_restored_as_rgb(tmp_path, mode):
    put(tmp_path / "in.png", mode=mode)
    restore_folder(TinyModel(), tmp_path / "in.png", tmp_path / "out.png", sampler=SAMPLER)
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "RGB" and result.size == (20, 9)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_comes_back_as_it_was_beside_restored_colours(tmp_path, mode):
    put(tmp_path / "in.png", mode=mode, level=120)
    restore_folder(TinyModel(gain=0.5), tmp_path / "in.png", tmp_path / "out.png", sampler=SAMPLER)
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "RGBA" and result.getpixel((7, 3)) == (60, 60, 60, 120)
    opaque = Image.new(mode, (20, 9), (120,) * (len(mode) - 1) + (255,))
    opaque.save(tmp_path / "in.png")
    restore_folder(TinyModel(), tmp_path / "in.png", tmp_path / "out.png", sampler=SAMPLER, skip_existing=False)
    assert Image.open(tmp_path / "out.png").mode == "RGB"


def test_16_bits_go_through_with_full_depth_where_asked(tmp_path):
    levels = np.arange(20 * 9 * 4, dtype=np.uint16).reshape(9, 20, 4) * 91
    cv2.imwrite(str(tmp_path / "in.png"), levels)
    for bits, dtype in ((16, np.uint16), (8, np.uint8)):
        restore_folder(NearIdentity(), tmp_path / "in.png", tmp_path / f"{bits}.png", sampler=SAMPLER, bits=bits)
        result = cv2.imread(str(tmp_path / f"{bits}.png"), cv2.IMREAD_UNCHANGED)
        assert result.dtype == dtype
        scale = 1 if bits == 16 else 257
        assert np.abs(result.astype(float) - levels / scale).max() <= 0.75


class NearIdentity(TinyModel):
    """Latents are the pixels themselves."""

    def encode(self, images):
        return images

    def decode(self, latents, condition=None):
        return latents.clamp(0, 1)


def test_a_result_that_is_not_finite_is_reported_and_never_written(folder, tmp_path):
    summary = restore_folder(TinyModel(gain=float("nan")), folder, tmp_path / "out", sampler=SAMPLER)
    assert len(summary.failed) == 3 and "restore it with float32" in str(summary)
    assert not (tmp_path / "out").exists()


def test_what_would_lose_files_is_refused_before_any_work(folder, tmp_path):
    model = TinyModel()
    with pytest.raises(ImageError, match="among the inputs"):
        restore_folder(model, folder, folder, sampler=SAMPLER)
    with pytest.raises(ImageError, match="overwrite its input"):
        restore_folder(model, folder / "a.png", folder, sampler=SAMPLER)
    put(folder / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg and .*a\.png would both become"):
        restore_folder(model, folder, tmp_path / "out", sampler=SAMPLER)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty: the folder holds no image"):
        restore_folder(model, tmp_path / "empty", tmp_path / "out", sampler=SAMPLER)
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        restore_folder(model, tmp_path / "gone", tmp_path / "out", sampler=SAMPLER)
    assert model.seen == [] and not (tmp_path / "out").exists()


def test_results_inside_the_input_folder_are_not_restored_again(folder):
    for _ in range(2):
        summary = restore_folder(TinyModel(), folder, folder / "restored", sampler=SAMPLER, skip_existing=False)
        assert len(summary.restored) == 3


def test_an_interrupted_run_leaves_only_whole_results(folder, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return restore(*args)

    monkeypatch.setattr(restore_module, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore_folder(TinyModel(), folder, tmp_path / "out", sampler=SAMPLER)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]
    monkeypatch.undo()
    summary = restore_folder(TinyModel(), folder, tmp_path / "out", sampler=SAMPLER)
    assert len(summary.skipped) == 1 and len(summary.restored) == 2
