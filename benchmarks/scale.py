"""What grows with a cluster: the parts of a learner's step and of a run that see the whole batch or all images.

    python -m benchmarks.scale [--output benchmarks/results/scale.json]

Before and after, in one process and one after the other, so that ratios mean something on a loaded machine:

- advantages of a batch of 8 rollouts and 6 steps a group, with full tracks of 5,000 images. Before: the pool of
  track and batch gathered anew for every image and step (cut at 1,024 groups, where it takes tens of seconds);
- what follows on every rank: the work items, this rank's share, the metrics of the batch;
- an item of the work sequence. Before: a permutation of all images drawn for every image of it;
- the tracks of 5,000 images in a checkpoint. Before: JSON;
- writing a checkpoint of 256 MiB. Before: serialised in memory, written, hashed. `peak` is what Python and
  safetensors hold beside the tensors while they write.

Seconds are CPU seconds of this process, but for the checkpoint, whose disk is part of it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from actors.work import WorkSequence
from benchmarks.records import make_record
from benchmarks.report import RESULTS, write
from learner import checkpoint
from learner.advantage import AdvantageSettings, RewardRow, RewardTracks
from learner.batch import assemble, groups_of_rank, make_work, preview
from learner.exact import mean_variance
from learner.objective import ObjectiveSettings
from learner.statistics import batch_summary
from learner.tensor_file import tensor_writer
from trajectories.schema import Trajectories

ROLLOUTS, STEPS, IMAGES = 8, 6, 5000
GROUPS = (64, 256, 1024, 4096)
BEFORE_AT_MOST = 1024  # groups
SEQUENCES = (10**4, 10**6, 10**7)
RANKS, MICRO = 8, 8
STATE_MIB = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=RESULTS / "scale.json")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written (default: the temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tracks = full_tracks()
    result = {
        "machine": {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0]},
        "advantages": [advantages(tracks, count) for count in GROUPS],
        "work_sequence": [work_sequence(count) for count in SEQUENCES],
        "tracks": stored_tracks(tracks),
        "checkpoint": written(arguments.folder),
    }
    write(arguments.output, result)
    print(json.dumps(result, indent=1))


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    answer = function()
    return time.process_time() - start, answer


def full_tracks() -> RewardTracks:
    tracks = RewardTracks(AdvantageSettings())
    rewards = np.random.default_rng(0).normal(3, 1, (IMAGES, STEPS, tracks.settings.track_length)).astype(np.float32)
    content = {
        image(i): {str(step): track.tolist() for step, track in enumerate(steps)} for i, steps in enumerate(rewards)
    }
    tracks.load_state_dict({"reward_version": "bench-1", "tracks": content})
    return tracks


def image(number: int) -> str:
    return f"train/image{number:05d}"


def make_group(number: int, generator: torch.Generator) -> Trajectories:
    latents = torch.empty(1).expand(ROLLOUTS, STEPS, 4, 64, 64)  # no memory: nothing here reads them
    numbers = torch.randn(ROLLOUTS, STEPS + 3, generator=generator)
    return make_record(
        f"{number:08d}-000",
        latents,
        latents,
        image_id=image(number % IMAGES),
        rewards=3 + numbers[:, :STEPS],
        final_reward=3 + numbers[:, STEPS],
        gt_reward=4.0,
        error_l1=numbers[:, STEPS + 1].abs(),
        error_l2=numbers[:, STEPS + 2].abs(),
    )


def before_advantages(rows: Sequence[RewardRow], past: RewardTracks) -> list[dict[int, float]]:
    """Eq. 4 as it was computed: the pool of track and batch is summed for every image and step."""
    s = past.settings
    batch: dict[int, list[float]] = {}
    for row in rows:
        for step, reward in row.rewards.items():
            batch.setdefault(step, []).append(reward)
    cache: dict[tuple[str, int], tuple[float, float]] = {}
    result = []
    for row in rows:
        values = {}
        for step, reward in row.rewards.items():
            key = (row.image_id, step)
            if key not in cache:
                cache[key] = mean_variance([*past.track(*key), *batch[step]])
            mean, variance = cache[key]
            values[step] = max(-s.clamp, min(s.clamp, (reward - mean) / (variance + s.eps) ** 0.5))
        result.append(values)
    return result


class Undone(Exception):
    pass


def advantages(tracks: RewardTracks, count: int) -> dict[str, Any]:
    """Advantages before and after, of the same batch and tracks, and the other costs of a rank that grow with it."""
    generator = torch.Generator().manual_seed(count)
    groups = [make_group(i, generator) for i in range(count)]
    rows = [
        RewardRow(name, g.meta.image_id, tuple(range(STEPS)), dict(enumerate(rewards)))
        for g in groups
        for name, rewards in zip(g.trajectory_ids, g.rewards.tolist(), strict=True)
    ]
    found: dict[str, Any] = {"groups": count, "rewards": count * ROLLOUTS * STEPS}
    expected = None
    if count <= BEFORE_AT_MOST:
        found["before_s"], expected = cpu_seconds(lambda: before_advantages(rows, tracks))
    try:
        with tracks.transaction():
            found["after_s"], values = cpu_seconds(lambda: tracks.advantages(rows, "bench-1"))
            if expected is not None:
                found["ratio"] = found["before_s"] / found["after_s"]
                found["largest_difference"] = largest_difference(values, expected)
            start = time.process_time()
            raise Undone
    except Undone:
        found["rollback_s"] = time.process_time() - start
    try:
        with tracks.transaction():
            found["assemble_s"], batch = cpu_seconds(lambda: assemble(groups, tracks, "bench"))
            raise Undone
    except Undone:
        pass
    objective = ObjectiveSettings()
    found["preview_s"], _ = cpu_seconds(lambda: preview(groups, tracks.settings))
    found["make_work_s"], work = cpu_seconds(lambda: make_work(batch, range(count), objective))
    found["share_s"], mine = cpu_seconds(lambda: groups_of_rank(work, 0, RANKS, MICRO))
    found["summary_s"], _ = cpu_seconds(lambda: batch_summary(batch))
    return found | {"ranks": RANKS, "groups_of_rank": len(mine)}


def largest_difference(values: Sequence[Mapping[int, float]], expected: Sequence[Mapping[int, float]]) -> float:
    pairs = [(v[step], e[step]) for v, e in zip(values, expected, strict=True) for step in e]
    return max(abs(v - e) / max(abs(e), 1e-300) for v, e in pairs)


def work_sequence(count: int) -> dict[str, Any]:
    """An item of one image, before and after: the mean of ten thousand, once their pass is drawn (`pass_s`)."""
    ids = tuple(f"{i:08d}" for i in range(count))
    start, sequence = cpu_seconds(lambda: WorkSequence(ids, 1, 0))
    before, expected = cpu_seconds(lambda: ids[np.random.default_rng((0, 0)).permutation(count)[999]])
    first, _ = cpu_seconds(lambda: sequence.item(0))
    gc.collect()  # which looks once at every new tuple, however long
    many, items = cpu_seconds(lambda: [sequence.item(i) for i in range(10_000)])
    assert items[999].image_ids == (expected,), "the order has changed"
    after = many / len(items)
    return {
        "images": count,
        "start_s": start,
        "before_s": before,
        "pass_s": first,
        "after_s": after,
        "ratio": before / after,
        "kept_bytes": sum(order.nbytes for order in sequence._passes.values()),
    }


def stored_tracks(tracks: RewardTracks) -> dict[str, Any]:
    before_s, text = cpu_seconds(lambda: json.dumps(tracks.state_dict()).encode())
    after_s, data = cpu_seconds(lambda: safetensors.torch.save(tracks.columns()))
    one, other = RewardTracks(tracks.settings), RewardTracks(tracks.settings)
    before_load_s, _ = cpu_seconds(lambda: one.load_state_dict(json.loads(text)))
    after_load_s, _ = cpu_seconds(lambda: other.load_columns(safetensors.torch.load(data)))
    assert one.state_dict() == other.state_dict() == tracks.state_dict()
    return {
        "images": len(tracks),
        "before_bytes": len(text),
        "after_bytes": len(data),
        "bytes_ratio": len(text) / len(data),
        "before_s": before_s,
        "after_s": after_s,
        "ratio": before_s / after_s,
        "before_load_s": before_load_s,
        "after_load_s": after_load_s,
        "load_ratio": before_load_s / after_load_s,
    }


def before_write(root: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A checkpoint as it was written: whole in memory, written, flushed, hashed."""
    content = safetensors.torch.save(tensors)
    root.mkdir()
    with open(root / "weights.safetensors", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    (root / "manifest.json").write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))


