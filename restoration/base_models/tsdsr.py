"""TSD-SR (arXiv 2411.18263) as a base model: one step of Stable Diffusion 3 from a latent of an updated encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_from_released
from restoration.base_models.interface import Condition
from restoration.base_models.networks.low_rank import Release, stock_key
from restoration.base_models.networks.parts import Part, config_file, save_pickled
from restoration.base_models.networks.tsdsr_networks import (
    RELEASE,
    TsdPolicy,
    UpdatedTransformer,
    posterior,
    transformer_from_released,
    vae_from_released,
)
from restoration.base_models.one_step import UPDATES, OneStep, OneStepSettings, read_updated
from restoration.checkpoints import CheckpointError, read_raw, read_state

POOLED = "pooled"
EMBEDDING_FILES = {"text": "prompt_embeds.pt", POOLED: "pool_embeds.pt"}


@dataclass(frozen=True)
class TsdSettings(OneStepSettings):
    """RL's LoRA attaches to the kinds of layers that TSD-SR updates itself; its encoder stays as released."""

    name: str = "tsdsr"
    trainable: tuple[str, ...] = (r"transformer\.(?:.*\.)?updates\.",)
    lora_layers: str = r"to_[qkv]|to_out\.0|add_[qkv]_proj|proj|linear|proj_out"
    timestep: float = 1000.0


class TSDSR(OneStep):
    """The condition's latents come from the updated encoder, all others from Stable Diffusion 3's own.

    The decoder is Stable Diffusion 3's, whose codes are what its own encoder gives: only there decode(encode(gt)) is
    gt. The updated encoder gives the transformer its starting point z, and z - output is decoded, so that is where the
    target of SFT must lie. No shift factor anywhere: it cancels between encoder and decoder.
    """

    KIND = "tsdsr"
    NETWORK = "transformer"
    STOCK = SD3Transformer2DModel
    SETTINGS = TsdSettings
    settings: TsdSettings
    _policy: TsdPolicy

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: UpdatedTransformer,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        settings: TsdSettings | None = None,
    ) -> None:
        """`embeddings`: "text" [1, tokens, width] and "pooled" [1, width].

        Raises:
            ValueError: networks or embeddings that don't fit each other.
        """
        config = transformer.config
        if POOLED in embeddings and embeddings[POOLED].ndim != 2:
            raise ValueError(f"tsdsr: pooled has shape {tuple(embeddings[POOLED].shape)}, expected [1, width]")
        super().__init__(
            vae,
            TsdPolicy(transformer).eval(),
            cleaner,
            embeddings,
            settings or TsdSettings(),
            downsampling=config.patch_size,
            widths={"text": config.joint_attention_dim, POOLED: config.pooled_projection_dim},
        )
        self.side_limit = self.vae_factor * config.patch_size * config.pos_embed_max_size

    def condition(self, lq: Tensor, image_ids: Sequence[str] = ()) -> Condition:
        """lq float32 [B,3,H,W] in [0,1], H and W multiples of `size_multiple`.

        Raises:
            ValueError: H or W above `side_limit`, the positions that the transformer knows.
        """
        height, width = lq.shape[-2:]
        if self.side_limit is not None and max(height, width) > self.side_limit:
            raise ValueError(
                f"tsdsr: {width}x{height} pixels; its transformer knows positions up to {self.side_limit} a side"
            )
        return super().condition(lq, image_ids)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self._mode(images, updated=False)

    @torch.no_grad()
    def encode_seen(self, images: Tensor) -> Tensor:
        return self._mode(images, updated=True)

    def _mode(self, images: Tensor, updated: bool) -> Tensor:
        mode: Tensor = posterior(self.vae, images, updated).mode().float() * self.vae.config.scaling_factor
        return mode

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        output: Tensor = self._policy(x_t, timestep, condition.text, condition.others[POOLED])
        return output

    def updated(self) -> dict[str, tuple[nn.Module, Release]]:
        return {"transformer": (self._policy.transformer, RELEASE), "vae": (self.vae, RELEASE)}

    def parts(self) -> dict[str, Part]:
        return {**super().parts(), "vae": Part(self.vae, config_file(self.vae), stock_key)}

    def export_updates(self, folder: Path) -> None:
        self.save_updates(folder)
        for name, file in EMBEDDING_FILES.items():
            save_pickled(self.embeddings[name].detach().cpu().clone(), folder / file)

    @classmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        return {"transformer": _read(transformer_from_released, folder, "transformer", folder / UPDATES)}

    @classmethod
    def read_autoencoder(cls, folder: Path) -> AutoencoderKL:
        vae: AutoencoderKL = _read(vae_from_released, folder, "vae", folder / UPDATES)
        return vae

    @classmethod
    def from_released(
        cls,
        base: Path,
        checkpoint: Path,
        cleaner: Path,
        *,
        embeddings: Path | None = None,
        settings: TsdSettings | None = None,
    ) -> Self:
        """The model of the files that users download.

        Args:
            base: diffusers folder of Stable Diffusion 3: transformer/ and vae/.
            checkpoint: folder of TSD-SR's transformer.safetensors and vae.safetensors and, without `embeddings`, its
                prompt_embeds.pt and pool_embeds.pt.
            cleaner: a Restormer or an SNR-aware file.
            embeddings: safetensors file with "text" [1, tokens, width] and "pooled" [1, width].
            settings: None for the published ones.

        Raises:
            CheckpointError: a file is absent, unreadable or not of the expected layout.
        """
        try:
            return cls(
                _read(vae_from_released, base, "vae", checkpoint),
                _read(transformer_from_released, base, "transformer", checkpoint),
                cleaner_from_released(read_state(cleaner), cleaner),
                _released_embeddings(checkpoint) if embeddings is None else read_state(embeddings),
                settings,
            )
        except ValueError as error:
            raise CheckpointError(f"{base}, {checkpoint}: {error}") from error


def _read(build: Any, base: Path, name: str, updates: Path) -> Any:
    file = updates / f"{name}.safetensors"
    return read_updated(build, base / name, read_state(file), file)


def _released_embeddings(folder: Path) -> dict[str, Tensor]:
    found = {}
    for name, file in EMBEDDING_FILES.items():
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder / file} is missing: put it there, or give embeddings, a safetensors file with text and pooled"
            )
        found[name] = read_raw(folder / file)
        if not isinstance(found[name], Tensor):
            raise CheckpointError(f"{folder / file} holds {type(found[name]).__name__}, expected one tensor")
    return found
