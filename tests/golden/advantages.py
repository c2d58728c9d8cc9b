"""Golden files of reward statistics, run through our reward tracks."""

from __future__ import annotations

import math

import torch

from learner.advantage import AdvantageSettings, RewardRow, RewardTracks
from tests.golden.case import Golden, Outputs


def stat_tracker(golden: Golden) -> Outputs:
    """DDPO's tracker, filled before it normalises, and Flow-GRPO's, empty before each batch."""
    config = golden.config
    ddpo = RewardTracks(
        AdvantageSettings(
            "track",
            track_length=config["buffer_size"],
            min_count=config["min_count"],
            eps=1e-6,
            eps_at="deviation",
            clamp=math.inf,
        )
    )
    ours: Outputs = {}
    for b in range(config["n_batches"]):
        pairs = zip(golden.inputs[f"prompt_ids.{b}"].tolist(), golden.inputs[f"rewards.{b}"].tolist(), strict=True)
        rows = [RewardRow(f"{b}/{i:06d}", f"p{p}", (0,), {0: r}) for i, (p, r) in enumerate(pairs)]
        trackers = {"advantages": ddpo, "grpo_advantages": grpo("pool"), "grpo_globalstd_advantages": grpo("batch")}
        for name, tracks in trackers.items():
            found = [row[0] for row in tracks.advantages(rows, "r")]
            ours[f"{name}.{b}"] = torch.tensor(found, dtype=torch.float64)
    kept = [torch.tensor(ddpo.track(p, 0), dtype=torch.float64) for p in config["final_prompts"]]
    ours["final.mean"] = torch.stack([k.mean() for k in kept])
    ours["final.std"] = torch.stack([k.std(correction=0) for k in kept])
    ours["final.count"] = torch.tensor([len(k) for k in kept])
    return ours


def grpo(deviation_of: str) -> RewardTracks:
    return RewardTracks(
        AdvantageSettings(
            "batch",
            batch_scope="same_image",
            deviation_of=deviation_of,  # type: ignore[arg-type]
            eps=1e-4,
            eps_at="deviation",
            clamp=math.inf,
        )
    )
