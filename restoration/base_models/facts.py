"""What a model folder tells before its weights are read: sizes, chain, conditions, and the networks' shapes."""

from __future__ import annotations

from dataclasses import dataclass

from restoration.base_models.interface import NEGATIVE, SamplerSettings
from restoration.base_models.latent import LatentModel
from restoration.transition import Schedule


@dataclass(frozen=True)
class ModelFacts:
    """Of a model folder, from its JSON files and the headers of its weights.

    Attributes:
        kind: a key of `KINDS`.
        size_multiple: H and W must be multiples of it.
        side_limit: pixels that neither H nor W may exceed, or None.
        vae_factor: pixels per latent cell, along one side; latent_channels: of a latent.
        guidance: whether the folder holds what leads away from a negative text.
        missing_embeddings: what must come with each picture (data.embeddings), because the folder doesn't hold it.
        sampler: how `restorl restore` takes it: as its folder says, or else its authors.
        skeleton: the model itself, all of its tensors on the meta device.
    """

    kind: str
    name: str
    size_multiple: int
    side_limit: int | None
    vae_factor: int
    latent_channels: int
    guidance: bool
    missing_embeddings: tuple[str, ...]
    sampler: SamplerSettings
    skeleton: LatentModel

    @classmethod
    def of(cls, model: LatentModel) -> ModelFacts:
        return cls(
            kind=model.KIND,
            name=model.name,
            size_multiple=model.size_multiple,
            side_limit=model.side_limit,
            vae_factor=model.vae_factor,
            latent_channels=model.vae.config.latent_channels,
            guidance=NEGATIVE + "text" in model.embeddings,
            missing_embeddings=tuple(name for name in model.NEEDS if name not in model.embeddings),
            sampler=model.sampler,
            skeleton=model,
        )

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        """The chain that a rollout walks.

        Raises:
            ValueError: a setting that this model can't walk by; a chain without a decision (`Schedule.for_training`).
        """
        return self.skeleton.schedule(sampler).for_training()