def written(folder: Path | None) -> dict[str, Any]:
    """Wall time of a checkpoint before and after, alternating, the median of three; and what is held beside it."""
    tensors = {f"w{i}": torch.randn(1 << 20) for i in range(STATE_MIB // 4)}
    times: dict[str, list[float]] = {"before": [], "after": []}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary)
        for repetition in range(4):
            ways: dict[str, Callable[[Path], object]] = {
                "before": lambda path: before_write(path, tensors),
                "after": lambda path: checkpoint.write(path, 1, {"weights.safetensors": tensor_writer(tensors)}),
            }
            for name, way in ways.items():
                if repetition == 3:
                    tracemalloc.start()
                start = time.perf_counter()
                way(root / f"{name}{repetition}")
                if repetition == 3:  # which tracing slows down
                    peaks[name] = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                else:
                    times[name].append(time.perf_counter() - start)
                for path in sorted((root / f"{name}{repetition}").rglob("*.safetensors")):
                    path.unlink()
    before, after = (sorted(times[name])[1] for name in ("before", "after"))
    return {
        "bytes": STATE_MIB << 20,
        "before_s": before,
        "after_s": after,
        "ratio": before / after,
        "before_peak_bytes": peaks["before"],
        "after_peak_bytes": peaks["after"],
    }


if __name__ == "__main__":
    main()
