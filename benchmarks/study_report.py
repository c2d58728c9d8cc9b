"""Tables and pictures of the study's results so far: python -m benchmarks.study_report [--results runs/again]

Reads the JSON files of the folder, by default benchmarks/results/study; writes beside it, under its name, a page (.md),
a table (.csv) and, for each task, curves, histograms and strips. Of another folder the page says how far each arm is
from the committed one.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import wasserstein_distance

from benchmarks.study import ARMS, FOLDER, OF_SETS, SEEDS, SHOWN, TASKS, Arm
from cluster.report.strips import Strip, draw_strips
from restoration.metrics.appearance import APPEARANCE
from restoration.metrics.compare import bootstrap_interval
from restoration.metrics.protocols import protocol

# name in the files -> heading, whether more is better, digits
METRICS = {
    "psnr": ("PSNR ↑", True, 3),
    "ssim": ("SSIM ↑", True, 4),
    "lpips": ("LPIPS ↓", False, 4),
    "fid": ("FID ↓", False, 3),
    "distance": ("lite0 distance ↓", False, 4),
    "frechet": ("lite0 Fréchet ↓", False, 3),
    "reward": ("IQA score ↑", True, 3),
    "piqe": ("100 - PIQE ↑", True, 2),
}
COLOURS = {arm: plt.get_cmap("tab20")(2 * i % 19) for i, arm in enumerate(ARMS)}
Result = dict[str, Any]
Arms = dict[str, list[Result]]


def results(folder: Path, task: str) -> Arms:
    """Arm -> its results, a seed each, in the order of `ARMS`."""
    found: Arms = defaultdict(list)
    for path in sorted(folder.glob(f"{task}-*.json")):
        result = json.loads(path.read_text())
        found[result["arm"]].append(result)
    return {name: found[name] for name in ARMS if name in found}


def per_image(result: Result, metric: str) -> np.ndarray:
    return np.array([values[metric] for _, values in sorted(result["images"].items())])


def mean(result: Result, metric: str) -> float:
    return float(result[metric]) if metric in OF_SETS else float(per_image(result, metric).mean())


def measured(*tables: Arms, of_sets: bool = True) -> list[str]:
    """The metrics that every result has, LPIPS and FID where all were measured with `--published`."""
    every = [{*r, *next(iter(r["images"].values()))} for arms in tables for found in arms.values() for r in found]
    return [m for m in METRICS if all(m in has for has in every) and (of_sets or m not in OF_SETS)]


def table(arms: Arms) -> list[str]:
    """Method rows; mean over seeds ± their deviation, best bold."""
    shown = {m: METRICS[m] for m in measured(arms)}
    lines = ["| | seeds | " + " | ".join(h for h, _, _ in shown.values()) + " |", "|-" * (len(shown) + 2) + "|"]
    values = {a: {m: [mean(r, m) for r in found] for m in shown} for a, found in arms.items()}
    best = {
        m: (max if up else min)(values, key=lambda a: float(np.mean(values[a][m]))) for m, (_, up, _) in shown.items()
    }
    first = next(iter(arms.values()))[0]
    degraded = {m: f"input_{m}" for m in ("psnr", "ssim", "reward", "piqe")}
    cells = [f"{per_image(first, degraded[m]).mean():.{d}f}" if m in degraded else "" for m, (_, _, d) in shown.items()]
    lines.append("| degraded input | | " + " | ".join(cells) + " |")
    for arm, found in arms.items():
        cells = []
        for m, (_, _, digits) in shown.items():
            text = f"{np.mean(values[arm][m]):.{digits}f}"
            if len(found) > 1:
                text += f" ± {np.std(values[arm][m], ddof=1):.{digits}f}"
            cells.append(f"**{text}**" if best[m] == arm else text)
        lines.append(f"| {arm} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


def intervals(arms: Arms) -> list[str]:
    """`ours` minus every other arm, paired by image and seed; seeds averaged, 95 % bootstrap interval over images."""
    if "ours" not in arms:
        return []
    shown = measured(arms, of_sets=False)
    lines = ["| ours minus | " + " | ".join(METRICS[m][0] for m in shown) + " |", "|-" * (len(shown) + 1) + "|"]
    rng = np.random.default_rng(0)
    for arm in (a for a in arms if a != "ours"):
        seeds = SEEDS if arm == "base" else [r["seed"] for r in arms[arm]]  # the base has none
        same = [r for r in arms["ours"] if r["seed"] in seeds]
        if not same:
            continue
        cells = []
        for m in shown:
            ours, other = (np.mean([per_image(r, m) for r in found], 0) for found in (same, arms[arm]))
            difference = ours - other
            cells.append(str(bootstrap_interval(difference, rng=rng)))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def drifts(arms: Arms) -> list[str]:
    """Brightness, saturation and Laplacian energy minus those of the originals."""
    lines = ["| output minus GT | " + " | ".join(APPEARANCE) + " |", "|-|-|-|-|"]
    for arm, found in arms.items():
        cells = [f"{np.mean([mean(r, n) - mean(r, f'gt_{n}') for r in found]):+.4f}" for n in APPEARANCE]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def curves(file: Path, task: str, arms: Arms) -> None:
    """Training reward and error of the rollouts, as the paper's Fig. 6; below, less Diff.SFT's of the same batches."""
    names = {"reward_mean": "IQA score of the rollouts", "error_l2": "L2 error of the rollouts"}
    figure, axes = plt.subplots(2, 2, figsize=(13, 7), sharex=True)
    reference = {r["seed"]: r["curve"] for r in arms.get("diff_sft", [])}
    for arm, found in arms.items():
        for (above, below), name in zip(axes.T, names, strict=True):
            if arm in ("rec_reward", "piqe_reward", "brisque_reward") and name == "reward_mean":
                continue  # another scale
            rows = {r["seed"]: np.array([row[name] for row in r["curve"]]) for r in found if r["curve"]}
            less = [v - [row[name] for row in reference[seed]] for seed, v in rows.items() if seed in reference]
            for axis, lines in ((above, list(rows.values())), (below, less)):
                if lines:
                    smooth = np.convolve(np.mean(lines, 0), np.ones(5) / 5, "valid")
                    label = f"{arm}, {len(rows)} seeds"
                    axis.plot(np.arange(3, 3 + len(smooth)), smooth, label=label, color=COLOURS[arm])
    for (above, below), title in zip(axes.T, names.values(), strict=True):
        above.set(title=f"{task}: {title} (mean of 5)")
        below.set(title=f"{title}, minus diff_sft", xlabel="iteration")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="center right", fontsize=9)
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    figure.savefig(file, dpi=80)
    plt.close(figure)


def histograms(file: Path, task: str, arms: Arms) -> list[str]:
    """Scores of outputs and originals, as the paper's Fig. 1, with Wasserstein-1 to the originals."""
    gt = per_image(next(iter(arms.values()))[0], "gt_reward")
    figure, axis = plt.subplots(figsize=(7, 4))
    bins = np.linspace(1, 5, 25)
    axis.hist(gt, bins, histtype="step", linewidth=2, label="GT", color="k")
    lines = ["| | Wasserstein-1 of the score to GT |", "|-|-|"]
    for arm, found in arms.items():
        scores = np.mean([per_image(r, "reward") for r in found], 0)
        distance = wasserstein_distance(scores, gt)
        lines.append(f"| {arm} | {distance:.3f} |")
        if arm in ("base", "diff_sft", "ours"):
            label = f"{arm}, W1 {distance:.3f}"
            axis.hist(scores, bins, histtype="step", linewidth=1.5, label=label, color=COLOURS[arm])
    axis.set(title=f"{task}: IQA score of held-out outputs", xlabel="lite0_levels")
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
    return lines


