"""One process a run folder, also on file systems that can't keep two apart."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cluster.config.configure import ConfigError
from cluster.run.folder_lock import FolderInUse, locked


def test_a_folder_is_locked_until_its_holder_ends_and_whoever_is_refused_is_told_who_that_is(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(FolderInUse, match=rf"another process uses this run folder \(process {os.getpid()} on "):
            with locked(tmp_path / "run"):
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
    for folder in (tmp_path / "runs" / "new", tmp_path / "kept"):
        with pytest.raises(ConfigError, match="has no file locks .*local disk.*Lustre: the option flock; NFS") as caught:
            with locked(folder):
                raise AssertionError("entered")
        assert not isinstance(caught.value, FolderInUse) and str(folder) in str(caught.value)
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
    folder = tmp_path / "run"
    with locked(folder) as lock:
        folder.rename(tmp_path / "elsewhere")
        assert not lock.guards()
        with locked(folder) as other:  # of another process
            assert other.guards() and not lock.guards()
