"""Stable Diffusion with a ControlNet that sees the cleaned image itself: stock ones, PASD, XPSR, SeeSR and RAP.

The networks are diffusers' own; the named models have second attentions (`attended`), whose context is the
ControlNet's residuals (PASD, XPSR) or an embedding of the picture (SeeSR, RAP).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_from_released
from restoration.base_models.interface import Condition
from restoration.base_models.latent import LatentDiffusion, LatentSettings
from restoration.base_models.networks.attended import (
    Contexts,
    attended_to_released,
    build_attended,
    released_config,
    released_to_attended,
    skips_of,
)
from restoration.base_models.networks.control_heads import ControlHeads
from restoration.base_models.networks.diffusers_folder import embed_prompts, read_network, read_state_of, read_vae
from restoration.base_models.networks.parts import Part, config_file
from restoration.base_models.networks.sdxl import POOLED, pooled_names, time_ids
from restoration.checkpoints import CheckpointError, load_strict, read_json, read_state
from restoration.precision import dtype_of

Second = Literal["none", "residuals", "image"]
LOW, IMAGE = "low", "image"  # names in Condition.others
HEADS_OF_SFT = re.compile(r"to_rgbs|conv_degradation")
KINDS = {"unet": UNet2DConditionModel, "controlnet": ControlNetModel}


@dataclass(frozen=True)
class PixelControlSettings(LatentSettings):
    """
    Attributes:
        control_scale: factor of the ControlNet's residuals.
    """

    name: str = "controlnet"
    trainable: tuple[str, ...] = (r"controlnet\.",)
    control_scale: float = 1.0


class PixelPolicy(nn.Module):
    """UNet and ControlNet: what `denoise` runs. `second`: what the UNet's second attentions look at."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel, second: Second = "none") -> None:
        super().__init__()
        self.unet, self.controlnet, self.second = unet, controlnet, second

    def forward(
        self,
        x_t: Tensor,
        timestep: Tensor,
        image: Tensor,
        text: Tensor,
        others: Mapping[str, Tensor] | None = None,
        control_scale: float = 1.0,
    ) -> Tensor:
        """
        Args:
            x_t: [B, C, h, w]; timestep: [B].
            image: [B, 3, H, W] in [0, 1], what the ControlNet sees.
            text: [B, tokens, width].
            others: "pooled" [B, width] text of SDXL; "low" [B, tokens, width]; "image" [B, tokens, width].

        Returns:
            float32 like x_t.
        """
        others, ids = others or {}, time_ids(image)

        def seen(dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
            """What both networks look at, in the type of one's weights; sizes in pixels stay float32."""
            given = {name: value.to(dtype) for name, value in others.items()}
            words = text.to(dtype)
            added = {"text_embeds": given[POOLED], "time_ids": ids} if POOLED in given else None
            contexts = words if self.second == "none" else Contexts(words, given.get(IMAGE, ()), given.get(LOW))
            return contexts, {} if added is None else {"added_cond_kwargs": added}

        dtype = dtype_of(self.controlnet)
        words, added = seen(dtype)
        skips, middle = self.controlnet(x_t.to(dtype), timestep, words, image.to(dtype), return_dict=False, **added)
        dtype = dtype_of(self.unet)
        words, added = seen(dtype)
        skips, middle = [s.to(dtype) * control_scale for s in skips], middle.to(dtype) * control_scale
        if self.second == "residuals":
            words = words._replace(other=skips_of(skips))
        output: Tensor = self.unet(
            x_t.to(dtype),
            timestep,
            words,
            down_block_additional_residuals=tuple(skips),
            mid_block_additional_residual=middle,
            return_dict=False,
            **added,
        )[0]
        return output.float()


class PixelControl(LatentDiffusion):
    """A `BaseModel` of a stock UNet and ControlNet; with "pooled" among its embeddings those of SDXL."""

    KIND = "controlnet"
    SETTINGS = PixelControlSettings
    SECOND: ClassVar[Second] = "none"
    ATTENTIONS: ClassVar[str] = ""  # how the released files name the second attentions
    PROMPTS: ClassVar[tuple[str, str | None]] = ("", "")  # of what is wanted and what is not
    HEADS: ClassVar[Literal["none", "pictures", "pictures and latents"]] = "none"  # that its authors' SFT has
    settings: PixelControlSettings
    _policy: PixelPolicy

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        settings: PixelControlSettings | None = None,
    ) -> None:
        """`embeddings`: [1, ...] by name: text, negative_text, and what `PixelPolicy` calls others.

        Raises:
            ValueError: networks or embeddings that don't fit each other.
        """
        if not vae.config.latent_channels == unet.config.in_channels == controlnet.config.in_channels:
            raise ValueError(
                f"{self.KIND}: VAE with {vae.config.latent_channels} latent channels, UNet with "
                f"{unet.config.in_channels} inputs and ControlNet with {controlnet.config.in_channels}: must be equal"
            )
        needed = pooled_names(embeddings) if unet.config.addition_embed_type == "text_time" else ()
        if missing := [name for name in needed if name not in embeddings]:
            raise ValueError(f"{self.KIND}: no embedding {', '.join(missing)}; there are {', '.join(embeddings)}")
        factor = 2 ** len(controlnet.controlnet_cond_embedding.blocks[1::2])
        if factor != 2 ** (len(vae.config.block_out_channels) - 1):
            raise ValueError(f"{self.KIND}: the ControlNet shrinks its image by {factor}, the VAE does otherwise")
        downsampling = 2 ** (len(unet.config.block_out_channels) - 1)
        policy = PixelPolicy(unet, controlnet, self.SECOND)
        super().__init__(vae, policy, cleaner, embeddings, settings or self.SETTINGS(), downsampling)

    def control_heads(self) -> ControlHeads | None:
        """New heads for SFT, None for a model whose authors have none."""
        if self.HEADS == "none":
            return None
        latents = self.vae.config.latent_channels if self.HEADS == "pictures and latents" else 0
        return ControlHeads(self._policy.controlnet, latents)

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        output: Tensor = self._policy(
            x_t, timestep, condition.clean, condition.text, condition.others, self.settings.control_scale
        )
        return output

    def parts(self) -> dict[str, Part]:
        networks = {"unet": self._policy.unet, "controlnet": self._policy.controlnet}
        if self.SECOND == "none":
            return {name: Part(network, config_file(network)) for name, network in networks.items()}
        return {
            name: Part(network, released_config(network), lambda key: attended_to_released(key, self.ATTENTIONS))
            for name, network in networks.items()
        }

    @classmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        return {name: cls._read_part(name, folder / name) for name in KINDS}

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
        unet: Path | None = None,
        settings: PixelControlSettings | None = None,
    ) -> Self:
        """The model of the files that users download.

        Args:
            base: diffusers folder of the Stable Diffusion it builds on: vae/, text_encoder/, tokenizer/ and, where
                `checkpoint` has none, unet/.
            checkpoint: folder with controlnet/ and unet/; or the folder of a ControlNet alone.
            cleaner: a Restormer or an SNR-aware file.
            prompt, negative_prompt: None for the model's own.
            embeddings: safetensors file of further embeddings [1, ...] by name, which come before those of prompts.
            unet: folder of another UNet in the place of the checkpoint's, which lends it the second attentions.
            settings: None for the model's own.

        Raises:
            CheckpointError: a file is absent, unreadable or not of the expected layout.
        """
        alone = not (checkpoint / "controlnet").is_dir()
        control = checkpoint if alone else checkpoint / "controlnet"
        own = base / "unet" if alone or not (checkpoint / "unet").is_dir() else checkpoint / "unet"
        texts = cls.PROMPTS if prompt is None and negative_prompt is None else (prompt or "", negative_prompt)
        stored = embed_prompts(base, *texts) | (read_state(embeddings) if embeddings is not None else {})
        try:
            return cls(
                read_vae(base),
                cls._read_part("unet", unet or own, own),
                cls._read_part("controlnet", control),
                cleaner_from_released(read_state(cleaner), cleaner),
                stored,
                settings,
            )
        except ValueError as error:
            raise CheckpointError(f"{base}, {checkpoint}: {error}") from error

    @classmethod
    def _read_part(cls, name: str, folder: Path, lender: Path | None = None) -> Any:
        if cls.SECOND == "none":
            return read_network(KINDS[name], folder)
        state = {k: v for k, v in read_state_of(folder).items() if not HEADS_OF_SFT.search(k)}
        if lender is not None and lender != folder:
            state |= {k: v for k, v in read_state_of(lender).items() if f".{cls.ATTENTIONS}." in k}
        return attended_network(KINDS[name], read_json(folder / "config.json"), state, cls.ATTENTIONS, folder)


def attended_network(
    kind: Any, config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, file: Path | str
) -> Any:
    """A network with second attentions `name` of released weights. Raises CheckpointError."""
    network = build_attended(kind, config, {k: tuple(v.shape) for k, v in state.items()}, name)
    load_strict(
        network,
        {released_to_attended(k, name): v for k, v in state.items()},
        file,
        shown=lambda key: attended_to_released(key, name),
    )
    return network.eval()
