"""Several runs, and their ends, on one Ray cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reward_service.fakes import RAISE, block

ray = pytest.importorskip("ray")

from cluster.jobs import ClusterSettings, Connection, connect  # noqa: E402
from reward_service import ownership, service, standing  # noqa: E402
from reward_service.client import RewardClient  # noqa: E402
from reward_service.errors import RewardUnavailable, ScorerFailed, WrongScorer  # noqa: E402
from reward_service.settings import RewardSettings, reward_app_name  # noqa: E402

ORDERED = RewardSettings(scorer="tests.reward_service.fakes:Ordered", num_cpus=0.1, deadline_s=60)
HUNDREDFOLD = replace(ORDERED, scorer="tests.reward_service.fakes:Hundredfold")


HTTP = {"host": "127.0.0.1", "port": 0}


@pytest.fixture(scope="module", autouse=True)
def connection() -> Iterator[Connection]:
    """A cluster on which somebody else serves an application over HTTP."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        HTTP["port"] = free.getsockname()[1]
    settings = ClusterSettings(num_cpus=2, num_gpus=1, dashboard=False, auth="disabled", object_store_mb=200)
    with connect(settings) as connection:
        serve.start(http_options=HTTP)
        serve.run(serve.deployment(ray_actor_options={"num_cpus": 0.1})(Hello).bind(), name="theirs")
        yield connection


@pytest.fixture
def cluster(connection: Connection) -> str:
    return connection.address


def eventually(holds: Callable[[], bool], within_s: float = 60) -> bool:
    ends = time.monotonic() + within_s
    while not holds() and time.monotonic() < ends:
        time.sleep(0.2)
    return holds()


