"""Mistakes a user can put right become one clear line, without a stack trace."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from cluster.run.failures import FILE_REMEDIES
from cluster.run.interrupts import Interrupts

P = ParamSpec("P")
R = TypeVar("R")

USER_MISTAKE, SIGNALLED = 2, 128  # the latter plus the number of the signal
DEBUG = "RESTORL_DEBUG"

# By name: the rooms share no base class, and importing them all would cost seconds before any command starts.
EXPECTED = {
    *("ConfigError", "ClusterError", "ImageError", "DataError", "AdapterError", "CheckpointError", "WeightsError"),
    "RecipeError",
    *(
        "StoreError",
        "SchemaError",
        "RewardError",
        "LearnerUnplaced",
        "LearnerDied",
        "LearnerFailed",
        "Fatal",
        "Stalled",
        "UserMistake",
        "BatchTimeout",
    ),
    "FloatingPointError",
    *("FileNotFoundError", "NotADirectoryError", "IsADirectoryError", "PermissionError", "FileExistsError"),
}


class UserMistake(ValueError):
    """Something on the command line that can't be done; the message says what can."""


def only_with(what: str, there: bool, **options: object) -> None:
    """Refuse options (None where not given) that would do nothing without another.

    Raises:
        UserMistake: `what` isn't `there`, and one of them is given.
    """
    for name, value in options.items():
        if value is not None and not there:
            option = f"--{name.replace('_', '-')}"
            told = " ".join(value) if isinstance(value, list) else value
            raise UserMistake(f"{option} {told}: without {what} it does nothing; give that, too, or leave {option} out")


def is_expected(error: BaseException) -> bool:
    """Whether the error speaks to the user. (Ray's errors derive from the class of what an actor raised.)"""
    return _file_remedy(error) != "" or any(cls.__name__ in EXPECTED for cls in type(error).__mro__)


def message_of(error: BaseException) -> str:
    """The error's own text; of what an actor raised, without Ray's remote stack trace."""
    cause = getattr(error, "cause", None)
    told = cause if isinstance(cause, BaseException) else error
    return "; ".join(filter(None, (str(told).strip() or type(error).__name__, _file_remedy(told))))


def _file_remedy(error: BaseException) -> str:
    """Of what the system says of a file or a disk; a file that isn't there is left to whoever named it."""
    number = error.errno if isinstance(error, OSError) else None
    return "" if number is None else FILE_REMEDIES.get(number, "")


def status_of(interrupt: KeyboardInterrupt) -> int:
    """As a shell tells it: 130 of SIGINT, 143 of SIGTERM, 129 of SIGHUP.

    The signal is an attribute of the exception, or of the one it came from.
    """
    error: BaseException | None = interrupt
    while error is not None:
        number = getattr(error, "signal", None)
        if isinstance(number, int):
            return SIGNALLED + number
        error = error.__cause__ or error.__context__
    return SIGNALLED + signal.SIGINT


@contextmanager
def as_mistake(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of general kinds, raised in here, are the user's."""
    try:
        yield
    except kinds as error:
        raise UserMistake(message_of(error)) from error


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command that ends with status 2 on a user's mistake, with 130 on Ctrl-C and with 143 on SIGTERM."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with Interrupts(), plain_warnings():
                return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            say(str(error) or "stopped")
            raise SystemExit(status_of(error)) from None
        except Exception as error:
            if not is_expected(error):
                raise
            if os.environ.get(DEBUG):
                traceback.print_exc()
            say(message_of(error), red=True)
            raise SystemExit(USER_MISTAKE) from None

    return run


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings for the user (`UserWarning` itself) are one line each, once; those of libraries look as ever."""
    shown, told = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is not UserWarning:
            shown(message, category, *place, **more)
        elif str(message) not in told:
            told.add(str(message))
            say(f"warning: {message}")

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = shown


def say(text: str, red: bool = False) -> None:
    """To stderr; in red on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print(text, style="bold red" if red else None, markup=False, highlight=False, soft_wrap=True)


def take_debug_flag(arguments: list[str]) -> list[str]:
    """`--debug` may stand anywhere; it turns stack traces on for this process."""
    if "--debug" in arguments:
        os.environ[DEBUG] = "1"
    return [a for a in arguments if a != "--debug"]


def argv() -> list[str]:
    return take_debug_flag(sys.argv[1:])
