"""What may go wrong between a block of images and its rewards. Failures cross processes as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class RewardError(Exception):
    """No rewards for this block. `kind` is a short word for counters."""

    kind: ClassVar[str] = "failed"

    def __init__(self, message: str, indexes: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.indexes = tuple(int(i) for i in indexes)

    def to_data(self) -> dict[str, Any]:
        return {"error": self.kind, "message": self.message, "indexes": list(self.indexes)}

    def __reduce__(self) -> tuple[type[RewardError], tuple[str, tuple[int, ...]]]:
        return type(self), (self.message, self.indexes)


class RewardTimeout(RewardError):
    """The deadline passed first."""

    kind = "timeout"


class ScorerFailed(RewardError):
    """The scorer raised, or returned something else than one number an image."""

    kind = "scorer"


class InvalidReward(RewardError):
    """The scorer returned NaN or infinity for the images at `indexes` of the block."""

    kind = "invalid"


class InvalidBlock(RewardError):
    """The block is no uint8 [N, H, W, 3] array that the scorer can take."""

    kind = "block"


class RewardUnavailable(RewardError):
    """No replica answered: none runs, or they died more often than the retries allow."""

    kind = "unavailable"


class WrongScorer(RewardError):
    """Another scorer, or another version of it, answered than the run is pinned to. No score of it may be used."""

    kind = "version"


class ScorerBroken(RewardError):
    """The scorer fails at whatever it is given, its own probe included: no block is to blame, and asking on is vain."""

    kind = "broken"


_BY_KIND = {
    c.kind: c
    for c in (
        *(RewardError, RewardTimeout, ScorerFailed, InvalidReward, InvalidBlock),
        *(RewardUnavailable, WrongScorer, ScorerBroken),
    )
}


def from_data(data: dict[str, Any]) -> RewardError:
    return _BY_KIND.get(data["error"], RewardError)(data["message"], data["indexes"])
