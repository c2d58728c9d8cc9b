"""DiffBIR (arXiv 2308.15070): Stable Diffusion steered by a ControlNet that sees the cleaned image's latent.

Built from stock diffusers networks. The ControlNet takes `cat(x_t, condition latent)` and has no network for
a hint image; its residuals are added to the skips of the UNet. `scaled` latents are mode * scaling factor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_from_released
from restoration.base_models.interface import NEGATIVE, Condition, SamplerSettings
from restoration.base_models.latent import LatentDiffusion, LatentSettings
from restoration.base_models.networks import text
from restoration.base_models.networks.diffusers_folder import read_network
from restoration.base_models.networks.parts import Part, cloned, config_file, save_over, save_pickled, touches
from restoration.base_models.networks.released import (
    controlnet_from_released,
    unet_from_released,
    vae_from_released,
    without_hint,
)
from restoration.checkpoints import CheckpointError, read_state
from restoration.file_kinds import first
from restoration.ldm_layout import UNET_PREFIX, VAE_PREFIX, bare, layout_of, part
from restoration.precision import dtype_of


@dataclass(frozen=True)
class DiffBIRSettings(LatentSettings):
    """DiffBIR v1 and v2 predict epsilon, v2.1 v_prediction with zero terminal SNR."""

    name: str = "diffbir"
    trainable: tuple[str, ...] = (r"controlnet\.",)
    control_scale: float = 1.0


class Policy(nn.Module):
    """UNet and ControlNet: what `denoise` runs."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = without_hint(controlnet)

    def controls(self, x_t: Tensor, timestep: Tensor, latent: Tensor, text: Tensor) -> list[Tensor]:
        """The ControlNet's residuals, in the order of the UNet's skips, the middle block's last; unscaled."""
        dtype = dtype_of(self.controlnet)
        skips, middle = self.controlnet(
            torch.cat([x_t, latent], 1).to(dtype), timestep, text.to(dtype), latent.to(dtype), return_dict=False
        )
        return [*skips, middle]

    def forward(
        self, x_t: Tensor, timestep: Tensor, latent: Tensor, text: Tensor, control_scale: float = 1.0
    ) -> Tensor:
        """x_t, latent [B,C,h,w]; timestep [B]; text [B,tokens,width] -> float32 like x_t."""
        dtype = dtype_of(self.unet)
        *skips, middle = (c.to(dtype) * control_scale for c in self.controls(x_t, timestep, latent, text))
        output = self.unet(
            x_t.to(dtype),
            timestep,
            text.to(dtype),
            down_block_additional_residuals=tuple(skips),
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return output.float()


class DiffBIR(LatentDiffusion):
    """`settings.trainable` may also name the UNet."""

    KIND = "diffbir"
    SETTINGS = DiffBIRSettings
    SAMPLER = SamplerSettings(steps=50, spacing="linspace", guidance_scale=4.0)
    settings: DiffBIRSettings
    _policy: Policy

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        cleaner: Cleaner,
        text: Tensor,
        negative_text: Tensor | None = None,
        settings: DiffBIRSettings | None = None,
    ) -> None:
        """`text` and `negative_text` are embeddings [1, tokens, width]; guidance needs the second."""
        latent, seen = unet.config.in_channels, controlnet.config.in_channels
        if vae.config.latent_channels != latent or seen != 2 * latent:
            raise ValueError(
                f"DiffBIR: VAE with {vae.config.latent_channels} latent channels, UNet with {latent} inputs and "
                f"ControlNet with {seen}: the ControlNet takes twice the latent channels"
            )
        embeddings = {"text": text} | ({} if negative_text is None else {"negative_text": negative_text})
        downsampling = 2 ** (len(unet.config.block_out_channels) - 1)
        policy = Policy(unet, controlnet)
        super().__init__(vae, policy, cleaner, embeddings, settings or DiffBIRSettings(), downsampling)

    @property
    def sampler(self) -> SamplerSettings:
        """Its authors' guidance needs the negative text; a model that stores none has none."""
        guided = NEGATIVE + "text" in self.embeddings
        return self.SAMPLER if guided else replace(self.SAMPLER, guidance_scale=1.0)

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        output: Tensor = self._policy(x_t, timestep, condition.latent, condition.text, self.settings.control_scale)
        return output

    def parts(self) -> dict[str, Part]:
        networks = {"unet": self._policy.unet, "controlnet": self._policy.controlnet}
        return {name: Part(network, config_file(network)) for name, network in networks.items()}

    def export(self, folder: Path, trained: Collection[str], over: Path | None = None) -> None:
        """DiffBIR's own file as controlnet.pth and, where the UNet was trained, `over`, Stable Diffusion's, with it."""
        self.refuse_lora()
        unet = self._policy.unet if touches("unet", trained) else None
        if unet is None:
            self.refuse_over(over)
        elif over is None:
            raise ValueError(
                "diffbir: the UNet was trained, too, and lies in Stable Diffusion's file: give that file with --over"
            )
        else:
            state = layout_of(unet).restored(unet.state_dict())
            save_over(over, {UNET_PREFIX + key: value for key, value in state.items()}, folder)
        if touches("controlnet", trained):
            controlnet = self._policy.controlnet
            save_pickled(cloned(layout_of(controlnet).restored(controlnet.state_dict())), folder / "controlnet.pth")

    @classmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        return {
            "unet": read_network(UNet2DConditionModel, folder / "unet"),
            "controlnet": read_network(ControlNetModel, folder / "controlnet", without_hint),
        }

    @classmethod
    def from_parts(cls, **given: Any) -> Self:
        embeddings = given.pop("embeddings")
        return cls(text=embeddings["text"], negative_text=embeddings.get("negative_text"), **given)

    @classmethod
    def from_released(
        cls,
        base: Path,
        checkpoint: Path,
        cleaner: Path,
        *,
        prompt: str = "",
        negative_prompt: str | None = text.LOW_QUALITY,
        tokenizer: Path | None = None,
        head_channels: int = 64,
        settings: DiffBIRSettings | None = None,
    ) -> Self:
        """The model of the files that users download.

        Args:
            base: Stable Diffusion 2.1 in the Latent Diffusion layout (UNet, autoencoder, OpenCLIP text tower).
            checkpoint: DiffBIR's v1, v2 or v2.1 file, its ControlNet.
            cleaner: a Restormer or an SNR-aware file.
            prompt, negative_prompt: their embeddings are stored; guidance leads away from the second, by default the
                words that the authors restore with. None stores none.
            tokenizer: folder with CLIP's vocab.json and merges.txt, which other prompts than the defaults need.
            settings: by default those of v1 and v2; v2.1 has prediction v_prediction and zero_terminal_snr.

        Raises:
            CheckpointError: a file is absent, unreadable or not of the expected layout.
            ValueError: a prompt without a tokenizer.
        """
        released = bare(read_state(base), base)
        for prefix in (UNET_PREFIX, VAE_PREFIX, text.TEXT_PREFIX):
            if not any(k.startswith(prefix) for k in released):
                raise CheckpointError(
                    f"{base} has no keys {prefix}*, its first ones are {first(released)}; give the Stable Diffusion "
                    "2.1 checkpoint as one file in its original (not the diffusers) layout"
                )
        encoder = text.from_released(part(released, text.TEXT_PREFIX), base)
        return cls(
            vae_from_released(part(released, VAE_PREFIX), base),
            unet_from_released(part(released, UNET_PREFIX), base, head_channels=head_channels),
            controlnet_from_released(read_state(checkpoint), checkpoint, head_channels=head_channels),
            cleaner_from_released(read_state(cleaner), cleaner),
            text.encode_prompt(encoder, prompt, tokenizer),
            None if negative_prompt is None else text.encode_prompt(encoder, negative_prompt, tokenizer),
            settings,
        )


