"""Bytes against the places that hold them: trajectories in the store, an evaluation's pictures on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.run.checks.findings import Finding
from cluster.run.flow import GPU, MAX_RECORD, Flow, Size, evaluated_together, held_groups
from trajectories.settings import LEDGER_BYTES, needed_memory

# A pixel, at full side, in float32: 2 x 256 and 2 x 128 channels of the VAEs of SD, SDXL, SD 3 and Flux.
DECODER_BYTES = 3072
FREE_SHARE = 0.7  # of a GPU beside weights


def store(config: RunConfig, moved: Flow) -> Iterator[Finding]:
    """Bytes of trajectories, and of the ledger, against what the store takes."""
    limit, group = config.store.max_bytes, moved.group_bytes
    smaller = "rollout.storage_dtype=bfloat16 halves a group" if config.rollout.storage_dtype == "float32" else ""
    others = ", ".join(filter(None, (smaller, "a smaller rollout.crop, fewer sampler.steps or rollouts_per_image")))
    about = (
        f"a group has {_mib(group)} ({config.rollout.rollouts_per_image} rollouts x {moved.decisions} decisions x 2 "
        f"latents {list(moved.latent)} of {config.rollout.storage_dtype})"
    )
    if group > MAX_RECORD:
        yield Problem("rollout", f"{about}; a record of the store takes {_mib(MAX_RECORD)}", f"choose {others}")
    elif moved.held_bytes > limit:
        needed = math.ceil(moved.held_bytes / 2**20) * 2**20
        why = (
            f"(source.max_staleness={config.source.max_staleness} + 1 + checkpoint_every={config.checkpoint_every}) x "
            f"source.groups_per_step={config.source.groups_per_step} = {held_groups(config)}"
        )
        room = f"{limit // group} fit" if group <= limit else "not one fits"
        yield Problem(
            "store.max_bytes",
            f"{about}; {why} of them may wait for a step or its checkpoint, and {room} into {_mib(limit)}",
            f"set store.max_bytes={needed} ({_mib(needed)}), or {others}, or a lower checkpoint_every",
        )
    given = config.store.embedded_maxmemory if config.store.is_embedded else 0
    ledger = config.iterations * config.source.groups_per_step * LEDGER_BYTES
    if given and given < (least := needed_memory(limit) + ledger):
        yield (
            f"store.embedded_maxmemory={given} has too little room beside {_mib(limit)} of trajectories for the ledger "
            f"of {config.iterations} iterations, about {_mib(ledger)}, so that the store would be full before the end; "
            f"set store.embedded_maxmemory={least} or more, or 0 to derive it"
        )


def evaluation(config: RunConfig, multiple: int, sizes: Sequence[Size]) -> Iterator[str]:
    """What an evaluation decodes at once on a GPU."""
    height, width, batch = evaluated_together(config, multiple, sizes)
    held = batch * height * width * DECODER_BYTES
    if config.actors.num_gpus and held > FREE_SHARE * GPU:
        fits = max(1, int(FREE_SHARE * GPU / DECODER_BYTES))
        yield (
            f"evaluation.pixels={config.evaluation.pixels}: the decoder holds about {held / 2**30:.0f} GiB for {batch} "
            f"pictures of {width}x{height}, of the {GPU / 2**30:.1f} GiB of an 80 GB GPU; set evaluation.pixels={fits} "
            "or below, for larger pictures evaluation.tile=1024"
        )


def _mib(count: float) -> str:
    return f"{count / 2**20:.4g} MiB" if count < 2**30 else f"{count / 2**30:.4g} GiB"
