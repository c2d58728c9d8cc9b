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
        has_text: whether the denoiser looks at a text; guidance: whether the folder holds what leads away from it.
        missing_embeddings: what must come with each picture (data.embeddings), because the folder doesn't hold it.
        sampler: how its authors restore with it.
        skeleton: the model itself, all of its tensors on the meta device.
    """

    kind: str
    name: str
    size_multiple: int
    side_limit: int | None
    vae_factor: int
    latent_channels: int
    has_text: bool
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
            has_text="text" in model.embeddings,
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

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent.

        Raises:
            ValueError: a side that is no multiple of `size_multiple` or above `side_limit`; says which would be.
        """
        for side in (height, width):
            if side < 1 or side % self.size_multiple:
                down = side // self.size_multiple * self.size_multiple
                near = f"{down} or {down + self.size_multiple}" if down else f"at least {self.size_multiple}"
                raise ValueError(
                    f"{self.kind}: {width}x{height} pixels: sides must be multiples of {self.size_multiple}; in the "
                    f"place of {side} take {near}"
                )
        if self.side_limit is not None and max(height, width) > self.side_limit:
            raise ValueError(f"{self.kind}: {width}x{height} pixels: it knows sides up to {self.side_limit}")
        return self.latent_channels, height // self.vae_factor, width // self.vae_factor
