"""A live service under load, with a known answer for every picture: none is wrong, lost or doubled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray")

from cluster.jobs import ClusterSettings, connect  # noqa: E402
from reward_service import service  # noqa: E402
from reward_service.client import RewardClient  # noqa: E402
from reward_service.errors import RewardError, RewardTimeout, WrongScorer  # noqa: E402
from reward_service.settings import RewardApp, RewardSettings  # noqa: E402

pytestmark = pytest.mark.slow

BATCH = 16
CALLERS = 4


def picture(number: int, side: int) -> np.ndarray:
    """uint8 [side, side, 3], another one for each number below 2^24."""
    found = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    found[0, 0] = number >> 16, number >> 8 & 255, number & 255
    return found


def answer(image: np.ndarray, version: str = "digest-1") -> int:
    """The picture's number, or by the second version its complement: exact in float32; -1 of any other picture."""
    high, middle, low = image[0, 0].tolist()
    number: int = high << 16 | middle << 8 | low
    if not np.array_equal(image, picture(number, len(image))):
        return -1
    return number if version == "digest-1" else 2**24 - 1 - number


class Digest:
    """Knows every picture by all its pixels, takes `ms` an image, and notes in `log` which pictures it scored."""

    name = "digest"
    range = (-1.0, 2.0**24)

    def __init__(self, log: str, ms: float, version: str = "digest-1") -> None:
        self.log, self.ms, self.version = Path(log), ms, version

    def score(self, images: np.ndarray) -> np.ndarray:
        time.sleep(self.ms * len(images) / 1e3)
        found = [answer(image, self.version) for image in images]
        with open(self.log / str(os.getpid()), "a", encoding="utf-8") as file:
            file.write("".join(f"{score}\n" for score in found))
        return np.array(found, np.float32)


class Caller:
    """Sends blocks of random size and shape without pause, and keeps some on their way."""

    def __init__(self, app: RewardApp, seed: int, deadline_s: float | None = None, outstanding: int = 3) -> None:
        self.client = RewardClient(app, deadline_s=deadline_s)
        self.seed, self.random = seed, np.random.default_rng(seed)
        self.outstanding = outstanding
        self.right = Counter[int]()  # pictures, by answer, that got it
        self.wrong: list[tuple[float, int]] = []
        self.errors: list[RewardError] = []
        self.sent = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        under_way = []
        while not self.stop.is_set() or under_way:
            if not self.stop.is_set():
                side = int(self.random.choice([12, 16]))
                first = (self.seed << 20) + self.sent
                images = np.stack([picture(first + i, side) for i in range(self.random.integers(1, 40))])
                under_way.append((images, self.client.submit(images)))
                self.sent += len(images)
            if self.stop.is_set() or len(under_way) == self.outstanding:
                self._take(*under_way.pop(0))

    def _take(self, images: np.ndarray, ticket: object) -> None:
        try:
            result = ticket.result()  # type: ignore[attr-defined]
        except RewardError as error:
            self.errors.append(error)
            return
        for image, score in zip(images, result.scores.tolist(), strict=True):
            wanted = answer(image, result.reward_version)
            if score == wanted:
                self.right[wanted] += 1
            else:
                self.wrong.append((score, wanted))

    def __enter__(self) -> Caller:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connect(ClusterSettings(num_cpus=2, dashboard=False, auth="disabled", object_store_mb=200)):
        yield


def settings(log: Path, **changes: object) -> RewardSettings:
    base = RewardSettings(
        scorer="tests.reward_service.test_under_load:Digest",
        params={"log": str(log), "ms": 15.0},
        max_batch=BATCH,
        num_cpus=0.1,
        deadline_s=120,
        retries=6,
        queue=8,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def eventually(holds: Callable[[], bool], within_s: float = 90) -> bool:
    ends = time.monotonic() + within_s
    while not holds() and time.monotonic() < ends:
        time.sleep(0.2)
    return holds()


def running(app: RewardApp) -> int:
    return int(service.status(app)["replicas"].get("RUNNING", 0))


def test_scaling_a_kill_deadlines_repeats_and_a_rolling_update_leave_no_picture_wrong_lost_or_doubled(
    tmp_path: Path,
) -> None:
    scaled = settings(tmp_path, min_replicas=1, max_replicas=3, scale_up_s=1.0, scale_down_s=4.0)
    app = service.deploy(scaled, "reward-load")
    assert running(app) == 1
    callers = [Caller(app, seed) for seed in range(CALLERS)]
    hasty = Caller(app, CALLERS, deadline_s=0.3)
    for caller in (*callers, hasty):
        caller.__enter__()
    try:
        assert eventually(lambda: running(app) == 3)
        figures = [replica["figures"] for replica in service.describe_all(app)]
        os.kill(service.describe(app)["pid"], signal.SIGKILL)  # all are in the middle of a batch
        assert eventually(lambda: running(app) < 3, 30) and eventually(lambda: running(app) == 3)
        service.deploy(replace(scaled, max_wait_s=0.01), "reward-load")  # replicas are replaced one by one
        time.sleep(2)
    finally:
        for caller in (*callers, hasty):
            caller.__exit__()
    assert not [error for caller in callers for error in caller.errors]
    assert {type(error) for error in hasty.errors} <= {RewardTimeout}
    got = Counter[int]()
    for caller in (*callers, hasty):
        assert not caller.wrong
        got.update(caller.right)
    # One answer for each picture that was sent, but for the blocks whose deadline passed.
    assert sum(sum(caller.right.values()) for caller in callers) == sum(caller.sent for caller in callers)
    assert max(got.values()) == 1
    # Scored twice is at most what a replica took along unanswered, and some of it was.
    scored = Counter[int](int(line) for file in tmp_path.iterdir() for line in file.read_text().split() if line != "-1")
    repeated = sum(caller.client.repeated for caller in (*callers, hasty))
    twice = sum(count - 1 for count in scored.values())
    print(f"{sum(got.values())} images, {twice} scored twice, {repeated} requests repeated, {len(hasty.errors)} late")
    assert got.keys() <= scored.keys() and twice <= repeated * BATCH
    busiest = max(figures, key=lambda each: each["images"])  # it had all of the load before there were others
    assert np.mean(busiest["fill"]) >= 0.9, busiest["fill"]
    assert eventually(lambda: service.status(app)["replicas"] == {"RUNNING": 1})
    service.shutdown(app)


def test_a_change_of_version_under_load_is_refused_by_name_and_no_block_has_scores_of_two(tmp_path: Path) -> None:
    app = service.deploy(settings(tmp_path, replicas=2), "reward-rolls")
    with Caller(app, 0) as one, Caller(app, 1) as two:
        assert eventually(lambda: len(one.right) > 50)
        newer = service.deploy(
            settings(tmp_path, replicas=2, params={"log": str(tmp_path), "ms": 15.0, "version": "digest-2"}),
            "reward-rolls",
        )
        assert eventually(lambda: len(one.errors) > 3)
    for caller in (one, two):
        # `Caller` holds every score against the version of its result: a mixed block would be wrong.
        assert not caller.wrong and caller.errors and {type(e) for e in caller.errors} == {WrongScorer}
    with Caller(newer, 2) as three:
        assert eventually(lambda: len(three.right) > 50)
    assert not three.wrong and not three.errors
    service.shutdown(newer)
