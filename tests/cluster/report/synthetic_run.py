"""A run folder as `restorl train` leaves it, with invented numbers, for tests of the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster.report.records import MetricsLog
from cluster.report.spans import EARLIER_SPANS_FILE, SPANS_FILE
from cluster.report.strips import Strip, save_strips

T = 1_800_000_000.0  # when its spans begin


def photographs(seed: int, size: int = 96) -> list[np.ndarray]:
    """Input, base, RL, ground truth: smooth colours, ever less noisy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    phase = rng.uniform(0, 6, 3)
    truth = 0.5 + 0.4 * np.sin(9 * x[..., None] + phase) * np.cos(7 * y[..., None] - phase)
    truth += 0.2 * ((x * 8 % 1 > 0.5) ^ (y * 8 % 1 > 0.5))[..., None]
    noisy = [truth + rng.normal(0, s, truth.shape) for s in (0.25, 0.1, 0.05, 0.0)]
    return [np.round(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in noisy]


def make_run(folder: Path, images: int = 12, iterations: int = 60) -> Path:
    """base.csv: psnr 24 + i/10 and reward 3; rl.csv: 0.2 dB and 0.3 more, with a spread; gt reward 4."""
    rng = np.random.default_rng(0)
    with MetricsLog(folder, tensorboard=False) as log:
        log.append({"kind": "eval", "iteration": 0, "who": "base", "psnr": 24.5, "ssim": 0.8, "reward": 3.0})
        for i in range(1, iterations + 1):
            rise = 3 + 0.3 * i / iterations
            record = {"reward_mean": rise + rng.normal(0, 0.08), "grad_norm_rl": 0.1 + 0.02 * rng.random()}
            record |= {"grad_norm_sft": 0.9 + 0.2 * rng.random(), "staleness_mean": float(rng.integers(0, 2))}
            record |= {"term_deqa_mean": rise - 0.5, "term_psnr_mean": 22 + rise, "term_psnr_std_within": 0.2}
            record |= {"seconds_learner_wait": 0.9, "seconds_learn": 3.2, "iteration_s": 8.7}
            log.append({"kind": "train", "iteration": i, "weights_version": i, **record})
            if i % 10 == 0:
                log.append({"kind": "eval", "iteration": i, "who": "now", "psnr": 24.5 + i / 300, "reward": rise})
        log.append({"kind": "alarm", "iteration": 60, "sign": "the reward rises while ssim falls by 0.1 <b>"})
    for who, more in (("base", 0.0), ("rl", 1.0)):
        write_scores(folder / "evaluation" / f"{who}.csv", images, more)
    for i in (10, 20, 30):
        rows = [Strip(photographs(s), captions=("18 dB", "24 dB", "25 dB")) for s in (1, 2)]
        save_strips(folder / "strips" / f"iter_{i:06d}.png", rows)
    for seed, name in ((1, "china"), (2, "coffee")):
        for image, who in zip(photographs(seed)[1:3], ("base", "rl"), strict=True):
            (folder / "evaluation" / who).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / "evaluation" / who / f"{name}.png")
    (folder / "config.yaml").write_text("name: demo <rain>\niterations: 60\n")
    about: dict[str, object] = {"name": "demo", "run_id": "ab12", "versions": {"torch": "2.15.0", "ray": "2.60.0"}}
    about |= {"seconds": 522.0, "peak_memory_mb": 5376.0}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def write_scores(path: Path, images: int = 12, more: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        columns = ["image_id", "psnr", "ssim", "reward", "input_psnr", "input_ssim", "input_reward", "gt_reward"]
        rows.writerow([*columns, "brightness", "input_brightness", "gt_brightness"])
        for i in range(images):
            wobble = (i % 3 - 1) * 0.1  # mean 0 over whole threes
            scores = [24 + i / 10 + more * (0.2 + wobble), 0.8 + more * wobble, 3 + i / 20 + more * (0.3 + wobble)]
            rows.writerow([f"image{i:02d}", *scores, 18.0, 0.5, 2.0, 4.0 + i / 20, 0.45 + 0.03 * more, 0.25, 0.5])


def line(role: str, who: str, name: str, start: float, end: float, **more: Any) -> str:
    span = {"role": role, "who": who, "name": name, "start": T + start, "end": T + end, "host": "head", "pid": 7}
    return json.dumps(span | more) + "\n"


def write_spans(folder: Path) -> Path:
    """Two iterations of 10 s: in the second the learner works for 5 s, 4 of them beside rollouts."""
    folder.mkdir(parents=True, exist_ok=True)
    first = line("run", "iteration", "iteration", 0, 10, iteration=1)
    rows = [
        line("actor", "actor 0", "rollout", 10, 14, host="far", pid=70, note="item 4"),
        line("actor", "actor 0", "rollout", 14, 16, host="far", pid=70),
        line("actor", "actor 0", "reward", 14, 17, host="far", pid=70),
        line("learner", "learner", "wait", 10, 13),
        line("learner", "learner", "step", 13, 17.5),
        line("learner", "learner", "weights", 17.5, 18),
        line("rank", "rank 0", "step", 13, 17.5),
        line("learner", "learner", "checkpoint", 18, 25),
        line("run", "iteration", "iteration", 10, 20, iteration=2),
        line("run", "iteration", "iteration", 20, 24, iteration=3),
    ]
    (folder / EARLIER_SPANS_FILE).write_text(first)
    (folder / SPANS_FILE).write_text("".join(rows))
    return folder
