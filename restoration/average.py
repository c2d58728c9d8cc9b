"""Exponential moving average of the trained weights: what noisy gradients circle around."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """After update n: average <- d average + (1 - d) weights, d = min(decay, (1 + n) / (10 + n)).

    The second term lets the average leave the first weights early, as diffusers' EMAModel does, which takes parameters
    and not the gathered tensors of a sharded learner.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights: dict[str, Tensor] = {}

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Go on from an average of `updates` iterations."""
        self.weights, self.updates = dict(weights), updates

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of an iteration in; float32, on any device, kept where they are first.

        Makes new tensors, one by one, so that a copy of the dictionary `weights` stays what it is.
        """
        if not self.weights:
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in weights.items():
            before = self.weights[name]
            self.weights[name] = before.lerp(value.to(before.device), 1 - decay)
