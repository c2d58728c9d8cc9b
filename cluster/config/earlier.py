"""Configurations of runs that earlier versions wrote."""

from __future__ import annotations

from typing import Any


def translate(data: dict[str, Any]) -> None:
    """Change, in place, what has another name: `rollout.reward` and `rollout.fidelity_coef` are `reward.terms`."""
    rollout = data.get("rollout")
    if not isinstance(rollout, dict):
        return
    kind, fidelity = rollout.pop("reward", "iqa"), rollout.pop("fidelity_coef", 0)
    terms: list[dict[str, Any]] = [{"weight": 0}, {"scorer": "reconstruction"}] if kind == "reconstruction" else []
    if fidelity:
        terms = [{}, {"scorer": "psnr", "weight": fidelity}]
    if terms:
        reward = data.setdefault("reward", {})
        if isinstance(reward, dict):
            reward.setdefault("terms", terms)
