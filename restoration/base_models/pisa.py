"""PiSA-SR (arXiv 2412.03017) as a base model: one step of Stable Diffusion 2.1 with two kinds of updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_from_released
from restoration.base_models.interface import Condition
from restoration.base_models.networks.diffusers_folder import embed, read_vae
from restoration.base_models.networks.low_rank import Release
from restoration.base_models.networks.parts import save_pickled
from restoration.base_models.networks.pisa_networks import (
    RELEASE,
    PisaPolicy,
    UpdatedUNet,
    pisa_content,
    read_pisa,
    unet_from_released,
)
from restoration.base_models.one_step import OneStep, OneStepSettings, read_updated, updates_file
from restoration.checkpoints import CheckpointError, read_state


@dataclass(frozen=True)
class PisaSettings(OneStepSettings):
    """
    Attributes:
        lambda_pix, lambda_sem: the output is lambda_pix P + lambda_sem (PS - P), P with the updates for pixels, PS with
            all. Both 1, as published, is PS and costs one pass instead of two.
    """

    name: str = "pisa"
    trainable: tuple[str, ...] = (r"unet\.(?:.*\.)?updates\.",)
    timestep: float = 1.0
    lambda_pix: float = 1.0
    lambda_sem: float = 1.0


class PiSASR(OneStep):
    """`settings.trainable` may name some of the updates, such as r"unet\\..*\\.updates\\.default_\\w+_sem\\."."""

    KIND = "pisa"
    NETWORK = "unet"
    STOCK = UNet2DConditionModel
    SETTINGS = PisaSettings
    settings: PisaSettings
    _policy: PisaPolicy

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UpdatedUNet,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        settings: PisaSettings | None = None,
    ) -> None:
        """`embeddings`: "text" [1, tokens, width], of the empty prompt as published.

        Raises:
            ValueError: networks or embeddings that don't fit each other.
        """
        super().__init__(
            vae,
            PisaPolicy(unet).eval(),
            cleaner,
            embeddings,
            settings or PisaSettings(),
            downsampling=2 ** (len(unet.config.block_out_channels) - 1),
            widths={"text": unet.config.cross_attention_dim},
        )

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        weights = self.settings.lambda_pix, self.settings.lambda_sem
        mixed: Any = ("pix_sem",) if weights == (1, 1) else ("mixed", weights)
        output: Tensor = self._policy(x_t, timestep, condition.text, *mixed)
        return output

    def export_updates(self, folder: Path) -> None:
        save_pickled(pisa_content(self._policy.unet), folder / "pisa_sr.pkl")

    def updated(self) -> dict[str, tuple[nn.Module, Release]]:
        return {"unet": (self._policy.unet, RELEASE)}

    @classmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        file = updates_file(folder, "unet")
        return {"unet": read_updated(unet_from_released, folder / "unet", read_state(file), file)}

    @classmethod
    def from_released(
        cls,
        base: Path,
        checkpoint: Path,
        cleaner: Path,
        *,
        prompt: str = "",
        embeddings: Path | None = None,
        settings: PisaSettings | None = None,
    ) -> Self:
        """The model of the files that users download.

        Args:
            base: diffusers folder of Stable Diffusion 2.1: vae/, unet/ and, without `embeddings`, text_encoder/ and
                tokenizer/.
            checkpoint: PiSA-SR's `pisa_sr.pkl`.
            cleaner: a Restormer or an SNR-aware file.
            prompt: its embedding is stored.
            embeddings: safetensors file with that embedding, "text" [1, tokens, width], in the place of `prompt`.
            settings: None for the published ones.

        Raises:
            CheckpointError: a file is absent, unreadable or not of the expected layout.
            ValueError: both a prompt and embeddings.
        """
        if prompt and embeddings is not None:
            raise ValueError(f"pisa: give prompt={prompt!r} or embeddings={embeddings}, not both")
        try:
            return cls(
                read_vae(base),
                read_updated(unet_from_released, base / "unet", read_pisa(checkpoint), checkpoint),
                cleaner_from_released(read_state(cleaner), cleaner),
                embed(base, prompt) if embeddings is None else read_state(embeddings),
                settings,
            )
        except ValueError as error:
            raise CheckpointError(f"{base}, {checkpoint}: {error}") from error
