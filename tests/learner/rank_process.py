"""One learner rank as a plain process: python -m tests.learner.rank_process RANK WORLD PORT RESULT."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch

from learner.advantage import AdvantageSettings
from learner.batch import BatchError
from learner.engine import without_compiler
from learner.learner import LearnerRank
from learner.objective import ObjectiveSettings
from learner.settings import LearnerSettings, OptimiserSettings
from restoration.adapters import AdaptSettings, make_trainable
from tests.learner.fakes import SAMPLER, FakeModel, fake_pairs, roll_out_group
from trajectories.schema import Trajectories, encode

BASE = LearnerSettings(
    adapt=AdaptSettings("lora", rank=2),
    sampler=SAMPLER,
    objective=ObjectiveSettings(kl_beta=0.5, clip=1e-3),
    advantage=AdvantageSettings(stats="batch"),
    optimiser=OptimiserSettings(lr=1e-3, grad_clip=0.05),
    micro_batch=4,
    norms_every=2,
    threads=1,
)
VARIANTS = {
    **{f"zero{stage}": replace(BASE, optimiser=replace(BASE.optimiser, zero_stage=stage)) for stage in range(3)},
    "zero3": replace(BASE, optimiser=replace(BASE.optimiser, zero_stage=3, ema=0.2)),
    "micro1": replace(BASE, micro_batch=1),
    "micro64": replace(BASE, micro_batch=64),
    "full0": replace(BASE, adapt=AdaptSettings("full")),
    "full2": replace(BASE, adapt=AdaptSettings("full"), optimiser=replace(BASE.optimiser, zero_stage=2)),
    "bf16": replace(BASE, dtype="bfloat16"),
    "switches": replace(
        BASE,
        objective=ObjectiveSettings(
            kl_beta=0.5, clip=1e-3, use_weights=False, difficulty_norm="l1", rl_coef=3.0, sft_coef=0.5
        ),
        advantage=AdvantageSettings(
            stats="track",
            min_count=2,
            track_length=3,
            per_step=False,
            batch_scope="same_image",
            eps_at="deviation",
            clamp_to_gt=True,
            unscored="next",
        ),
        optimiser=replace(BASE.optimiser, warmup=2, weight_decay=0.1, ema=0.5),
    ),
    "l1": replace(
        BASE,
        objective=ObjectiveSettings(difficulty_norm="l1"),
        advantage=AdvantageSettings(deviation_of="batch", batch_scope="same_image"),
    ),
    "diff_sft": replace(BASE, objective=ObjectiveSettings(recipe="diff_sft")),
    "track": replace(BASE, advantage=AdvantageSettings(), inner_epochs=2, updates_per_batch=2),
}
ONE_RANK_ONLY = ("micro1", "micro64", "full0", "bf16", "switches", "l1", "diff_sft")
UNSCORED = {"switches": (0, 1), "l1": (1,)}  # steps without a reward
STEPS = 3


def batches(variant: str) -> list[list[Trajectories]]:
    """Sizes that don't divide by ranks or micro-batches; the last has one row, fewer than two ranks can share."""
    settings, unscored = VARIANTS[variant], UNSCORED.get(variant, ())
    model = FakeModel()
    make_trainable(model, settings.adapt)
    sizes = [(3, 3), (2, 3), (1, 1)]
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        return [
            [roll_out_group(model, f"image-{g}", seed=10 * b + g, rollouts=k, unscored=unscored) for g in range(count)]
            for b, (count, k) in enumerate(sizes)
        ]


def train(variant: str, rank: int, world: int, port: int) -> dict[str, Any]:
    """Steps over `batches`, and the last again by a learner that was loaded before it."""
    settings = VARIANTS[variant]
    learner = LearnerRank(settings, FakeModel(), fake_pairs, rank, world, port=port)
    records = [[encode(g) for g in groups] for groups in batches(variant)]
    metrics, weights, files = [], [], {}
    for i, groups in enumerate(records):
        if i == STEPS - 1:
            files = gathered(learner)
        # The ranks may get the groups in different orders.
        metrics.append(learner.step(groups[::-1] if rank else groups))
        weights.append(learner.engine.weights())
    again = LearnerRank(settings, FakeModel(), fake_pairs, rank, world, port=port)
    again.load_files(files)
    resumed = again.step(records[-1])
    return {
        "metrics": metrics,
        "weights": weights,
        "resumed_metrics": resumed,
        "resumed_weights": again.engine.weights(),
        "files": files,
        "files_after": gathered(learner),
        "resumed_files_after": gathered(again),
        "published": learner.trainable_bytes(epoch=4),
        "average": dict(learner.average.weights) if learner.average else {},
        "resumed_average": dict(again.average.weights) if again.average else {},
    }


def gathered(learner: LearnerRank) -> dict[str, bytes]:
    """Rank 0's state on every rank, as the Ray group hands it round."""
    box = [learner.state_files()]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def faults(port: int) -> dict[str, Any]:
    def broken(image_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        lq, gt = fake_pairs(image_id)
        return lq, gt * float("nan")

    found: dict[str, Any] = {}
    groups = batches("zero0")[0]
    learner = LearnerRank(BASE, FakeModel(), broken, port=port)
    before, tracks = learner.engine.weights(), learner.tracks.state_dict()
    try:
        learner.step(groups)
    except FloatingPointError as error:
        found["not_finite"] = str(error)
    found["weights_kept"] = all(torch.equal(before[n], w) for n, w in learner.engine.weights().items())
    learner = LearnerRank(BASE, FakeModel(), fake_pairs, port=port)
    try:
        learner.step([groups[0], groups[0]])
    except BatchError as error:
        found["twice"] = str(error)
    found["tracks_kept"] = learner.tracks.state_dict() == tracks
    found["goes_on"] = learner.step(groups)["iteration"]
    averaging = replace(BASE, optimiser=replace(BASE.optimiser, ema=0.5))
    late = LearnerRank(averaging, FakeModel(), fake_pairs, port=port)
    late.load_files(learner.state_files())
    found["late_average"] = late.trainable_bytes(epoch=1, averaged=True)
    found["late_weights"] = late.engine.weights()
    return found


def main(rank: int, world: int, port: int, result: str) -> None:
    torch.set_num_threads(1)
    names = [n for n in VARIANTS if world == 1 or n not in ONE_RANK_ONLY]
    results: dict[str, Any] = {name: train(name, rank, world, port) for name in names}
    results["compiled"] = without_compiler().ops.__compatible_ops__["deepspeed_shm_comm"]
    results["extensions"] = sorted(m for m in sys.modules if "shm_comm" in m)
    if world == 1:
        results["faults"] = faults(port)
    torch.save(results, result)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
