"""What a pickle of tensors holds, read without running any of it.

The opcodes are told apart by `pickletools`; what they do is done here, on a stack of plain values. A global that the
pickle names is a `Name`, never looked up and never imported. A call of one gives what a builder in `BUILDERS` makes
of checked arguments, else a `LeftOut`, which drops whatever the pickle puts into it. No attribute of anything is set.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

MOST_COPIED = 1_000_000
"""Items that calls of containers may copy: a few bytes can ask for a copy of a long list, many times."""
MOST_BYTES = 1 << 28
"""Bytes that are made of texts, likewise; any further ones are left out."""
MOST_REPEATED = 1 << 24
"""Elements of a tensor that repeats its storage by strides: a few bytes can stand for any number of them."""
MOST_DIMENSIONS = 64

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64, "UntypedStorage": torch.uint8,
}  # fmt: skip
_STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_CLASSES = {("torch.nn.parameter", "Parameter"), ("torch", "Tensor"), ("torch._tensor", "Tensor")}
_COMMANDS = ("system", "popen", "exec", "spawn", "posix_spawn", "fork", "remove", "unlink", "kill")
_HARMFUL_MODULES = ("subprocess", "pty", "runpy", "commands", "ctypes", "socket", "webbrowser")
_HARMFUL_BUILTINS = ("eval", "exec", "compile", "__import__", "open", "execfile", "input")


class UnpicklingError(ValueError):
    """No pickle that can be read; the message says why."""


@dataclass(frozen=True, eq=False)
class Name:
    """A global that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        path = f"{self.module}.{self.name}"
        return path if path.isprintable() else ascii(path)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Stands where a pickle has an object of another program."""

    name: str


@dataclass(frozen=True, eq=False)
class Stored:
    """A storage, or `count` elements of one, from element `offset`."""

    storage: torch.UntypedStorage
    dtype: torch.dtype
    offset: int
    count: int


class Module(dict[Any, Any]):
    """The attributes of a module of a TorchScript program, by name."""


Find = Callable[[str, torch.dtype, int], torch.UntypedStorage]
"""The storage of a key, for so many elements of a type. Raises ValueError: it isn't there, or is too short."""


class Unpickled(NamedTuple):
    """What was read.

    Attributes:
        value: None, numbers, texts, bytes, lists, tuples, sets, mappings, tensors, dtypes; and `LeftOut` and `Name`.
        left_out: full names of the globals for which there is no builder, as the pickle names them, in order.
        tensors: how many tensors it has, those in what was left out included.
    """

    value: Any
    left_out: tuple[str, ...]
    tensors: int


