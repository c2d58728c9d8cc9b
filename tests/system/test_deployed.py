"""The manifests for Kubernetes on one machine: store, head, a node of each group and the job, as a user without rights.

What the operator makes of a group's spec is in `tests.cluster.deploy.cases.ray_start`; addresses, ports and the folders
that pods mount are those of the test. Where the tests run as root, all of it runs as nobody, who may read files (the
interpreter can be in root's home) and no more.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
NOBODY = 65534
ITERATIONS = 6
POD_ATTEMPTS, STARTED = 5, "Ray runtime started."
OWNER_LOOKS_S = 25.0  # after which a reward service that is nobody's has ended itself


_DRAWN: set[int] = set()


def free_port() -> int:
    """Never the same twice, since it is taken only later."""
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
        self.log = (folder / "log").open("wb")

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
        for attempt in range(POD_ATTEMPTS):
            if self.has_started(self.start(words, environment)):
                return
            assert attempt + 1 < POD_ATTEMPTS, self.tail()

    def has_started(self, node: subprocess.Popen[bytes], timeout_s: float = 300) -> bool:
        """Whether Ray's processes run there; it ended if not."""
        before = self.output().count(STARTED)
        wait_until(lambda: self.output().count(STARTED) > before or node.poll() is not None, timeout_s, self.tail)
        return node.poll() is None

    def start(self, words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            as_user(words),
            env=environment,
            cwd=self.names.work,
            stdout=self.log,
            stderr=self.log,
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
        return self.output()[-6000:]

    def output(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def new_mark(self) -> str:
        self.marks.append(f"deployed-{os.getpid()}-{secrets.token_hex(4)}")
        return self.marks[-1]

    def start_store(self) -> None:
        pod = of_kind(self.documents, "StatefulSet")["spec"]["template"]["spec"]
        words = [
            word.replace("/data", str(self.folder / "data")).replace(str(kuberay.PORT), str(self.store_port))
            for word in pod["containers"][0]["command"]
        ]
        self.store = self.start(words, self.environment(self.new_mark(), pod))
        wait_until(lambda: answers(self.store_port), 60, self.tail)

    def close(self) -> None:
        for mark in self.marks:
            kill(mark)
        if self.store is not None:  # its title has taken the place of its environment, and with it of the mark
            self.store.kill()
            self.store.wait(10)
        self.log.close()
        assert not answers(self.store_port)


class Cluster:
    """Head and one node of each group."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.mark = machine, machine.new_mark()
        self.gcs, self.dashboard, self.agent = free_port(), free_port(), free_port()
        spec = cluster_of(of_kind(machine.documents, "RayJob"))
        for group in groups_of_spec(spec):
            pod = group["template"]["spec"]
            self.environment = machine.environment(self.mark, pod)
            head = "groupName" not in group
            words = [word for word in ray_start(group, head) if "port=" not in word and "dashboard-host" not in word]
            words += [f"--metrics-export-port={free_port()}", "--node-ip-address=127.0.0.1"]
            words += ["--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]
            if head:
                words += [f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1"]
                words += [f"--dashboard-agent-listen-port={self.agent}", f"--ray-client-server-port={free_port()}"]
                self.of_head = self.environment
            else:
                words += [f"--address=127.0.0.1:{self.gcs}", f"--dashboard-agent-listen-port={free_port()}"]
            machine.start_node(words, self.environment)
        nodes = str(len(groups_of_spec(spec)))
        machine.run(["restorl", "deploy", "wait", nodes, "--address", self.address], self.of_head, 700)
        wait_until(lambda: answers(self.dashboard), 120, machine.tail)

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

    wait_until(has_a_checkpoint, 600, lambda: machine.tail() + logs(first, "attempt-1"))
    kill(first.mark)  # every pod of the cluster; store and claim stay
    done = metrics.read_text().count('"kind": "train"')
    assert 1 <= done < ITERATIONS
    second = Cluster(machine)
    told = second.submit("attempt-2", command, wait=True)
    assert "succeeded" in told.lower(), told
    assert metrics.read_text().count('"kind": "train"') >= ITERATIONS
    machine.run(["restorl", "audit", str(run)], second.of_head)
    serves_as_declared(machine, second)


def serves_as_declared(machine: Machine, cluster: Cluster) -> None:
    """The configuration in the RayService, as the operator hands it to the dashboard."""
    config = machine.folder / "home" / "serve.yaml"
    config.write_text(of_kind(machine.documents, "RayService")["spec"]["serveConfigV2"])
    machine.run(["serve", "deploy", str(config), "--address", f"http://127.0.0.1:{cluster.dashboard}"], cluster.of_head)
    words = ["restorl", "reward", "status", "tiny", "--address", cluster.address]

    def told() -> str:
        done = subprocess.run(
            as_user(words), env=cluster.of_head, cwd=machine.names.work, capture_output=True, text=True, timeout=120
        )
        return done.stdout + done.stderr

    wait_until(lambda: "RUNNING, 1 running; stands alone" in told(), 200, told)
    time.sleep(OWNER_LOOKS_S)
    assert "RUNNING, 1 running; stands alone" in (found := told()), found


def logs(cluster: Cluster, name: str) -> str:
    words = ["ray", "job", "logs", "--address", f"http://127.0.0.1:{cluster.dashboard}", name]
    return cluster.machine.run(words, cluster.of_head)
