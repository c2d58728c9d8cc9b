"""What became of every trajectory of a run, wherever its ledger can still be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.configure import ConfigError
from cluster.files import LEDGER_FILE
from cluster.models import load_run_config
from cluster.run.folder_lock import FolderInUse, locked

if TYPE_CHECKING:
    from trajectories.audit import AuditReport
    from trajectories.settings import StoreSettings


def audit_run(run: Path) -> tuple[AuditReport, str]:
    """(the audit, where its ledger came from).

    A run that is running, or that was killed, is read from its store; the embedded server of a dead run is started
    for that from its append-only file and stopped again, under the run's lock, so that no run starts meanwhile. A
    completed run whose store is gone, or can't be written to, is read from its ledger.json.

    Raises:
        ConfigError: no run; or its folder can't be locked or written to, and there is no ledger.json.
        StoreError: no ledger anywhere.
    """
    config = load_run_config(run)
    from trajectories.audit import audit_file
    from trajectories.errors import StoreError

    ledger = run / LEDGER_FILE
    try:
        run_id = json.loads((run / "run.json").read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, KeyError):
        raise ConfigError.of(f"{run}/run.json: no run_id in it; give the folder of a run that has started") from None
    if config.store.is_embedded and not (run / "store").is_dir():
        return audit_file(ledger), LEDGER_FILE
    try:
        return _audit_store(config.store, run, run_id)
    except (StoreError, ConfigError, OSError):
        if not ledger.is_file():
            raise
        return audit_file(ledger), LEDGER_FILE


def _audit_store(settings: object, run: Path, run_id: str) -> tuple[AuditReport, str]:
    from trajectories.settings import StoreSettings
    from trajectories.stream import TrajectoryStream

    assert isinstance(settings, StoreSettings)
    if not settings.is_embedded:
        with TrajectoryStream(settings.external_address(), run_id, settings) as stream:
            return stream.audit(), "store"
    try:
        with locked(run):
            return _audit_dead(settings, run / "store", run_id)
    except FolderInUse:
        return _audit_living(settings, run / "store", run_id)


def _audit_dead(settings: StoreSettings, folder: Path, run_id: str) -> tuple[AuditReport, str]:
    from trajectories.errors import StoreError
    from trajectories.server import EmbeddedServer
    from trajectories.stream import TrajectoryStream

    try:
        # Also ends a server that a killed run left behind: two on one append-only file would destroy it.
        server = EmbeddedServer(folder, settings).start()
    except StoreError:
        if not (folder / "store.json").is_file():
            raise
        return _audit_living(settings, folder, run_id)  # somebody else has started it
    with server, TrajectoryStream(server.address, run_id, settings) as stream:
        return stream.audit(), "store"


def _audit_living(settings: StoreSettings, folder: Path, run_id: str) -> tuple[AuditReport, str]:
    from trajectories.errors import StoreError
    from trajectories.settings import StoreAddress
    from trajectories.stream import TrajectoryStream

    if not (folder / "store.json").is_file():
        raise StoreError(f"{folder.parent}: the run is starting or ending, and its store not up; try again in a moment")
    with TrajectoryStream(StoreAddress.read(folder / "store.json"), run_id, settings) as stream:
        return stream.audit(), "store of the running run"