class OtherRun:
    """A driver of its own on the same cluster; `says` is its next line."""

    def __init__(self, address: str, *lines: str) -> None:
        code = "\n".join(
            (
                "import ray, sys",
                f"ray.init({address!r}, logging_level='error', log_to_driver=False)",
                "from reward_service import service, standing",
                "from tests.reward_service.test_two_runs import *",
                *lines,
                "print('there', flush=True)",
                "sys.stdin.readline()",
            )
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> OtherRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def test_each_of_two_runs_gets_the_scores_of_its_own_scorer_and_the_end_of_one_leaves_the_other() -> None:
    one = service.deploy(ORDERED, reward_app_name("one"))
    two = service.deploy(HUNDREDFOLD, reward_app_name("two"))
    assert (one.scorer, one.version, two.scorer, two.version) == (
        *("ordered", "ordered-1"),
        *("hundredfold", "hundredfold-1"),
    )
    assert RewardClient(one).submit(block([7])).result().scores.tolist() == [7]
    assert RewardClient(two).submit(block([7])).result().scores.tolist() == [700]
    service.shutdown(one)
    assert service.status(one)["status"] == "NOT_STARTED"
    assert RewardClient(two).submit(block([7])).result().scores.tolist() == [700]
    service.shutdown(two)


def test_an_answer_of_another_scorer_or_version_is_refused_and_a_client_of_the_new_version_takes_it() -> None:
    app = service.deploy(ORDERED, "reward-rolls")
    with pytest.raises(
        WrongScorer, match=r"expected scores of piqe, version ordered-1, but ordered, version ordered-1"
    ):
        RewardClient(replace(app, scorer="piqe")).submit(block([7])).result()
    # A rolling change: old clients are refused by name of both versions, new ones are served.
    newer = service.deploy(replace(ORDERED, params={"version": "ordered-2"}), "reward-rolls")
    with pytest.raises(WrongScorer, match=r"version ordered-1, but ordered, version ordered-2") as refused:
        RewardClient(app).submit(block([7])).result()
    assert refused.value.kind == "version"
    result = RewardClient(newer).submit(block([7])).result()
    assert (result.scores.tolist(), result.reward_version) == ([7], "ordered-2")
    service.shutdown(newer)


def test_a_name_in_use_by_another_run_is_refused_and_left_alone_and_taken_over_once_that_run_is_gone(
    cluster: str,
) -> None:
    with OtherRun(cluster, "service.deploy(ORDERED, 'reward-theirs')") as other:
        assert other.says() == "there"
        with pytest.raises(RewardUnavailable, match="'reward-theirs' belongs to a run that is still there .*process"):
            service.deploy(HUNDREDFOLD, "reward-theirs")
        service.shutdown("reward-theirs")
        found = service.describe("reward-theirs")
        assert found["scorer"] == "ordered"
        service.scale("reward-theirs", 2)  # which is a user's wish, from whatever process
        assert service.status("reward-theirs")["replicas"] == {"RUNNING": 2}
    theirs = ownership.owner_of("reward-theirs")
    assert theirs is not None and eventually(lambda: not ownership.is_alive(theirs))
    app = service.deploy(HUNDREDFOLD, "reward-theirs")
    assert RewardClient(app).submit(block([7])).result().scores.tolist() == [700]
    service.shutdown(app)


def test_a_service_that_stands_alone_outlives_its_maker_is_shared_changed_in_place_and_stays_until_it_is_stopped(
    cluster: str,
) -> None:
    with OtherRun(cluster, "standing.stand(ORDERED, 'iqa')") as other:
        assert other.says() == "there"
        other.process.communicate("\n", timeout=60)  # its end, as a driver's
    app = standing.attach("iqa", deadline_s=60, retries=2)
    assert (app.scorer, app.version, app.retries) == ("ordered", "ordered-1", 2)
    assert RewardClient(app).submit(block([7])).result().scores.tolist() == [7]
    with pytest.raises(RewardUnavailable, match="'iqa' stands alone .* reward.app=iqa, .*restorl reward stop iqa"):
        service.deploy(HUNDREDFOLD, "iqa")
    service.shutdown("iqa")
    with pytest.raises(WrongScorer, match="serves tests.*:Ordered, not deqa"):
        standing.attach("iqa", scorer="deqa")
    found = standing.overview("iqa")
    assert found["stands_alone"] and found["status"] == "RUNNING" and found["images"] == 1
    assert found["queue_p99_s"] > 0 and found["scorer"] == "ordered ordered-1"
    standing.stand(replace(ORDERED, params={"version": "ordered-2"}), "iqa")
    with pytest.raises(WrongScorer, match="version ordered-2, answered"):
        RewardClient(app).submit(block([7])).result()
    with pytest.raises(RewardUnavailable, match="did not start"):
        standing.stand(replace(ORDERED, scorer="tests.reward_service.fakes:Unloadable"), "iqa")
    standing.stop("iqa")
    assert service.status("iqa")["status"] == "NOT_STARTED" and "iqa" not in standing.names()
    with pytest.raises(RewardUnavailable, match="no reward service 'iqa' to stop"):
        standing.stop("iqa")


def test_a_change_that_fails_leaves_a_running_service_with_the_settings_it_had() -> None:
    app = service.deploy(ORDERED, "reward-changes")
    first = service.describe(app)["pid"]
    with pytest.raises(RewardUnavailable, match="wants 0.1 CPU, 3 GPU.*; it goes on with the settings it had before"):
        service.deploy(replace(ORDERED, num_gpus=3), "reward-changes")
    assert service.describe(app)["pid"] == first  # refused before a replica had gone
    with pytest.raises(RewardUnavailable, match="weights .* are missing; it goes on with the settings it had before"):
        service.deploy(replace(ORDERED, scorer="tests.reward_service.fakes:Unloadable"), "reward-changes")
    assert RewardClient(app).submit(block([7])).result().scores.tolist() == [7]
    assert service.status(app)["status"] == "RUNNING" and ownership.is_mine("reward-changes")
    service.shutdown(app)


@pytest.mark.slow
def test_a_service_of_a_run_is_not_stopped_from_outside_and_one_that_stands_alone_never_ends_itself(
    cluster: str,
) -> None:
    with OtherRun(cluster, "service.deploy(ORDERED, 'reward-run')", "standing.stand(ORDERED, 'iqa')") as other:
        assert other.says() == "there"
        with pytest.raises(RewardUnavailable, match="is that of a run"):
            standing.stop("reward-run")
        with pytest.raises(ValueError, match="doesn't begin with 'reward-'"):
            standing.stand(ORDERED, "reward-mine")
        assert standing.names() == ["iqa", "reward-run"]
    assert eventually(lambda: service.status("reward-run")["status"] == "NOT_STARTED", 90)
    assert service.status("iqa")["status"] == "RUNNING"
    standing.stop("iqa")


@pytest.mark.slow
def test_a_replica_whose_scores_of_the_probe_change_answers_no_more_and_is_replaced(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    sign.write_text("right")
    settings = replace(
        ORDERED, scorer="tests.reward_service.fakes:Drifting", params={"sign": str(sign)}, probe_every_s=0.5
    )
    app = service.deploy(settings, "reward-drifts")
    first = service.describe(app)["pid"]
    client = RewardClient(app)
    assert client.submit(block([7])).result().scores.tolist() == [7]
    sign.write_text("wrong")
    time.sleep(4)  # a health check, with it the probe
    assert client.submit(block([8])).result().scores.tolist() == [8]  # waits for the one that replaces it
    assert service.describe(app)["pid"] != first and client.repeated > 0
    service.shutdown(app)


@pytest.mark.slow
def test_the_service_of_a_killed_run_ends_itself(cluster: str) -> None:
    with OtherRun(cluster, "service.deploy(ORDERED, 'reward-orphan')") as other:
        assert other.says() == "there"
        os.kill(other.process.pid, signal.SIGKILL)
    assert service.status("reward-orphan")["status"] == "RUNNING"
    assert eventually(lambda: service.status("reward-orphan")["status"] == "NOT_STARTED", 90)


@pytest.mark.slow
def test_an_http_application_of_somebody_else_keeps_its_proxy_and_outlives_our_services() -> None:
    app = service.deploy(ORDERED, "reward-guest")
    assert RewardClient(app).submit(block([7])).result().scores.tolist() == [7]
    service.shutdown(app)
    assert service.status("theirs")["status"] == "RUNNING"
    with urllib.request.urlopen(f"http://127.0.0.1:{HTTP['port']}/", timeout=20) as answer:
        assert answer.read() == b"hello"


def test_replicas_that_no_node_can_hold_are_told_at_once_with_what_is_wanted_and_there() -> None:
    began = time.monotonic()
    with pytest.raises(RewardUnavailable, match=r"no place: each of its 1 replicas wants 0.1 CPU, 3 GPU, and the clus"):
        service.deploy(replace(ORDERED, num_gpus=3), "reward-big")
    assert time.monotonic() - began < 30
    assert service.status("reward-big")["status"] in ("NOT_STARTED", "DELETING")
    assert ownership.owner_of("reward-big") is None


@pytest.mark.slow
def test_replicas_that_wait_for_busy_nodes_are_given_up_at_the_deadline_with_what_is_free() -> None:
    holder = ray.remote(num_gpus=1)(Holder).remote()
    ray.get(holder.ready.remote())
    try:
        with pytest.raises(RewardUnavailable, match=r"reward.start_timeout_s=4 s.*'GPU': 1.*free in the cluster"):
            service.deploy(replace(ORDERED, num_gpus=1, start_timeout_s=4), "reward-waits")
    finally:
        ray.kill(holder)


@pytest.mark.slow
def test_more_replicas_than_there_is_room_for_are_refused_and_the_running_one_goes_on() -> None:
    app = service.deploy(replace(HUNDREDFOLD, num_gpus=0.5), "reward-grows")
    with pytest.raises(RewardUnavailable, match="each of its 3 replicas wants .* room for 2"):
        service.scale(app, 3)
    assert RewardClient(app).submit(block([7])).result().scores.tolist() == [700]
    assert eventually(lambda: service.status(app)["replicas"].keys() == {"RUNNING"})
    assert eventually(lambda: service.status(app)["status"] == "RUNNING")
    service.shutdown(app)


def test_a_constructor_that_raises_is_told_with_its_error_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(
        RewardUnavailable, match="did not start: .*FileNotFoundError: weights of the scorer are missing"
    ):
        service.deploy(replace(ORDERED, scorer="tests.reward_service.fakes:Unloadable"), "reward-broken")
    assert time.monotonic() - began < 40


def test_a_start_is_interrupted_within_seconds_and_taken_back() -> None:
    threading.Timer(5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        service.deploy(replace(HUNDREDFOLD, params={"load_s": 120.0}), "reward-slow")
    assert time.monotonic() - began < 35
    assert ownership.owner_of("reward-slow") is None
    assert eventually(lambda: service.status("reward-slow")["status"] == "NOT_STARTED", 60)


@pytest.mark.slow
def test_figures_are_exported_by_run_scorer_and_version(connection: Connection) -> None:
    app = service.deploy(replace(ORDERED, max_batch=8), "reward-figures")
    RewardClient(app).submit(block(list(range(20)))).result()
    with pytest.raises(ScorerFailed):
        RewardClient(app).submit(block([1], RAISE)).result()
    tags = ('run="figures"', 'scorer="ordered"', 'version="ordered-1"')

    def exported() -> dict[str, float]:
        """What has a value but zero."""
        found: dict[str, float] = {}
        for port in connection.metrics_ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            for line in lines:
                if line.startswith("ray_restorl_reward_") and all(tag in line for tag in tags):
                    found[line.partition("{")[0].removeprefix("ray_restorl_reward_")] = float(line.split()[-1])
        return {name: value for name, value in found.items() if value and not name.endswith("_bucket")}

    sums = {f"{name}_{of}" for name in ("batch_images", "fill", "queue_seconds", "seconds") for of in ("count", "sum")}
    assert eventually(lambda: exported().keys() == {"images_total", "failures_total", *sums})
    assert exported()["images_total"] == 21 and exported()["failures_total"] == 1
    service.shutdown(app)


@pytest.mark.slow
def test_a_scorer_computes_on_the_device_that_is_reserved_for_it() -> None:
    on_gpu = service.deploy(replace(HUNDREDFOLD, num_gpus=0.5), "reward-gpu")
    assert service.describe(on_gpu)["device"] == "cuda"
    service.shutdown(on_gpu)


class Hello:
    def __call__(self, request: object) -> str:
        return "hello"


class Holder:
    def ready(self) -> bool:
        return True
