"""Costs of a recipe on a kind of GPU, from the arithmetic of its networks. Pure; counting is `restoration.flops`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.plan.gpus import SCORER, GpuKind
from cluster.plan.model import Costs

DISK = 0.5e9  # bytes a second of a checkpoint on its way to a disk: an assumption
NETWORK = 1.25e9  # bytes a second between two nodes, 10 Gbit/s: an assumption
OBJECTS = 2e9  # bytes a second into Ray's object store; measured on 2 cores, 500 MB in 0.23 s


@dataclass(frozen=True)
class Plumbing:
    """What moves and counts groups, as `python -m benchmarks.size` measured it on 2 cores that others used, too.

    Attributes:
        publish: bytes a second of an actor into the store.
        store: of one store, in and out together; intake: of a rank that fetches and checks.
        store_s, driver_s: seconds of the store for a group, and of the driver for an item, whatever their sizes.
    """

    publish: float = 300e6
    store: float = 400e6
    intake: float = 300e6
    store_s: float = 1e-3
    driver_s: float = 4e-3


@dataclass(frozen=True)
class Arithmetic:
    """FLOP and bytes of what a recipe computes, each of one picture or row.

    Attributes:
        condition, denoise, decode: of an actor; `denoise` a step of one row, guidance included.
        replay, sft: forward and backward of a row of a rank; recomputation of activations included.
        forward: of a row of a rank, without gradients.
        frozen_bytes: of all weights that an actor reads in a pass.
        trained: numbers that are trained.
        score: of a picture, by service; those that are known.
    """

    condition: float
    denoise: float
    decode: float
    replay: float
    sft: float
    forward: float
    frozen_bytes: float
    trained: int
    score: Mapping[str, float]


@dataclass(frozen=True)
class Chain:
    """How much of it there is.

    Attributes:
        images, rollouts: of an item, `images * rollouts` rows.
        steps: evaluations of the denoiser in a chain; decoded: clean estimates of a row that are decoded and scored.
        decode_batch: pictures decoded at a time.
        micro_batch: rows of a replay.
        forwards: passes without gradients that a decision takes besides (a reference, log-probs taken anew).
        group_bytes: of a record.
        evaluated: pictures of an evaluation, with each kind of weights; every: iterations between two, 0 for none.
        area: of an evaluated picture over one that is rolled out.
        checkpoint_every: iterations.
        bf16: of each of "condition", "denoise", "decode", "replay", "evaluation": whether in bfloat16.
    """

    images: int
    rollouts: int
    steps: int
    decoded: int
    decode_batch: int
    micro_batch: int
    forwards: int
    group_bytes: float
    evaluated: int
    every: int
    area: float
    checkpoint_every: int
    bf16: Mapping[str, bool]

    @property
    def rows(self) -> int:
        return self.images * self.rollouts

    @property
    def scored(self) -> int:
        """Pictures of an item that are scored."""
        return self.rows * self.decoded


def estimated(work: Arithmetic, chain: Chain, kind: GpuKind, score_s: Mapping[str, float], plumbing: Plumbing) -> Costs:
    """Costs on this kind.

    Args:
        score_s: seconds of a picture for services whose arithmetic isn't known.
    """

    def of(flops: float, pass_of: str, times: int = 1) -> float:
        return times * kind.seconds(flops, work.frozen_bytes, chain.bf16[pass_of])

    passes = -(-chain.rows // chain.decode_batch)
    rollout = (
        of(chain.images * work.condition, "condition")
        + of(chain.rows * work.denoise, "denoise", chain.steps)
        + of(chain.decode_batch * work.decode, "decode", passes * chain.decoded)
    )
    alone = work.condition + chain.steps * work.denoise + work.decode
    picture = chain.area * kind.seconds(alone, 0.0, chain.bf16["evaluation"])
    weights = 4.0 * work.trained
    score = {name: kind.seconds(flops, reached=SCORER) for name, flops in work.score.items()} | dict(score_s)
    return Costs(
        rollout_s=rollout,
        publish_s=chain.images * chain.group_bytes / plumbing.publish,
        score_s={name: chain.scored * each for name, each in score.items()},
        blocks=chain.decoded,
        weights_s=weights / NETWORK,
        evaluation_s=chain.evaluated * picture / chain.every if chain.every else 0.0,
        policy_s=of(chain.micro_batch * work.replay, "replay")
        + of(chain.micro_batch * work.forward, "replay", chain.forwards),
        sft_s=of(chain.micro_batch * work.sft, "replay"),
        condition_s=of(work.condition, "replay"),
        step_s=weights / OBJECTS + kind.seconds(0.0, 7 * weights),
        reduce_s=2 * weights / NETWORK,
        checkpoint_s=3 * weights / DISK / chain.checkpoint_every,
        **moving(chain.group_bytes, plumbing),
    )


def moving(group_bytes: float, plumbing: Plumbing) -> dict[str, float]:
    """The costs of `Costs` that no recipe and no GPU changes."""
    return {
        "store_s": plumbing.store_s + group_bytes / plumbing.store,
        "intake_s": group_bytes / plumbing.intake,
        "driver_s": plumbing.driver_s,
    }


PLUMBING = Plumbing()
