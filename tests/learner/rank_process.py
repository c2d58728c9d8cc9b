"""One learner rank as a plain process: python -m tests.learner.rank_process RANK WORLD PORT RESULT."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from learner import checkpoint, engine
from learner.advantage import AdvantageSettings
from learner.batch import BatchError
from learner.engine import without_compiler
from learner.learner import LearnerRank, Snapshot
from learner.objective import ObjectiveSettings
from learner.settings import LearnerSettings, OptimiserSettings
from restoration import precision
from restoration.adapters import AdaptSettings, make_trainable, trained_parameters
from restoration.precision import set_frozen_dtype
from tests.learner.fakes import SAMPLER, FakeModel, fake_pairs, roll_out_group, summary_of
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
FROZEN = replace(BASE, dtype="bfloat16", adapt=replace(BASE.adapt, frozen_dtype="bfloat16"))
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
    "offload1": replace(BASE, optimiser=replace(BASE.optimiser, zero_stage=1, offload="cpu")),
    "offload2": replace(BASE, optimiser=replace(BASE.optimiser, zero_stage=2, offload="cpu", bucket_mb=0.001)),
    "offload3": replace(BASE, optimiser=replace(BASE.optimiser, zero_stage=3, offload="cpu", bucket_mb=0.001)),
    "full3": replace(
        BASE,
        adapt=AdaptSettings("full"),
        objective=ObjectiveSettings(clip=1e-3),
        optimiser=replace(BASE.optimiser, zero_stage=3, offload="cpu"),
    ),
    "recompute": replace(BASE, old_log_probs="recompute", updates_per_batch=2, inner_epochs=2),
    "recompute3": replace(BASE, old_log_probs="recompute", optimiser=replace(BASE.optimiser, zero_stage=3)),
    "frozen": FROZEN,
    "auto": replace(FROZEN, dtype="auto", adapt=replace(BASE.adapt, frozen_dtype="auto")),
    "frozen3": replace(FROZEN, optimiser=replace(BASE.optimiser, zero_stage=3)),
    "torch_compile": replace(BASE, compile="eager"),
    "track": replace(BASE, advantage=AdvantageSettings(), inner_epochs=2, updates_per_batch=2),
}
ONE_RANK_ONLY = (
    *("micro1", "micro64", "full0", "full3", "bf16", "frozen", "auto", "frozen3", "recompute"),
    "torch_compile",
    *("switches", "l1", "diff_sft"),
)
UNSCORED = {"switches": (0, 1), "l1": (1,)}  # steps without a reward
STEPS = 3


def batches(variant: str) -> list[list[Trajectories]]:
    """Sizes that don't divide by ranks or micro-batches; the last has one row, fewer than two ranks can share."""
    settings, unscored = VARIANTS[variant], UNSCORED.get(variant, ())
    model = FakeModel()
    make_trainable(model, settings.adapt)
    if settings.adapt.frozen_dtype != "float32":
        set_frozen_dtype(model, torch.bfloat16, keep=trained_parameters(model))
    sizes = [(3, 3), (2, 3), (1, 1)]
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.dtype != "float32"):
        return [
            [roll_out_group(model, f"image-{g}", seed=10 * b + g, rollouts=k, unscored=unscored) for g in range(count)]
            for b, (count, k) in enumerate(sizes)
        ]


def train(variant: str, rank: int, world: int, port: int) -> dict[str, Any]:
    """Steps over `batches`, and the last again by a learner that was loaded before it."""
    settings = VARIANTS[variant]
    precision.multiplies_bf16 = lambda device: True  # whatever this machine is
    with watched_start() as sharded:
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
        "optimises": optimises(learner),
        "sharded": sharded,
        "resumed_average": dict(again.average.weights) if again.average else {},
    }


@contextmanager
def watched_start() -> Iterator[list[bool]]:
    """Whether all parameters were sharded when DeepSpeed got the module, which it would move to the device whole."""
    deepspeed, seen = without_compiler(), list[bool]()
    initialize = deepspeed.initialize

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(all(hasattr(p, "ds_id") for p in options["model"].parameters()))
        return initialize(*arguments, **options)

    deepspeed.initialize = spy
    try:
        yield seen
    finally:
        deepspeed.initialize = initialize


