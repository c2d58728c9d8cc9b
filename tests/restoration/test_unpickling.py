"""Torch files are read as torch reads them, those of other programs too, and nothing in them is run."""

from __future__ import annotations

import argparse
import builtins
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from restoration.checkpoints import CheckpointError, read_raw, read_state, without_weights
from restoration.unpickling import MOST_REPEATED, LeftOut, Name, UnpicklingError, unpickle
from tests.restoration.hostile_pickles import (
    TWO,
    Attributes,
    Callback,
    Calls,
    Slotted,
    beside,
    call,
    library,
    name,
    pickled,
    text,
    zipped,
)

FORMATS = {"zip": {}, "before torch 1.6": {"_use_new_zipfile_serialization": False}}
pytestmark = pytest.mark.filterwarnings("ignore:.*objects of other programs")


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[k], v) for k, v in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def contents() -> dict[str, Any]:
    base = torch.arange(24.0)
    shared = torch.ones(3)
    return {
        "types": {str(t): torch.arange(3).to(t) for t in (torch.float16, torch.bfloat16, torch.int64, torch.uint8)}
        | {"bool": torch.tensor([True, False]), "double": torch.rand(2, dtype=torch.float64)},
        "float8": torch.ones(4).to(torch.float8_e4m3fn).view(torch.uint8),
        "views": [base[4:10], base.view(4, 6).t(), base.view(2, 3, 4)[:, 1:], base[::3], torch.ones(1).expand(5)],
        "shared": [shared, shared, shared[1:]],
        "empty": [torch.empty(0), torch.empty(0, 3), torch.tensor(7)],
        "network": nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).state_dict(),
        "plain": {1: "ü", "b": b"\x00\xff", "n": None, "f": -1.5, "big": 1 << 80, "t": (1, (2, [3])), (1, "x"): True},
        "kinds": [OrderedDict(a=1), Counter("aab"), {1, 2}, torch.Size([2, 3]), torch.float16],
    }


@pytest.mark.parametrize("how", FORMATS)
def test_what_torch_reads_is_read_as_torch_reads_it(how: str, tmp_path: Path) -> None:
    for key, content in contents().items():
        torch.save(content, tmp_path / "x.ckpt", **FORMATS[how])
        assert same(read_raw(tmp_path / "x.ckpt"), torch.load(tmp_path / "x.ckpt", weights_only=True)), key


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    content = contents()["network"]
    torch.save(content, tmp_path / "x.ckpt", pickle_protocol=protocol)
    assert same(read_raw(tmp_path / "x.ckpt"), content)


