"""Golden files of one-step models: networks with low-rank updates."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from restoration.base_models.latent import decode_latents
from restoration.base_models.networks import pisa_networks, tsdsr_networks
from restoration.base_models.networks.low_rank import Release, attach
from restoration.checkpoints import Shapes, check_fit
from tests.golden.case import Golden, Outputs

FOLDER = Path(__file__).parent


def pisa_file(golden: Golden) -> dict[str, Any]:
    """What PiSA-SR's pickle holds."""
    ranks = {k: golden.config[k] for k in ("lora_rank_unet_pix", "lora_rank_unet_sem")}
    return {**ranks, **golden.meta["module_lists"], "state_dict_unet": golden.state("lora")}


def pisa_policy(golden: Golden) -> pisa_networks.PisaPolicy:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "pisa_sr.pkl"
        torch.save(pisa_file(golden), file)
        return pisa_networks.policy_from_released(
            golden.state("unet"), golden.config["unet"], f"{golden.name} unet", file
        )


@torch.no_grad()
def pisa(golden: Golden) -> Outputs:
    policy = pisa_policy(golden)
    z, t, words = (golden.inputs[k] for k in ("z", "t", "prompt"))
    weights = (golden.config["lambda_pix"], golden.config["lambda_sem"])
    ours: Outputs = {
        "base": policy(z, t, words, "base"),
        "sem_only": policy(z, t, words, "sem"),
        "pix": policy(z, t, words, "pix"),
        "pix_sem": policy(z, t, words),
        "mixed": policy(z, t, words, "mixed", weights),
    }
    return ours | {f"z0_{n}": z - ours[of] for n, of in (("default", "pix_sem"), ("pix", "pix"), ("mixed", "mixed"))}


def tsdsr_policy(golden: Golden) -> tsdsr_networks.TsdPolicy:
    return tsdsr_networks.policy_from_released(
        golden.state("transformer"),
        golden.config["transformer"],
        golden.state("transformer_lora"),
        f"{golden.name} transformer",
        f"{golden.name} transformer_lora",
    )


@torch.no_grad()
def tsdsr(golden: Golden) -> Outputs:
    policy = tsdsr_policy(golden)
    vae = tsdsr_networks.vae_from_released(
        golden.state("vae"),
        golden.config["vae"],
        golden.state("vae_lora"),
        f"{golden.name} vae",
        f"{golden.name} vae_lora",
    )
    z, t, words, pooled = (golden.inputs[k] for k in ("z", "timestep", "prompt_embeds", "pooled_prompt_embeds"))
    images = (golden.inputs["image"] + 1) / 2
    output, found = policy(z, t, words, pooled), tsdsr_networks.posterior(vae, images)
    z_lq = tsdsr_networks.lq_latents(vae, images, golden.inputs["posterior_noise"])
    restored = z_lq - policy(z_lq, t, words, pooled)
    return {
        "model_output_no_lora": policy(z, t, words, pooled, updated=False),
        "enc_mode_no_lora": tsdsr_networks.posterior(vae, images, updated=False).mode(),
        "model_output": output,
        "z0": z - output,
        "model_output_t500": policy(z, torch.full_like(t, 500), words, pooled),
        "enc_mode": found.mode(),
        "enc_std": found.std,
        "z_lq": z_lq,
        "restored_latent": restored,
        "decoded": decode_latents(vae, restored),
    }


def full_keys(name: str, shapes: Shapes, folder: Path) -> str | None:
    """As `networks.full_keys`. Updates are held against the full-size network whose keys lie in `folder` or here."""
    if name.startswith("sd3_transformer"):
        _fit(_transformer(shapes, name), shapes, name)
    elif name.startswith("sd3_vae"):
        _fit(_vae(shapes, name), shapes, name)
    elif name.startswith("tsdsr_transformer_lora"):
        base = _keys("sd3_transformer", folder)
        attach(_transformer(base, name), shapes, tsdsr_networks.RELEASE, name)
    elif name.startswith("tsdsr_vae_lora"):
        attach(_vae(_keys("sd3_vae", folder), name), shapes, tsdsr_networks.RELEASE, name)
    elif name.startswith("pisa_lora"):
        base = _updated_layers(shapes, pisa_networks.RELEASE)
        attach(pisa_networks.empty_unet(base, {"attention_head_dim": 1}, name), shapes, pisa_networks.RELEASE, name)
    else:
        return None
    return f"{len(shapes)} keys mapped"


def _fit(network: nn.Module, shapes: Shapes, name: str) -> None:
    check_fit(network, {k: tuple(v) for k, v in shapes.items()}, name)


def _transformer(shapes: Shapes, name: str) -> tsdsr_networks.UpdatedTransformer:
    return tsdsr_networks.empty_transformer(shapes, {"attention_head_dim": 1}, name)


def _vae(shapes: Shapes, name: str) -> Any:
    return tsdsr_networks.empty_vae(shapes, {"scaling_factor": 1.5305}, name)


def _keys(stem: str, folder: Path) -> Shapes:
    file = folder / f"{stem}.full_keys.json"
    shapes: Shapes = json.loads((file if file.exists() else FOLDER / file.name).read_text())["state"]
    return shapes


def _updated_layers(shapes: Shapes, release: Release) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that a file's updates are added to."""
    layers = {}
    for key, down in shapes.items():
        module, name, matrix = release.read(key) or ("", "", "")
        if matrix == "A":
            layers[f"{module}.weight"] = (shapes[release.key(module, name, "B")][0], *down[1:])
    return layers
