"""Train the head of `lite0_levels`:  python -m reward_service.training.lite0 --photos data/photos --out models/scorer

Crops of photographs x distortions x severities -> frozen statistics (cached) -> head. Label: a full-reference
measure (labels.py). Loss: KL to soft labels of five levels plus DeQA-Score's fidelity loss over pairs of versions
of the same crop, since a policy compares images of one scene. Validates on photographs not trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from restoration.degradations import KINDS as TASKS
from restoration.pretrain.crops import PhotoCrops
from reward_service.scorers.lite0_levels import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LevelHead,
    Lite0Statistics,
    digest,
    expected_level,
)
from reward_service.training.labels import (
    CLEAN,
    WEIGHTS,
    soft_labels,
)
from reward_service.training.measure import measure
from reward_service.training.validation import fit_tasks, table, validate
from reward_service.training.variants import Variants


@dataclass(frozen=True)
class Recipe:
    taps: tuple[int, ...] = (-1, 0, 2, 4, 7, 10)
    half_taps: tuple[int, ...] = (-1, 0, 2, 4, 7, 10)
    hidden: tuple[int, ...] = (256, 64)
    members: int = 1
    crop: int = 128
    scale: tuple[float, float] = (0.4, 1.0)
    crops: int = 1500
    variants: int = 8  # versions of each crop, the clean one included, without what a base model makes
    rollouts: int = 0  # of a base model, of one damaged crop: what a policy's group holds
    deviation: float = 0.5
    fidelity: float = 1.0
    pair_deviation: float = 0.25
    group: float = 1.0  # factor of the same loss within the rollouts, which differ by far less
    group_deviation: float = 0.03
    dropout: float = 0.3
    noise: float = 0.0  # added to the standardised statistics
    weight_decay: float = 0.05
    lr: float = 1e-3
    steps: int = 3000
    batch: int = 64  # crops a step
    seed: int = 0


def collect(network: Lite0Statistics, recipe: Recipe, photos: Path, variants: Variants) -> dict[str, Tensor]:
    """{"features": [crops, V, F], "quality": [crops, V]}; of V versions the last `recipe.rollouts` are one group."""
    crops = PhotoCrops(photos, recipe.crop, recipe.scale, recipe.seed)
    rng = np.random.default_rng(recipe.seed + 1)
    features, qualities = [], []
    for _ in track(range(recipe.crops), "crops and distortions"):
        clean = crops.one().astype(np.float32) / 255
        x, q = measure(network, [clean, *variants.draw(clean, recipe.variants - 1, rng, recipe.rollouts)])
        features.append(x)
        qualities.append(q)
    return {"features": torch.stack(features), "quality": torch.stack(qualities)}


def fidelity_loss(scores: Tensor, truth: Tensor, deviation: float) -> Tensor:
    """Thurstone fidelity over all pairs of versions of a crop; scores and truth [B, V]."""
    scale = deviation * 2**0.5
    p = torch.special.ndtr((scores[:, :, None] - scores[:, None]) / scale)
    g = torch.special.ndtr((truth[:, :, None] - truth[:, None]) / scale)
    loss = 1 - (p * g + 1e-8).sqrt() - ((1 - p) * (1 - g) + 1e-8).sqrt()
    return loss.mean()


def group_loss(scores: Tensor, truth: Tensor, deviation: float) -> Tensor:
    """The fidelity loss within groups of rollouts [B, K], whose qualities are told apart by the group's own spread."""
    apart = (truth - truth.mean(1, keepdim=True)) / truth.std(1, keepdim=True).clamp_min(1e-4)
    return fidelity_loss(scores / deviation, apart, 1.0)


