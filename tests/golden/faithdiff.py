"""Golden files of FaithDiff, run through the loader for its released file."""

from __future__ import annotations

import torch

from restoration.base_models.networks.faithdiff_networks import FaithDiffChoices, FaithDiffUNet, faithdiff_from_released
from tests.golden.case import Golden, Outputs


def network_of(golden: Golden) -> FaithDiffUNet:
    unet, encoder, injection = (golden.config[k] for k in ("unet", "denoise_encoder", "injection"))
    heads = unet["attention_head_dim"]
    choices = FaithDiffChoices(
        heads=heads if isinstance(heads, int) else tuple(heads),
        time_width=unet["addition_time_embed_dim"],
        unet_groups=unet.get("norm_num_groups", 32),
        encoder_groups=encoder.get("norm_num_groups", 32),
        injection_heads=injection.get("heads", 8),
    )
    return faithdiff_from_released(golden.state("unet"), golden.name, choices)


@torch.no_grad()
def faithdiff(golden: Golden) -> Outputs:
    network, ours = network_of(golden), Outputs()
    ours["encoder_features"] = features = network.encode(golden.inputs["image"])
    ours["cond_embedding"] = network.injection.condition(features)
    inputs = [golden.inputs[k] for k in ("x_t", "t", "prompt", "text_embeds", "time_ids")]
    ours["model_output_no_cond"] = network(*inputs, None)
    ours["model_output_one_by_one"] = network(*inputs, features)
    # of one sample, both are the same and ours must be as we run it
    network.injection.coupled = len(features) > 1
    ours["model_output"] = network(*inputs, features)
    return ours
