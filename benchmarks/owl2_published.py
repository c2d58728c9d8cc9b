"""The published forward of DeQA-Score, done plainly: what `reward_service.scorers.mplug_owl2` is measured against.

One picture a pass and the whole question with it; words and picture are told apart by an array of indices, gathered and
scattered in every layer; attention is a softmax of a product; the head gives all words at all positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.prompt import IMAGE, LEVEL_IDS, PROMPT_IDS

State = Mapping[str, Tensor]


@torch.no_grad()
def published_levels(
    state: State,
    config: OwlConfig,
    pixels: Tensor,
    ids: Sequence[int] = PROMPT_IDS,
    level_ids: Sequence[int] = LEVEL_IDS,
) -> Tensor:
    """Normalised pixels [B, 3, S, S] -> level logits [B, 5]."""
    levels = torch.tensor(list(level_ids), device=pixels.device)
    return torch.cat([_words(state, config, picture[None], ids)[:, -1, levels] for picture in pixels])


def _words(state: State, config: OwlConfig, pixels: Tensor, ids: Sequence[int]) -> Tensor:
    picture, at = _abstract(state, config, _see(state, config, pixels)), list(ids).index(IMAGE)
    before, after = (
        functional.embedding(torch.tensor([part], device=pixels.device), state["model.embed_tokens.weight"])
        for part in (list(ids[:at]), list(ids[at + 1 :]))
    )
    x = torch.cat([before, picture, after], 1)
    kinds = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
    kinds[:, at : at + picture.shape[1]] = 1
    cos, sin = _angles(config, x)
    future = torch.full((x.shape[1],) * 2, torch.finfo(x.dtype).min, device=x.device).triu(1)
    for i in range(config.num_hidden_layers):
        x = _layer(state, config, f"model.layers.{i}", x, kinds, (cos, sin), future)
    return functional.linear(_rms(x, state["model.norm.weight"], config.rms_norm_eps), state["lm_head.weight"])


def _see(state: State, config: OwlConfig, pixels: Tensor) -> Tensor:
    own, name = config.vision, "model.vision_model"
    place = f"{name}.embeddings"
    x = (
        functional.conv2d(pixels, state[f"{place}.patch_embed.weight"], stride=own.patch_size)
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([state[f"{place}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{place}.position_embedding"]
    x = _norm(state, f"{place}.pre_layernorm", x, own.layer_norm_eps)
    for i in range(own.num_hidden_layers):
        layer = f"{name}.encoder.layers.{i}"
        y = _norm(state, f"{layer}.input_layernorm", x, own.layer_norm_eps)
        mixed = _linear(state, f"{layer}.self_attn.query_key_value", y)
        q, k, v = mixed.view(*x.shape[:2], own.num_attention_heads, 3, -1).permute(3, 0, 2, 1, 4)
        x = x + _linear(state, f"{layer}.self_attn.dense", _attend(q, k, v))
        y = _norm(state, f"{layer}.post_attention_layernorm", x, own.layer_norm_eps)
        y = _linear(state, f"{layer}.mlp.fc1", y)
        x = x + _linear(state, f"{layer}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    return _norm(state, f"{name}.post_layernorm", x, own.layer_norm_eps)


def _abstract(state: State, config: OwlConfig, seen: Tensor) -> Tensor:
    own, name = config.abstractor, "model.visual_abstractor"
    x = state[f"{name}.query_embeds"].expand(len(seen), -1, -1)
    for i in range(own.num_hidden_layers):
        layer = f"{name}.encoder.layers.{i}.crossattention"
        x = _norm(state, f"{layer}.norm1", x, 1e-5)
        every = torch.cat([x, _norm(state, f"{layer}.normk", seen, 1e-5)], 1)
        mine, theirs = (state[f"{layer}.attention.{n}_pos_embed"] for n in "qk")
        q = _heads(_linear(state, f"{layer}.attention.query", x + mine), own.num_attention_heads)
        k = _heads(_linear(state, f"{layer}.attention.key", every + torch.cat([mine, theirs])), own.num_attention_heads)
        v = _heads(_linear(state, f"{layer}.attention.value", every), own.num_attention_heads)
        x = x + _linear(state, f"{layer}.output.out_proj", _attend(q, k, v))
        y, mlp = _norm(state, f"{layer}.output.norm2", x, 1e-5), f"{layer}.output.mlp"
        y = functional.silu(_linear(state, f"{mlp}.w1", y)) * _linear(state, f"{mlp}.w3", y)
        x = x + _linear(state, f"{mlp}.w2", _norm(state, f"{mlp}.ffn_ln", y, own.layer_norm_eps))
    return torch.cat([_linear(state, f"{name}.visual_fc", x), state[f"{name}.vit_eos"].expand(len(x), -1, -1)], 1)


def _layer(
    state: State,
    config: OwlConfig,
    name: str,
    x: Tensor,
    kinds: Tensor,
    turned: tuple[Tensor, Tensor],
    future: Tensor,
) -> Tensor:
    heads, shared = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads

    def norm(part: str, x: Tensor) -> Tensor:
        weights = [state[f"{name}.{part}.multiway.{kind}.weight"] for kind in (0, 1)]
        return _multiway([lambda h, w=w: _rms(h, w, config.rms_norm_eps) for w in weights], x, kinds, x.shape[-1])

    def project(part: str, x: Tensor) -> Tensor:
        weights = [state[f"{name}.self_attn.{part}.multiway.{kind}.weight"] for kind in (0, 1)]
        return _multiway([lambda h, w=w: functional.linear(h, w) for w in weights], x, kinds, len(weights[0]))

    y = norm("input_layernorm", x)
    q = _heads(functional.linear(y, state[f"{name}.self_attn.q_proj.weight"]), heads)
    k, v = (_heads(project(part, y), config.num_key_value_heads) for part in ("k_proj", "v_proj"))
    q, k = (_turn(t, *turned) for t in (q, k))
    k, v = (t.repeat_interleave(shared, 1) for t in (k, v))
    x = x + functional.linear(_attend(q, k, v, future), state[f"{name}.self_attn.o_proj.weight"])
    y, mlp = norm("post_attention_layernorm", x), f"{name}.mlp"
    gate, up = (functional.linear(y, state[f"{mlp}.{part}_proj.weight"]) for part in ("gate", "up"))
    return x + functional.linear(functional.silu(gate) * up, state[f"{mlp}.down_proj.weight"])


def _multiway(ways: Sequence, x: Tensor, kinds: Tensor, width: int) -> Tensor:
    result = x.new_empty(*x.shape[:2], width)
    for kind, way in enumerate(ways):
        where = kinds.eq(kind).nonzero(as_tuple=True)
        result[where] = way(x[where])
    return result


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    weights = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = (weights if mask is None else weights + mask).softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


def _angles(config: OwlConfig, x: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(0, config.head_size, 2, device=x.device) / config.head_size
    angles = torch.arange(x.shape[1], device=x.device)[:, None] / config.rope_theta**steps
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
