"""A Redis client with deadlines: every exchange ends in an answer or a `StoreError`.

An exchange whose connection breaks is repeated until `reconnect_timeout_s`, so that a server restart goes unnoticed.
Whatever is sent through `call` must therefore be safe to repeat; the scripts of `trajectories/scripts.py` are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from trajectories.bulk import InPlaceParser
from trajectories.errors import StoreAuthError, StoreError, StoreFull, StoreUnreachable
from trajectories.settings import StoreAddress, StoreSettings, needed_memory

T = TypeVar("T")
MINIMUM_VERSION = (7, 0)


class StoreClient:
    """Connection to one server. Thread-safe; not picklable, so send the `StoreAddress` to other processes."""

    def __init__(self, address: StoreAddress, settings: StoreSettings) -> None:
        self.address, self.settings = address, settings
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
        self.redis.close()

    def call(self, what: str, exchange: Callable[[redis.Redis], T], retry_s: float | None = None) -> T:
        """Run `exchange`; repeat it while the server is away.

        Args:
            what: the operation in words, for messages.
            exchange: must be safe to repeat.
            retry_s: how long to retry (default `reconnect_timeout_s`); 0 tries once.

        Raises:
            StoreAuthError, StoreFull, StoreUnreachable, StoreError.
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
            except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
                if time.monotonic() + pause > deadline:
                    raise StoreUnreachable(
                        f"store {self.address.url} does not answer ({what}) after {time.monotonic() - start:.1f} s: "
                        f"{error}; is the server running and the address right?"
                    ) from error
            except redis.RedisError as error:
                raise self._translate(what, error) from error
            time.sleep(pause)
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

    def _translate(self, what: str, error: redis.RedisError) -> StoreError:
        text = str(error)
        if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM" in text:
            return StoreFull(
                f"store {self.address.url} refused {what} for memory ({text}); raise its maxmemory, lower "
                "store.max_bytes, or keep other data off this server"
            )
        return StoreError(f"store {self.address.url} failed at {what}: {text}")