def fit(data: dict[str, Tensor], network: Lite0Statistics, recipe: Recipe, log: Path) -> LevelHead:
    torch.manual_seed(recipe.seed)
    head = LevelHead(network.features, recipe.hidden, recipe.members, recipe.dropout)
    features, truth = data["features"], data["quality"]
    flat = features.flatten(0, 1)
    head.mean.copy_(flat.mean(0))
    head.deviation.copy_(flat.std(0).clamp_min(1e-3))
    labels = soft_labels(truth.flatten(), recipe.deviation).view(*truth.shape, 5)
    optimiser = torch.optim.AdamW(head.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=recipe.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(recipe.seed)
    started = time.monotonic()
    for step in track(range(recipe.steps), "head"):
        rows = torch.randint(len(features), (recipe.batch,), generator=generator)
        x = features[rows].flatten(0, 1)
        if recipe.noise:
            x = x + recipe.noise * head.deviation * torch.randn(x.shape, generator=generator)
        logits = head.each(x).view(recipe.members, recipe.batch, -1, 5)
        wanted = labels[rows].expand_as(logits)
        kl = F.kl_div(logits.log_softmax(-1), wanted, reduction="none").sum(-1).mean()
        scores = expected_level(logits).flatten(0, 1)
        wanted_order = truth[rows].repeat(recipe.members, 1)
        pairs = fidelity_loss(scores, wanted_order, recipe.pair_deviation)
        group = scores.new_zeros(())
        if recipe.rollouts:
            own = slice(-recipe.rollouts, None)
            group = group_loss(scores[:, own], wanted_order[:, own], recipe.group_deviation)
        optimiser.zero_grad(set_to_none=True)
        (kl + recipe.fidelity * pairs + recipe.group * group).backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0 or step + 1 == recipe.steps:
            line = {"step": step, "kl": round(kl.item(), 4), "fidelity": round(pairs.item(), 4)}
            line |= {"group": round(group.item(), 4)} if recipe.rollouts else {}
            with log.open("a") as f:
                f.write(json.dumps(line | {"seconds": round(time.monotonic() - started, 1)}) + "\n")
    return head.eval()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m reward_service.training.lite0", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder with train/ and heldout/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="folder of a base model: what it restores joins the versions")
    parser.add_argument("--base-kinds", nargs="+", default=list(TASKS), help="degradations that it restores")
    parser.add_argument("--base-steps", nargs="+", type=int, help="numbers of denoising steps, one for each crop")
    parser.add_argument("--rollouts", type=int, default=6, help="outputs of the base model for each crop")
    parser.add_argument("--cache", type=Path, help="safetensors file that keeps the statistics between runs")
    parser.add_argument("--crops", type=int, default=Recipe.crops)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    recipe = Recipe(
        crops=args.crops, steps=args.steps, seed=args.seed, rollouts=args.rollouts if args.base else Recipe.rollouts
    )
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "lite0_levels.log"
    log.unlink(missing_ok=True)
    network = Lite0Statistics(asdict(recipe))
    variants = Variants(args.base, tuple(args.base_kinds), args.base_steps and tuple(args.base_steps))
    if args.cache and args.cache.is_file():
        from safetensors.torch import load_file

        data = load_file(args.cache)
    else:
        data = {k: v.contiguous().clone() for k, v in collect(network, recipe, args.photos / "train", variants).items()}
        if args.cache:
            save_file(data, args.cache)
    head = fit(data, network, recipe, log)
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, args.out / WEIGHTS_FILE)
    rows = validate(network, head, args.photos / "heldout", recipe.crop, recipe.scale, variants)
    result = {
        "command": "python -m reward_service.training.lite0 " + " ".join(arguments or sys.argv[1:]),
        "version": f"lite0_levels-{digest(network, head)}",
        "config": asdict(recipe) | {"label_weights": WEIGHTS, "clean": CLEAN},
        "validation": rows,
        "fit_for_reward": fit_tasks(rows),
    }
    (args.out / CONFIG_FILE).write_text(json.dumps(result, indent=1) + "\n")
    lines = table(rows)
    print(lines)
    with log.open("a") as f:
        f.write(lines + "\n")
    return result


if __name__ == "__main__":
    main()
