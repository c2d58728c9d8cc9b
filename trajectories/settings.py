"""Where the store is and how much it may hold."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from trajectories.errors import StoreError

EMBEDDED = "embedded"
LEDGER_BYTES = 300  # of a group in the ledger, which a run keeps to its end; 235 in Valkey 9
_SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True)
class StoreSettings:
    """The trajectory store.

    Attributes:
        url: `embedded` starts a server of our own in the run folder; `redis://`, `rediss://` (TLS; redis-py's query
            options such as `ssl_ca_certs` apply) or `unix://` uses yours (Redis >= 7.0 or Valkey).
        password_env: name of the environment variable that holds the password of an external server, or empty.
        max_entries: groups that may be published and unsettled; must exceed what the learner holds between two
            durable steps.
        max_bytes: bytes of payload that may be published and unsettled.
        publish_timeout_s: how long a publisher waits for room before `BackPressureTimeout`.
        op_timeout_s: deadline of one exchange with the server.
        reconnect_timeout_s: how long an operation is retried while the server is away (restart).
        start_timeout_s: how long the embedded server may take to load its append-only file.
        embedded_maxmemory: bytes of memory at which the embedded server refuses more trajectories; 0 means twice
            `max_bytes` plus 256 MiB (network buffers need the rest), and in a run as much more as its ledger takes.
    """

    url: str = field(default=EMBEDDED, repr=False)  # may hold a password
    password_env: str = ""
    max_entries: int = 1024
    max_bytes: int = 512 << 20
    publish_timeout_s: float = 300.0
    op_timeout_s: float = 15.0
    reconnect_timeout_s: float = 30.0
    start_timeout_s: float = 60.0
    embedded_maxmemory: int = 0

    def __post_init__(self) -> None:
        if self.url != EMBEDDED and urlsplit(self.url).scheme not in _SCHEMES:
            shown = StoreAddress.from_url(self.url).url if "://" in self.url else self.url
            raise ValueError(f"url={shown!r}: write embedded, redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")
        for name in ("max_entries", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        for name in ("publish_timeout_s", "op_timeout_s", "reconnect_timeout_s", "start_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must be a positive number of seconds")
        if self.embedded_maxmemory and self.embedded_maxmemory < needed_memory(self.max_bytes):
            raise ValueError(
                f"embedded_maxmemory={self.embedded_maxmemory}: at least {needed_memory(self.max_bytes)} for "
                f"max_bytes={self.max_bytes}, or 0 to derive it"
            )

    @property
    def is_embedded(self) -> bool:
        return self.url == EMBEDDED

    @property
    def maxmemory(self) -> int:
        """Limit given to the embedded server, bytes."""
        return self.embedded_maxmemory or 2 * self.max_bytes + (256 << 20)

    def with_ledger_of(self, groups: int) -> StoreSettings:
        """These, with room for the ledger of a run of `groups`, unless the limit was given."""
        if self.embedded_maxmemory:
            return self
        return replace(self, embedded_maxmemory=self.maxmemory + groups * LEDGER_BYTES)

    def external_address(self) -> StoreAddress:
        """The address in `url`, with the password of `password_env`.

        Raises:
            StoreError: the variable named by `password_env` is not set.
        """
        address = StoreAddress.from_url(self.url)
        if not self.password_env:
            return address
        if self.password_env not in os.environ:
            raise StoreError(f"password_env={self.password_env}: this environment variable is not set")
        return StoreAddress(address.url, address.username, os.environ[self.password_env])


def needed_memory(max_bytes: int) -> int:
    """Server memory (bytes) below which a stream of `max_bytes` could be refused for memory."""
    return max_bytes + max_bytes // 4 + (64 << 20)


def _join(parts: SplitResult, netloc: str) -> str:
    # urlunsplit would write unix:/path for an empty netloc, which redis-py refuses.
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}"


@dataclass(frozen=True)
class StoreAddress:
    """How to reach a server. The password never shows in `repr` nor in `url`."""

    url: str
    username: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def from_url(cls, url: str) -> StoreAddress:
        """Take user name and password out of `url` (percent-encoded there)."""
        parts = urlsplit(url)
        credentials, at, host = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":") if at else ("", "", "")
        return cls(_join(parts, host), unquote(username), unquote(password))

    @property
    def url_with_password(self) -> str:
        """For tools that take one URL. Don't log it."""
        parts = urlsplit(self.url)
        credentials = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}"
        return _join(parts, f"{credentials}@{parts.netloc}")

    def write(self, path: Path, **more: object) -> None:
        """Write a file that only the owner can read (mode 0600), whole or not at all."""
        temporary = path.with_name(path.name + ".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({**asdict(self), **more}, file)
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> StoreAddress:
        """The address in `store.json`. Raises StoreError when the file is missing or damaged."""
        try:
            content = json.loads(path.read_text())
            return cls(str(content["url"]), str(content["username"]), str(content["password"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: no readable store address ({error}); is the run's store running?") from error