def no_storage(key: str, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
    """For pickles that have none."""
    raise UnpicklingError("a tensor where none belongs")


def unpickle(stream: BinaryIO, find: Find = no_storage, modules: bool = False) -> Unpickled:
    """Read one pickle, of any protocol, from where the stream stands; afterwards it stands behind it.

    Args:
        stream: of which `read` gives at most what there is (a file mapped or in memory).
        modules: what a TorchScript program calls its modules is a `Module`, not left out.

    Raises:
        UnpicklingError: cut off, not a pickle, of opcodes that no file of tensors has, or made to run commands.
    """
    machine = _Machine(find, modules)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return Unpickled(machine.pop(), tuple(machine.left_out), machine.tensors)
            machine.step(opcode.name, argument)
    except UnpicklingError:
        raise
    except IndexError as error:
        raise UnpicklingError("it takes what it never put there") from error
    except (ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise UnpicklingError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    raise UnpicklingError("its end is missing")


class _Machine:
    def __init__(self, find: Find, modules: bool = False) -> None:
        self.find, self.modules = find, modules
        self.left_out: dict[str, None] = {}
        self.tensors = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0
        self._bytes = 0

    def pop(self) -> Any:
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif (handle := _HANDLERS.get(name)) is not None:
            handle(self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise UnpicklingError(f"opcode {name}, which no file of tensors has")

    # -- stack and memo

    def mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def drop_marked(self, _: Any) -> None:
        self.since_mark()

    def drop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.since_mark()

    def double(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # -- containers

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def marked_tuple(self, _: Any) -> None:
        items = self.since_mark()
        self._stack.append(tuple(items))

    def marked_list(self, _: Any) -> None:
        items = self.since_mark()
        self._stack.append(items)

    def marked_dict(self, _: Any) -> None:
        items = self.since_mark()
        self._stack.append({})
        self._set(items)

    def frozen(self, _: Any) -> None:
        items = self.since_mark()
        self._stack.append(frozenset(map(_key, items)))

    def append(self, _: Any) -> None:
        item = self.pop()
        self._extend([item])

    def appends(self, _: Any) -> None:
        self._extend(self.since_mark())

    def add_items(self, _: Any) -> None:
        items = self.since_mark()
        target = self._target(set)
        if target is not None:
            target.update(map(_key, items))

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self.since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._target(list)
        if target is not None:
            target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._target(dict)
        if len(items) % 2:
            raise UnpicklingError("a key without a value")
        if target is not None:
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value

    def _target(self, kind: type) -> Any:
        """What lies on top, a `kind`; None where it was left out."""
        target = self._stack[-1]
        if isinstance(target, LeftOut):
            return None
        if not isinstance(target, kind):
            raise UnpicklingError(f"it fills a {type(target).__name__} as if it were a {kind.__name__}")
        return target

    # -- globals and what they are called with

    def named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._global(module, name))

    def named_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise UnpicklingError("a global whose name is no text")
        self._stack.append(self._global(module, name))

    def _global(self, module: str, name: str) -> Any:
        module = _OF_PYTHON_2.get(module, module)
        found = Name(module, name)
        if _is_harmful(module, name):
            raise UnpicklingError(
                f"it asks for {found}, which weights never need: it was made to run commands when opened. "
                "None of it ran; don't open this file in other programs"
            )
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if not (
            _dtype_of(found)
            or (module, name) in BUILDERS
            or (module, name) in _CLASSES
            or (self.modules and _is_module(found))
        ):
            self.left_out.setdefault(str(found))
        return found

    def call(self, _: Any) -> None:
        arguments, maker = self.pop(), self.pop()
        self._stack.append(self.made(maker, arguments))

    def call_with_names(self, _: Any) -> None:
        names, arguments, maker = self.pop(), self.pop(), self.pop()
        self._stack.append(LeftOut(str(maker)) if names else self.made(maker, arguments))

    def instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        maker, arguments = self._global(module, name), tuple(self.since_mark())
        self._stack.append(self.made(maker, arguments))

    def object(self, _: Any) -> None:
        maker, *arguments = self.since_mark()
        self._stack.append(self.made(maker, tuple(arguments)))

    def build(self, _: Any) -> None:
        """The state of an object is dropped: of what is kept only a `Module` needs one."""
        state = self.pop()
        if not self._stack:
            raise UnpicklingError("the state of nothing")
        if isinstance(self._stack[-1], Module) and isinstance(state, dict):
            self._copy(len(state))
            self._stack[-1].update(state)

    def made(self, maker: Any, arguments: Any) -> Any:
        """What a call gives; only a builder's result is more than a placeholder."""
        if not isinstance(arguments, tuple):
            raise UnpicklingError(f"a call whose arguments are a {type(arguments).__name__}")
        if isinstance(maker, Name):
            if self.modules and _is_module(maker):
                return Module()
            builder = BUILDERS.get((maker.module, maker.name))
            return LeftOut(str(maker)) if builder is None else builder(self, *arguments)
        if isinstance(maker, LeftOut):
            return maker
        raise UnpicklingError(f"it calls a {type(maker).__name__}")

    def persistent(self, _: Any) -> None:
        match self.pop():
            case ("module", maker, *_):  # of a whole network: its class, and the text of its source
                found = maker
            case ("storage", Name() | LeftOut() as kind, str() | int() as key, _, int() as count, *view):
                found = self._stored(kind, str(key), count, view)
            case _:
                raise UnpicklingError("a persistent id that is no storage's")
        self._stack.append(found)

    def _stored(self, kind: Name | LeftOut, key: str, count: int, view: list[Any]) -> Stored | LeftOut:
        dtype = _dtype_of(kind) if isinstance(kind, Name) else None
        if dtype is None:
            return LeftOut(str(kind))
        if count < 0 or len(view) > 1:
            raise UnpicklingError(f"storage {key} of {count} elements")
        storage = self.find(key, dtype, count)
        match view:
            case [] | [None]:
                return Stored(storage, dtype, 0, count)
            case [(_, int() as offset, int() as size)] if 0 <= offset <= offset + size <= count:
                return Stored(storage, dtype, offset, size)
            case _:
                raise UnpicklingError(f"a part of storage {key} that it doesn't have")

    # -- builders

    def tensor(self, stored: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Any:
        """`others`: whether it wants a gradient and its hooks, both dropped, and the bits of a lazy conjugate."""
        if len(others) > 2 and others[2]:
            raise UnpicklingError("a tensor stored as another's conjugate or negative; store its values")
        return self._view(stored, offset, size, stride)

    def typed_tensor(self, stored: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Any:
        _, _, dtype, *rest = others
        if not isinstance(dtype, torch.dtype) or any(rest):
            raise UnpicklingError("a tensor of an unknown type")
        if isinstance(stored, Stored):
            whole = stored.count * stored.dtype.itemsize // dtype.itemsize
            if stored.offset:
                raise UnpicklingError("a typed tensor in a part of a storage")
            stored = Stored(stored.storage, dtype, 0, whole)
        return self._view(stored, offset, size, stride)

    def _view(self, stored: Any, offset: Any, size: Any, stride: Any) -> Any:
        if isinstance(stored, LeftOut):
            return stored
        if not isinstance(stored, Stored) or not isinstance(offset, int):
            raise UnpicklingError("a tensor without a storage")
        if not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise UnpicklingError("a tensor without size or stride")
        if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
            raise UnpicklingError(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
        if any(not isinstance(n, int) or not 0 <= n < 1 << 62 for n in (offset, *size, *stride)):
            raise UnpicklingError("a tensor whose size, stride or offset is no number of elements")
        device = stored.storage.device
        self.tensors += 1
        if (count := prod(size)) == 0:
            return torch.empty(size, dtype=stored.dtype, device=device)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= stored.count or count > max(stored.count, MOST_REPEATED):
            raise UnpicklingError(f"a tensor {size} that its storage of {stored.count} elements doesn't hold")
        view = torch.empty(0, dtype=stored.dtype, device=device)
        return view.set_(stored.storage, stored.offset + offset, size, stride)  # type: ignore[call-overload]

    def parameter(self, data: Any, *_: Any) -> Any:
        if not isinstance(data, Tensor | LeftOut):
            raise UnpicklingError(f"a parameter of a {type(data).__name__}")
        return data

    def subclassed(self, maker: Any, _: Any, arguments: Any, *__: Any) -> Any:
        """A tensor of a subclass, or one with attributes: the tensor."""
        return self.made(maker, arguments)

    def mapping(self, *arguments: Any) -> Any:
        match arguments:
            case ():
                return OrderedDict()
            case (Mapping() as given,):
                items = list(given.items())
            case ((list() | tuple()) as given,):
                items = [(pair[0], pair[1]) for pair in given if isinstance(pair, list | tuple) and len(pair) == 2]
                if len(items) != len(given):
                    raise UnpicklingError("a mapping of no pairs")
            case _:
                raise UnpicklingError("a mapping of unknown arguments")
        self._copy(len(items))
        return OrderedDict((_key(key), value) for key, value in items)

    def defaulting(self, *arguments: Any) -> Any:
        return self.mapping(*arguments[1:])

    def set_of(self, *arguments: Any) -> Any:
        return set(map(_key, self._items(arguments)))

    def frozen_of(self, *arguments: Any) -> Any:
        return frozenset(map(_key, self._items(arguments)))

    def size(self, *arguments: Any) -> Any:
        """`torch.Size`, as a tuple."""
        return tuple(self._items(arguments))

    def _items(self, arguments: tuple[Any, ...]) -> Any:
        match arguments:
            case ():
                return ()
            case ((list() | tuple() | set() | frozenset()) as items,):
                self._copy(len(items))
                return items
        raise UnpicklingError("a container of unknown arguments")

    def _copy(self, count: int) -> None:
        self._copied += count
        if self._copied > MOST_COPIED:
            raise UnpicklingError(f"it copies more than {MOST_COPIED} items")

    def bytes_of(self, *arguments: Any) -> Any:
        """How protocol 2 writes bytes."""
        match arguments:
            case (str() as text, "latin1" | "latin-1"):
                self._bytes += len(text)
                return text.encode("latin-1") if self._bytes <= MOST_BYTES else LeftOut("bytes")
        raise UnpicklingError("bytes of an unknown encoding")

    def device(self, *arguments: Any) -> Any:
        """`torch.device`, as text."""
        return ":".join(str(a) for a in arguments if isinstance(a, str | int))


def _key(key: Any) -> Any:
    """The key itself where its hash costs little: that of nested tuples may take for ever."""
    if isinstance(key, tuple):
        return key if len(key) <= 8 and all(_is_plain(k) for k in key) else LeftOut("a key that is a tuple")
    return key if _is_plain(key) else LeftOut(f"a key that is a {type(key).__name__}")


def _is_plain(key: Any) -> bool:
    if isinstance(key, int):
        return -(1 << 63) <= key < 1 << 63
    return key is None or isinstance(key, str | bytes | float | Name | LeftOut | torch.dtype)


def _dtype_of(kind: Name) -> torch.dtype | None:
    return _STORAGES.get(kind.name) if kind.module in _STORAGE_MODULES else None


def _is_module(kind: Name) -> bool:
    return kind.module == "__torch__" or kind.module.startswith("__torch__.")


def _is_harmful(module: str, name: str) -> bool:
    path = f"{module}.{name}".split(".")
    if path[0] in _HARMFUL_MODULES:
        return True
    if path[0] == "builtins":
        return path[1] in _HARMFUL_BUILTINS
    return any(a in ("os", "posix", "nt") and b.startswith(_COMMANDS) for a, b in pairwise(path))


BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Machine.mapping,
    ("collections", "Counter"): _Machine.mapping,
    ("collections", "defaultdict"): _Machine.defaulting,
    ("builtins", "dict"): _Machine.mapping,
    ("builtins", "set"): _Machine.set_of,
    ("builtins", "frozenset"): _Machine.frozen_of,
    ("_codecs", "encode"): _Machine.bytes_of,
    ("torch", "Size"): _Machine.size,
    ("torch", "device"): _Machine.device,
    ("torch._utils", "_rebuild_tensor"): _Machine.tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Machine.tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _Machine.typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _Machine.parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Machine.parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _Machine.subclassed,
}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_marked,
    "DUP": _Machine.double,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.marked_tuple,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.marked_list,
    "DICT": _Machine.marked_dict,
    "FROZENSET": _Machine.frozen,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "INST": _Machine.instance,
    "OBJ": _Machine.object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