def optimises(learner: LearnerRank) -> dict[str, Any]:
    """What DeepSpeed was told, and where and in what type the parameters are."""
    deepspeed = learner.engine._engine
    offload = deepspeed.zero_offload_optimizer()
    trained = {id(p) for p in learner.engine.trained.values()}
    return {
        "stage": deepspeed.zero_optimization_stage(),
        "offload": None if offload is None else str(offload.device),
        "bucket": deepspeed.zero_reduce_bucket_size(),
        "forced": deepspeed.zero_force_ds_cpu_optimizer(),
        "trained": sorted({str(p.dtype) for p in learner.engine.trained.values()}),
        "frozen": sorted({str(p.dtype) for p in learner.model.policy.parameters() if id(p) not in trained}),
        "frames": sum(torch._dynamo.utils.counters["frames"].values()) if learner.settings.compile != "none" else 0,
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
    learner = LearnerRank(BASE, FakeModel(), fake_pairs, port=port)
    before, tracks = learner.engine.weights(), learner.tracks.state_dict()
    stem = learner.model.policy.get_parameter("stem.weight")
    kept = stem.clone()
    stem.data.fill_(float("nan"))
    try:
        learner.step(groups)
    except FloatingPointError as error:
        found["not_finite"] = str(error)
    found["weights_kept"] = all(torch.equal(before[n], w) for n, w in learner.engine.weights().items())
    stem.data.copy_(kept)
    learner = LearnerRank(BASE, FakeModel(), fake_pairs, port=port)
    for name, given in (("twice", [groups[0], groups[0]]), ("picture", None)):
        try:
            if given is None:
                LearnerRank(BASE, FakeModel(), broken, port=port).step(groups)
            else:
                learner.step(given)
        except BatchError as error:
            found[name] = str(error)
    found["tracks_kept"] = learner.tracks.state_dict() == tracks
    found["goes_on"] = learner.step(groups)["iteration"]
    off = [replace(g, log_probs=g.log_probs + 0.002 * (-1) ** i) for i, g in enumerate(groups)]
    for name in ("rollout", "recompute"):
        settings = replace(BASE, old_log_probs=name)
        found[name] = LearnerRank(settings, FakeModel(), fake_pairs, port=port).step(off)
    stale = [replace(g, meta=replace(g.meta, weights_version=3)) for g in off]
    found["stale"] = LearnerRank(BASE, FakeModel(), fake_pairs, port=port).step(stale)
    averaging = replace(BASE, optimiser=replace(BASE.optimiser, ema=0.5))
    late = LearnerRank(averaging, FakeModel(), fake_pairs, port=port)
    late.load_files(learner.state_files())
    found["late_average"] = late.trainable_bytes(epoch=1, averaged=True)
    found["late_weights"] = late.engine.weights()
    return found


def serialised(snapshot: Snapshot) -> dict[str, bytes]:
    found = {}
    for name, content in snapshot.files().items():
        sink = io.BytesIO()
        if callable(content):
            content(sink)
        found[name] = sink.getvalue() if callable(content) else bytes(content)
    return found


def duties(rank: int, world: int, port: int, folder: Path) -> dict[str, Any]:
    """What each rank copies to the host, reads and refuses."""
    copied, read, found = [], [], {}
    to_host, read_checkpoint = engine.to_host, checkpoint.read

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.numel())
        return to_host(tensor)

    def counted_read(path: Path) -> dict[str, bytes]:
        read.append(path)
        return read_checkpoint(path)

    engine.to_host, checkpoint.read = counted, counted_read  # type: ignore[assignment]
    try:
        for variant in ("zero2", "zero3"):
            settings = replace(VARIANTS[variant], optimiser=replace(VARIANTS[variant].optimiser, ema=0.5))
            learner = LearnerRank(settings, FakeModel(), fake_pairs, rank, world, port=port)
            tensors = len(learner.engine.trained)
            records = batches(variant)[0]
            learner.step(records)
            learner.trainable_bytes(epoch=1)
            learner.trainable_bytes(epoch=1, averaged=True)
            weights = len(copied)
            snapshot = learner.snapshot()
            before = None if snapshot is None else serialised(snapshot)
            found[variant] = {
                "tensors": tensors,
                "weights": weights,
                "all": len(copied),
                "snapshot": snapshot is not None,
            }
            copied.clear()
            saved = learner.save(folder / variant, extra={"extra.json": b"{}"})
            learner.step(records)  # leaves the snapshot as it was
            found[variant]["kept"] = before is None or serialised(snapshot) == before  # type: ignore[arg-type]
            box = [saved and str(saved)]
            torch.distributed.broadcast_object_list(box, src=0)
            again = LearnerRank(settings, FakeModel(), fake_pairs, rank, world, port=port)
            read.clear()
            files = again.load(Path(str(box[0])))
            found[variant] |= {"reads": len(read), "files": sorted(files), "version": again.weights_version}
            copied.clear()
        try:
            again.load(folder / "nowhere")
        except checkpoint.CheckpointError as error:
            found["nowhere"] = str(error)
        found["refused"] = refusals(again, rank)
    finally:
        engine.to_host, checkpoint.read = to_host, read_checkpoint
    return found


def refusals(learner: LearnerRank, rank: int) -> dict[str, Any]:
    """Both ranks prepare in a thread; one of them can't, and the step is refused by both."""
    records = batches("zero3")[0]
    by_id = {r.meta.group_id: r for r in records}
    good, iteration = learner.preparation.pairs, learner.iteration

    def missing(image_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        raise FileNotFoundError(image_id)

    learner.preparation.pairs = missing if rank else good
    refused: list[Any] = []

    def prepare() -> None:
        refused.extend(learner.prepare(records, lambda ids: [by_id[i] for i in ids]))

    thread = threading.Thread(target=prepare)
    thread.start()
    thread.join()
    summaries = [summary_of(r) for r in records]
    tracks = learner.tracks.state_dict()
    try:
        learner.step(summaries)
        message, blamed = "", ()
    except BatchError as error:
        message, blamed = str(error), error.groups
    kept = learner.tracks.state_dict() == tracks and learner.iteration == iteration
    learner.preparation.pairs = good
    again = learner.prepare(summaries, lambda ids: [by_id[i] for i in ids])
    metrics = learner.step(summaries)
    return {
        "refused": [r.reason for r in refused],
        "message": message,
        "blamed": list(blamed),
        "kept": kept,
        "again": len(again),
        "iteration": metrics["iteration"],
    }


def main(rank: int, world: int, port: int, result: str) -> None:
    torch.set_num_threads(1)
    names = [n for n in VARIANTS if world == 1 or n not in ONE_RANK_ONLY]
    results: dict[str, Any] = {name: train(name, rank, world, port) for name in names}
    results["compiled"] = without_compiler().ops.__compatible_ops__["deepspeed_shm_comm"]
    results["extensions"] = sorted(m for m in sys.modules if "shm_comm" in m)
    if world == 1:
        results["faults"] = faults(port)
    else:
        results["duties"] = duties(rank, world, port, Path(result).parent / "checkpoints")
    torch.save(results, result)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
