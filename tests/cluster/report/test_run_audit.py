from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.config.configure import ConfigError
from cluster.report.run_audit import audit_run
from cluster.run.folder_lock import locked
from tests.trajectories.records import make_record
from trajectories.errors import StoreError
from trajectories.server import EmbeddedServer
from trajectories.stream import TrajectoryStream


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": "nowhere"}))
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "r1"}))
    return tmp_path


@pytest.fixture
def store(run: Path) -> Iterator[EmbeddedServer]:
    """The store of a running run, with one group published."""
    with EmbeddedServer(run / "store") as server:
        with TrajectoryStream(server.address, "r1") as stream:
            stream.publish(make_record(run_id="r1", epoch=stream.begin_epoch()))
        yield server


def test_a_running_run_is_read_from_its_store_without_disturbing_it(run: Path, store: EmbeddedServer) -> None:
    report, source = audit_run(run)
    assert (report.published, report.pending, source) == (1, 1, "store of the running run")
    assert store.alive()


def test_a_killed_run_is_read_from_its_append_only_file(run: Path, store: EmbeddedServer) -> None:
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    store.stop()
    report, source = audit_run(run)
    assert (report.published, report.pending, source, report.ok) == (1, 1, "store", True)
    assert not (run / "store" / "store.json").exists()


def test_a_finished_run_without_its_store_is_read_from_the_ledger(run: Path, store: EmbeddedServer) -> None:
    with TrajectoryStream(store.address, "r1") as stream:
        stream.export_ledger(run / "ledger.json")
    store.stop()
    (run / "store").rename(run / "gone")
    report, source = audit_run(run)
    assert (report.published, source) == (1, "ledger.json")


def test_a_run_without_any_ledger_is_told(run: Path) -> None:
    with pytest.raises(StoreError, match=r"ledger\.json: no readable ledger"):
        audit_run(run)
    (run / "run.json").unlink()
    with pytest.raises(ConfigError, match="no run_id in it"):
        audit_run(run)


def test_a_run_that_starts_is_not_kept_from_its_store(run: Path, store: EmbeddedServer) -> None:
    """An audit that started the store would end that start."""
    store.stop()
    before = sorted(p.name for p in (run / "store").iterdir())
    with locked(run):  # by the run, whose store is not up yet
        with pytest.raises(StoreError, match="the run is starting or ending, and its store not up; try again"):
            audit_run(run)
        assert sorted(p.name for p in (run / "store").iterdir()) == before
        with EmbeddedServer(run / "store"):
            assert audit_run(run)[1] == "store of the running run"


def test_a_completed_run_whose_folder_cannot_be_locked_is_read_from_its_ledger(
    run: Path, store: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrajectoryStream(store.address, "r1") as stream:
        stream.export_ledger(run / "ledger.json")
    store.stop()

    def read_only(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", read_only)
    assert audit_run(run)[1] == "ledger.json"
    (run / "ledger.json").unlink()
    with pytest.raises(ConfigError, match="has no file locks"):
        audit_run(run)
