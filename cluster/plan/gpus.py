"""Kinds of GPUs by their data sheets, and how long arithmetic takes on one: an estimate, within a factor of 2. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.plan.model import PlanError

NETWORKS = 0.25
"""Of the peak that eager convolutions and attention reach in batches of a dozen pictures. Not measured here."""
SCORER = 0.36
"""Of the peak that DeQA-Score's network reaches: 200 pictures a second on an H200, the goal of docs/gpu.md."""
MEMORY = 0.7
"""Of the memory's bandwidth that reading weights reaches."""
FACTOR = 2
"""An estimate may be so many times too long or too short."""


@dataclass(frozen=True)
class GpuKind:
    """A GPU as its maker's data sheet has it: without sparsity, the SXM board where there are several.

    Attributes:
        bf16, tf32: products, in FLOP a second; what is computed in float32 takes TF32 (`restoration.precision`).
        bandwidth: of its memory, in bytes a second; memory: bytes.
    """

    name: str
    bf16: float
    tf32: float
    bandwidth: float
    memory: float

    def seconds(self, flops: float, nbytes: float = 0.0, bf16: bool = True, reached: float = NETWORKS) -> float:
        """Of a pass of so much arithmetic that reads `nbytes` of weights."""
        return max(flops / (reached * (self.bf16 if bf16 else self.tf32)), nbytes / (MEMORY * self.bandwidth))


KINDS: Mapping[str, GpuKind] = {
    kind.name: kind
    for kind in (
        GpuKind("h200", 989e12, 494e12, 4.8e12, 141e9),
        GpuKind("h100", 989e12, 494e12, 3.35e12, 80e9),
        GpuKind("a100", 312e12, 156e12, 2.04e12, 80e9),
        GpuKind("a100_40gb", 312e12, 156e12, 1.55e12, 40e9),
        GpuKind("l40s", 362e12, 183e12, 0.864e12, 48e9),
        GpuKind("a40", 150e12, 75e12, 0.696e12, 48e9),
        GpuKind("l4", 121e12, 60e12, 0.3e12, 24e9),
    )
}


def gpu_kind(name: str) -> GpuKind:
    """Raises:
    PlanError: no such kind.
    """
    found = KINDS.get(name.strip().lower())
    if found is None:
        raise PlanError(
            f"--gpu-kind {name}: nothing is known of it; choose {', '.join(KINDS)}, or measure a run on yours and "
            "give it with --from"
        )
    return found
