"""How other processes ask for rewards: submit blocks, collect tickets, synchronously."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ray import exceptions as ray_exceptions
from ray import serve
from ray.serve import exceptions as serve_exceptions
from ray.serve.handle import DeploymentHandle

from reward_service.bounded import bounded
from reward_service.errors import (
    InvalidBlock,
    InvalidReward,
    RewardError,
    RewardTimeout,
    RewardUnavailable,
    ScorerBroken,
    ScorerFailed,
    WrongScorer,
    from_data,
)
from reward_service.scorers.interface import check_block
from reward_service.settings import RewardApp

# The replica, its node or the reply is gone; the request itself may be fine. Scoring is pure, so it may run twice.
_LOST = (
    ray_exceptions.RayActorError,
    ray_exceptions.WorkerCrashedError,
    ray_exceptions.NodeDiedError,
    ray_exceptions.ObjectLostError,
    ray_exceptions.TaskCancelledError,
    ray_exceptions.RpcError,
    serve_exceptions.DeploymentUnavailableError,
    serve_exceptions.ReplicaUnavailableError,
)
# There is no room yet, or the replica that answered is about to be replaced: waited for, until the deadline.
_WAIT_FOR = (serve_exceptions.BackPressureError, ScorerBroken)
FIRST_PAUSE_S, LONGEST_PAUSE_S, NO_ROOM_PAUSE_S = 0.2, 5.0, 0.8
LOOK_UP_S = 30.0
BROKEN_AFTER = 16  # answers in a row, in about half a minute, in which Serve replaces a replica that is unwell


@dataclass(frozen=True)
class RewardResult:
    """scores: float32 [N], finite. reward_version: of the scorer that gave them."""

    scores: np.ndarray
    reward_version: str


class _Request:
    """Some images of a block on their way; sent again where no answer can come any more."""

    def __init__(self, client: RewardClient, images: np.ndarray, expires: float) -> None:
        self._client, self._app = client, client.app
        self._images: np.ndarray | None = images
        self._expires = expires
        self._response: Any = None  # a DeploymentResponse
        self._lost: Exception | None = None
        self._send()

    def _send(self) -> None:
        """Hand the images to Serve; what fails here is treated in `scores`, where retries are."""
        self._response, self._lost = None, None
        try:
            self._response = self._client.handle.score.remote(self._images, self._left())
        except (ray_exceptions.RayError, serve_exceptions.RayServeException, TimeoutError) as error:
            self._client.forget()
            self._lost = error

    def _left(self) -> float:
        return self._expires - time.monotonic()

    def scores(self) -> np.ndarray:
        """float32 [N]; for synchronous code. Raises as `RewardTicket.result`."""
        attempts = waits = 0
        while True:
            reply, error = self._answer()
            if reply is not None:
                break
            if isinstance(error, _WAIT_FOR):
                waits += 1
            else:
                attempts += 1
            if attempts > self._app.retries:
                raise RewardUnavailable(
                    f"reward service {self._app.name!r} gave no reply in {attempts} attempts: {error}"
                ) from error
            longest = NO_ROOM_PAUSE_S if isinstance(error, serve_exceptions.BackPressureError) else LONGEST_PAUSE_S
            pause = min(FIRST_PAUSE_S * 2 ** min(attempts + waits - 1, 10), longest) * random.uniform(0.75, 1.25)
            if pause >= self._left():
                raise self._late(error) from error
            time.sleep(pause)
            self._client.repeated += 1
            self._send()
        self._images = None  # nothing to repeat any more: let the block go
        if "error" in reply:
            raise from_data(reply)
        self._require_ours(reply)
        self._client.broken_in_a_row = 0
        scores: np.ndarray = reply["scores"]
        return scores

    def _answer(self) -> tuple[dict[str, Any] | None, Exception | None]:
        """A reply to keep, or why the images are to be sent again."""
        if self._response is None:
            return None, self._lost
        try:
            reply: dict[str, Any] = self._response.result(timeout_s=max(self._left(), 1e-3))
        except (*_LOST, serve_exceptions.BackPressureError) as lost:
            return None, lost
        except ray_exceptions.RayError as failure:
            if isinstance(failure, TimeoutError):
                raise self._late() from None
            raise ScorerFailed(f"reward service {self._app.name!r}: {failure}") from failure
        except TimeoutError:
            raise self._late() from None
        if reply.get("error") == ScorerBroken.kind:
            return None, self._client.broke(from_data(reply))
        return reply, None

    def _require_ours(self, reply: dict[str, Any]) -> None:
        app, found = self._app, (reply.get("scorer"), reply.get("version"))
        if found != (app.scorer, app.version):
            raise WrongScorer(
                f"reward service {app.name!r}: expected scores of {app.scorer}, version {app.version}, but "
                f"{found[0]}, version {found[1]}, answered; start the run with the reward it began with"
            )

    def _late(self, why: Exception | None = None) -> RewardTimeout:
        self.cancel()
        app, reason = self._app, f": {why}" if why is not None else ""
        return RewardTimeout(f"reward service {app.name!r} gave no reply within deadline_s={app.deadline_s:g}{reason}")

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if self._response is not None:
            # What never reached a replica raises why it did not.
            with contextlib.suppress(ray_exceptions.RayError, serve_exceptions.RayServeException, CancelledError):
                self._response.cancel()


class RewardTicket:
    """A block on its way. Its deadline runs from submission."""

    def __init__(self, client: RewardClient, images: np.ndarray) -> None:
        self._app = client.app
        expires, size = time.monotonic() + self._app.deadline_s, self._app.max_batch
        # Several replicas share a block larger than a batch, and what one of them loses is sent again alone.
        self._requests = [
            _Request(client, images[start : start + size], expires) for start in range(0, len(images), size)
        ]
        self._size = size

    def cancel(self) -> None:
        """Nobody wants its scores any more."""
        for request in self._requests:
            request.cancel()

    def result(self) -> RewardResult:
        """Wait for the scores; for synchronous code (Serve refuses to block an event loop).

        Raises:
            RewardTimeout: the deadline passed.
            ScorerFailed: the scorer raised. Not retried.
            InvalidReward: it gave NaN or infinity; `indexes` says for which images. Not retried.
            InvalidBlock: it can't take such images.
            RewardUnavailable: replicas died or were missing more often than `retries`.
            ScorerBroken: the scorer has failed at everything for some time; the client asks no more.
            WrongScorer: another scorer or version answered than the app names. Not retried.
        """
        parts: list[np.ndarray] = []
        invalid: list[InvalidReward] = []
        for number, request in enumerate(self._requests):
            try:
                parts.append(request.scores())
            except InvalidReward as error:
                shifted = [number * self._size + i for i in error.indexes]
                invalid.append(InvalidReward(error.message, shifted))
            except RewardError:
                for later in self._requests[number + 1 :]:
                    later.cancel()
                raise
        if invalid:
            raise InvalidReward("; ".join(e.message for e in invalid), [i for e in invalid for i in e.indexes])
        return RewardResult(parts[0] if len(parts) == 1 else np.concatenate(parts), self._app.version)


class RewardClient:
    """Asks a deployed reward service. Any number of tickets may be outstanding.

    Args:
        app: what `deploy` returned. Another version of the scorer needs a client of another app.
        deadline_s, retries: in place of those of the app.
    """

    def __init__(self, app: RewardApp, deadline_s: float | None = None, retries: int | None = None) -> None:
        self.app = replace(
            app,
            deadline_s=app.deadline_s if deadline_s is None else deadline_s,
            retries=app.retries if retries is None else retries,
        )
        self.repeated = 0  # requests sent again so far
        self.broken_in_a_row = 0  # answers that the scorer is broken, since the last scores
        self._broken: ScorerBroken | None = None
        self._handle: DeploymentHandle[Any] | None = None

    @property
    def handle(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            name = self.app.name
            within_s = min(LOOK_UP_S, self.app.deadline_s)
            self._handle = bounded(lambda: serve.get_app_handle(name), within_s, f"finding reward service {name!r}")
        return self._handle

    def forget(self) -> None:
        """Look the service up again at the next request: it may have been started anew."""
        self._handle = None

    def broke(self, error: RewardError) -> RewardError:
        """Note an answer that the scorer is broken, and return it; one too many ends the asking.

        Raises:
            ScorerBroken: the last `BROKEN_AFTER` answers were such, without scores in between.
        """
        self.broken_in_a_row += 1
        if self.broken_in_a_row >= BROKEN_AFTER:
            self._broken = ScorerBroken(
                f"reward service {self.app.name!r} failed {self.broken_in_a_row} times in a row, on its own probe "
                f"pictures, too: {error.message}; put the scorer right, then start or resume the run"
            )
            raise self._broken
        return error

    def submit(self, images: np.ndarray) -> RewardTicket:
        """Send a block uint8 [N, H, W, 3]; returns at once. Don't write to it before its result is there.

        Raises:
            InvalidBlock: another type or shape; nothing was sent.
            ScorerBroken: the scorer has failed at everything; a new client would ask again.
        """
        if self._broken is not None:
            raise ScorerBroken(self._broken.message)
        try:
            check_block(images)
        except ValueError as error:
            raise InvalidBlock(str(error)) from None
        return RewardTicket(self, images)
