"""One process a run folder: whoever writes into it holds its lock, which the kernel frees with the holder's death."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cluster.config.configure import ConfigError
from cluster.config.tree import Problem

LOCK_FILE = "ray.lock"  # a name that earlier versions know, so that they and this one keep each other out
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_NFS = frozenset({"nolock", "local_lock=flock", "local_lock=all"})
LOCAL_LOCKS = {"nfs": _NFS, "nfs4": _NFS, "lustre": frozenset({"localflock"})}  # file system -> mount options
MOUNTS = Path("/proc/self/mountinfo")
LOOKS_S = (0.05, 0.2, 0.0)  # pauses between tries: whoever only looks (`holder_of`) holds a lock for an instant


class FolderInUse(ConfigError):
    """Another process holds the lock of the run folder."""


class FolderLock:
    """The lock of a run folder, made by `locked`."""

    def __init__(self, folder: Path, file: BinaryIO) -> None:
        self.folder, self._file = folder, file

    def guards(self) -> bool:
        """Whether the folder is still the one that was locked; not if it was removed, or another put in its place."""
        if self._file.closed:
            return False
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.folder / LOCK_FILE))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return False
            raise


@contextmanager
def locked(folder: Path) -> Iterator[FolderLock]:
    """Hold the lock of a run folder, which is made if missing.

    Raises:
        FolderInUse: another process holds it.
        ConfigError: the file system has no locks, or the folder can't be written to. Either way it is as it was.
    """
    path, made = folder / LOCK_FILE, _missing(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    except OSError as error:
        _unmake(made)
        raise _refused(folder, f"can't be written to ({error.strerror})", "choose another, or mend that") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            used = f"another process uses this run folder{_holder(file)}"
            raise FolderInUse([Problem(str(folder), used, "wait for its end, or stop it")]) from None
        except OSError as error:
            _unmake(made)
            if error.errno not in NO_LOCKS:
                raise _refused(folder, f"can't be locked ({error.strerror})", "choose another folder") from error
            raise _refused(
                folder,
                f"its file system has no file locks ({error.strerror}), so that nothing would keep two processes from "
                "writing into one run",
                "put the run on another one, such as a local disk, or have this one mounted with locks (Lustre: the "
                "option flock; NFS: without nolock, with its lock service running)",
            ) from error
        lock = FolderLock(folder, file)
        if not lock.guards():
            raise _refused(folder, "was removed or replaced at this moment", "try again")
        with suppress(OSError):  # a full disk: it only serves the message of whoever is refused
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield lock


@dataclass(frozen=True)
class Holder:
    """Who holds the lock of a run folder, as one who looks is told.

    Attributes:
        held: None where that can't be told.
        pid, host: of the holder, if it has said so; else None and "".
    """

    held: bool | None
    pid: int | None = None
    host: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} uses the folder" if self.pid else "a process uses the folder"


def holder_of(folder: Path) -> Holder:
    """Look at the lock of a run folder, which need not be writable; nothing is made or written, and nobody kept out.

    A lock of another machine shows only where the file system shares locks.
    """
    try:
        file = (folder / LOCK_FILE).open("rb")
    except FileNotFoundError:
        return Holder(False)
    except OSError:
        return Holder(None)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            told = re.match(r"process (\d+) on (\S+)", file.read(200).decode(errors="replace"))
            return Holder(True, int(told[1]), told[2]) if told else Holder(True)
        except OSError:
            return Holder(None)
    return Holder(False)


def _lock(file: BinaryIO) -> None:
    """Raises BlockingIOError: another process holds it."""
    for pause in LOOKS_S:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not pause:
                raise
        time.sleep(pause)


def _refused(folder: Path, what: str, action: str) -> ConfigError:
    return ConfigError([Problem(str(folder), what, action)])


def _holder(file: BinaryIO) -> str:
    file.seek(0)
    told = file.read(200).decode(errors="replace").strip()
    return f" ({told})" if told else ""


def _missing(path: Path) -> list[Path]:
    """`path` and the folders above it that aren't there, the deepest first."""
    found = []
    while not path.exists():
        found.append(path)
        path = path.parent
    return found


def _unmake(made: list[Path]) -> None:
    for path in made:
        with suppress(OSError):  # one that somebody has put something into meanwhile stays
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


def only_here(folder: Path, mounts: str) -> str:
    """The mount option by which locks in `folder` hold on this machine only, so that another one isn't kept out.

    Args:
        mounts: the text of Linux's /proc/self/mountinfo.

    Returns:
        Empty if there is none.
    """
    path, nearest, found = str(folder.resolve()), "", ""
    for line in mounts.splitlines():
        place, _, rest = line.partition(" - ")
        fields, system = place.split(), rest.split()
        if len(fields) < 6 or len(system) < 3:
            continue
        point = fields[4].replace("\\040", " ")
        if len(point) >= len(nearest) and f"{path}/".startswith(f"{point.rstrip('/')}/"):
            options = {*fields[5].split(","), *system[2].split(",")}
            nearest, found = point, next(iter(sorted(options & LOCAL_LOCKS.get(system[0], frozenset()))), "")
    return found
