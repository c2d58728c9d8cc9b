"""DeQA-Score's network against a plain implementation of its published forward, and the memory that loading takes.

    python -m benchmarks.deqa [--rounds 7] [--batch 16] [--output benchmarks/results/deqa.json]

Tiny: the golden files' configuration from random weights, float32, one thread. Both get the same normalised pixels and
must agree; rounds alternate, and a ratio is of neighbouring ones. "scorer" is the same with pictures of 64 x 64 as
bytes, prepared by us, against one at a time through Pillow.

Loading: the peak of a process's memory above what it has before, over the bytes of the checkpoint (two shards of
float16, kept as float16), read from the kernel's high-water mark. On a GPU the network itself lies there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.owl2_published import published_levels
from benchmarks.report import RESULTS, show, spread, write
from reward_service.scorers.mplug_owl2.config import AbstractorConfig, OwlConfig, VisionConfig
from reward_service.scorers.mplug_owl2.loading import load_owl2
from reward_service.scorers.mplug_owl2.network import LevelReader, Owl2
from reward_service.scorers.mplug_owl2.pixels import CLIP_MEAN, CLIP_STD, PAD, prepare

TINY = OwlConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    vision=VisionConfig(32, 64, 2, 4, 56, 14),
    abstractor=AbstractorConfig(8, 32, 48, 2, 4),
)
# About 360 MB of float16 in large tensors: what a process has anyway, and pages that are filled in part, hardly count.
HEAVY = OwlConfig(
    vocab_size=8000,
    hidden_size=2048,
    intermediate_size=5504,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=16,
    vision=VisionConfig(768, 3072, 2, 12, 224, 14),
    abstractor=AbstractorConfig(64, 768, 2048, 1, 12),
)
SIDE, AT_LEAST, AT_MOST = 64, 3.0, 1.2


def random_network(config: OwlConfig, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Owl2:
    """Made where and as it stays: at full size another copy would not fit."""
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = Owl2(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    for value in network.state_dict().values():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
    return network


def through_pillow(image: np.ndarray, side: int) -> Tensor:
    """One uint8 [H, W, 3] picture, padded, resized and normalised as the published processor does."""
    height, width = image.shape[:2]
    longer = max(height, width)
    square = Image.new("RGB", (longer, longer), PAD)
    square.paste(Image.fromarray(image), ((longer - width) // 2, (longer - height) // 2))
    levels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy((levels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).permute(2, 0, 1)[None]


def compared(config: OwlConfig, batch: int, rounds: int) -> dict[str, Any]:
    network = random_network(config)
    reader, state, side = LevelReader(network), network.state_dict(), config.vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    pixels = torch.cat([through_pillow(image, side) for image in images])

    def ours() -> Tensor:
        return reader(pixels)

    def published() -> Tensor:
        return published_levels(state, config, pixels)

    def ours_whole() -> Tensor:
        return reader(prepare(torch.from_numpy(images), side, torch.float32))

    def published_whole() -> Tensor:
        return torch.cat([published_levels(state, config, through_pillow(image, side)) for image in images])

    with torch.inference_mode():
        difference = float((ours_whole() - published_whole()).abs().max())
        network_ratio = _alternated(ours, published, rounds)
        whole_ratio = _alternated(ours_whole, published_whole, rounds)
    return {"largest_difference_of_logits": difference, "network": network_ratio, "scorer": whole_ratio}


def _alternated(ours: Callable[[], Tensor], published: Callable[[], Tensor], rounds: int) -> dict[str, Any]:
    def seconds(run: Callable[[], Tensor], times: int = 3) -> float:
        run()
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times

    pairs = [(seconds(published), seconds(ours)) for _ in range(rounds)]
    return {
        "ratio": spread([before / after for before, after in pairs]),
        "published_ms": spread([1000 * before for before, _ in pairs]),
        "ours_ms": spread([1000 * after for _, after in pairs]),
    }


def loading(suffix: str) -> dict[str, Any]:
    """In a process of its own: a peak never falls."""
    with tempfile.TemporaryDirectory() as folder:
        write_release(Path(folder) / "tiny", TINY, suffix)
        size = write_release(Path(folder) / "heavy", HEAVY, suffix)
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.deqa", "--load", folder], capture_output=True, text=True, check=True
        )
        peak = json.loads(run.stdout.splitlines()[-1])["peak"]
    return {"format": suffix, "checkpoint_mb": size / 1e6, "peak_mb": peak / 1e6, "ratio": peak / size}


def write_release(folder: Path, config: OwlConfig, suffix: str) -> int:
    """A checkpoint of two shards; its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() for k, v in random_network(config).state_dict().items()}
    keys, index, size = sorted(state), {}, 0
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for i, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :])):
        file = folder / f"{stem}-{i + 1:05}-of-00002.{suffix}"
        values = {k: state[k].clone() for k in part}
        if suffix == "safetensors":
            save_file(values, file)
        else:
            torch.save(values, file)
        index |= dict.fromkeys(part, file.name)
        size += file.stat().st_size
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(_released(config)))
    return size


def _released(config: OwlConfig) -> dict[str, Any]:
    own = {k: v for k, v in vars(config).items() if k not in ("vision", "abstractor")}
    return {**own, "visual_config": {"visual_model": vars(config.vision), "visual_abstractor": vars(config.abstractor)}}


def measure_load(folder: Path) -> int:
    """Bytes above what the process had, at the worst moment."""
    load_owl2(folder / "tiny", dtype=torch.float16)  # modules that a first time brings
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held
    before = _memory("VmRSS")
    loaded = load_owl2(folder / "heavy", dtype=torch.float16)
    assert loaded.parameters > 0
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--output", type=Path, default=RESULTS / "deqa.json")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.load:
        print(json.dumps({"peak": measure_load(arguments.load)}))
        return
    forward = compared(TINY, arguments.batch, arguments.rounds)
    loads = [loading(suffix) for suffix in ("safetensors", "bin")]
    met = forward["scorer"]["ratio"]["median"] >= AT_LEAST and all(load["ratio"] <= AT_MOST for load in loads)
    print(f"network {show(forward['network']['ratio'])} scorer {show(forward['scorer']['ratio'])} times as fast")
    for load in loads:
        print(f"loading {load['format']}: {load['ratio']:.3f} of {load['checkpoint_mb']:.0f} MB")
    write(
        arguments.output,
        {
            "what": f"tiny mPLUG-Owl2, batch {arguments.batch}, against its published forward one by one; loading",
            "target": {"ratio": AT_LEAST, "loading": AT_MOST},
            "load_average": os.getloadavg(),
            "forward": forward,
            "loading": loads,
            "met": met,
        },
    )


if __name__ == "__main__":
    main()
