"""Numbers of an iteration, summed over micro-batches and ranks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batch import GlobalBatch
from learner.objective import effective_sample_size

_SUMS = ("rl", "sft", "kl_loss", "ratio", "ratio_square", "clipped", "approx_kl", "kl", "l_diff", "pairs", "samples")


class Statistics:
    """Accumulates the parts that micro-batches return; float64."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in _SUMS}
        self._least = torch.full((), math.inf, dtype=torch.float64, device=device)
        self._most = torch.full((), -math.inf, dtype=torch.float64, device=device)
        self._first = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, parts: dict[str, Tensor]) -> None:
        """`parts`: per-item values of one micro-batch, see `Replay`."""
        for name, values in parts.items():
            self._sums[name] += values.double().sum()
        if "ratio" in parts:
            ratio = parts["ratio"].double()
            self._sums["ratio_square"] += ratio.square().sum()
            self._sums["pairs"] += len(ratio)
            self._least = torch.minimum(self._least, ratio.min())
            self._most = torch.maximum(self._most, ratio.max())
        if "l_diff" in parts:
            self._sums["samples"] += len(parts["l_diff"])

    def add_first(self, deviation: Tensor) -> None:
        """`deviation`: |ratio - 1| of decisions before any update, 0 for those of older weights."""
        self._first = torch.maximum(self._first, deviation.double().max())

    def reduce(self, updates: int) -> dict[str, float | None]:
        """Collective: metrics over all ranks; losses are means over the `updates`. None: that term isn't used."""
        sums = torch.stack([self._sums[name] for name in _SUMS])
        extremes = torch.stack([-self._least, self._most, self._first])
        dist.all_reduce(sums)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        values = torch.cat([sums, extremes]).tolist()
        s = dict(zip(_SUMS, values, strict=False))
        least, most, first = values[len(_SUMS) :]
        pairs, samples = s["pairs"], s["samples"]

        def mean(name: str, count: float) -> float | None:
            return s[name] / count if count else None

        return {
            "loss": (s["rl"] + s["sft"] + s["kl_loss"]) / updates,
            "loss_rl": s["rl"] / updates,
            "loss_sft": s["sft"] / updates,
            "loss_kl": s["kl_loss"] / updates,
            "ratio_mean": mean("ratio", pairs),
            "ratio_min": -least if pairs else None,
            "ratio_max": most if pairs else None,
            "ratio_first": first if pairs else None,
            "clip_fraction": mean("clipped", pairs),
            "ess": effective_sample_size(s["ratio"], s["ratio_square"], pairs) if pairs else None,
            "approx_kl": mean("approx_kl", pairs),
            "kl": mean("kl", pairs),
            "l_diff": mean("l_diff", samples),
            "decisions": pairs,
        }


def batch_summary(batch: GlobalBatch) -> dict[str, float | None]:
    """Rewards, advantages and errors of the batch; equal on every rank."""
    groups = batch.groups

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(g, name).flatten() for g in groups]).double()

    final, scored = joined("final_reward"), joined("scored").bool()
    rewards = joined("rewards")[scored]
    advantages = torch.tensor([a for g in batch.advantages for row in g for a in row.values()], dtype=torch.float64)
    sizes = torch.tensor([len(g.trajectory_ids) for g in groups])
    of_group = torch.repeat_interleave(sizes)

    def group_means(values: Tensor) -> Tensor:
        return torch.zeros(len(groups), dtype=torch.float64).index_add(0, of_group, values) / sizes

    within = group_means((final - group_means(final)[of_group]).square()).sqrt()
    any_scored = len(rewards) > 0
    terms: dict[str, float | None] = {}
    for name in groups[0].terms:
        last = torch.cat([g.terms[name][:, -1] for g in groups]).double()
        of_images = group_means(last)[of_group]
        terms[f"term_{name}_mean"] = float(last.mean())
        terms[f"term_{name}_std_within"] = float(group_means((last - of_images).square()).sqrt().mean())
    return {
        "groups": float(len(groups)),
        "trajectories": float(batch.rows),
        "reward_mean": float(final.mean()),
        "reward_std": float(final.std(correction=0)),
        "reward_std_within": float(within.mean()),
        "reward_all_steps": float(rewards.mean()) if any_scored else None,
        "advantage_mean": float(advantages.mean()) if any_scored else None,
        "advantage_std": float(advantages.std(correction=0)) if any_scored else None,
        "advantage_max": float(advantages.abs().max()) if any_scored else None,
        "error_l2": float(joined("error_l2").mean()),
        "error_l1": float(joined("error_l1").mean()),
        "shift": float(joined("shift").mean()),
        **terms,
    }
