"""Ray on two of the hosts, in token mode: the head with the learner's place on a, actors' and rewards' places on b.

Each host has a supervisor, as systemd or a kubelet is one: it starts the host's Ray again whenever that has ended.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.faults.network import HOSTS, Network

ROOT = Path(__file__).resolve().parents[2]
GCS = f"{HOSTS['a']}:6379"
WHOLE_S = 300.0  # for both hosts to be there
PLACES = {"a": {"learner": 2}, "b": {"actor": 2, "reward": 2}}
# A restart behind each end, for ever; $1: the pause.
SUPERVISOR = 'pause=$1; shift; while :; do "$@"; echo "SUPERVISOR: ended with status $?"; sleep "$pause"; done'
PAUSE_S = 2
SECRET = "RESTORL_STORE_PASSWORD"
VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "120000",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": str(ROOT),
}


class ClusterProblem(RuntimeError):
    """Ray of a row doesn't come up."""


class Hosts:
    """Ray on a and b.

    Args:
        folder: of the row; keeps token and logs.
        more: environment variables of certain hosts.
        gcs_redis: (address, password) of a Redis that keeps what the head knows; None: its memory does.
    """

    def __init__(
        self,
        network: Network,
        folder: Path,
        more: Mapping[str, Mapping[str, str]],
        gcs_redis: tuple[str, str] | None = None,
    ) -> None:
        self.network, self.folder, self.more, self.gcs_redis = network, folder, more, gcs_redis
        self.token = folder / "token"
        handle = os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))

    def environment(self, host: str, **more: str) -> dict[str, str]:
        """Of every process of a host."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RESTORL_"))}
        for name in [k for k in kept if k.lower().endswith("_proxy")]:
            del kept[name]  # the hosts reach nobody else
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # each of a dozen processes would compile all modules anew
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
        own = {"PATH": path, **VARIABLES, "RAY_AUTH_TOKEN_PATH": str(self.token)}
        return {**kept, **own, **self.more.get(host, {}), **more}

    def start(self, host: str) -> None:
        """The supervisor of a host, and with it its Ray."""
        command = [str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={HOSTS[host]}"]
        command += ["--num-cpus=4", f"--resources={json.dumps(PLACES[host])}", "--object-store-memory=200000000"]
        command.append("--disable-usage-stats")
        more = {}
        if host == "a":
            command += ["--head", f"--port={GCS.rpartition(':')[2]}", "--include-dashboard=false"]
            if self.gcs_redis is not None:
                more["RAY_REDIS_ADDRESS"] = self.gcs_redis[0]
                command.append(f"--redis-password={self.gcs_redis[1]}")
        else:
            command.append(f"--address={GCS}")
        if host == "a" and self.gcs_redis is not None:  # `--block` would end all of it with the server that is killed
            whole = command
        else:
            whole = ["sh", "-c", SUPERVISOR, "supervisor", str(PAUSE_S), *command, "--block"]
        self.network.start(host, whole, self.folder / f"ray-{host}.log", self.environment(host, **more), cwd=ROOT)

    def wait_whole(self, timeout_s: float = WHOLE_S) -> None:
        """Until both hosts' places are there.

        Raises:
            ClusterProblem: they aren't in time.
        """
        wanted = [f"{name}={amount}" for places in PLACES.values() for name, amount in places.items()]
        command = [sys.executable, "-m", "benchmarks.faults.places", GCS, str(timeout_s), *wanted]
        try:
            done = self.network.run("a", command, self.environment("a"), timeout_s + 60, cwd=ROOT)
        except subprocess.TimeoutExpired:
            told = "no answer"
        else:
            if done.returncode == 0:
                return
            told = (done.stdout + done.stderr).strip()[-800:]
        ends = (f"{log.name}: ...{log.read_text(errors='replace')[-800:]}" for log in self.folder.glob("ray-?.log"))
        raise ClusterProblem("\n".join((f"Ray on a and b is not whole: {told}", *ends)))
