"""The eyes: a vision transformer, and the abstractor that puts its tokens into the language model's width.

Modules and parameters are named as in the released files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reward_service.scorers.mplug_owl2.config import AbstractorConfig, OwlConfig, VisionConfig


class Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, side = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.patch_embed = nn.Conv2d(3, width, side, side, bias=False)
        self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        batch, side = len(pixels), self.patch_embed.kernel_size[0]
        # Patches don't overlap, so that the convolution is one product of matrices.
        patches = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        x = functional.linear(patches.flatten(1, 2), self.patch_embed.weight.flatten(1))
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x], 1) + self.position_embedding
        return self.pre_layernorm(x)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        # A head's query, key and value lie beside each other: [B, N, heads, 3, channels].
        q, k, v = self.query_key_value(x).unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(q, k, v)
        return self.dense(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class VisionMlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # type: ignore[no-any-return]


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMlp(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Layers(nn.Module):
    """A stack that released keys call `encoder.layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionModel(nn.Module):
    """Normalised pixels [B, 3, S, S] -> [B, patches + 1, width]: all tokens of the last layer, normalised."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers([VisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)  # type: ignore[no-any-return]


class QueryAttention(nn.Module):
    """Queries look at themselves and at the picture, all with their places."""

    q_pos_embed: Tensor
    k_pos_embed: Tensor

    def __init__(self, config: AbstractorConfig, tokens: int) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        # Tables of sines, which released files hold.
        self.register_buffer("q_pos_embed", torch.zeros(config.num_learnable_queries, width))
        self.register_buffer("k_pos_embed", torch.zeros(tokens, width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        every = torch.cat([queries, seen], 1)
        places = torch.cat([self.q_pos_embed, self.k_pos_embed])
        q, k, v = self.query(queries + self.q_pos_embed), self.key(every + places), self.value(every)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class GatedMlp(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(inner, width)
        self.w3 = nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(functional.silu(self.w1(x)) * self.w3(x)))  # type: ignore[no-any-return]


class QueryOutput(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = GatedMlp(config)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        x = queries + self.out_proj(x)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    # The three norms of its own have torch's usual epsilon; only the MLP's follows the configuration.
    def __init__(self, config: AbstractorConfig, tokens: int) -> None:
        super().__init__()
        self.attention = QueryAttention(config, tokens)
        self.output = QueryOutput(config)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.normk = nn.LayerNorm(config.hidden_size)

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        queries = self.norm1(queries)  # what is added to is normalised, too
        return self.output(self.attention(queries, self.normk(seen)), queries)  # type: ignore[no-any-return]


class AbstractorLayer(nn.Module):
    def __init__(self, config: AbstractorConfig, tokens: int) -> None:
        super().__init__()
        self.crossattention = CrossAttention(config, tokens)

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        return self.crossattention(queries, seen)  # type: ignore[no-any-return]


class Abstractor(nn.Module):
    """[B, patches + 1, width] -> [B, queries + 1, width of the language model]."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        own = config.abstractor
        layers = [AbstractorLayer(own, config.vision.tokens) for _ in range(own.num_hidden_layers)]
        self.encoder = Layers([*layers])
        self.visual_fc = nn.Linear(own.hidden_size, config.hidden_size)
        self.query_embeds = nn.Parameter(torch.zeros(1, own.num_learnable_queries, own.hidden_size))
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, seen: Tensor) -> Tensor:
        batch = len(seen)
        x = self.query_embeds.expand(batch, -1, -1)
        for layer in self.encoder.layers:
            x = layer(x, seen)
        return torch.cat([self.visual_fc(x), self.vit_eos.expand(batch, -1, -1)], 1)
