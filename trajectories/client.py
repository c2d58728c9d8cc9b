"""A Redis client with deadlines: every exchange ends in an answer or a `StoreError`.

An exchange whose connection breaks, or whose answer is one that passes (`PASSING`), is repeated until
`reconnect_timeout_s`, so that a server's restart, a failover or a long script of another program goes unnoticed.
Whatever is sent through `call` must therefore be safe to repeat; the scripts of `trajectories/scripts.py` are.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from trajectories.bulk import InPlaceParser
from trajectories.errors import (
    CAUSES_OF_LOSS,
    StoreAuthError,
    StoreError,
    StoreFull,
    StoreLost,
    StoreUnreachable,
    StoreUnready,
)
from trajectories.settings import LEDGER_BYTES, StoreAddress, StoreSettings, needed_memory

T = TypeVar("T")
MINIMUM_VERSION = (7, 0)

PASSING = {
    "BUSY": "a script holds the server; end it with SCRIPT KILL, and find out whose it is",
    "LOADING": "it still reads its data from disk; wait until it is done, or raise store.reconnect_timeout_s",
    "READONLY": "it is a replica (was there a failover?); let store.url name the primary",
    "MASTERDOWN": "it is a replica that has lost its primary; let store.url name a primary",
    "UNBLOCKED": "it has become a replica (was there a failover?); let store.url name the primary",
    "NOREPLICAS": "it has too few replicas to write; bring them back, or lower its min-replicas-to-write",
    "MISCONF": "it can't write to its disk; make room there",
    "TRYAGAIN": "its cluster is moving the run's keys; wait until that is done",
    "CLUSTERDOWN": "its cluster has slots that no node serves; bring those nodes back",
    "max number of clients": "raise its maxclients, or end other programs that hold connections",
    "Script killed by user": "somebody ends its scripts with SCRIPT KILL; let them be",
    "EXEC without MULTI": "it refused the beginning of a transaction, being busy; look at what else it does",
}
"""What a server answers for a while, by code or first words, and what to do when it goes on."""

_LOST = "NOGROUP"  # the stream that this client has created is gone
# A code begins the answer, or stands behind what redis-py or the server puts in front of it.
_ANSWER = re.compile(rf"(?:^|: )-?({'|'.join((*PASSING, 'OOM', _LOST))})\b")


class StoreClient:
    """Connection to one server. Thread-safe; not picklable, so send the `StoreAddress` to other processes."""

    def __init__(self, address: StoreAddress, settings: StoreSettings) -> None:
        self.address, self.settings = address, settings
        self._closed = threading.Event()
        timeout, unix = settings.op_timeout_s, address.url.startswith("unix")
        tcp_only: dict[str, Any] = {} if unix else {"socket_connect_timeout": timeout, "socket_keepalive": True}
        try:
            self.redis = redis.Redis.from_url(
                address.url,
                username=address.username or None,
                password=address.password or None,
                socket_timeout=timeout,
                **tcp_only,
                decode_responses=False,
                protocol=2,
                parser_class=InPlaceParser,
                retry=Retry(NoBackoff(), 0),  # `call` retries, with one deadline over all attempts
            )
        except (redis.RedisError, ValueError) as error:
            raise StoreError(f"store {address.url}: not a usable address ({error})") from error

    def close(self) -> None:
        """Also ends what other threads still try."""
        self._closed.set()
        self.redis.close()

    def call(self, what: str, exchange: Callable[[redis.Redis], T], retry_s: float | None = None) -> T:
        """Run `exchange`; repeat it while the server is away or answers what passes.

        Args:
            what: the operation in words, for messages.
            exchange: must be safe to repeat.
            retry_s: how long to retry (default `reconnect_timeout_s`); 0 tries once.

        Raises:
            StoreUnreachable: no answer in time; StoreUnready, one of them: an answer that should have passed.
            StoreAuthError, StoreFull, StoreLost, StoreError.
        """
        start, pause = time.monotonic(), 0.05
        deadline = start + (self.settings.reconnect_timeout_s if retry_s is None else retry_s)
        while True:
            try:
                return exchange(self.redis)
            # Before ConnectionError, of which redis-py makes it a subclass.
            except (redis.AuthenticationError, redis.exceptions.AuthenticationWrongNumberOfArgsError) as error:
                raise StoreAuthError(
                    f"store {self.address.url} refused the credentials ({what}): {error}; check user name and password "
                    "in store.url, or the variable named by store.password_env"
                ) from error
            except (redis.RedisError, OSError) as error:
                failed = self._translate(what, error, time.monotonic() - start)
                if not isinstance(failed, StoreUnreachable) or time.monotonic() + pause > deadline:
                    raise failed from error
                if isinstance(failed, StoreUnready):
                    # A new connection looks the name up again, and begins no transaction in the middle.
                    self.redis.connection_pool.disconnect(inuse_connections=False)
                if self._closed.wait(pause):
                    raise StoreUnreachable(f"store {self.address.url}: the connection was closed ({what})") from error
            pause = min(2 * pause, 1.0)

    def check_server(self, retry_s: float | None = None) -> None:
        """Refuse a server that is too old, that may evict the stream, or that has too little memory for it.

        Raises:
            StoreError: with what to change on the server.
        """
        try:
            info: dict[str, Any] = self.call("reading INFO", lambda r: r.info(), retry_s)  # type: ignore[arg-type,return-value]
        except StoreError as error:
            if isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                return  # an ACL user without INFO: nothing can be checked
            raise
        version = str(info.get("redis_version", "0.0"))
        if tuple(int(v) for v in version.split(".")[:2]) < MINIMUM_VERSION:
            raise StoreError(f"store {self.address.url} runs Redis {version}; RestoRL needs 7.0 or Valkey")
        limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "noeviction"))
        if limit and policy.startswith("allkeys"):
            raise StoreError(
                f"store {self.address.url} may evict trajectories (maxmemory-policy {policy}); set it to noeviction"
            )
        wanted = needed_memory(self.settings.max_bytes)
        if limit and limit < wanted:
            raise StoreError(
                f"store {self.address.url} has maxmemory {limit >> 20} MiB, but store.max_bytes="
                f"{self.settings.max_bytes} needs {wanted >> 20} MiB; raise the first or lower the second"
            )

    def _translate(self, what: str, error: redis.RedisError | OSError, tried_s: float) -> StoreError:
        text, server, answer = str(error), f"store {self.address.url}", _answer(error)
        if answer in PASSING:
            return StoreUnready(
                f"{server} answers {answer!r} ({what}) after {tried_s:.1f} s: {text}; {PASSING[answer]}"
            )
        if answer == "OOM":
            return StoreFull(f"{server} refused {what} for memory ({text}); {self._room()}")
        if answer == _LOST:
            return StoreLost(f"{server} has no stream of this run any more ({what}: {text}): {CAUSES_OF_LOSS}")
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
            return StoreUnreachable(
                f"{server} does not answer ({what}) after {tried_s:.1f} s: {text}; is the server running and the "
                "address right?"
            )
        return StoreError(f"{server} failed at {what}: {text}")

    def _room(self) -> str:
        """What gives the server more memory."""
        ledger = f"the ledger of the run's groups is in it, too, about {LEDGER_BYTES} bytes a group"
        if self.settings.is_embedded:
            return (
                f"its limit is {self.settings.maxmemory} bytes: set store.embedded_maxmemory higher, or lower "
                f"store.max_bytes ({ledger})"
            )
        return f"raise its maxmemory, lower store.max_bytes, or keep other data off this server ({ledger})"


def _answer(error: Exception) -> str:
    """The key of `PASSING`, or the code, that an error stands for; redis-py cuts the codes it knows off the text."""
    code = getattr(error, "status_code", None)
    if code in PASSING or code in ("OOM", _LOST):
        return str(code)
    found = _ANSWER.search(str(error))
    return found[1] if found else ""
