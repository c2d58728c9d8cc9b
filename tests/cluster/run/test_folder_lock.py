"""One process a run folder, also on file systems that can't keep two apart."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.run import folder, folder_lock
from cluster.run.folder_lock import LOCK_FILE, FolderInUse, Holder, holder_of, locked, only_here
from cluster.run.looking import ForLooking


def test_a_folder_is_locked_until_its_holder_ends_and_whoever_is_refused_is_told_who_that_is(tmp_path: Path) -> None:
    said = rf"another process uses this run folder \(process {os.getpid()} on "
    with locked(tmp_path / "run"), pytest.raises(FolderInUse, match=said), locked(tmp_path / "run"):
        raise AssertionError("entered")
    with locked(tmp_path / "run") as lock:
        assert lock.guards()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_refused_with_what_to_do_and_left_as_it_was(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS without its lock service and Lustre without the mount option have none."""

    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / "kept").mkdir()
    said = "has no file locks .*local disk.*Lustre: the option flock; NFS"
    for place in (tmp_path / "runs" / "new", tmp_path / "kept"):
        with pytest.raises(ConfigError, match=said) as caught, locked(place):
            raise AssertionError("entered")
        assert not isinstance(caught.value, FolderInUse) and str(place) in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["kept"]


def test_a_folder_that_cannot_be_written_to_is_refused_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(ConfigError, match="can't be written to .Read-only file system"), locked(tmp_path / "run"):
        raise AssertionError("entered")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_removed_or_replaced_is_not_guarded_any_more(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with locked(place) as lock:
        place.rename(tmp_path / "elsewhere")
        assert not lock.guards()
        with locked(place) as other:  # of another process
            assert other.guards() and not lock.guards()


def test_whoever_looks_is_told_who_holds_the_lock_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "nowhere") == holder_of(tmp_path) == Holder(False)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).chmod(0o444)
        holder = holder_of(tmp_path)
        assert holder == Holder(True, os.getpid(), socket.gethostname())
        assert str(holder) == f"process {os.getpid()} on {socket.gethostname()} uses the folder"
    assert holder_of(tmp_path) == Holder(False)


def test_a_file_system_without_locks_leaves_the_holder_untold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK_FILE).touch()

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    assert holder_of(tmp_path) == Holder(None)


def test_one_who_looks_keeps_no_run_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look holds the lock, shared, for an instant; here until the first pause between two tries."""
    (tmp_path / LOCK_FILE).touch()
    pauses: list[float] = []
    with (tmp_path / LOCK_FILE).open("rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            fcntl.flock(looked_at, fcntl.LOCK_UN)

        monkeypatch.setattr(folder_lock, "time", SimpleNamespace(sleep=pause))
        with locked(tmp_path) as lock:
            assert lock.guards() and len(pauses) == 1


MOUNTED = """\
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
40 22 0:50 / {point} rw,relatime shared:2 - {system} server:/export {options}
broken line
"""


@pytest.mark.parametrize(
    ("system", "options", "found"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none,addr=10.0.0.1", ""),
        ("nfs", "rw,vers=3,nolock,local_lock=all", "local_lock=all"),
        ("nfs", "rw,vers=3,local_lock=flock", "local_lock=flock"),
        ("lustre", "rw,flock,lazystatfs", ""),
        ("lustre", "rw,localflock,lazystatfs", "localflock"),
        ("ext4", "rw,nolock", ""),
    ],
)
def test_a_mount_whose_locks_hold_on_one_machine_only_is_known_by_its_option(
    system: str, options: str, found: str, tmp_path: Path
) -> None:
    there = MOUNTED.format(point=str(tmp_path).replace(" ", "\\040"), system=system, options=options)
    assert only_here(tmp_path / "runs" / "new", there) == found
    assert only_here(tmp_path.parent / f"{tmp_path.name}er", there) == ""  # another folder


def test_a_run_on_such_a_mount_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTED.format(point=tmp_path, system="lustre", options="rw,localflock"))
    monkeypatch.setattr(folder, "MOUNTS", mounts)
    with folder.RunFolder(RunConfig(model=tmp_path), tmp_path / "run", False, ForLooking(print)) as run:
        (warning,) = run.warnings
    assert "mounted with localflock" in warning and "two machines at once" in warning
    monkeypatch.setattr(folder, "MOUNTS", tmp_path / "none")
    with folder.RunFolder(RunConfig(model=tmp_path), tmp_path / "run", True, ForLooking(print)) as run:
        assert run.warnings == []
