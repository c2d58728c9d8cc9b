"""The manifests for Kubernetes on one machine: store, head, a node of each group and the job, as a user without rights.

What the operator makes of a group's spec is in `tests.cluster.deploy.cases.ray_start`; addresses, ports and the folders
that pods mount are those of the test. Where the tests run as root, all of it runs as nobody, who may read files (the
interpreter can be in root's home) and no more.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.deploy import kuberay
from cluster.deploy.kuberay_rules import environment as environment_of
from cluster.deploy.layout import Hosts
from cluster.deploy.noted import bare
from cluster.deploy.pods import HEALTH, RECIPE_FILE, RECIPE_FOLDER, Names
from cluster.deploy.traps import groups_of_spec, traps
from cluster.processes import MARK, end, marked
from tests.cluster.deploy.cases import cluster_of, of_kind, ray_start
from tests.system.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
NOBODY = 65534
ITERATIONS = 6
POD_ATTEMPTS, STARTED = 5, "Ray runtime started."
OWNER_LOOKS_S = 25.0  # after which a reward service that is nobody's has ended itself


_DRAWN: set[int] = set()
_DRAWING = threading.Lock()


def free_port() -> int:
    """Never the same twice, since it is taken only later."""
    with _DRAWING:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in _DRAWN:
                _DRAWN.add(port)
                return port


class Machine:
    """What Kubernetes would do with the documents, on this machine."""

    def __init__(self, folder: Path, workplace: Path) -> None:
        self.folder = folder
        for name in ("work", "data", "etc", "home", "t"):
            (folder / name).mkdir()
        overrides = [f"iterations={ITERATIONS}", "evaluation.every=0"]
        config = load_config(RunConfig, workplace / "recipe.yaml", overrides)
        self.names = Names("tiny", "image", str(folder / "work"))
        manifests = kuberay.manifests(config, self.names, Hosts())
        self.documents = [bare(document) for found in manifests.values() for document in found]
        assert traps(self.documents) == []
        self.store_port, self.token, self.password = free_port(), secrets.token_hex(32), secrets.token_hex(32)
        recipe = of_kind(self.documents, "ConfigMap")["data"][RECIPE_FILE]
        store = f"redis://{self.names.store}:{kuberay.PORT}"
        assert store in recipe
        (folder / "etc" / RECIPE_FILE).write_text(recipe.replace(store, f"redis://127.0.0.1:{self.store_port}"))
        self.marks: list[str] = []
        self.store: subprocess.Popen[bytes] | None = None
        self.logs = folder / "logs"
        self.logs.mkdir()

    def environment(self, mark: str, pod: dict[str, Any]) -> dict[str, str]:
        """Of a container: its literal variables, its secrets, and what KubeRay adds."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST", "STORE_"))}
        own = {name: value for name, value in environment_of({"template": {"spec": pod}}).items() if value is not None}
        return {
            **kept,
            **own,
            "STORE_PASSWORD": self.password,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_TMPDIR": str(self.folder / "t"),
            "RAY_agent_register_timeout_ms": "120000",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "t"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            MARK: mark,
        }

    def start_node(self, words: list[str], environment: dict[str, str]) -> None:
        """A pod whose container ends, as that of a node that did not come up in time, is made anew."""
        assert any(self.has_started(words, environment) for _ in range(POD_ATTEMPTS)), self.tail()

    def has_started(self, words: list[str], environment: dict[str, str], timeout_s: float = 300) -> bool:
        """Whether Ray's processes run there; it has ended if not."""
        log = self.logs / secrets.token_hex(4)
        node = self.start(words, environment, log)
        wait_until(lambda: STARTED in log.read_text(errors="replace") or node.poll() is not None, timeout_s, self.tail)
        return node.poll() is None

    def start(self, words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                as_user(words),
                env=environment,
                cwd=self.names.work,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, words: list[str], environment: dict[str, str], timeout_s: float = 600) -> str:
        try:
            done = subprocess.run(
                as_user(words), env=environment, cwd=self.names.work, capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{words}: {error.stdout!r} {error.stderr!r}\n{self.tail()}") from None
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}{self.tail()}"
        return done.stdout

    def tail(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in self.logs.iterdir())

    def new_mark(self) -> str:
        self.marks.append(f"deployed-{os.getpid()}-{secrets.token_hex(4)}")
        return self.marks[-1]

    def start_store(self) -> None:
        pod = of_kind(self.documents, "StatefulSet")["spec"]["template"]["spec"]
        words = [
            word.replace("/data", str(self.folder / "data")).replace(str(kuberay.PORT), str(self.store_port))
            for word in pod["containers"][0]["command"]
        ]
        self.store = self.start(words, self.environment(self.new_mark(), pod), self.logs / "store")
        wait_until(lambda: answers(self.store_port), 60, self.tail)

    def close(self) -> None:
        for mark in self.marks:
            kill(mark)
        if self.store is not None:  # its title has taken the place of its environment, and with it of the mark
            self.store.kill()
            self.store.wait(10)
        assert not answers(self.store_port)


