"""Golden files of DeQA-Score: the network, its released keys and the losses that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from restoration.checkpoints import Shapes, check_fit, children, empty
from reward_service.scorers.mplug_owl2.config import AbstractorConfig, OwlConfig, VisionConfig
from reward_service.scorers.mplug_owl2.network import LevelReader, Owl2
from reward_service.scorers.mplug_owl2.prompt import IMAGE
from reward_service.training.level_losses import LevelLoss, Reading, pair_loss, read
from tests.golden.case import Golden, Outputs

SCORES = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])


def released_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A golden file's settings as a released config.json has them."""
    seeing = config["visual_model"] | {"layer_norm_eps": config["vision_layer_norm_eps"]}
    abstracting = config["visual_abstractor"] | {"layer_norm_eps": config["abstractor_layer_norm_eps"]}
    shared = {k: config[k] for k in ("rms_norm_eps", "rope_theta")}
    visual = {"visual_model": seeing, "visual_abstractor": abstracting}
    return {**config["llm"], **shared, "visual_config": visual}


def network_of(golden: Golden) -> Owl2:
    network = Owl2(OwlConfig.from_json(released_config(golden.config))).eval()
    network.load_state_dict(golden.state("model"))
    return network


@torch.no_grad()
def deqa(golden: Golden) -> Outputs:
    network, images = network_of(golden), golden.inputs["images"]
    ids = golden.inputs["input_ids"].tolist()
    levels = LevelReader(network, ids, golden.config["level_ids"])(images)
    at = ids.index(IMAGE)
    rows = torch.tensor(ids).clamp_min(0).expand(len(images), -1)
    words = network(rows, images, at)[:, -1]
    # The short way, with the prompt's beginning kept, and the whole forward must agree.
    assert (words[:, golden.config["level_ids"]] - levels).abs().max() < 1e-4
    return {
        "level_logits": levels,
        "score": levels.softmax(-1) @ SCORES,
        "last_logits_first64": words[:, :64],
        "vision_last_hidden": network.model.vision_model(images),
        "image_features": network.see(images),
    }


def deqa_loss(golden: Golden) -> Outputs:
    bases = [golden.folder / f"{stem}.json" for stem in (golden.name.replace("_loss", ""), "deqa")]
    network = network_of(Golden.read(next(base for base in bases if base.exists())))
    config = golden.config
    if not (config["continuous_rating_loss"] and config["detach_pred_std"]):
        raise ValueError("only the published loss is known: continuous_rating_loss and detach_pred_std")
    weights = LevelLoss(
        soft_kl=config["weight_softkl"] if config["softkl_loss"] else 0.0,
        next_token=config["weight_next_token"],
        rank=config["weight_rank"],
        in_level=config["weight_in_level"] or 0.0,
        closed=config["closeset_rating_loss"],
        unit_deviation=config["use_fix_std"],
    )

    def reading(tag: str) -> Reading:
        ids, labels, images, probs = (
            golden.inputs[f"{name}_{tag}"] for name in ("input_ids", "labels", "images", "level_probs")
        )
        at = ids[0].tolist().index(IMAGE)
        logits = network(ids.clamp_min(0), images, at)
        return read(logits, labels, probs, weights, config["level_prefix"], config["level_ids"])

    a, b = reading("A"), reading("B")
    opinions, deviations = ((golden.inputs[f"{name}_A"], golden.inputs[f"{name}_B"]) for name in ("gt_score", "gt_std"))
    total, rank = pair_loss(a, b, opinions, deviations, weights)
    total.backward()  # type: ignore[no-untyped-call]
    ours: Outputs = {"rank_loss": rank.reshape(1), "total": total.reshape(1)}
    for tag, found in (("A", a), ("B", b)):
        ours |= {
            f"pred_score_{tag}": found.score,
            f"pred_std_{tag}": found.deviation,
            f"loss_{tag}": found.loss.reshape(1),
            f"in_level_loss_{tag}": found.outside.reshape(1),
        }
    for name, parameter in (
        ("lm_head", network.lm_head.weight),
        ("query_embeds", network.model.visual_abstractor.query_embeds),
    ):
        assert parameter.grad is not None
        ours[f"grad_norm_{name}"] = parameter.grad.norm().reshape(1)
    return ours


def config_from_shapes(shapes: Shapes) -> OwlConfig:
    """The sizes that a file's keys tell. Of heads they say nothing: one, which is no matter for the layout."""
    vision, abstractor = "model.vision_model", "model.visual_abstractor"
    first = f"{abstractor}.encoder.layers.0.crossattention"
    places, width = shapes[f"{vision}.embeddings.position_embedding"][1:]
    patch = shapes[f"{vision}.embeddings.patch_embed.weight"][-1]
    key, hidden = shapes["model.layers.0.self_attn.k_proj.multiway.0.weight"]
    return OwlConfig(
        vocab_size=shapes["model.embed_tokens.weight"][0],
        hidden_size=hidden,
        intermediate_size=shapes["model.layers.0.mlp.gate_proj.weight"][0],
        num_hidden_layers=children(shapes, "model.layers"),
        num_attention_heads=hidden // key,
        num_key_value_heads=1,
        vision=VisionConfig(
            hidden_size=width,
            intermediate_size=shapes[f"{vision}.encoder.layers.0.mlp.fc1.weight"][0],
            num_hidden_layers=children(shapes, f"{vision}.encoder.layers"),
            num_attention_heads=1,
            image_size=round((places - 1) ** 0.5) * patch,
            patch_size=patch,
        ),
        abstractor=AbstractorConfig(
            num_learnable_queries=shapes[f"{abstractor}.query_embeds"][1],
            hidden_size=shapes[f"{abstractor}.query_embeds"][2],
            intermediate_size=shapes[f"{first}.output.mlp.w1.weight"][0],
            num_hidden_layers=children(shapes, f"{abstractor}.encoder.layers"),
            num_attention_heads=1,
        ),
    )


def full_keys(name: str, shapes: Shapes) -> str | None:
    """As `networks.full_keys`."""
    if not name.startswith("deqa"):
        return None
    config = config_from_shapes(shapes)
    check_fit(empty(lambda: Owl2(config)), {k: tuple(v) for k, v in shapes.items()}, name)
    return f"{len(shapes)} keys mapped"
