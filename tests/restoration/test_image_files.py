"""Which files of a folder are found, what is told of the others, and that a name is one name in any form of Unicode."""

from __future__ import annotations

import os
import unicodedata
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from restoration import image_files
from restoration.base_models.networks.embeddings import PerImage
from restoration.image_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES, find_named, image_name, list_images, normal
from restoration.pretrain.crops import PhotoCrops

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def listed(folder):
    return [p.relative_to(folder).as_posix() for p in list_images(folder)]


def test_image_listing_is_sorted_deep_and_without_hidden_files(tmp_path):
    put(tmp_path, "b.png", "a.JPG", "sub/c.png", ".hidden.png", "note.txt", ".cache/d.png")
    assert listed(tmp_path) == ["a.JPG", "b.png", "sub/c.png"]
    with pytest.raises(FileNotFoundError, match="gone"):
        list_images(tmp_path / "gone")


@pytest.mark.parametrize("suffix", ["gif", "avif", "jfif", "jpe", "jp2", "j2k", "jpx", "pnm", "JFIF"])
def test_pictures_of_rarer_suffixes_are_found(tmp_path, suffix):
    put(tmp_path, f"a.{suffix}")
    assert listed(tmp_path) == [f"a.{suffix}"]


def test_linked_folders_and_files_are_found_under_the_names_of_the_links(tmp_path):
    put(tmp_path / "elsewhere", "deep/a.png", "b.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert listed(tmp_path / "in") == ["again/b.png", "again/deep/a.png", "c.png", "linked/b.png", "linked/deep/a.png"]


def test_links_that_lead_back_are_followed_once(tmp_path):
    put(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sub" / "self").symlink_to("self")
    (tmp_path / "other").symlink_to("sub", target_is_directory=True)
    assert listed(tmp_path) == ["a.png", "other/b.png", "sub/b.png"]


def test_a_link_to_nothing_is_told_and_kept_for_its_reader_to_fail_on(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "note.txt").symlink_to("gone.txt")
    with pytest.warns(UserWarning, match=r"2 links lead nowhere: a\.png -> .*gone\.png, loop\.png -> loop\.png$"):
        assert listed(tmp_path) == ["a.png", "loop.png"]


def test_pictures_that_can_not_be_read_are_counted_in_one_warning_and_other_files_in_none(tmp_path):
    put(tmp_path, "a.png", "note.txt", "labels.json", "no_suffix")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert listed(tmp_path) == ["a.png"]
    put(tmp_path, "b.HEIC", "sub/c.heic", "d.cr2", "e.npy")
    with pytest.warns(UserWarning) as told:
        assert listed(tmp_path) == ["a.png"]
    (only,) = told
    assert str(only.message).startswith(f"{tmp_path}: left out 1 .cr2, 2 .heic, 1 .npy, kinds of pictures that can't")
    assert "convert what you need to PNG" in str(only.message)
    assert not IMAGE_SUFFIXES & UNREAD_SUFFIXES


def test_a_folder_that_can_not_be_opened_is_told(tmp_path, monkeypatch):
    put(tmp_path, "a.png", "secret/b.png")
    scandir = os.scandir

    def refused(folder):
        if folder.name == "secret":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(image_files.os, "scandir", refused)
    with pytest.warns(UserWarning, match=r"secret is left out: it can't be opened \(Permission denied\)"):
        assert listed(tmp_path) == ["a.png"]
    with pytest.raises(PermissionError, match="secret"):
        list_images(tmp_path / "secret")


def test_a_name_is_the_same_in_both_forms_of_unicode_and_ascii_stays_as_it_is(tmp_path):
    assert image_name(tmp_path / "sub" / f"{DECOMPOSED}.v2.png", tmp_path) == f"sub/{COMPOSED}.v2"
    assert image_name(tmp_path / "IMG_01 (2).png", tmp_path) == "IMG_01 (2)"
    assert normal(os.fsdecode(b"caf\xe9")) == "caf\\udce9"  # no UTF-8: it can be shown, written and seeds noise


@pytest.mark.parametrize("there", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_file_is_found_by_name_in_whichever_form_it_is_written(tmp_path, there, asked):
    name = f"{COMPOSED}/{COMPOSED}_1.safetensors"
    put(tmp_path, unicodedata.normalize(there, name))
    assert find_named(tmp_path, unicodedata.normalize(asked, name)).is_file()
    missing = find_named(tmp_path, f"{COMPOSED}/na\u00efve.safetensors")
    assert missing.name == "na\u00efve.safetensors" and not missing.exists()


def test_a_file_named_in_a_mixed_form_is_found_too(tmp_path):
    put(tmp_path, f"{COMPOSED}_{DECOMPOSED}.png")
    assert find_named(tmp_path, f"{COMPOSED}_{COMPOSED}.png").is_file()


def test_embeddings_of_a_picture_are_found_in_both_forms_of_unicode(tmp_path):
    save_file({"text": torch.ones(1, 2, 3)}, tmp_path / f"{DECOMPOSED}.safetensors")
    assert PerImage(tmp_path)([COMPOSED])["text"].shape == (1, 2, 3)


def test_photographs_in_linked_folders_are_drawn_from(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (40, 40), (200, 0, 0)).save(tmp_path / "elsewhere" / "a.bmp")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert (PhotoCrops(tmp_path / "photos", 16, (1.0, 1.0), 0).one() == (200, 0, 0)).all()
