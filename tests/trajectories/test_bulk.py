"""Large answers of the server are received in place; everything else is as redis-py has it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
import redis

from tests.conftest import OpenStream
from tests.trajectories.records import assert_same, make_record
from trajectories.bulk import LARGE, InPlaceBuffer
from trajectories.schema import Trajectories


@pytest.fixture
def pair() -> Iterator[tuple[InPlaceBuffer, socket.socket]]:
    """A buffer, and the socket that feeds it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0.3)
    yield InPlaceBuffer(ours, 1 << 16, 0.3), theirs
    ours.close()
    theirs.close()


def send(feeder: socket.socket, *parts: bytes) -> threading.Thread:
    thread = threading.Thread(target=lambda: [feeder.sendall(part) for part in parts])
    thread.start()
    return thread


@pytest.mark.parametrize("length", [0, 1, LARGE - 1, LARGE, LARGE + 1, 3_000_000])
def test_answers_of_any_length_follow_each_other_without_loss(
    pair: tuple[InPlaceBuffer, socket.socket], length: int
) -> None:
    buffer, feeder = pair
    content = os.urandom(length)
    sender = send(feeder, b"before\r\n", content, b"\r\n", content, b"\r\nbehind\r\n")
    assert buffer.readline() == b"before"
    for _ in range(2):
        answer = buffer.read(length)
        assert bytes(answer) == content and isinstance(answer, memoryview) is (length >= LARGE)
    assert buffer.readline() == b"behind"
    sender.join()


def test_a_large_answer_can_not_be_written_to(pair: tuple[InPlaceBuffer, socket.socket]) -> None:
    buffer, feeder = pair
    sender = send(feeder, bytes(LARGE + 2))
    assert buffer.read(LARGE).readonly
    sender.join()


def test_a_connection_that_ends_or_stalls_within_a_large_answer_is_reported_as_by_redis_py(
    pair: tuple[InPlaceBuffer, socket.socket],
) -> None:
    buffer, feeder = pair
    feeder.sendall(bytes(1000))
    with pytest.raises(redis.TimeoutError):
        buffer.read(LARGE)
    feeder.sendall(bytes(1000))
    feeder.close()
    with pytest.raises(redis.ConnectionError):
        buffer.read(LARGE)


def test_a_record_is_received_into_the_memory_that_its_tensors_view(open_stream: OpenStream) -> None:
    stream = open_stream()
    record = make_record("a", run_id=stream.run_id, shape=(4, 4, 4, 32, 32))
    stream.publish(record)
    payload = stream.client.redis.get(stream.keys.payload("a"))
    assert isinstance(payload, memoryview) and payload.nbytes > LARGE
    (fetched,) = stream.fetch(["a"])
    assert isinstance(fetched, Trajectories)
    assert_same(fetched, record)


def test_a_summary_may_be_large_too(open_stream: OpenStream) -> None:
    stream = open_stream()
    record = make_record("a", run_id=stream.run_id, shape=(300, 50, 1, 1, 1))
    stream.publish(record)
    (entry,) = stream.read("rank0", 1)
    assert_same(entry.summary, record.summary())  # type: ignore[arg-type]
    stream.settle([entry.entry_id], "dropped:picture:" + "x" * LARGE)
    assert stream.audit().dropped == {"picture": 1}
