"""The rollout loop against what it must compute anyway: python -m benchmarks.rollout

For the demo's model against the same denoiser calls without our code: both sides make the same T evaluations of the
same batch and decode the final latents; ours also samples, takes log-probs, enhances actions and stacks the record.
Rounds alternate; the figure is the ratio of each pair.

For every kind of base model, made from tiny files in its released layout, the time of a whole rollout over the time
spent inside its networks (denoiser, control, encoders, decoder, cleaner), both of the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from actors.rollout import PairBatch, RolloutSettings, rollout
from benchmarks.report import RESULTS, show, spread, write
from restoration.base_models import load
from restoration.base_models.interface import SamplerSettings
from tests.restoration.released_models import MODELS

ROUNDS = 7
LIMIT = 1.05


class NetworkTime:
    """Seconds spent in the outermost of a model's networks."""

    def __init__(self, model: Any) -> None:
        self.seconds, self._depth, self._began = 0.0, 0, 0.0
        for network in (*model.policy.children(), model.cleaner):
            network.register_forward_pre_hook(self._enter)
            network.register_forward_hook(self._leave)
        # autoencoders are called by name; `fused` is StableSR's second
        for autoencoder in filter(None, (model.vae, getattr(model, "fused", None))):
            for name in ("encode", "decode"):
                setattr(autoencoder, name, self._timed(getattr(autoencoder, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self._enter()
            try:
                return call(*arguments, **named)
            finally:
                self._leave()

        return run

    def _enter(self, *_: object) -> None:
        if not self._depth:
            self._began = time.perf_counter()
        self._depth += 1

    def _leave(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._began


def overhead(name: str) -> dict[str, float]:
    """Whole rollout / time in the networks, of a tiny model of kind `name`."""
    with tempfile.TemporaryDirectory() as folder:
        model = MODELS[name](Path(folder))
    clock = NetworkTime(model)
    sampler = SamplerSettings(steps=min(model.sampler.steps, 10))  # the most of its own that take little time
    settings = RolloutSettings(images_per_batch=1, rollouts_per_image=16, reward_at="final", decode_batch=16)
    lq, gt = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    batch = PairBatch(["a"], [(0, 0, 128, 128)], [False], lq, gt)
    ratios = []
    for _ in range(ROUNDS):
        clock.seconds, began = 0.0, time.perf_counter()
        rollout(model, batch, sampler, settings, torch.Generator().manual_seed(1))
        ratios.append((time.perf_counter() - began) / clock.seconds)
    return spread(ratios[1:])


def main() -> None:
    torch.set_num_threads(2)
    model = load(Path("models/demo"))
    sampler = SamplerSettings(steps=6)
    settings = RolloutSettings(images_per_batch=2, rollouts_per_image=4, reward_at="final", decode_batch=8)
    generator = torch.Generator().manual_seed(0)
    lq, gt = torch.rand(2, 2, 3, 128, 128, generator=generator)
    batch = PairBatch(["a", "b"], [(0, 0, 128, 128)] * 2, [False] * 2, lq, gt)
    schedule = model.schedule(sampler)

    def ours() -> None:
        rollout(model, batch, sampler, settings, torch.Generator().manual_seed(1))

    @torch.no_grad()
    def bare() -> None:
        condition = model.condition(lq).repeat_interleave(4)
        x = torch.randn(condition.latent.shape, generator=torch.Generator().manual_seed(1))
        for step in schedule.steps:
            model.denoise(x, step.timestep, condition, 1.0)
        model.decode(x, condition)

    ours(), bare()
    ratios = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        bare()
        middle = time.perf_counter()
        ours()
        ratios.append((time.perf_counter() - middle) / (middle - began))
    ratio = spread(ratios)
    print(f"rollout / bare denoiser calls: {show(ratio)}, {verdict(ratio)}")
    models = {name: overhead(name) for name in MODELS}
    for name, figure in models.items():
        print(f"{name}: rollout / time in its networks: {show(figure)}, {verdict(figure)}")
    write(RESULTS / "rollout.json", {"ratio": ratio, "models": models, "limit": LIMIT})


def verdict(ratio: dict[str, float]) -> str:
    return f"limit {LIMIT}: {'ok' if ratio['median'] <= LIMIT else 'TOO SLOW'}"


if __name__ == "__main__":
    main()
