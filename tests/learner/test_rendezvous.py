"""Where the ranks meet, in this process."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from learner.rendezvous import listen


def test_a_port_is_held_from_the_moment_it_is_known() -> None:
    with listen("127.0.0.1") as held, pytest.raises(OSError, match="in use"):
        listen(*held.getsockname())


def test_a_held_port_is_open_on_its_address_only() -> None:
    with listen("127.0.0.1") as held, socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", held.getsockname()[1])) != 0
        assert other.connect_ex(held.getsockname()) == 0


def test_a_rank_that_comes_while_the_first_still_loads_its_model_waits_and_is_let_in() -> None:
    held = listen("127.0.0.1")
    address, port = held.getsockname()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(dist.TCPStore, address, port, 2, False, timedelta(seconds=30), False)
        time.sleep(1)
        assert not early.done()
        first = dist.TCPStore(address, port, 2, True, timedelta(seconds=30), False, master_listen_fd=held.detach())
        first.set("key", "value")
        assert early.result(timeout=30).get("key") == b"value"
