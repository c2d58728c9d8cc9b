"""DeQA-Score's network at full size from random weights, and the small scorers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.deqa import TINY, random_network
from benchmarks.gpu.parts import Row, measured
from benchmarks.gpu.timing import GB, Marks, peak, product_flops, seconds
from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.network import LevelReader
from reward_service.scorers.mplug_owl2.pixels import prepare
from reward_service.scorers.mplug_owl2.scorer import FIVE_TO_ONE

NEEDED = 1762e9
"""Arithmetic of a picture with the question's beginning kept and five words' rows of the head, as MFU is taken of."""
GOALS = (200, 300)  # pictures a second on an H200
SMALL = replace(
    TINY,
    num_hidden_layers=1,
    vision=replace(TINY.vision, num_hidden_layers=1),
    abstractor=replace(TINY.abstractor, num_hidden_layers=1),
)
"""A layer of each: torch.compile takes seconds for more."""
AMONG = 32  # the batch that others' scores are held against


class Scoring:
    """Pictures in host memory -> scores, as `OwlScorer` does it, around a network of random weights on the device."""

    def __init__(self, tiny: bool, device: str, batches: tuple[int, ...]) -> None:
        self.config = SMALL if tiny else OwlConfig()
        self.device, self.tiny, side = device, tiny, 64 if tiny else 512
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.network = random_network(self.config, device, self.dtype)
        self.reader = LevelReader(self.network)
        self.read: Callable[[Tensor], Tensor] = self.reader
        self.values = torch.tensor(FIVE_TO_ONE, device=device)
        noise = np.random.default_rng(0).integers(0, 256, (max(*batches, AMONG), side, side, 3), np.uint8)
        self.pictures = torch.from_numpy(noise)
        self.pictures[1], self.pictures[2] = 0, 255  # black and white
        if device == "cuda":
            self.pictures = self.pictures.pin_memory()

    def pixels(self, start: int, stop: int) -> Tensor:
        block = self.pictures[start:stop].to(self.device, non_blocking=True)
        return prepare(block, self.config.vision.image_size, self.dtype)

    @torch.inference_mode()
    def scores(self, start: int, stop: int) -> Tensor:
        return (self.read(self.pixels(start, stop)).softmax(-1) * self.values).sum(-1)

    def product_flops(self) -> float:
        """Of the card, a second."""
        return product_flops(self.device, self.dtype, 128 if self.tiny else 8192, 3 if self.tiny else 10)

    @cached_property
    def counted(self) -> float:
        """Arithmetic of a picture, as its operations are counted."""
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            self.reader(self.pixels(0, 1))
        return float(counter.get_total_flops())

    def first(self, batch: int) -> Tensor:
        """Scores of the first pictures, taken so many at a time; on the host."""
        return torch.cat([self.scores(i, i + batch)[:AMONG] for i in range(0, AMONG, batch)]).cpu()


def deqa(tiny: bool, device: str) -> Iterator[Row]:
    """Throughput by batch, where the time goes, arithmetic, and how far a score depends on its company."""
    batches = (AMONG, 64, 128, 8, 1)
    found: Row = {}
    with peak(device, found, "weights_peak_gb"):
        scoring = Scoring(tiny, device, batches)
    reached = scoring.product_flops()
    size = sum(p.nbytes for p in scoring.network.parameters())
    yield {
        **{"weights_gb": size / GB, "dtype": str(scoring.dtype), **found},
        **{"product_tflops": reached / 1e12, "gflop_counted": scoring.counted / 1e9, "gflop_needed": NEEDED / 1e9},
    }
    reference = scoring.first(AMONG)
    for batch in batches:
        yield throughput(scoring, batch, reference, reached)
        if batch == AMONG:
            yield from shares(scoring, batch)


def deqa_compiled(tiny: bool, device: str, batch: int) -> Iterator[Row]:
    """The same through torch.compile, as the setting `compile` of the scorer does it."""
    scoring = Scoring(tiny, device, (batch,))
    reference = scoring.first(AMONG)
    how: dict[str, Any] = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "eager"}
    compiled = torch.compile(scoring.reader, fullgraph=True, dynamic=False, **how)
    scoring.read = lambda pixels: compiled(pixels).clone()  # a graph's output is overwritten by its next run
    try:
        first = seconds(lambda: scoring.scores(0, batch), device, rounds=1, warm=0)
        yield {"compile": next(iter(how.values())), "batch": batch, "first_pass_s": first}
        yield throughput(scoring, batch, reference, scoring.product_flops())
    finally:
        torch.compiler.reset()  # graphs keep memory of their own


def throughput(scoring: Scoring, batch: int, reference: Tensor, reached: float) -> Row:
    """Pictures a second: of the network alone, and from host memory to scores on the host.

    Args:
        reference: scores of the first pictures in batches of 32, not compiled.
        reached: arithmetic a second of the card's own matrix products, which MFU is taken against.
    """
    device, rounds, warm = (scoring.device, 1, 0) if scoring.tiny else (scoring.device, 5, 1)

    def work() -> Row:
        found: Row = {}
        with peak(device, found):
            whole = seconds(lambda: scoring.scores(0, batch).cpu(), device, rounds, warm)
            with torch.inference_mode():
                pixels = scoring.pixels(0, batch)
                alone = seconds(lambda: scoring.read(pixels), device, rounds, warm)
        scores = scoring.scores(0, batch)
        return {
            **{"images_per_s": batch / whole, "network_images_per_s": batch / alone, **found},
            **{f"goal_{goal}": batch / whole >= goal for goal in GOALS},
            "mfu": batch / alone * NEEDED / reached,
            "mfu_counted": batch / alone * scoring.counted / reached,
            "finite": bool(torch.isfinite(scores).all()),
            "off_batch_32": float((scoring.first(batch) - reference).abs().max()),
        }

    return measured({"batch": batch}, work)


@torch.inference_mode()
def shares(scoring: Scoring, batch: int) -> Iterator[Row]:
    """Where the time of a pass goes."""
    rounds: list[dict[str, float]] = []
    model = scoring.network.model
    for _ in range(2 if scoring.tiny else 4):
        marks = Marks(scoring.device)
        hooks = [
            module.register_forward_hook(lambda *_, name=name: marks(name))  # noqa: B023
            for name, module in (
                ("vision transformer", model.vision_model),
                ("abstractor", model.visual_abstractor),
                ("language model", model.norm),
            )
        ]
        try:
            marks("start")
            pixels = scoring.pixels(0, batch)
            marks("preparation")
            (scoring.reader(pixels).softmax(-1) * scoring.values).sum(-1)
            marks("head")
            rounds.append(marks.seconds())
        finally:
            for hook in hooks:
                hook.remove()
    times = {name: min(of[name] for of in rounds[1:]) for name in rounds[0]}
    total = sum(times.values())
    for name, took in times.items():
        yield {"batch_of_shares": batch, "part": name, "ms": 1000 * took, "share": took / total}


def small_scorers(tiny: bool, device: str) -> Iterator[Row]:
    """lite0_levels (shipped) and CLIP-IQA (the shapes of OpenAI's RN50, random weights)."""
    yield from _scorer("lite0_levels", {}, tiny, device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rn50.safetensors"
        save_file(random_clip(tiny), file)
        yield from _scorer("clip_iqa", {"model": str(file)}, tiny, device)


def _scorer(name: str, params: dict[str, Any], tiny: bool, device: str) -> Iterator[Row]:
    from reward_service.scorers import make_scorer

    side, batches = (64, (2,)) if tiny else (384, (32, 128))
    try:
        scorer = make_scorer(name, device, **params)
    except (ValueError, OSError, ImportError) as error:  # a package or file that this machine lacks
        yield {"scorer": name, "failed": str(error)}
        return
    for batch in batches:
        images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)

        def work(images: np.ndarray = images, batch: int = batch) -> Row:
            found: Row = {}
            with peak(device, found):
                took = seconds(lambda: scorer.score(images), device, 2 if tiny else 5)
            return {"images_per_s": batch / took, **found, "finite": bool(np.isfinite(scorer.score(images)).all())}

        yield measured({"scorer": name, "side": side, "batch": batch}, work)


def random_clip(tiny: bool) -> dict[str, Tensor]:
    """Tensors named as OpenAI's RN50, whose visual tower has its size; the text tower is narrow, and run once."""
    from restoration.base_models.networks.text import TextConfig, TextEncoder
    from reward_service.scorers.clip_resnet import COUNTS, VISUAL, ResNet, ResNetConfig

    torch.manual_seed(0)
    config, width = ResNetConfig((1, 1, 1, 1), 4, 24) if tiny else ResNetConfig(), 64
    text = TextEncoder(TextConfig(width, 1, 1))
    torch.nn.init.normal_(text.transformer.resblocks[0].attn.in_proj_weight, std=width**-0.5)  # type: ignore[union-attr, arg-type]
    visual = {VISUAL + key: value for key, value in ResNet(config).state_dict().items() if not key.endswith(COUNTS)}
    joint = {"text_projection": torch.randn(width, config.out), "logit_scale": torch.tensor(3.0)}
    return {**visual, **text.state_dict(), **joint}