def strips(file: Path, folder: Path, task: str) -> None:
    """Input, main arms and original of a few tiles, as the paper's Fig. 2; kept as it is without the runs' outputs."""
    names = ("base", "diff_sft", "ours")
    files = {name: Arm(task, name, 0, folder).shown for name in names}
    if not all(path.is_file() for path in files.values()):
        return
    seen = {name: np.load(path, allow_pickle=False) for name, path in files.items()}
    rows = []
    for tile in SHOWN:
        gt = seen["base"][f"{tile} gt"]
        images = [seen["base"][f"{tile} lq"], *(seen[name][f"{tile} out"] for name in names), gt]
        captions = [f"{protocol().psnr(image, gt)[0]:.2f} dB" for image in images[:-1]]
        rows.append(Strip(images, ("input", *names, "GT"), captions, title=tile))
    draw_strips(rows).save(file, quality=92)


def distances(arms: Arms, committed: Arms) -> list[str]:
    """How far each arm and seed is from the committed one, the largest over images."""
    shown = measured(arms, committed, of_sets=False)
    lines = ["| largest distance to committed | seed | " + " | ".join(METRICS[m][0][:-2] for m in shown) + " |"]
    lines.append("|-" * (len(shown) + 2) + "|")
    for arm, found in arms.items():
        before = {r["seed"]: r for r in committed.get(arm, [])}
        for r in found:
            if r["seed"] in before:
                far = [np.abs(per_image(r, m) - per_image(before[r["seed"]], m)).max() for m in shown]
                lines.append(f"| {arm} | {r['seed']} | " + " | ".join(f"{d:.2g}" for d in far) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of results (default: the committed ones)")
    folder: Path = parser.parse_args().results.resolve()
    page: list[str] = []
    with folder.with_name(f"{folder.name}.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["task", "arm", "seed", "iterations", "seconds", *METRICS])
        for task in TASKS:
            arms = results(folder, task)
            if not arms:
                continue
            shown = measured(arms)
            for arm, found in arms.items():
                for r in found:
                    figures = [mean(r, m) if m in shown else "" for m in METRICS]
                    out.writerow([task, arm, r["seed"], r["iterations"], round(r["seconds"]), *figures])
            picture = f"{folder.name}_{task}_"
            curves(folder.with_name(f"{picture}curves.png"), task, arms)
            strips(folder.with_name(f"{picture}strips.jpg"), folder, task)
            parts = [table(arms), intervals(arms), histograms(folder.with_name(f"{picture}histograms.png"), task, arms)]
            parts.append(drifts(arms))
            if folder != FOLDER:
                parts.append(distances(arms, results(FOLDER, task)))
            page += [f"## {task}", ""]
            for part in parts:
                page += [*part, ""]
    folder.with_name(f"{folder.name}.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
