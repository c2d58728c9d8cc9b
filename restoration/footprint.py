"""How much memory the weights of a model take in an actor and in a rank of the learner; pure arithmetic on shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn

from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models import describe
from restoration.base_models.diffbir import DiffBIR
from restoration.base_models.flow_flux import FluxControl
from restoration.base_models.flow_sd3 import SD3Control
from restoration.base_models.interface import NEGATIVE
from restoration.base_models.latent import LatentModel
from restoration.base_models.networks.released import without_hint
from restoration.base_models.pixel_control import PixelControl
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


def parameter_counts(folder: Path | str, targets: str | None = None) -> Counts:
    """Of a model folder, whose weights are not read. Raises CheckpointError."""
    return counts_of(describe(folder).skeleton, targets)


def actor_bytes(counts: Counts, setup: Setup) -> dict[str, int]:
    """What the weights take on an actor's device, by what they are."""
    trained = setup.trained(counts)
    return {
        "frozen weights": setup.frozen(counts) * setup.frozen_bytes,
        "trained weights": trained * FULL,
        "embeddings": counts.embeddings * FULL,
        "casts": _casts(counts, setup, setup.mode == "full"),
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
        "casts": _casts(counts, setup, setup.mode == "full"),
    }
    host = {
        "published weights": trained * FULL,
        "checkpoint": 3 * trained * FULL,
        "average": trained * FULL if setup.average else 0,
    }
    (host if setup.offload else device).update(optimiser)
    return device, host


def _casts(counts: Counts, setup: Setup, full: bool) -> int:
    """Copies that autocast makes of the policy's float32 weights, and keeps until the step's end.

    A LoRA counts little and is left out.
    """
    if setup.compute_bytes >= FULL:
        return 0
    trained = counts.trainable if full else 0
    frozen = counts.policy - trained if setup.frozen_bytes == FULL else 0
    return (trained + frozen) * setup.compute_bytes


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


# Architectures of public models in diffusers' configs, where they differ from its defaults.
_SD21 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD3 = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_FLUX = {"in_channels": 64, "guidance_embeds": True}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_VAE16 = _VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06}


def _vae(config: dict[str, Any]) -> AutoencoderKL:
    return AutoencoderKL(**config)


def _texts(tokens: int, width: int, pooled: int = 0, negative: bool = True) -> dict[str, torch.Tensor]:
    one = {"text": torch.empty(1, tokens, width)} | ({"pooled": torch.empty(1, pooled)} if pooled else {})
    return one | ({NEGATIVE + name: value for name, value in one.items()} if negative else {})


def _sd21() -> LatentModel:
    unet = UNet2DConditionModel(sample_size=64, **_SD21)
    control = without_hint(ControlNetModel(in_channels=8, **_SD21))
    text = _texts(77, 1024)
    return DiffBIR(_vae(_VAE), unet, control, _restormer(), text["text"], text[NEGATIVE + "text"])


def _sdxl() -> LatentModel:
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(sample_size=128, up_block_types=up, **_SDXL)
    return PixelControl(_vae(_VAE), unet, ControlNetModel(**_SDXL), _restormer(), _texts(77, 2048, 1280))


def _sd3() -> LatentModel:
    control = SD3ControlNetModel(num_layers=6, **_SD3)
    return SD3Control(
        _vae(_VAE16), SD3Transformer2DModel(num_layers=24, **_SD3), control, _restormer(), _texts(333, 4096, 2048)
    )


def _flux() -> LatentModel:
    control = FluxControlNetModel(num_layers=5, num_single_layers=10, **_FLUX)
    text = _texts(512, 4096, 768, negative=False)
    return FluxControl(_vae(_VAE16), FluxTransformer2DModel(**_FLUX), control, _restormer(), text)


def _restormer() -> Restormer:
    return Restormer(RestormerConfig())


STOCK: dict[str, Callable[[], LatentModel]] = {"sd21": _sd21, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}


def stock(name: str) -> LatentModel:
    """A model of the shapes of Stable Diffusion 2.1 (DiffBIR), XL, 3 or Flux.1 dev with a ControlNet, without weights.

    ControlNets: DiffBIR's; diffusers' own of SDXL; 6 blocks for SD 3; 5 and 10 blocks for Flux. Cleaner: Restormer.

    Raises:
        ValueError: another name.
    """
    if name not in STOCK:
        raise ValueError(f"stock shapes {name!r}: choose {', '.join(STOCK)}")
    with torch.device("meta"):
        return STOCK[name]()
