"""Three hosts on one machine: network namespaces with their links to a switch, each with a /tmp of its own.

Needs root and iproute2. Nothing outside the four namespaces is touched: the switch is a bridge in one of its own, so
that the machine's own network knows nothing of it, and all of it goes with the namespaces.

What the hosts share all the same: the kernel and its clock, the list of processes, and the disk but for /tmp.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PREFIX = "restorl-"
SWITCH = PREFIX + "net"
HOSTS = {"a": "10.77.0.1", "b": "10.77.0.2", "c": "10.77.0.3"}
RATE, DELAY = "200mbit", "1ms"
COMMAND_S = 30.0
END_S = 20.0  # for killed processes to be gone


class NetworkError(RuntimeError):
    """Namespaces can't be made or used; the message says what is missing."""


@dataclass(frozen=True)
class Link:
    """What every link got of the rate and the delay asked for; what a kernel lacks is said, not left out."""

    rate: str
    delay: str


class Network:
    """Hosts a, b and c, made on entry; on exit every process in them is killed, and they are deleted.

    Args:
        folder: each host's /tmp is a folder below it.

    Raises (on entry):
        NetworkError: no root, no iproute2, or a kernel without namespaces, veth or bridge.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link = Link("", "")

    def __enter__(self) -> Network:
        if os.geteuid() != 0:
            raise NetworkError("network namespaces need root: run it as root, on a machine that may be disturbed")
        self._lock = Path(tempfile.gettempdir(), PREFIX + "faults.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NetworkError("another process has these namespaces; wait until it is done") from None
        self._clear()  # what a killed run has left
        try:
            self._make()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()
        self._lock.close()

    def tmp(self, host: str) -> Path:
        return self.folder / f"tmp-{host}"

    def words(self, host: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on a host: the process that it starts becomes the command."""
        inner = 'mount --bind "$0" /tmp && exec "$@"'  # in the mount namespace that `ip netns exec` has just made
        return ["ip", "netns", "exec", PREFIX + host, "sh", "-c", inner, str(self.tmp(host)), *command]

    def start(
        self, host: str, command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """A process on a host, in a session of its own, so that Ctrl-C reaches only who cleans up."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.words(host, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(environment),
                cwd=cwd,
            )

    def run(
        self,
        host: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        timeout_s: float,
        cwd: Path | None = None,
        given: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command on a host, to its end. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            self.words(host, command),
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=dict(environment),
            cwd=cwd,
        )

    # processes

    def processes(self, host: str, name: str = "") -> dict[int, str]:
        """Process id -> command line, of those on a host whose command line contains `name`."""
        found = {}
        for pid in self._pids(PREFIX + host):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if line and name in line:
                    found[pid] = line
        return found

    def kill(self, host: str, name: str) -> int:
        """kill -9 of one process of a host by its name; its process id.

        Raises:
            NetworkError: there is none.
        """
        found = self.processes(host, name)
        if not found:
            there = ", ".join(sorted({line.split()[0] for line in self.processes(host).values()}))
            raise NetworkError(f"no process {name!r} on host {host}; there are: {there or 'none'}")
        victim = min(found)
        os.kill(victim, signal.SIGKILL)
        return victim

    def kill_all(self, host: str) -> int:
        """kill -9 of everything on a host, at once; how many processes that were.

        Raises:
            NetworkError: some of it does not end.
        """
        return self._kill_all(PREFIX + host)

    def mapping(self, host: str, library: str) -> int:
        """How many processes of a host have loaded a library."""
        count = 0
        for pid in self.processes(host):
            with contextlib.suppress(OSError):
                count += library in Path(f"/proc/{pid}/maps").read_text()
        return count

    # links

    def cut(self, host: str) -> None:
        """Pull the host's cable: connections get no answer, not even that nobody is there."""
        _command("ip", "-n", SWITCH, "link", "set", f"to-{host}", "down")

    def heal(self, host: str) -> None:
        _command("ip", "-n", SWITCH, "link", "set", f"to-{host}", "up")

    # inside

    def _make(self) -> None:
        _command("ip", "netns", "add", SWITCH)
        _command("ip", "-n", SWITCH, "link", "set", "lo", "up")
        _command("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        _command("ip", "-n", SWITCH, "link", "set", "br0", "up")
        gateway = HOSTS["c"]
        for host, address in HOSTS.items():
            name, port = PREFIX + host, f"to-{host}"
            _command("ip", "netns", "add", name)
            _command("ip", "-n", SWITCH, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _command("ip", "-n", SWITCH, "link", "set", port, "master", "br0")
            _command("ip", "-n", SWITCH, "link", "set", port, "up")
            _command("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _command("ip", "-n", name, "link", "set", device, "up")
            if address != gateway:  # nothing is sent there; programs find their own address by the route
                _command("ip", "-n", name, "route", "add", "default", "via", gateway)
            self.tmp(host).mkdir(parents=True, exist_ok=True)
            self.tmp(host).chmod(0o1777)
            self.link = self._shape((name, "eth0"), (SWITCH, port))

    def _shape(self, *ends: tuple[str, str]) -> Link:
        """Bound the rate of a link, and delay what goes over it, both ways."""
        rate, delay = f"{RATE} (tbf)", f"{DELAY} each way (netem)"
        for name, device in ends:
            where = ("tc", "-n", name, "qdisc", "add", "dev", device)
            bound = ("tbf", "rate", RATE, "burst", "256kb", "latency", "50ms")
            if _lacks(*where, "root", "handle", "1:", *bound):
                rate = "not applied: this kernel has no tbf"
                parent: tuple[str, ...] = ("root",)
            else:
                parent = ("parent", "1:1")
            if _lacks(*where, *parent, "handle", "10:", "netem", "delay", DELAY):
                delay = "not applied: this kernel has no netem"
        return Link(rate, delay)

    def _clear(self) -> None:
        known = _names()
        for name in known:
            self._kill_all(name)
        for name in known:
            _command("ip", "netns", "delete", name)

    def _kill_all(self, name: str) -> int:
        victims = set[int]()
        deadline = time.monotonic() + END_S
        while pids := self._pids(name):
            if time.monotonic() > deadline:
                raise NetworkError(f"processes {pids} in namespace {name} don't end; look at them")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            victims.update(pids)
            time.sleep(0.05)
        return len(victims)

    def _pids(self, name: str) -> list[int]:
        """Of the living; a killed one that its parent has yet to look at is dead."""
        found = []
        for word in _command("ip", "netns", "pids", name).split():
            with contextlib.suppress(OSError, IndexError):
                if Path(f"/proc/{word}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(int(word))
        return found


def _names() -> list[str]:
    """Our namespaces that are there."""
    names = [line.split()[0] for line in _command("ip", "netns", "list").splitlines()]
    return [name for name in names if name.startswith(PREFIX)]


def _command(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S)
    except FileNotFoundError:
        raise NetworkError(f"{words[0]} is missing: install iproute2") from None
    if done.returncode:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout


def _lacks(*words: str) -> bool:
    """Whether the kernel has no such queueing discipline. Raises NetworkError for any other refusal."""
    try:
        _command(*words)
    except NetworkError as error:
        if re.search(r"qdisc kind is unknown|No such file or directory|Operation not supported", str(error)):
            return True
        raise
    return False
