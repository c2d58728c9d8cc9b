"""A file is what its content says, whatever its name says; of what is no weights file, one line says what it is."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from restoration.base_models.networks.diffusers_folder import embed
from restoration.base_models.networks.text import tokenize
from restoration.checkpoints import (
    CheckpointError,
    check_fetched,
    load_strict,
    read_json,
    read_raw,
    read_state,
    without_weights,
)

STATE = {"a.weight": torch.rand(3, 2), "a.bias": torch.rand(3)}
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 3438167540\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
NAMES = ("x.safetensors", "x.SAFETENSORS", "x.ckpt", "x.CKPT", "x.pth", "x.bin", "x.pkl", "x", "x.download")


def saved(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("model.ckpt"))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("headers", [False, True])
def test_weights_are_read_whatever_they_are_called(name: str, content: str, headers: bool, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes({"safetensors": safetensors_bytes(STATE), "zip": saved(), "legacy": saved(legacy=True)}[content])
    with without_weights(headers):
        found = read_state(file)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in STATE.items()}
    assert headers or all(torch.equal(found[k], v) for k, v in STATE.items())


MISTAKEN = {
    "an LFS pointer": (
        POINTER,
        rf"is a Git LFS pointer of {len(POINTER)} bytes; the file it stands for has 3,438,167,540 bytes: run `git lfs",
    ),
    "a web page": (PAGE, "is a web page of .* download from the address of the file itself"),
    "a page without a doctype": (b"<html><body>404</body></html>", "is a web page"),
    "an answer in XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "nothing": (b"", r"is empty \(0 bytes\): download it again"),
    "a server's answer": (b'{"error": "Access to this model is restricted"}', "JSON.*Access to this model is restr"),
    "an index": (json.dumps({"weight_map": {"a": "b"}}).encode(), "is the index of a network's parts"),
    "plain text": (b"Invalid credentials in Authorization header", "is text that begins 'Invalid credentials"),
    "a zip with weights in it": (archive(model__safetensors=b"x"), "zip archive.*unpack it and give model.safetensors"),
    "an archive of arrays": (archive(arr_0__npy=b"x"), r"zip archive, not one of torch.save \(it holds arr_0.npy\)"),
    "an empty zip": (archive(), "it holds nothing"),
    "gzip": (gzip.compress(saved()), "is packed by gzip: unpack it"),
    "tar": (tar(), "is a tar archive: unpack it"),
    "an array": (array(), "is a NumPy array, not weights"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(60), "is a GGUF file, not weights"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(60), "is a picture, not weights"),
    "noise": (b"\xe3\x01\x02\x9c\x00\x00\x12\x13" * 9, "begins with the bytes e3 01 02 9c 00 00 12 13"),
    "zeros": (bytes(4096), "begins with the bytes 00 00 00"),
    "half a zip": (saved()[:-200], "is cut off or damaged.*download it again"),
    "half a stream": (saved(legacy=True)[:-5], "cut off.*download it again"),
    "half a stream's pickle": (saved(legacy=True)[:200], "download it again"),
    "half safetensors": (safetensors_bytes(STATE)[:-5], "not a readable weights file.*download it again"),
    "safetensors' header": (safetensors_bytes(STATE)[:20], "not a readable weights file.*download it again"),
    "another pickle": (b"\x80\x04\x8c\x01a.", "is a pickle that torch.save didn't write"),
}


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x"])
@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("what", MISTAKEN)
def test_what_is_no_weights_file_is_told_in_one_line(what: str, headers: bool, name: str, tmp_path: Path) -> None:
    content, message = MISTAKEN[what]
    (tmp_path / name).write_bytes(content)
    with without_weights(headers), pytest.raises(CheckpointError, match=message) as caught:
        read_state(tmp_path / name)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / name)) and "\n" not in text and "more than tensors" not in text


def test_a_folder_in_the_place_of_a_file_is_told_with_the_files_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder where a file is needed; give a file of weights"):
        read_raw(tmp_path)
    (tmp_path / "b.CKPT").touch()
    (tmp_path / "a.txt").touch()
    with pytest.raises(CheckpointError, match=r"is a folder where a file is needed; give the file in it: b\.CKPT"):
        read_raw(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer .*git lfs pull"),
        (PAGE, "is a web page"),
        (b"", "is empty"),
        (b"\x00\x01" * 9, "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[1]", "must hold a JSON object, found list"),
    ],
)
def test_a_configuration_that_is_something_else_is_told(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json {message}"):
        read_json(tmp_path / "config.json")


def test_a_folder_that_another_library_reads_is_told_with_what_was_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(STATE))
    check_fetched(tmp_path)
    for name in ("model.safetensors", "merges.txt", "vocab.json"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer"):
            check_fetched(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "merges.txt").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"merges\.txt is a Git LFS pointer"):
        tokenize("a street", 77, tmp_path)
    for folder in ("text_encoder", "tokenizer"):
        (tmp_path / folder).mkdir()
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(PAGE)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a web page"):
        embed(tmp_path, "a street")


def test_compressed_archives_of_torch_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved())) as given:
        with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in given.namelist():
                packed.writestr(name, given.read(name))
        with zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_BZIP2) as packed:
            for name in given.namelist():
                packed.writestr(name, given.read(name))
    assert all(torch.equal(v, STATE[k]) for k, v in read_state(tmp_path / "x.pth").items())
    with pytest.raises(CheckpointError, match="compression that torch.save doesn't write"):
        read_state(tmp_path / "y.pth")


def test_values_that_lie_at_odd_places_in_the_file_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved())) as given, zipfile.ZipFile(tmp_path / "x.pth", "w") as packed:
        for name in reversed(given.namelist()):
            packed.writestr(name, given.read(name))
    assert all(torch.equal(v, STATE[k]) for k, v in read_state(tmp_path / "x.pth").items())


def test_names_in_a_file_can_steer_no_terminal(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)
    torch.save({"\x1b[2J\nkey": torch.ones(1), "k" * 5000: torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load_strict(network, read_state(tmp_path / "x.pth"), tmp_path / "x.pth")
    assert str(caught.value).isprintable() and "\\x1b[2J" in str(caught.value) and len(str(caught.value)) < 1000
    (tmp_path / "y.pth").write_bytes(archive(**{"\x1b[2J\n": b"x"}))
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path / "y.pth")
    assert str(caught.value).isprintable()


def test_weights_of_a_machine_of_the_other_byte_order_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved())) as given, zipfile.ZipFile(tmp_path / "x.pth", "w") as packed:
        for name in given.namelist():
            packed.writestr(name, b"big" if name.endswith("byteorder") else given.read(name))
    with pytest.raises(CheckpointError, match="was written by a big-endian machine"):
        read_state(tmp_path / "x.pth")