def test_parameters_are_tensors_that_want_no_gradient(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    torch.save({"a": weight}, tmp_path / "x.pt")
    found = read_state(tmp_path / "x.pt")["a"]
    assert type(found) is Tensor and not found.requires_grad and found.tolist() == [1, 1]


@pytest.mark.parametrize("how", FORMATS)
def test_shapes_alone_are_read_on_the_meta_device(how: str, tmp_path: Path) -> None:
    content = contents()["network"]
    torch.save({"state_dict": content, "by": argparse.Namespace(a=1)}, tmp_path / "x.ckpt", **FORMATS[how])
    with without_weights(headers=True):
        found = read_state(tmp_path / "x.ckpt")
    assert {k: (v.shape, v.dtype, v.device.type) for k, v in found.items()} == {
        k: (v.shape, v.dtype, "meta") for k, v in content.items()
    }


def test_writing_to_a_tensor_that_was_read_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    read_state(tmp_path / "x.pt")["a"].zero_()
    assert (tmp_path / "x.pt").read_bytes() == before and read_state(tmp_path / "x.pt")["a"].tolist() == [1, 1]


def own_memory() -> int:
    """Bytes of this process that lie in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", FORMATS)
def test_reading_takes_no_memory_for_values_that_stay_in_the_file(how: str, tmp_path: Path) -> None:
    moments = {i: {"exp_avg": torch.ones(2048, 2048)} for i in range(4)}
    content = {"state_dict": {"a": torch.ones(2048, 2048)}, "optimizer_states": [moments], "by": Calls(print, 1)}
    torch.save(content, tmp_path / "x.ckpt", **FORMATS[how])
    size = (tmp_path / "x.ckpt").stat().st_size
    before = own_memory()
    found = read_state(tmp_path / "x.ckpt")
    assert found["a"].sum() == 2048**2 and own_memory() - before < size / 8


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning writes, of classes that aren't installed here."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": Attributes(current={"ready": 1})},
        "callbacks": {Callback: {"best_model_score": torch.tensor(0.5), "of": Callback(torch.ones(3))}},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [Slotted()],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(path=PurePosixPath("/x"), options=Attributes(lr=1e-4)),
        "best": np.float64(0.25),
        "seen": np.arange(3),
        "groups": defaultdict(list, {"a": [1]}),
        "set": {("a", (1, 2))},
    }


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("protocol", [2, 5])
def test_lightning_files_are_read_and_what_is_left_out_is_named_once(how: str, protocol: int, tmp_path: Path) -> None:
    state = {"a.weight": torch.rand(2, 3), "a.bias": torch.rand(2)}
    file = tmp_path / "last.CKPT"
    with library(Attributes=Attributes, Callback=Callback, Slotted=Slotted):
        torch.save(lightning(state), file, pickle_protocol=protocol, **FORMATS[how])
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    with pytest.warns(UserWarning, match="objects of other programs are left out") as told:
        assert same(read_state(file), state)
    assert len(told) == 1
    for part in (str(file), "foreign_library.", "argparse.Namespace"):
        assert part in str(told[0].message)
    found = read_raw(file)
    assert found["epoch"] == 3 and found["groups"] == {"a": [1]}
    assert isinstance(found["best"], LeftOut) and isinstance(found["hyper_parameters"], LeftOut)


def test_tensors_inside_another_programs_objects_are_not_found_and_the_error_says_so(tmp_path: Path) -> None:
    with library(Callback=Callback):
        torch.save(Callback(torch.ones(2)), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"whole.pth holds no tensors.*tensors \(1\) are inside.*foreign_library"):
        read_state(tmp_path / "whole.pth")


def test_a_whole_network_of_former_torch_is_told_as_such(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(nn.Linear(2, 1), tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"tensors \(2\) are inside objects.*Linear.*state_dict\(\)"):
        read_state(tmp_path / "whole.pth")


def test_a_torchscript_program_is_told_and_not_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 1)), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match=r"program.pt is a TorchScript program"):
        read_state(tmp_path / "program.pt")


def program(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)).half()
        torch.jit.save(torch.jit.script(network), tmp_path / "program.pt")
        save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "program.pt"


def test_of_a_torchscript_program_that_is_asked_for_the_tensors_are_read(tmp_path: Path) -> None:
    found = read_state(program(tmp_path), programs=True)
    wanted = read_state(tmp_path / "weights.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("names", [("data.pkl",), ("constants.pkl", "data.pkl")])
def test_nothing_of_a_program_runs_that_is_asked_for(tmp_path: Path, names: tuple[str, ...]) -> None:
    marker = tmp_path / "ran"
    hostile = (
        b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(f"touch {marker}")) + f"touch {marker}".encode() + b"\x85R."
    )
    with zipfile.ZipFile(program(tmp_path)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "hostile.pt", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, hostile if name.split("/")[-1] in names else content)
    with pytest.raises(CheckpointError, match="it was made to run commands"):
        read_state(tmp_path / "hostile.pt", programs=True)
    assert not marker.exists()


def test_a_program_whose_modules_hold_themselves_or_no_tensors_ends(tmp_path: Path) -> None:
    # a module m with m.m = m and m.w a number, as TorchScript writes objects
    own = b"\x80\x02c__torch__\nLoop\n)\x81q\x00}(X\x01\x00\x00\x00mh\x00X\x01\x00\x00\x00wK\x03ub."
    with zipfile.ZipFile(tmp_path / "loop.pt", "w") as archive:
        archive.writestr("loop/data.pkl", own)
        archive.writestr("loop/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match="loop.pt"):
        read_state(tmp_path / "loop.pt", programs=True)


# -- nothing runs

MARKER = "RAN"


def touch(folder: str) -> None:
    (Path(folder) / MARKER).touch()


def attacks(folder: Path) -> dict[str, bytes]:
    """Pickles that make the file `MARKER` in `folder` where they are run."""
    shell, code = f"touch {folder / MARKER}", f"open({str(folder / MARKER)!r}, 'w')"
    commands, source = text(shell), text(code)
    evaluate = name("builtins", "eval")
    builtin_getattr = name("builtins", "getattr")
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    inst = b"(" + commands + b"iposix\nsystem\n"
    obj = b"(" + name("posix", "system") + commands + pickle.OBJ
    hidden = call(builtin_getattr, name("builtins", "object"), text("__subclasses__"))
    return {
        "os.system": call(name("os", "system"), commands),
        "posix.system": call(name("posix", "system"), commands),
        "dotted": call(name("pathlib", "os.system"), commands),
        "dotted through torch": call(name("torch.serialization", "os.system"), commands),
        "inst": inst,
        "obj": obj,
        "subprocess": pickle.dumps(Calls(subprocess.getoutput, shell))[2:-1],
        "popen": name("subprocess", "Popen") + commands + pickle.TUPLE1 + pickle.NEWOBJ,
        "eval": call(evaluate, source),
        "exec": call(name("__builtin__", "exec"), source),
        "numpy": call(name("numpy.testing._private.utils", "runstring"), source, pickle.EMPTY_DICT),
        "touch of this test": call(name(__name__, "touch"), text(str(folder))),
        "getattr": call(call(builtin_getattr, name("os", "path"), text("os.system")), commands),
        "getattr on a placeholder": call(call(builtin_getattr, name("shutil", "os"), text("system")), commands),
        "subclasses": call(hidden),
        "a placeholder that is called": call(call(name("functools", "partial"), name(__name__, "touch")), text("x")),
        "a callable for a storage": call(rebuild, name(__name__, "touch"), pickle.NONE, pickle.NONE, pickle.NONE),
        "a callable in a subclass": call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name(__name__, "touch"),
            name("torch", "Tensor"),
            pickle.MARK + text(str(folder)) + pickle.TUPLE,
            pickle.EMPTY_DICT,
        ),
        "load from bytes": call(name("torch.storage", "_load_from_bytes"), text("x")),
        "jit": call(name("torch.jit", "load"), text("x")),
        "extension": pickle.EXT1 + b"\x01",
        "state of a class": name("collections", "OrderedDict")
        + call(name("collections", "OrderedDict"))
        + pickle.BUILD,
        "setstate by name": call(name("collections", "OrderedDict"))
        + (pickle.EMPTY_DICT + text("__setstate__") + name(__name__, "touch") + pickle.SETITEM)
        + pickle.BUILD
        + text(str(folder))
        + pickle.BUILD,
        "persistent text": b"P" + shell.encode() + b"\n",
        "persistent function": call(name(__name__, "touch"), text(str(folder))) + pickle.BINPERSID,
        "persistent path": pickle.MARK
        + text("storage")
        + name("torch", "FloatStorage")
        + text("../version")
        + text("cpu")
        + pickle.BININT1
        + b"\x00"
        + pickle.TUPLE
        + pickle.BINPERSID,
        "memo": name(__name__, "touch")
        + pickle.BINPUT
        + b"\x07"
        + pickle.POP
        + call(pickle.BINGET + b"\x07", text(str(folder))),
        "factory": call(name("collections", "defaultdict"), name(__name__, "touch")),
        "hooks": call(
            name("torch._utils", "_rebuild_parameter_with_state"), call(name(__name__, "touch"), text(str(folder)))
        ),
    }


@pytest.mark.parametrize("which", sorted(attacks(Path("x"))))
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pkl"])
def test_nothing_in_a_file_is_run(which: str, suffix: str, tmp_path: Path) -> None:
    attack = attacks(tmp_path)[which]
    file = zipped(beside(attack), tmp_path / f"x{suffix}", k0=TWO)
    modules = set(sys.modules)
    try:
        assert {k: v.tolist() for k, v in read_state(file).items()} == {"a": [1.0, 2.0]}
    except CheckpointError as error:
        assert str(file) in str(error)
    (tmp_path / f"bare{suffix}").write_bytes(pickled(attack))
    with pytest.raises(CheckpointError, match="bare"):
        read_state(tmp_path / f"bare{suffix}")
    assert not (tmp_path / MARKER).exists() and not (Path("x") / MARKER).exists()
    assert not [m for m in sys.modules.keys() - modules if not m.startswith("encodings.")]


@pytest.mark.parametrize("which", ["os.system", "eval", "dotted", "subprocess", "popen", "inst", "exec"])
def test_a_file_made_to_run_commands_is_refused_as_such(which: str, tmp_path: Path) -> None:
    file = zipped(beside(attacks(tmp_path)[which]), tmp_path / "x.ckpt", k0=TWO)
    with pytest.raises(CheckpointError, match=r"x\.ckpt.*made to run commands.*None of it ran"):
        read_state(file)


def test_these_attacks_do_run_where_pickles_are_loaded(tmp_path: Path) -> None:
    for which in ("os.system", "eval", "dotted", "getattr on a placeholder", "memo", "inst"):
        pickle.loads(pickled(attacks(tmp_path)[which]))
        assert (tmp_path / MARKER).exists(), which
        (tmp_path / MARKER).unlink()


def test_globals_are_names_whatever_the_process_has_registered() -> None:
    copyreg.add_extension("posix", "system", 240)
    try:
        with pytest.raises(UnpicklingError, match="EXT1"):
            unpickle(io.BytesIO(pickled(pickle.EXT1 + b"\xf0")))
    finally:
        copyreg.remove_extension("posix", "system", 240)
    found = unpickle(io.BytesIO(pickled(name("builtins", "print")))).value
    assert isinstance(found, Name) and found is not builtins.print


def test_the_states_of_pickles_change_no_class_and_no_function() -> None:
    before = dict(vars(OrderedDict)), dict(vars(torch._utils._rebuild_tensor_v2))
    state = pickle.NONE + pickle.EMPTY_DICT + text("marked") + pickle.NEWTRUE + pickle.SETITEM + pickle.TUPLE2
    for target in (name("collections", "OrderedDict"), name("torch._utils", "_rebuild_tensor_v2")):
        unpickle(io.BytesIO(pickled(target + state + pickle.BUILD)))
    assert (dict(vars(OrderedDict)), dict(vars(torch._utils._rebuild_tensor_v2))) == before


# -- bounded

NUMBER = pickle.BININT1


def tensor_of(size: bytes, stride: bytes, offset: bytes = NUMBER + b"\x00") -> bytes:
    storage = text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + NUMBER + b"\x02"
    stored = pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID
    return call(
        name("torch._utils", "_rebuild_tensor_v2"), stored, offset, size, stride, pickle.NEWFALSE, pickle.EMPTY_DICT
    )


HUGE = pickle.BININT + b"\xff\xff\xff\x7f"
BOMBS = {
    "beyond its storage": tensor_of(NUMBER + b"\x03" + pickle.TUPLE1, NUMBER + b"\x01" + pickle.TUPLE1),
    "far beyond": tensor_of(HUGE * 3 + pickle.TUPLE3, HUGE * 3 + pickle.TUPLE3),
    "repeated": tensor_of(HUGE * 3 + pickle.TUPLE3, (NUMBER + b"\x00") * 3 + pickle.TUPLE3),
    "backwards": tensor_of(NUMBER + b"\x02" + pickle.TUPLE1, pickle.BININT + b"\xff\xff\xff\xff" + pickle.TUPLE1),
    "offset": tensor_of(NUMBER + b"\x01" + pickle.TUPLE1, NUMBER + b"\x01" + pickle.TUPLE1, HUGE),
    "a slow key": pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + (pickle.DUP + pickle.TUPLE2) * 60 + pickle.NONE + b"s",
    "a slow set": pickle.EMPTY_SET + b"(" + pickle.EMPTY_TUPLE + (pickle.DUP + pickle.TUPLE2) * 60 + b"\x90",
    "many copies": pickle.MARK
    + (pickle.NONE + pickle.DUP * 5) * 9_000
    + pickle.TUPLE
    + pickle.BINPUT
    + b"\x01"
    + pickle.POP
    + (call(name("builtins", "frozenset"), pickle.BINGET + b"\x01") + pickle.POP) * 3_000
    + pickle.NONE,
    "a list in itself": pickle.EMPTY_LIST + pickle.DUP + pickle.APPEND,
    "deep": pickle.EMPTY_TUPLE + pickle.TUPLE1 * 300_000,
    "a long text": pickle.BINUNICODE + b"\xff\xff\xff\x7f" + b"abc",
    "long bytes": pickle.BINBYTES8 + b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a long number": pickle.LONG4 + b"\xff\xff\xff\x7f" + b"1",
}


@pytest.mark.parametrize("which", BOMBS)
def test_a_few_bytes_ask_for_no_more_than_a_few_seconds_and_megabytes(which: str, tmp_path: Path) -> None:
    file = zipped(beside(BOMBS[which]), tmp_path / "x.ckpt", k0=TWO)
    began = time.process_time()
    try:
        assert sum(v.numel() for v in read_state(file).values()) == 2
    except CheckpointError as error:
        assert str(file) in str(error)
    assert time.process_time() - began < 5


def test_containers_in_themselves_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.ones(1)}
    content["model"] = content
    torch.save(content, tmp_path / "x.pt")
    assert list(read_state(tmp_path / "x.pt")) == ["a"]
    empty: dict[str, Any] = {"a": 1}
    empty |= {
        key: empty for key in ("state_dict", "params", "model", "module", "net", "network", "weights", "ema", "g")
    }
    torch.save(empty, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="holds no tensors under names"):
        read_state(tmp_path / "y.pt")


def samples() -> list[bytes]:
    content = {"state_dict": {"a": torch.ones(5), "b": torch.arange(3)}, "by": argparse.Namespace(x=np.float32(1))}
    found = []
    for how in FORMATS.values():
        buffer = io.BytesIO()
        torch.save(content, buffer, **how)
        found.append(buffer.getvalue())
    return [*found, safetensors_bytes(content["state_dict"]), pickle.dumps(content["by"])]


SAMPLES = samples()
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.sampled_from(["set", "cut", "drop", "put"])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=1500, deadline=4000)
@given(st.sampled_from(range(len(SAMPLES))), CHANGES)
def test_of_damaged_files_nothing_comes_but_tensors_or_a_checkpoint_error(
    sample: int, changes: list[tuple[float, int, str]]
) -> None:
    content = bytearray(SAMPLES[sample])
    for where, byte, how in changes:
        at = int(where * len(content))
        match how:
            case "set" if content:
                content[at] = byte
            case "cut" if byte < 16:
                del content[at:]
            case "drop":
                del content[at : at + byte % 8]
            case "put":
                content[at:at] = bytes([byte]) * (byte % 8)
    file = Path(tempfile.gettempdir(), f"restorl-damaged-{os.getpid()}")
    file.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for headers in (False, True):
                with without_weights() if not headers else without_weights(headers=True):
                    found = read_state(file)
                assert sum(v.numel() for v in found.values()) <= MOST_REPEATED + 2 * len(content)
    except CheckpointError as error:
        assert str(file) in str(error)
    finally:
        file.unlink()
