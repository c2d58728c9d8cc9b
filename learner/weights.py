"""What the learner publishes. The format lives in restoration/ because actors, which import no learner, read it."""

from restoration.weights import (
    StaleEpoch,
    WeightsError,
    WeightsInfo,
    WeightsMessage,
    from_bytes,
    read_info,
    require_epoch,
    to_bytes,
)

__all__ = [
    "StaleEpoch",
    "WeightsError",
    "WeightsInfo",
    "WeightsMessage",
    "from_bytes",
    "read_info",
    "require_epoch",
    "to_bytes",
]
