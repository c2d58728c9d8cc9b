"""`https://...`: a scorer behind a server of the user's own.

    GET  URL/describe   {"name": "...", "version": "...", "range": [1, 5]}, perhaps "least_side", "native_side" and
                        "preferred_batch"; null in the range where it has no bound
    POST URL/score      body: npy of uint8 [N, H, W, 3]; answer: npy of float32 [N], NaN for a picture that has no
                        score, and the header Scorer-Version

Neither side pickles, and nothing is encoded: a picture's artefacts arrive as they are. `docs/reward_server.py` is a
whole server; `docs/reward.md` tells the rest.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import ssl
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from restoration.file_kinds import first
from reward_service.scorers.interface import check_block
from reward_service.scorers.npy import HEADER_BYTES, NotNpy, header_of, read_npy

VERSION_HEADER = "Scorer-Version"
DESCRIPTION_BYTES = 65536
BACKOFF_S, LONGEST_BACKOFF_S = 0.25, 5.0
_PIECE = 1 << 20
_NPY = "application/x-npy"
T = TypeVar("T")


class ServerFailed(OSError):
    """No scores came from the server; says which, why, and what to do."""


class _Unavailable(Exception):
    """No connection, or 503: worth another try."""


@dataclass(frozen=True)
class _Request:
    """What the server is asked.

    Attributes:
        path: below the scorer's address.
        most: bytes of the answer that are read.
        limit_s: until the answer is there, tries included.
        what: is asked for, in messages.
        body: makes the body anew for each try; None: there is none.
        size: its bytes.
    """

    method: str
    path: str
    most: int
    limit_s: float
    what: str = "its description"
    body: Callable[[], AsyncIterator[bytes | memoryview]] | None = None
    size: int = 0


@dataclass(frozen=True)
class _Answer:
    status: int
    reason: str
    version: str | None
    location: str | None
    content: bytes
    larger: bool  # than what was read of it


class RemoteScorer:
    """Scores what the server scores; name, version, range and sides are what it says of itself when this is made.

    An answer of another version than then is refused: the server was changed while a run depended on it.

    Args:
        url: of the server, without user, query and fragment. Plain http only to this machine, unless `insecure`.
        token_env, token_file: an environment variable, or a file, that holds the bearer token; it is read here, and
            never stands in a configuration.
        ca: file of certificates that the server's must be signed by, instead of the system's.
        insecure: pictures and token may travel unencrypted.
        timeout_s, bytes_per_s: a block must be answered, tries included, within `timeout_s` and a second more for so
            many bytes.
        retries: further tries where no connection is to be had, or the server says 503; other failures have none.

    Raises:
        ValueError: a setting that is none, or the server doesn't say who it is.
    """

    def __init__(
        self,
        url: str,
        /,
        token_env: str | None = None,
        token_file: str | None = None,
        ca: str | None = None,
        insecure: bool = False,
        timeout_s: float = 60.0,
        bytes_per_s: float = 1e6,
        retries: int = 3,
        token: None = None,
    ) -> None:
        if token is not None:  # the value must not reach a message
            raise ValueError("a token doesn't belong into a configuration: name a variable or file, `token_env=NAME`")
        self.url = _checked(url, insecure)
        for key, value in (("timeout_s", timeout_s), ("bytes_per_s", bytes_per_s)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{key}={value!r}: a finite number above 0")
        if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 100:
            raise ValueError(f"retries={retries!r}: a whole number from 0 to 100")
        self.timeout_s, self.bytes_per_s, self.retries = timeout_s, bytes_per_s, retries
        self._headers = {"Accept-Encoding": "identity", **_authorization(token_env, token_file)}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="remote scorer", daemon=True).start()
        try:
            self._session = self._wait(_session(_context(ca) if self.url.startswith("https") else None), 10.0)
            self._end = weakref.finalize(self, _close, self._session, self._loop)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        try:
            said = self._ask(_Request("GET", "describe", DESCRIPTION_BYTES, timeout_s)).content
            self._take(said)
        except (ServerFailed, ValueError) as error:
            self.close()
            raise ValueError(str(error)) from error

    def close(self) -> None:
        """Give up the connections; scores can't be had any more."""
        self._end()

    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB -> float32 [N]; NaN for a picture that the server gives no finite number for.

        Raises:
            ValueError: another dtype or shape, or pictures smaller than the server takes.
            ServerFailed: no answer in time, or another than N scores of the version that this was made with.
        """
        images = np.ascontiguousarray(check_block(images, self.least_side))
        count, size = len(images), images.nbytes
        header = header_of(images.dtype, images.shape)

        async def body() -> AsyncIterator[bytes | memoryview]:
            yield header
            pixels = memoryview(images).cast("B")
            for start in range(0, size, _PIECE):
                yield pixels[start : start + _PIECE]

        limit = self.timeout_s + size / self.bytes_per_s
        what = f"{count} pictures of {images.shape[2]}x{images.shape[1]} ({size / 1e6:.1f} MB)"
        answer = self._ask(_Request("POST", "score", HEADER_BYTES + 4 * count, limit, what, body, len(header) + size))
        if answer.version != self.version:
            came = "without one" if answer.version is None else f"of {_shown(answer.version[:200])!r}"
            raise ServerFailed(
                f"{self.url}/score: an answer {came}, where {VERSION_HEADER} {self.version!r} was expected: the server "
                "was changed; start anew with what it is now, or bring the former back"
            )
        if answer.larger:
            raise ServerFailed(f"{self.url}/score: an answer of more than {HEADER_BYTES + 4 * count} bytes for {what}")
        try:
            scores = read_npy(answer.content, np.dtype("<f4"), (count,))
        except NotNpy as error:
            raise ServerFailed(f"{self.url}/score: {error}, for {what}; correct the server") from error
        return np.where(np.isfinite(scores), scores, np.float32(np.nan)).astype(np.float32, copy=False)

    def _take(self, content: bytes) -> None:
        """What the server says of itself. Raises ServerFailed."""
        where = f"{self.url}/describe"
        try:
            said = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServerFailed(f"{where}: no JSON, it begins with {content[:40]!r}") from error
        if not isinstance(said, dict):
            raise ServerFailed(f"{where}: {type(said).__name__}, where an object of name, version, range was expected")
        for key in ("name", "version"):
            value = said.get(key)
            if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable():
                raise ServerFailed(f"{where}: {key} must be a text of 1 to 200 characters on one line")
        self.name, self.version = said["name"], said["version"]
        self.range = _range(said.get("range"), where)
        self.least_side = _whole(said, "least_side", where) or 1
        self.preferred_batch = _whole(said, "preferred_batch", where)
        self.native_side = _whole(said, "native_side", where)

    def _ask(self, asked: _Request) -> _Answer:
        """The answer with status 200, tried again where that is worth it. Raises ServerFailed."""
        where, limit_s, what = f"{self.url}/{asked.path}", asked.limit_s, asked.what
        late = ServerFailed(
            f"{where}: no answer within {limit_s:.3g} s for {what}: raise timeout_s={self.timeout_s:g}, lower "
            f"bytes_per_s={self.bytes_per_s:g}, or send smaller blocks"
        )
        try:
            found = self._wait(self._tried(asked), limit_s + 10)
        except TimeoutError as error:
            raise late from error
        except _Unavailable as error:
            raise ServerFailed(f"{where}: {error}, at {self.retries + 1} tries; is the server up?") from error
        except aiohttp.ClientSSLError as error:
            raise ServerFailed(
                f"{where}: no trusted connection ({_line(error)}): give the certificates that sign the server's as `ca`"
            ) from error
        except aiohttp.ClientPayloadError as error:
            raise ServerFailed(f"{where}: the answer is shorter than announced ({_line(error)})") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerFailed(f"{where}: {type(error).__name__}: {_line(error)}") from error
        if 300 <= found.status < 400:
            raise ServerFailed(
                f"{where}: it redirects ({found.status}) to {_shown((found.location or 'nowhere')[:200])}, which is "
                "not followed: give the scorer's own address"
            )
        if found.status != 200:
            advice = "; is the token right?" if found.status in (401, 403) else ""
            told = _shown(found.content.decode("utf-8", "replace")[:300].strip())
            raise ServerFailed(f"{where}: {found.status} {_shown(found.reason[:80])} for {what}: {told}{advice}")
        return found

    async def _tried(self, asked: _Request) -> _Answer:
        loop = asyncio.get_running_loop()
        ends, pause = loop.time() + asked.limit_s, BACKOFF_S
        for left in range(self.retries, -1, -1):
            try:
                return await self._once(asked, ends - loop.time())
            except _Unavailable:
                if not left:
                    raise
            if loop.time() + pause > ends:
                raise TimeoutError
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_BACKOFF_S)
        raise AssertionError("the last try returns or raises")

    async def _once(self, asked: _Request, left_s: float) -> _Answer:
        headers, body, most = dict(self._headers), asked.body, asked.most
        if body is not None:
            headers |= {"Content-Type": _NPY, "Content-Length": str(asked.size)}
        try:
            async with self._session.request(
                asked.method,
                f"{self.url}/{asked.path}",
                data=body() if body is not None else None,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=max(left_s, 0.001)),
            ) as answer:
                if answer.status == 503:
                    raise _Unavailable(f"503 {answer.reason}")
                content = await _up_to(answer.content, most + 1)
                found = answer.headers
                return _Answer(
                    answer.status,
                    answer.reason or "",
                    found.get(VERSION_HEADER),
                    found.get("Location"),
                    content[:most],
                    len(content) > most,
                )
        except (TimeoutError, aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch):
            raise
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            raise _Unavailable(f"no connection ({_line(error)})") from error

    def _wait(self, coroutine: Coroutine[Any, Any, T], limit_s: float) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(limit_s)
        except TimeoutError:
            future.cancel()
            raise


async def _session(context: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """No proxies, netrc or cookies: what reaches the server is what is written here."""
    connector = aiohttp.TCPConnector(ssl=context if context is not None else True)
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
    )


def _close(session: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop) -> None:
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(session.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)


async def _up_to(stream: aiohttp.StreamReader, most: int) -> bytes:
    parts, left = [], most
    while left > 0 and (part := await stream.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _checked(url: str, insecure: bool) -> str:
    """The address without a slash at its end. Raises ValueError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"scorer: an address that is none ({error}): https://HOST:PORT/PATH") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"scorer at {host}: no user or password in an address: use token_env or token_file")
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment:
        raise ValueError(f"scorer {url!r}: an address is https://HOST:PORT/PATH, without query and fragment")
    if parts.scheme == "http" and not _is_this_machine(host):
        if not insecure:
            raise ValueError(
                f"scorer {url!r}: pictures and token would travel unencrypted: use https, or say insecure=true"
            )
        warnings.warn(f"scorer {url!r}: pictures and token travel unencrypted", stacklevel=4)
    return url.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _authorization(token_env: str | None, token_file: str | None) -> dict[str, str]:
    """Raises ValueError, without what it read."""
    if token_env is not None and token_file is not None:
        raise ValueError("token_env and token_file: give one of them")
    if token_env is not None:
        where, token = f"token_env={token_env}: the variable", os.environ.get(token_env)
        if token is None:
            raise ValueError(f"{where} isn't set where the scorer runs")
    elif token_file is not None:
        where = f"token_file={token_file}: the file"
        try:
            token = Path(token_file).read_text("ascii")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{where} can't be read: {type(error).__name__}") from error
    else:
        return {}
    token = token.strip()
    if not token or len(token) > 8192 or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{where} holds no token: one word of printable ASCII")
    return {"Authorization": f"Bearer {token}"}


def _context(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca={ca}: no file of certificates in PEM ({_line(error)})") from error


def _range(value: Any, where: str) -> tuple[float, float]:
    if isinstance(value, list) and len(value) == 2:
        least, most = (bound if value[i] is None else value[i] for i, bound in enumerate((-math.inf, math.inf)))
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (least, most))
        if numbers and least < most:
            return float(least), float(most)
    raise ServerFailed(f"{where}: range must be two rising numbers, null for a bound that there is none of")


def _whole(said: dict[str, Any], key: str, where: str) -> int | None:
    value = said.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ServerFailed(f"{where}: {key} must be a whole number of at least 1")
    return value


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return _shown(lines[0][:300]) if lines else type(error).__name__


def _shown(text: str) -> str:
    """On one line, and without what steers a terminal."""
    return first([text], 1)
