"""A base model against the settings: chain, conditions, and settings of the sampler that it doesn't look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.run.checks.findings import told
from restoration.base_models import CheckpointError, ModelFacts, describe
from restoration.base_models.interface import SamplerSettings
from restoration.transition import Schedule


class Facts(Protocol):
    """What the checks need of a base model: the part of `ModelFacts` that has no tensors."""

    @property
    def kind(self) -> str: ...

    @property
    def size_multiple(self) -> int: ...

    @property
    def side_limit(self) -> int | None: ...

    @property
    def vae_factor(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def guidance(self) -> bool: ...

    @property
    def missing_embeddings(self) -> tuple[str, ...]: ...

    def schedule(self, sampler: SamplerSettings) -> Schedule: ...


def facts_of(config: RunConfig) -> ModelFacts | Problem:
    """Of the model folder, whose weights are not read."""
    try:
        return describe(config.model)
    except CheckpointError as error:
        return told("model", str(error))


def chain(config: RunConfig, facts: Facts) -> tuple[Schedule | None, list[Problem]]:
    """The schedule, or None where the model can't walk or train on it."""
    try:
        return facts.schedule(config.sampler), []
    except ValueError as error:
        return None, [told("sampler", str(error))]


def conditions(config: RunConfig, facts: Facts) -> Iterator[Problem]:
    """What the denoiser looks at and the folder doesn't hold. Pictures with embeddings of their own may bring it."""
    if config.data.embeddings is not None:
        return
    if facts.missing_embeddings:
        what = f"{config.model} has no embedding {', '.join(facts.missing_embeddings)}, which {facts.kind} looks at"
        action = "give a folder of one file a picture, or convert the model with embeddings= (docs/models.md)"
        yield Problem("data.embeddings", what, action)
    if config.sampler.guidance_scale != 1 and not facts.guidance:
        what = f"{config.sampler.guidance_scale:g} leads away from a negative text, and {config.model} holds none"
        action = "set sampler.guidance_scale=1, or convert the model with negative_prompt= (docs/models.md)"
        yield Problem("sampler.guidance_scale", what, action)


def idle_keys_of_sampler(sampler: SamplerSettings, facts: Facts, schedule: Schedule) -> Iterator[str]:
    """Settings of the sampler that change nothing for this model: the schedule is the same without them."""
    default = SamplerSettings()
    for name in ("eta", "noise_level", "sigma", "steps_offset"):
        value, usual = getattr(sampler, name), getattr(default, name)
        if value != usual and facts.schedule(SamplerSettings(**vars(sampler) | {name: usual})) == schedule:
            yield f"sampler.{name}={value}: has no effect on {facts.kind} with these settings; leave it out"
