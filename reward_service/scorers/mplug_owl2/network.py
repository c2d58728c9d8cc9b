"""The whole network: for training all positions and words, for scoring five words at the last position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.language import (
    NO_IMAGE,
    DecoderLayer,
    KeysValues,
    RMSNorm,
    Rotation,
    Span,
    causal,
)
from reward_service.scorers.mplug_owl2.prompt import IMAGE, LEVEL_IDS, PROMPT_IDS
from reward_service.scorers.mplug_owl2.vision import Abstractor, VisionModel


class OwlModel(nn.Module):
    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config)
        self.vision_model = VisionModel(config.vision)
        self.visual_abstractor = Abstractor(config)


class Owl2(nn.Module):
    """mPLUG-Owl2. Its state dict has the keys of the released files."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.config = config
        self.model = OwlModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def see(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> tokens for the language model [B, queries + 1, width]."""
        return self.model.visual_abstractor(self.model.vision_model(pixels))  # type: ignore[no-any-return]

    def decode(
        self,
        x: Tensor,
        image: Span,
        turned: Rotation,
        mask: Tensor,
        past: Sequence[KeysValues] | None = None,
        last: bool = False,
        kept: list[KeysValues] | None = None,
    ) -> Tensor:
        """Embedded tokens [B, N, width] -> hidden states [B, N, width]; with `last` of the last token, [B, 1, width].

        Args:
            image: where the picture's tokens are among the N.
            turned: rotations of the N places.
            mask: bool [N, tokens of the past + N], what each may look at.
            past: each layer's keys and values of what stands before; of one row, for all.
            kept: takes each layer's keys and values.
        """
        final = len(self.model.layers) - 1
        for i, layer in enumerate(self.model.layers):
            before = None if past is None else past[i]
            x, seen = layer(x, image, turned, mask, before, last and i == final)
            if kept is not None:
                kept.append(seen)
        return self.model.norm(x)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, pixels: Tensor, image_at: int) -> Tensor:
        """Logits of all words at all positions, differentiable.

        Args:
            ids: int64 [B, T], with any number at column `image_at`, where the picture is put into every row. Rows that
                are shorter are filled up at their end, which no earlier position sees.
            pixels: [B, 3, S, S], normalised.
            image_at: the same for all rows.

        Returns:
            [B, T - 1 + image tokens, words].
        """
        embed, picture = self.model.embed_tokens, self.see(pixels)
        x = torch.cat([embed(ids[:, :image_at]), picture, embed(ids[:, image_at + 1 :])], 1)
        span, length = (image_at, image_at + picture.shape[1]), x.shape[1]
        turned = Rotation.of(self.config, 0, length, x)
        return self.lm_head(self.decode(x, span, turned, causal(length, length, x.device)))  # type: ignore[no-any-return]


class LevelReader(nn.Module):
    """One question about every picture, asked of a network: pixels in, logits of the level words out.

    What stands before the picture is the same for all, so that its keys and values are computed once, here; the last
    layer computes the last token alone; of the head only the level words' rows are used.

    Args:
        network: with weights, on its device, which stay as they are.
        ids: the question, with `IMAGE` once, and text before and after it.
        level_ids: the words.

    Raises:
        ValueError: no such question.
    """

    keys: Tensor
    values: Tensor
    after: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    rows: Tensor

    def __init__(self, network: Owl2, ids: Sequence[int] = PROMPT_IDS, level_ids: Sequence[int] = LEVEL_IDS) -> None:
        super().__init__()
        if list(ids).count(IMAGE) != 1 or IMAGE in (ids[0], ids[-1]):
            raise ValueError(f"a question holds {IMAGE} once, between text: {list(ids)}")
        self.network, config = network, network.config
        if (most := max(*ids, *level_ids)) >= config.vocab_size:
            raise ValueError(
                f"the question needs token {most}, and the network has {config.vocab_size}: another model's"
            )
        at = list(ids).index(IMAGE)
        self.image: Span = (0, config.image_tokens)
        embedding = network.model.embed_tokens
        with torch.no_grad():
            device = embedding.weight.device
            before, after = (embedding(torch.tensor([part], device=device)) for part in (ids[:at], ids[at + 1 :]))
            kept: list[KeysValues] = []
            network.decode(before, NO_IMAGE, Rotation.of(config, 0, at, before), causal(at, at, device), kept=kept)
            length = config.image_tokens + after.shape[1]
            turned = Rotation.of(config, at, at + length, before)
            held = {
                "keys": torch.stack([k for k, _ in kept]),
                "values": torch.stack([v for _, v in kept]),
                "after": after,
                "cos": turned.cos,
                "sin": turned.sin,
                "mask": causal(length, at + length, device),
                "rows": network.lm_head.weight[torch.tensor(list(level_ids), device=device)].float(),
            }
        for name, value in held.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] in the network's type -> float32 [B, levels]."""
        x = torch.cat([self.network.see(pixels), self.after.expand(len(pixels), -1, -1)], 1)
        past = list(zip(self.keys, self.values, strict=True))
        x = self.network.decode(x, self.image, Rotation(self.cos, self.sin), self.mask, past, last=True)
        return functional.linear(x[:, -1].float(), self.rows)
