"""The loop every pretraining stage shares: cosine schedule, clipping, average of the weights, log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn


def fall(progress: float) -> float:
    """Half a cosine from 1 at 0 down to 0.02 at 1."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def lr_factor(iteration: int, total: int, horizon: int | None = None, anneal: int = 0) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up, then half a cosine over `horizon` (default `total`).

    With a horizon beyond the total, the last `anneal` iterations fall from wherever the cosine stands.
    """
    horizon = horizon or total
    warmup = min(100, horizon // 10 + 1)
    if iteration < warmup:
        return (iteration + 1) / warmup
    start = total - anneal
    factor = fall((min(iteration, start) - warmup) / max(1, horizon - warmup))
    return factor * fall((iteration - start) / anneal) if anneal and iteration > start else factor


def train(
    name: str,
    modules: Iterable[nn.Module],
    loss_fn: Callable[[], dict[str, torch.Tensor]],
    *,
    iterations: int,
    lr: float,
    log: Path,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    ema_decay: float = 0.999,
    clip: float = 1.0,
    horizon: int | None = None,
    anneal: int = 0,
    progress: Callable[[str, int, int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Minimise `loss_fn()["loss"]` over `modules`; leaves them holding the averaged weights.

    Every evaluation is appended to `log` as one JSON line. Returns the last evaluation.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    modules = list(modules)
    params = [p for m in modules for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average = [p.detach().clone() for p in params]
    started, result = time.monotonic(), {}
    for iteration in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = lr * lr_factor(iteration, iterations, horizon, anneal)
        losses = loss_fn()
        if not torch.isfinite(losses["loss"]):
            raise FloatingPointError(f"{name}: loss {losses['loss'].item()} at iteration {iteration}; lower lr={lr}")
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(params, clip)
        optimiser.step()
        decay = min(ema_decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - decay)
        last = iteration + 1 == iterations
        if last:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in params], average)
        if (iteration + 1) % evaluate_every == 0 or last:
            result = {k: v.item() for k, v in losses.items()}
            if evaluate is not None:
                for m in modules:
                    m.eval()
                with torch.no_grad():
                    result |= evaluate()
                for m in modules:
                    m.train()
            line = {
                "stage": name,
                "iteration": iteration + 1,
                "seconds": round(time.monotonic() - started, 1),
                **result,
            }
            with log.open("a") as f:
                f.write(json.dumps(line) + "\n")
        if progress is not None:
            progress(name, iteration + 1, iterations, result)
    for m in modules:
        m.eval()
    return result
