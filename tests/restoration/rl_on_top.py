"""A policy as a base model, for tests that put RL's own training on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

LAYERS = r"(?:.*\.)?(?:to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_in|conv_out|linear|proj|proj_out)"


def as_model(policy: nn.Module, trainable: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(name="one-step", policy=policy, trainable_names=trainable, lora_targets=LAYERS)
