"""Weights that the user brings for a scorer, before a replica looks for them in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.jobs import effective_address

BROUGHT: Mapping[str, dict[str, str]] = {
    "deqa": {"weights": "the folder of DeQA-Score-Mix3, or of its LoRA with reward.params.base"},
    "qalign": {"weights": "the folder of one-align"},
    "level_tokens": {"weights": "the folder of a vision-language model as Hugging Face has it"},
    "clip_iqa": {"model": "OpenAI's RN50.pt, or its tensors as .safetensors"},
}
"""Scorer -> what it can't do without, by parameter."""
BESIDE: dict[str, str] = {"base": "the folder of mplug-owl2-llama2-7b, which the LoRA was trained on"}
"""What some releases need besides."""


def scorer_files(config: RunConfig) -> Iterator[Problem]:
    """What isn't there on this machine, where the replicas run; of other machines nothing is known."""
    if effective_address(config.cluster) != "local":
        return
    for term, service in config.reward.services.items():
        needed = BROUGHT.get(service.scorer, {}) if service.app is None else {}
        for name, what in (needed | BESIDE if needed else {}).items():
            given = service.params.get(name)
            if (not given and name in needed) or (given and not Path(given).exists()):
                found = "not given" if not given else f"{given} is not there"
                key = f"{config.reward.key(term)}.params.{name}"
                yield Problem(key, found, f"give {what} (docs/reward.md says where to get it)")
