"""The rollout loop against the same denoiser calls without our code: python -m benchmarks.rollout

Both sides make the same T evaluations of the same batch and decode the final latents; ours also samples, takes
log-probs, enhances actions and stacks the record. Rounds alternate; the figure is the ratio of each pair.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from actors.rollout import PairBatch, RolloutSettings, rollout
from benchmarks.report import RESULTS, show, spread, write
from restoration.base_models import load
from restoration.base_models.interface import SamplerSettings

ROUNDS = 9
LIMIT = 1.05


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
    write(RESULTS / "rollout.json", {"ratio": ratio, "limit": LIMIT})
    verdict = "ok" if ratio["median"] <= LIMIT else "TOO SLOW"
    print(f"rollout / bare denoiser calls: {show(ratio)}, limit {LIMIT}: {verdict}")


if __name__ == "__main__":
    main()
