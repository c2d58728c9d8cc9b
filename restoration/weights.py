"""Published weights: safetensors bytes that carry who made them, and the fence against a cut-off writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 1


class WeightsError(RuntimeError):
    """Bytes that are no published weights, or of another format."""


class StaleEpoch(WeightsError):
    """Weights of an older epoch: their learner was cut off and replaced."""


@dataclass(frozen=True)
class WeightsInfo:
    """Who made the weights: `version` counts optimiser steps, `epoch` counts starts of the run."""

    version: int
    epoch: int
    run_id: str = ""


@dataclass(frozen=True)
class WeightsMessage:
    """What the driver hands to the actors: `ref` is the reference of the bytes in the object store (or the bytes).

    `averaged` weights are for evaluation only: no policy acts with them.
    """

    version: int
    epoch: int
    ref: Any
    averaged: bool = False


def to_bytes(state: Mapping[str, Tensor], info: WeightsInfo) -> bytes:
    """The tensors (any device) as safetensors bytes with `info` in the header; names are kept, order is not."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    return bytes(save(tensors, metadata={"restorl_weights": json.dumps({"format": FORMAT, **asdict(info)})}))


def read_info(data: bytes | memoryview) -> WeightsInfo:
    """The header alone, without building tensors.

    Raises:
        WeightsError: `data` is no published weights.
    """
    view = memoryview(data)
    try:
        length = int.from_bytes(view[:8], "little")
        if length > len(view) - 8:
            raise ValueError("the header is longer than the data")
        fields = json.loads(json.loads(bytes(view[8 : 8 + length]))["__metadata__"]["restorl_weights"])
        found = fields.pop("format")
        if found != FORMAT:
            raise WeightsError(f"published weights have format {found}, this program reads {FORMAT}; use one version")
        return WeightsInfo(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"these {len(view)} bytes are no weights that a learner published: {error}") from error


def from_bytes(data: bytes | memoryview, minimum_epoch: int | None = None) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Tensors on the CPU and their origin.

    Raises:
        WeightsError: `data` is no published weights.
        StaleEpoch: its epoch is older than `minimum_epoch`.
    """
    info = read_info(data)
    if minimum_epoch is not None:
        require_epoch(info, minimum_epoch)
    try:
        return load(bytes(data)), info
    except safetensors.SafetensorError as error:
        raise WeightsError(f"weights of version {info.version} are damaged: {error}") from error


def require_epoch(message: WeightsInfo | WeightsMessage, minimum: int) -> None:
    """Refuse weights of an epoch before `minimum`: a learner cut off from the cluster may answer once more.

    Raises:
        StaleEpoch: with both epochs in the message.
    """
    if message.epoch < minimum:
        raise StaleEpoch(
            f"weights version {message.version} come from epoch {message.epoch}, the run is in epoch {minimum}: refused"
        )
