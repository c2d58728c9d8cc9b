"""Programs of Debian that some rows need, taken out of their packages without installing anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DOWNLOAD_S = 300.0
REDIS = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
FAKETIME = ("libfaketime",)


class NoPackage(RuntimeError):
    """A package can't be had here; the rows that need it are not run."""


def _unpacked(folder: Path, names: tuple[str, ...]) -> Path:
    target = folder / names[0]
    if (target / "usr").is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    made = target.with_name(target.name + ".new")
    try:
        for name in names:
            _run("apt-get", "download", name, cwd=folder, timeout_s=DOWNLOAD_S)
        for package in (p for name in names for p in folder.glob(f"{name}_*.deb")):
            _run("dpkg-deb", "-x", str(package), str(made), cwd=folder, timeout_s=60)
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        raise NoPackage(f"Debian's {', '.join(names)} can't be had here ({told[-1] if told else error})") from error
    made.rename(target)
    return target


def _run(*command: str, cwd: Path, timeout_s: float) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=timeout_s)


def _libraries(root: Path) -> list[Path]:
    return sorted({path.parent for path in root.rglob("*.so*")})


def redis_server(folder: Path) -> tuple[Path, dict[str, str]]:
    """Debian's redis-server, which has TLS, and the environment that it needs.

    Raises:
        NoPackage: no network, or no Debian.
    """
    root = _unpacked(folder, REDIS)
    return root / "usr" / "bin" / "redis-server", {"LD_LIBRARY_PATH": os.pathsep.join(map(str, _libraries(root)))}


class Clock:
    """The clock of some processes, which can be moved while they run, as `date -s` would for a whole machine.

    The monotonic clock stays, as it does there. What it doesn't show: the kernel's own time (of files, of timers), and
    programs that ask the kernel without the C library.
    """

    def __init__(self, packages: Path, folder: Path) -> None:
        """Raises NoPackage."""
        (self.library,) = _unpacked(packages, FAKETIME).rglob("libfaketimeMT.so.1")
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "clock"
        self.move(0)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds until a move is seen
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def move(self, seconds: int) -> None:
        """So far from the true time, from now on."""
        new = self.file.with_name("clock.new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self.file)