class Cluster:
    """Head, then one node of each other group, one by one: those of one machine would take each other's sockets."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.mark = machine, machine.new_mark()
        self.gcs, self.dashboard, self.agent = free_port(), free_port(), free_port()
        head, *others = groups_of_spec(cluster_of(of_kind(machine.documents, "RayJob")))
        assert "groupName" not in head and all("groupName" in group for group in others)
        words = self._words(head, head=True) + [f"--port={self.gcs}", f"--dashboard-port={self.dashboard}"]
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={self.agent}"]
        self.of_head = machine.environment(self.mark, head["template"]["spec"])
        machine.start_node([*words, f"--ray-client-server-port={free_port()}"], self.of_head)
        wait = ["restorl", "deploy", "wait", str(1 + len(others)), "--address", self.address]
        with ThreadPoolExecutor(1) as pool:
            all_there = pool.submit(machine.run, wait, self.of_head, 700)
            for group in others:
                self._join(group)
            all_there.result()
        wait_until(lambda: answers(self.dashboard), 120, machine.tail)

    def _join(self, group: dict[str, Any]) -> None:
        words = [*self._words(group, head=False), f"--address=127.0.0.1:{self.gcs}"]
        environment = self.machine.environment(self.mark, group["template"]["spec"])
        self.machine.start_node([*words, f"--dashboard-agent-listen-port={free_port()}"], environment)

    @staticmethod
    def _words(group: dict[str, Any], head: bool) -> list[str]:
        words = [word for word in ray_start(group, head) if "port=" not in word and "dashboard-host" not in word]
        words += [f"--metrics-export-port={free_port()}", "--node-ip-address=127.0.0.1"]
        return [*words, "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gcs}"

    def submit(self, name: str, entrypoint: str, wait: bool) -> str:
        """As KubeRay's submitter does."""
        words = ["ray", "job", "submit", "--address", f"http://127.0.0.1:{self.dashboard}", "--submission-id", name]
        words += [] if wait else ["--no-wait"]
        return self.machine.run([*words, "--", *shlex.split(entrypoint)], self.of_head)


def as_user(words: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return words
    reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reads, *words]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(reached: Any, timeout_s: float, told: Any) -> None:
    ends = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < ends, told()
        time.sleep(0.1)


def kill(mark: str) -> None:
    end(mark, known=marked(mark))


@pytest.fixture
def machine(workplace: Path) -> Iterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="pods", dir="/tmp"))  # Ray's sockets need a short path
    found = Machine(folder, workplace)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def of_serve(cluster: Cluster, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the dashboard says of Ray Serve, once it was given a configuration."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{cluster.dashboard}/api/serve/applications/",
        None if config is None else json.dumps(config).encode(),
        {"Authorization": f"Bearer {cluster.machine.token}", "Content-Type": "application/json"},
        method="GET" if config is None else "PUT",
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        said = answer.read()
    return dict(json.loads(said)) if said else {}


def entrypoint(machine: Machine) -> str:
    """Of every attempt."""
    given: str = of_kind(machine.documents, "RayJob")["spec"]["entrypoint"]
    return given.replace(RECIPE_FOLDER, str(machine.folder / "etc"))


def test_a_job_that_loses_its_cluster_goes_on_in_the_next_one_and_rewards_are_served_as_declared(
    machine: Machine,
) -> None:
    machine.start_store()
    command = entrypoint(machine)
    run = Path(machine.names.run)
    first = Cluster(machine)
    assert status_of(f"http://127.0.0.1:{first.agent}{HEALTH['path']}") == 200  # what the probes ask, without a token
    assert status_of(f"http://127.0.0.1:{first.dashboard}/api/jobs/") == 401
    running = marked(first.mark)
    assert any("raylet" in process.name() for process in running)
    assert {process.uids().effective for process in running} == {NOBODY if os.geteuid() == 0 else os.geteuid()}
    first.submit("attempt-1", command, wait=False)
    metrics, checkpoints = run / "metrics.jsonl", run / "checkpoints"

    def has_a_checkpoint() -> bool:
        return metrics.exists() and '"kind": "train"' in metrics.read_text() and any(checkpoints.glob("*[0-9]"))

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(Cluster, machine)  # meanwhile, as starting one takes half a minute
        wait_until(has_a_checkpoint, 600, lambda: machine.tail() + logs(first, "attempt-1"))
        kill(first.mark)  # every pod of the cluster; store and claim stay
        done = metrics.read_text().count('"kind": "train"')
        assert 1 <= done < ITERATIONS
        second = following.result()
    told = second.submit("attempt-2", command, wait=True)
    assert "succeeded" in told.lower(), told
    assert metrics.read_text().count('"kind": "train"') >= ITERATIONS
    with serves_as_declared(machine, second):
        machine.run(["restorl", "audit", str(run)], second.of_head)


@contextmanager
def serves_as_declared(machine: Machine, cluster: Cluster) -> Iterator[None]:
    """The configuration in the RayService, as the operator hands it to the dashboard; and it stays meanwhile."""
    of_serve(cluster, yaml.safe_load(of_kind(machine.documents, "RayService")["spec"]["serveConfigV2"]))

    def told() -> str:
        return str(of_serve(cluster)["applications"].get("tiny", {}).get("status"))

    wait_until(lambda: told() == "RUNNING", 200, told)
    stays = time.monotonic() + OWNER_LOOKS_S
    yield
    time.sleep(max(0.0, stays - time.monotonic()))
    found = machine.run(["restorl", "reward", "status", "tiny", "--address", cluster.address], cluster.of_head)
    assert "RUNNING, 1 running; stands alone" in found, found


def logs(cluster: Cluster, name: str) -> str:
    words = ["ray", "job", "logs", "--address", f"http://127.0.0.1:{cluster.dashboard}", name]
    return cluster.machine.run(words, cluster.of_head)
