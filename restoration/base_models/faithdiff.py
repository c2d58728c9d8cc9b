"""FaithDiff (arXiv 2411.18824): SDXL, whose first convolution also sees an encoder of the cleaned image."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_from_released
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.base_models.latent import LatentDiffusion, LatentSettings
from restoration.base_models.networks.diffusers_folder import embed_prompts, read_vae, weights_file
from restoration.base_models.networks.faithdiff_networks import (
    FaithDiffChoices,
    FaithDiffUNet,
    faithdiff_from_released,
    faithdiff_to_released,
)
from restoration.base_models.networks.parts import Part, cloned, save_pickled
from restoration.base_models.networks.sdxl import POOLED, pooled_names, time_ids
from restoration.checkpoints import CheckpointError, read_json, read_state

FEATURES = "features"  # name in Condition.others


@dataclass(frozen=True)
class FaithDiffSettings(LatentSettings):
    r"""The chain starts from the cleaned image's latent, noised to the last timestep.

    The reference's last stage of SFT trains the encoder, too: `trainable=(r"unet\.", r"denoise_encoder\.")`. Then
    every step runs the encoder; otherwise it runs once an image, and a LoRA beside it would never be trained.
    """

    name: str = "faithdiff"
    trainable: tuple[str, ...] = (r"unet\.",)
    lora_layers: str = r"to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_in\.conv|condition\.conv_in|conv_out|projection"
    start_timesteps: tuple[int, ...] = (999,)


class FaithDiff(LatentDiffusion):
    """The reference samples with the scheduler of its SDXL; here DDPM takes as many steps.

    unet/ of a saved folder holds UNet, injection and encoder as one file under the names of the released
    FaithDiff.bin, so that it can take that file's place in `from_released` and elsewhere.
    """

    KIND = "faithdiff"
    SETTINGS = FaithDiffSettings
    SAMPLER = SamplerSettings(steps=20, spacing="leading", steps_offset=1, guidance_scale=5.0)
    PROMPTS: ClassVar[tuple[str, str | None]] = ("", "")  # of what is wanted and what is not
    settings: FaithDiffSettings
    _policy: FaithDiffUNet

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: FaithDiffUNet,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        settings: FaithDiffSettings | None = None,
    ) -> None:
        """`embeddings`: "text" [1, tokens, width], "pooled" [1, width]; for guidance "negative_" and either name.

        Raises:
            ValueError: networks or embeddings that don't fit each other.
        """
        latent, factor = unet.injection.in_channels, 2 ** (len(vae.config.block_out_channels) - 1)
        if vae.config.latent_channels != latent:
            raise ValueError(
                f"FaithDiff: VAE with {vae.config.latent_channels} latent channels, UNet with {latent} inputs"
            )
        if factor != unet.size_multiple:
            raise ValueError(f"FaithDiff: the encoder shrinks its image by {unet.size_multiple}, the VAE by {factor}")
        if missing := [name for name in pooled_names(embeddings) if name not in embeddings]:
            raise ValueError(f"FaithDiff: no embedding {', '.join(missing)}; there are {', '.join(embeddings)}")
        downsampling = 2 ** (len(unet.unet.config.block_out_channels) - 1)
        super().__init__(vae, unet, cleaner, embeddings, settings or FaithDiffSettings(), downsampling)
        encoder = [name for name, _ in unet.named_parameters() if name.startswith("denoise_encoder.")]
        self._trains_encoder = any(re.match(p, name) for p in self.settings.trainable for name in encoder)

    @torch.no_grad()
    def condition(self, lq: Tensor, image_ids: Sequence[str] = ()) -> Condition:
        """With the encoder's "features" [B, F, h, w] of the cleaned image, unless the encoder is trained."""
        condition = super().condition(lq, image_ids)
        if self._trains_encoder:
            return condition
        return replace(condition, others={**condition.others, FEATURES: self._features(condition)})

    def _features(self, condition: Condition) -> Tensor:
        return self._policy.encode(condition.clean * 2 - 1)

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        others = condition.others
        features = others[FEATURES] if FEATURES in others else self._features(condition)
        output: Tensor = self._policy(
            x_t, timestep, condition.text, others[POOLED], time_ids(condition.clean), features
        )
        return output

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        """Mean absolute error of the network's output, float32 [B].

        The reference's noise has an offset a channel (0.02): that is up to who draws `noise`.
        """
        x_t, target = self.add_noise(gt_latent, timestep, noise)
        output = self.denoise(x_t, timestep, condition, guidance_scale=1.0)
        return (output - target).abs().flatten(1).mean(1)

    def parts(self) -> dict[str, Part]:
        return {"unet": Part(self._policy, asdict(self._policy.choices), faithdiff_to_released)}

    def export(self, folder: Path, trained: Collection[str], over: Path | None = None) -> None:
        """FaithDiff.bin."""
        self.refuse_lora()
        self.refuse_over(over)
        save_pickled(cloned(self.parts()["unet"].state()), folder / "FaithDiff.bin")

    @classmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        config, file = folder / "unet" / "config.json", weights_file(folder / "unet")
        try:
            choices = FaithDiffChoices(**read_json(config))
        except TypeError as error:
            raise CheckpointError(f"{config}: invalid setting: {error}") from error
        return {"unet": faithdiff_from_released(read_state(file), file, choices)}

    @classmethod
    def from_released(
        cls,
        base: Path,
        checkpoint: Path,
        cleaner: Path,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        embeddings: Path | None = None,
        vae: Path | None = None,
        settings: FaithDiffSettings | None = None,
        choices: FaithDiffChoices | None = None,
    ) -> Self:
        """The model of the files that users download.

        Args:
            base: diffusers folder of an SDXL: vae/, text_encoder/, text_encoder_2/, tokenizer/, tokenizer_2/.
            checkpoint: FaithDiff.bin.
            cleaner: a Restormer or an SNR-aware file.
            prompt, negative_prompt: None, both of them, for the model's own.
            embeddings: safetensors file of embeddings [1, ...] by name, which come before those of prompts.
            vae: diffusers folder of another autoencoder in the place of the base's.
            settings: None for the model's own.
            choices: what no shape in `checkpoint` tells; None for the released model's.

        Raises:
            CheckpointError: a file is absent, unreadable or not of the expected layout.
        """
        texts = cls.PROMPTS if prompt is None and negative_prompt is None else (prompt or "", negative_prompt)
        stored = embed_prompts(base, *texts) | (read_state(embeddings) if embeddings is not None else {})
        try:
            return cls(
                read_vae(vae or base),
                faithdiff_from_released(read_state(checkpoint), checkpoint, choices),
                cleaner_from_released(read_state(cleaner), cleaner),
                stored,
                settings,
            )
        except ValueError as error:
            raise CheckpointError(f"{base}, {checkpoint}: {error}") from error
