"""`restorl deploy store`: the server of the embedded store, by itself and reachable, as the store of a cluster."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from cluster.config.configure import ConfigError

CONFIG, LOCK = "valkey.conf", "server.lock"


@dataclass(frozen=True)
class StoreServer:
    """How it listens and what it may hold.

    Attributes:
        host, port: where it listens.
        memory_mib: at which it refuses more trajectories.
        password: which it asks for.
    """

    host: str
    port: int
    memory_mib: int
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError.of(f"--port {self.port}: a number from 1 to 65535")
        if self.memory_mib < 64:
            raise ConfigError.of(f"--memory-mib {self.memory_mib}: at least 64")
        if len(self.password) < 16 or not (self.password.isascii() and self.password.isprintable()):
            raise ConfigError.of(
                "the store's password needs 16 characters of ASCII or more; take one of `openssl rand -hex 32`"
            )

    def config(self) -> str:
        """Its configuration. Every answered write is on disk, so that a killed server loses nothing."""
        return "\n".join(
            [
                f"bind {self.host}",
                f"port {self.port}",
                f"requirepass {json.dumps(self.password)}",
                "daemonize no",
                "dir .",
                'save ""',
                "appendonly yes",
                "appendfsync always",
                "aof-load-truncated yes",
                "auto-aof-rewrite-percentage 100",
                "auto-aof-rewrite-min-size 256mb",
                f"maxmemory {self.memory_mib}mb",
                "maxmemory-policy noeviction",
                "",
            ]
        )


def become(server: StoreServer, folder: Path, binary: Path) -> None:
    """Replace this process by the server, which keeps its append-only file in `folder`; doesn't return.

    It holds a lock until it ends: two servers on one append-only file would destroy it.

    Raises:
        ConfigError: another server has the folder.
        OSError: the folder can't be written to, or the server not be run.
    """
    folder.mkdir(0o700, parents=True, exist_ok=True)  # trajectories are nobody else's to read
    os.chdir(folder)
    lock = os.open(LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError.of(f"{folder}: another store runs there; stop it first, or give another folder") from None
    os.set_inheritable(lock, True)
    path = Path(CONFIG)
    path.unlink(missing_ok=True)
    # The password must not show in the process list, so it goes through a file that only its user reads.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(server.config())
    os.execv(binary, [str(binary), f"./{CONFIG}"])
