"""A guard around other people's libraries, which may fetch files, or unpickle them, where nobody asked them to.

Python tells of both through its audit events, whatever library it is that connects or unpickles.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load(..., weights_only=False) reads weights only all the same
_NETWORK = ("urllib.Request", "http.client.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.connect")


class Refused(ConnectionError):
    """A library reached for the network; as a broken connection, so that it takes what it has in its cache."""


class Unsafe(RuntimeError):
    """A library would have unpickled a file, which may run any program."""


class _Thread(threading.local):
    wanted: list[str] | None = None  # None: outside of the guard
    unpickles = True


_thread = _Thread()
_lock = threading.Lock()
_installed = False


@contextlib.contextmanager
def offline(unpickling: bool = False) -> Iterator[list[str]]:
    """Inside, this thread has no network, and unpickles nothing but tensors and numbers unless `unpickling`.

    Yields:
        The addresses or hosts that were wanted, each once; libraries may turn the refusal into errors of their own.
    """
    _install()
    before = (_thread.wanted, _thread.unpickles)
    _thread.wanted, _thread.unpickles = [], unpickling
    try:
        with _hub_offline(), contextlib.nullcontext() if unpickling else _weights_only():
            yield _thread.wanted
    finally:
        _thread.wanted, _thread.unpickles = before


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_WEIGHTS_ONLY, None)
        else:
            os.environ[_WEIGHTS_ONLY] = before


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """The client of the Hugging Face hub would else try for minutes; there is no other switch once it is imported."""
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _install() -> None:
    global _installed
    with _lock:
        if not _installed:
            sys.addaudithook(_hook)  # for the life of the process; outside of the guard it does nothing
            _installed = True


def _hook(event: str, args: tuple[Any, ...]) -> None:
    wanted = _thread.wanted
    if wanted is None:
        return
    if event in _NETWORK:
        where = _address(event, args)
        if where is not None:
            if where not in wanted:
                wanted.append(where)
            raise Refused(f"nothing is fetched in the background, and {where} was wanted")
    elif event == "pickle.find_class" and not _thread.unpickles:
        raise Unsafe(f"a file that would be unpickled wants {args[0]}.{args[1]}: only tensors and numbers are read")


def _address(event: str, args: tuple[Any, ...]) -> str | None:
    """Of what the event connects to; None of a socket within this machine."""
    if event == "urllib.Request":
        return str(args[0])
    if event == "socket.connect":
        return str(args[1][0]) if isinstance(args[1], tuple) else None
    return str(args[1] if event == "http.client.connect" else args[0])
