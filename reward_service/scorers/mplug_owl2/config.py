"""The sizes of an mPLUG-Owl2, as the `config.json` of a released folder has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

Part = TypeVar("Part", bound="_Sizes")


@dataclass(frozen=True)
class _Sizes:
    """Integers and floats above 0."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, _Sizes):
                continue
            wanted = (int,) if isinstance(f.default, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, wanted) or not (math.isfinite(value) and value > 0):
                kind = "a whole number" if wanted == (int,) else "a number"
                raise ValueError(f"{f.name}={value!r}: must be {kind} above 0")

    def _divides(self, heads: str, width: str) -> None:
        if getattr(self, width) % getattr(self, heads):
            raise ValueError(f"{heads}={getattr(self, heads)}: must divide {width}={getattr(self, width)}")


@dataclass(frozen=True)
class VisionConfig(_Sizes):
    """A vision transformer with a class token, fused queries, keys and values, and the approximate GELU of CLIP."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("num_attention_heads", "hidden_size")
        self._divides("patch_size", "image_size")

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return int((self.image_size // self.patch_size) ** 2 + 1)


@dataclass(frozen=True)
class AbstractorConfig(_Sizes):
    """Learned queries that look at the vision transformer's tokens."""

    num_learnable_queries: int = 64
    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("num_attention_heads", "hidden_size")


@dataclass(frozen=True)
class OwlConfig(_Sizes):
    """All of it. The defaults are the published configuration class's; released folders say their own `rms_norm_eps`.

    Raises:
        ValueError: a size that is none, or two that don't go together.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    vision: VisionConfig = field(default_factory=VisionConfig)
    abstractor: AbstractorConfig = field(default_factory=AbstractorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("num_attention_heads", "hidden_size")
        self._divides("num_key_value_heads", "num_attention_heads")
        if self.head_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size}: a head's {self.head_size} channels must be even")
        if self.abstractor.hidden_size != self.vision.hidden_size:
            raise ValueError(
                f"visual_abstractor.hidden_size={self.abstractor.hidden_size}: must be the vision model's "
                f"{self.vision.hidden_size}"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def image_tokens(self) -> int:
        """What stands for a picture in the language model: the queries and one learned end."""
        return self.abstractor.num_learnable_queries + 1

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> OwlConfig:
        """Of a released `config.json`. What it leaves out has the defaults.

        Raises:
            ValueError: another kind of network, with the setting that says so.
        """
        visual = raw.get("visual_config") or {}
        seeing, abstracting = visual.get("visual_model") or {}, visual.get("visual_abstractor") or {}
        _require(raw, "", hidden_act="silu", rope_scaling=None, attention_bias=False, tie_word_embeddings=False)
        seen = {"hidden_act": "quick_gelu", "use_cls_token": True, "use_post_layernorm": True}
        _require(seeing, "visual_config.visual_model.", **seen)
        _require(abstracting, "visual_config.visual_abstractor.", use_cls_token=True, add_v2t_pos_emb=False)
        vision, abstractor = _read(VisionConfig, seeing), _read(AbstractorConfig, abstracting)
        width = abstracting.get("encoder_hidden_size", abstractor.hidden_size)
        grid = abstracting.get("grid_size") or vision.image_size // vision.patch_size
        for name, value, wanted in (
            ("encoder_hidden_size", width, abstractor.hidden_size),
            ("grid_size", grid, vision.image_size // vision.patch_size),
        ):
            if value != wanted:
                raise ValueError(f"visual_config.visual_abstractor.{name}={value!r}: must be {wanted}")
        # A configuration without the number of key heads means as many as query heads.
        heads = {"num_key_value_heads": raw.get("num_attention_heads", cls.num_attention_heads)}
        given = {k: v for k, v in raw.items() if v is not None}
        return _read(cls, {**heads, **given}, vision=vision, abstractor=abstractor)


def _read(kind: type[Part], raw: Mapping[str, Any], **parts: _Sizes) -> Part:
    names = {f.name for f in fields(kind)}
    return kind(**{**{k: v for k, v in raw.items() if k in names}, **parts})


def _require(raw: Mapping[str, Any], path: str, **settings: Any) -> None:
    for name, wanted in settings.items():
        if (found := raw.get(name, wanted)) != wanted:
            raise ValueError(f"{path}{name}={found!r}: this network knows {wanted!r} only")