def build_small(
    vae: AutoencoderKL,
    cleaner: Cleaner,
    *,
    channels: tuple[int, ...] = (40, 80),
    attention: tuple[bool, ...] | None = None,
    layers_per_block: int = 1,
    head_channels: int = 16,
    tokens: int = 4,
    text_width: int = 32,
    settings: DiffBIRSettings | None = None,
    seed: int = 0,
) -> DiffBIR:
    """An untrained small model of the same architecture around a trained VAE and cleaner; all of it trains.

    Args:
        channels: width of each level of UNet and ControlNet, multiples of 8.
        head_channels: width of an attention head; divides the width of each level that has attention.
        attention: which levels have transformer blocks; by default the coarsest (the middle block always has one).
        tokens, text_width: size of the stored text embedding, a fixed random one.
        seed: seeds weights and text embedding.
    """
    attention = attention or tuple(i + 1 == len(channels) for i in range(len(channels)))
    if len(attention) != len(channels):
        raise ValueError(f"attention={attention} needs one entry for each of channels={channels}")
    attending = [c for c, a in zip(channels, attention, strict=True) if a] + [channels[-1]]
    if any(c % head_channels for c in attending) or any(c % 8 for c in channels):
        raise ValueError(f"channels={channels}: multiples of 8, and of head_channels={head_channels} where they attend")
    latent = vae.config.latent_channels
    shared: dict[str, Any] = {
        "block_out_channels": channels,
        "layers_per_block": layers_per_block,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        # diffusers' attention_head_dim is the number of heads
        "attention_head_dim": tuple(max(1, c // head_channels) for c in channels),
        "cross_attention_dim": text_width,
        "norm_num_groups": 8,
        "use_linear_projection": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            in_channels=latent,
            out_channels=latent,
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            **shared,
        )
        controlnet = ControlNetModel(in_channels=2 * latent, **shared)
        text = torch.randn(1, tokens, text_width)
    settings = settings or DiffBIRSettings(
        name="diffbir-small", prediction="v_prediction", zero_terminal_snr=True, trainable=(r"controlnet\.", r"unet\.")
    )
    return DiffBIR(vae, unet.eval(), controlnet.eval(), cleaner, text, settings=settings)
