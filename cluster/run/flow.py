"""How much of a run is in flight at once, from its configuration alone: bytes of a group, groups, items, slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config.recipe import RunConfig
from restoration.images import images_within
from trajectories.schema import STORAGE_DTYPES

SLOTS_PER_ACTOR = 2  # one item denoises while another waits for its scores
LATENTS = 2  # of a decision in a record: state and target
GPU = 80e9  # bytes of what the shipped recipes are written for
MAX_RECORD = 512 << 20  # bytes of a value in Redis and Valkey

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Flow:
    """Sizes of what moves.

    Attributes:
        picture: of what is rolled out, the largest where pictures differ.
        latent: [C, h, w] of it.
        decisions: steps of a chain that are trained on.
        group_bytes: of one group in the store.
        groups: in flight at most by admission: the batches of weights 0 to `max_staleness` behind, and the next.
        held_groups: unsettled in the store at most; those of steps without a checkpoint yet are among them.
        items: rollout batches that `groups` are.
        scored: images that are scored for a group.
    """

    picture: Size
    latent: tuple[int, int, int]
    decisions: int
    group_bytes: int
    groups: int
    held_groups: int
    items: int
    scored: int

    @property
    def held_bytes(self) -> int:
        return self.held_groups * self.group_bytes


def groups_in_flight(config: RunConfig) -> int:
    """Groups that admission lets be rolled out or wait, see `cluster.run.admission`."""
    return (config.source.max_staleness + 1) * config.source.groups_per_step


def held_groups(config: RunConfig) -> int:
    """Groups that may be published and unsettled."""
    return (config.source.max_staleness + 1 + config.checkpoint_every) * config.source.groups_per_step


def flow(config: RunConfig, picture: Size, vae_factor: int, channels: int, decisions: int) -> Flow:
    """What moves when pictures of `picture` are rolled out.

    Args:
        vae_factor: pixels per latent cell along one side.
        channels: of a latent.
    """
    rollout = config.rollout
    rows, (height, width) = rollout.rollouts_per_image, picture
    latent = (channels, height // vae_factor, width // vae_factor)
    numbers = latent[0] * latent[1] * latent[2]
    latents = LATENTS * rows * decisions * numbers * STORAGE_DTYPES[rollout.storage_dtype].itemsize
    # Log-probs, rewards, shifts and their masks, ids, and a schema of about 4 KB.
    others = 4096 + rows * (13 * decisions + 64)
    return Flow(
        picture=picture,
        latent=latent,
        decisions=decisions,
        group_bytes=latents + others,
        groups=groups_in_flight(config),
        held_groups=held_groups(config),
        items=groups_in_flight(config) // rollout.images_per_batch,
        scored=rows * len(rollout.scored(decisions)) if decisions else 0,
    )


def rolled_sizes(config: RunConfig, sizes: Sequence[Size], multiple: int) -> list[Size]:
    """The distinct sizes of what is rolled out of training pictures of `sizes`, ascending by area."""
    if side := config.rollout.crop:
        return [(side, side)]
    floored = {(h // multiple * multiple, w // multiple * multiple) for h, w in sizes}
    return sorted(floored, key=lambda size: (size[0] * size[1], size))


def padded(size: Size, multiple: int) -> Size:
    """The next multiples."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def evaluated_together(config: RunConfig, multiple: int, sizes: Sequence[Size]) -> tuple[int, int, int]:
    """(height, width, pictures) of the most that an evaluation has in its networks at once."""
    of = config.evaluation
    height, width = padded(max(sizes, key=lambda size: size[0] * size[1]), multiple)
    if of.tile:
        height, width = (min(side, -(-of.tile // multiple) * multiple) for side in (height, width))
    return height, width, min(of.batch, images_within(of.pixels, height, width), len(sizes))
