"""Golden files of StableSR's networks, run through the loaders for the released key layout."""

from __future__ import annotations

import torch
from torch import Tensor

from restoration.base_models.networks.stablesr_released import (
    STRUCTURE_PREFIX,
    fused_vae_from_released,
    policy_from_released,
    spade_unet_from_released,
    structure_encoder_from_released,
)
from restoration.ldm_layout import UNET_PREFIX, part
from tests.golden.case import Golden, Outputs
from tests.golden.networks import heads_of


@torch.no_grad()
def stablesr(golden: Golden) -> Outputs:
    policy = policy_from_released(
        golden.state("unet") | golden.state("structcond"),
        golden.name,
        structure_heads=golden.config["structcond"]["num_heads"],
        **heads_of(golden.config["unet"]),
    )
    x, t, latent, words = (golden.inputs[k] for k in ("x_t", "t", "lq_latent", "context"))
    features = policy.structure_encoder(latent, t)
    nothing = [torch.zeros_like(f) for f in features]
    return {f"struct_w{f.shape[-1]}": f for f in features} | {
        "model_output": policy(x, t, latent, words),
        "model_output_zero_struct": policy.unet(x, t, words, timestep_cond=nothing, return_dict=False)[0],
    }


@torch.no_grad()
def stablesr_cfw(golden: Golden) -> Outputs:
    vae = fused_vae_from_released(golden.state("vae_cfw"), golden.name)
    posterior, features = vae.encode(golden.inputs["image"])
    z = golden.inputs["z"]
    return {f"enc_fea_{i}": features[level] for i, level in enumerate(sorted(features))} | {
        "mode": posterior.mode(),
        "decoded": vae.decode(z, features, golden.config["fusion_w"]),
        "decoded_w0": vae.decode(z, features, 0),
    }


def full_keys(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Load tensors without memory of a full-size released layout; a note, or None for another's.

    Raises:
        CheckpointError: a key or shape does not fit.
    """
    loaders = {
        "stablesr_unet": (spade_unet_from_released, UNET_PREFIX),
        "stablesr_structcond": (structure_encoder_from_released, STRUCTURE_PREFIX),
        "stablesr_cfw": (fused_vae_from_released, ""),
    }
    for beginning, (load, prefix) in loaders.items():
        if name.startswith(beginning):
            state: dict[str, Tensor] = {k: torch.empty(v, device="meta") for k, v in shapes.items()}
            used = part(state, prefix)
            if len(used) != len(state):
                raise ValueError(f"{len(state) - len(used)} keys lie outside the part")
            load(used, name)
            return f"{len(used)} keys mapped"
    return None
