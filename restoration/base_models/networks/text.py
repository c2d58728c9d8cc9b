"""The text tower of OpenCLIP as Stable Diffusion 2 uses it: the state before the last block, normalised.

Its parameter names are the released ones below `cond_stage_model.model.`, so that they load directly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.checkpoints import CheckpointError, about, check_fetched, empty, load_strict

TEXT_PREFIX = "cond_stage_model.model."
START_TOKEN, END_TOKEN, PAD_TOKEN = 49406, 49407, 0
LOW_QUALITY = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"
KNOWN: dict[str, tuple[int, ...]] = {
    "": (),
    LOW_QUALITY: (
        *(1042, 3027, 267, 21977, 267),  # low quality, blurry,
        *(1042, 268, 9977, 267, 33495, 267),  # low-resolution, noisy,
        *(569, 8157, 267, 5613, 28063),  # un|sharp, weird textures
    ),
}
"""Prompts by the ids of CLIP's tokens, which need no tokenizer."""
UNUSED = ("text_projection", "logit_scale", "attn_mask", "visual.")
"""Keys of the released file that don't take part in the embedding."""


@dataclass(frozen=True)
class TextConfig:
    """`layers` counts the blocks that are run: the penultimate state of a tower of n blocks needs n - 1."""

    width: int = 1024
    heads: int = 16
    layers: int = 23
    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(b, n, width))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class TextEncoder(nn.Module):
    """Token ids int64 [B, context_length] -> float32 [B, context_length, width]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.transformer = _Transformer(config)
        self.ln_final = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding
        return self.ln_final(self.transformer(x))


def config_from_shapes(
    shapes: Mapping[str, Sequence[int]], *, heads: int | None = None, skip_last: int = 1
) -> TextConfig:
    """The configuration a released text tower (prefix removed) belongs to.

    Args:
        heads: attention heads; by default heads of 64 channels, as in OpenCLIP's towers.
        skip_last: blocks left out at the end: 1 for the penultimate state, 0 for the last.

    Raises:
        CheckpointError: a key that every tower has is missing.
    """
    try:
        vocab_size, width = shapes["token_embedding.weight"]
        context_length = shapes["positional_embedding"][0]
    except KeyError as error:
        raise CheckpointError(f"no OpenCLIP text tower: key {error} is missing") from error
    blocks = len({k.split(".")[2] for k in shapes if k.startswith("transformer.resblocks.")})
    return TextConfig(width, heads or max(1, width // 64), blocks - skip_last, context_length, vocab_size)


def used_keys(keys: Sequence[str], config: TextConfig) -> list[str]:
    """The released keys (prefix removed) that a tower of this configuration needs."""
    beyond = f"transformer.resblocks.{config.layers}."
    return [k for k in keys if not k.startswith((*UNUSED, beyond))]


def from_released(
    state: Mapping[str, Tensor], file: Path | str, *, heads: int | None = None, skip_last: int = 1
) -> TextEncoder:
    """The encoder in a released state dict (prefix removed); arguments and errors as `config_from_shapes`."""
    with about(file):
        config = config_from_shapes({k: v.shape for k, v in state.items()}, heads=heads, skip_last=skip_last)
    encoder = empty(lambda: TextEncoder(config))
    load_strict(encoder, {k: state[k] for k in used_keys(list(state), config)}, file)
    return encoder.eval()


def tokenize(prompt: str, context_length: int, tokenizer: Path | None) -> Tensor:
    """Token ids int64 [1, context_length]: start, text, end, zeros.

    Args:
        tokenizer: folder with CLIP's vocab.json and merges.txt; prompts of `KNOWN` need none.

    Raises:
        ValueError: a prompt without a tokenizer.
        CheckpointError: a file of the tokenizer was not downloaded.
    """
    if prompt in KNOWN:
        ids = list(KNOWN[prompt])
    elif tokenizer is None:
        raise ValueError(
            f"prompt {prompt!r} needs a tokenizer: give the folder `tokenizer` of a Stable Diffusion model in "
            "diffusers format (vocab.json, merges.txt)"
        )
    else:
        from transformers import CLIPTokenizer

        if Path(tokenizer).is_dir():
            check_fetched(Path(tokenizer))
        ids = CLIPTokenizer.from_pretrained(str(tokenizer), local_files_only=True)(prompt, add_special_tokens=False)[
            "input_ids"
        ]
    ids = [START_TOKEN, *ids[: context_length - 2], END_TOKEN]
    return torch.tensor([ids + [PAD_TOKEN] * (context_length - len(ids))])


@torch.no_grad()
def encode_prompt(encoder: TextEncoder, prompt: str, tokenizer: Path | None = None) -> Tensor:
    """Embedding float32 [1, context_length, width]; arguments and errors as `tokenize`."""
    return encoder(tokenize(prompt, encoder.config.context_length, tokenizer))
