"""How much memory the weights of a model take in an actor and in a rank of the learner; pure arithmetic on shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from restoration.base_models.latent import LatentModel
from restoration.precision import networks_of, trainable

FULL = 4  # bytes of a float32


@dataclass(frozen=True)
class Counts:
    """How many numbers a model's parts hold.

    Attributes:
        policy: of the networks that the denoiser runs; trainable: of them what SFT trains.
        lora_a_rank: what a LoRA at the model's targets adds for each rank.
        vae, cleaner: of those; others: of further frozen networks (StableSR's CFW autoencoder).
        embeddings: of the stored texts, float32 always.
    """

    policy: int
    trainable: int
    lora_a_rank: int
    vae: int
    cleaner: int
    others: int
    embeddings: int

    def lora(self, rank: int) -> int:
        return rank * self.lora_a_rank

    @property
    def frozen_beside(self) -> int:
        """What no training touches: every network but the policy."""
        return self.vae + self.cleaner + self.others


@dataclass(frozen=True)
class Setup:
    """What decides how weights are kept.

    Attributes:
        mode, rank: of `AdaptSettings`.
        frozen_bytes: of a number that isn't trained (4, or 2 for bfloat16).
        compute_bytes: of a number that the policy computes with; 2 under autocast, which casts float32 weights.
        zero_stage, ranks: of the learner.
        reference: full training keeps the SFT policy's own trainable part (objective.kl_beta above 0).
        offload: AdamW's state and the float32 masters lie in host memory.
        average: the learner keeps an exponential average (optimiser.ema).
    """

    mode: Literal["lora", "full"] = "lora"
    rank: int = 8
    frozen_bytes: int = FULL
    compute_bytes: int = FULL
    zero_stage: int = 0
    ranks: int = 1
    reference: bool = False
    offload: bool = False
    average: bool = False

    def trained(self, counts: Counts) -> int:
        return counts.lora(self.rank) if self.mode == "lora" else counts.trainable

    def frozen(self, counts: Counts) -> int:
        """Numbers of all networks that aren't trained."""
        return counts.frozen_beside + counts.policy - (counts.trainable if self.mode == "full" else 0)


def counts_of(skeleton: LatentModel, targets: str | None = None) -> Counts:
    """Of a model, with weights or without. `targets`: of the LoRA, None for the model's own."""
    networks = {id(n): sum(p.numel() for p in n.parameters()) for n in networks_of(skeleton)}
    named = {id(n) for n in (skeleton.policy, skeleton.vae, skeleton.cleaner)}
    return Counts(
        policy=networks[id(skeleton.policy)],
        trainable=sum(p.numel() for p in trainable(skeleton).values()),
        lora_a_rank=_lora_a_rank(skeleton.policy, targets or skeleton.lora_targets),
        vae=networks[id(skeleton.vae)],
        cleaner=networks[id(skeleton.cleaner)],
        others=sum(count for network, count in networks.items() if network not in named),
        embeddings=sum(v.numel() for v in skeleton.embeddings.values()),
    )


def actor_bytes(counts: Counts, setup: Setup) -> dict[str, int]:
    """What the weights take on an actor's device, by what they are."""
    trained = setup.trained(counts)
    return {
        "frozen weights": setup.frozen(counts) * setup.frozen_bytes,
        "trained weights": trained * FULL,
        "embeddings": counts.embeddings * FULL,
        "casts": _trained_casts(counts, setup),
    }


def rank_bytes(counts: Counts, setup: Setup) -> tuple[dict[str, int], dict[str, int]]:
    """What weights, gradients and AdamW take in a rank: (on its device, in host memory), by what they are.

    ZeRO 1 shards AdamW's moments and its float32 masters over the ranks, 2 the gradients, 3 all weights, too.
    The copies in host memory, which the first rank makes to publish and to write a checkpoint, are whole.
    """
    trained, shards = setup.trained(counts), max(1, setup.ranks)
    of = {stage: shards if setup.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    masters = trained * FULL // of[1] if setup.zero_stage else 0
    optimiser = {"masters": masters, "AdamW moments": 2 * trained * FULL // of[1]}
    device = {
        "frozen weights": setup.frozen(counts) * setup.frozen_bytes // of[3],
        "trained weights": trained * FULL // of[3],
        "gradients": trained * FULL // of[2],
        "reference": trained * FULL if setup.reference and setup.mode == "full" else 0,
        "embeddings": counts.embeddings * FULL,
        "casts": _trained_casts(counts, setup) + _frozen_casts(counts, setup),
    }
    host = {
        "published weights": trained * FULL,
        "checkpoint": 3 * trained * FULL,
        "average": trained * FULL if setup.average else 0,
    }
    (host if setup.offload else device).update(optimiser)
    return device, host


def _trained_casts(counts: Counts, setup: Setup) -> int:
    """Copies that autocast makes of trained float32 weights and keeps to its end; a LoRA's are small and left out."""
    kept = setup.mode == "full" and setup.compute_bytes < FULL
    return counts.trainable * setup.compute_bytes if kept else 0


def _frozen_casts(counts: Counts, setup: Setup) -> int:
    """Copies of the policy's frozen float32 weights: autocast makes them at each use, and a graph holds them all."""
    held = setup.compute_bytes < FULL == setup.frozen_bytes
    frozen = counts.policy - (counts.trainable if setup.mode == "full" else 0)
    return frozen * setup.compute_bytes if held else 0


def _lora_a_rank(policy: nn.Module, targets: str) -> int:
    count = 0
    for name, layer in policy.named_modules():
        if re.fullmatch(targets, name):
            if isinstance(layer, nn.Linear):
                count += layer.in_features + layer.out_features
            elif isinstance(layer, nn.Conv2d):
                area = layer.kernel_size[0] * layer.kernel_size[1]
                count += layer.in_channels * area + layer.out_channels // layer.groups
    return count
