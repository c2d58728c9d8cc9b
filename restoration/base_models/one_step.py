"""What PiSA-SR and TSD-SR share: one step from the degraded image's latent, by a stock network with low-rank updates.

They are deterministic; the policy N(z - output, sigma² I) is our choice (method.md 9).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.base_models.latent import LatentModel, ModelSettings
from restoration.base_models.networks.diffusers_folder import read_state_of, weights_file
from restoration.base_models.networks.low_rank import Release, stock_key, updates_state
from restoration.base_models.networks.parts import Part, config_file, save_state
from restoration.checkpoints import read_json
from restoration.transition import Schedule, one_step_schedule

UPDATES = "updates"  # folder of the updates' files, in the released layout


@dataclass(frozen=True)
class OneStepSettings(ModelSettings):
    """SFT trains the updates.

    Attributes:
        timestep: what the network is given, from 0 to 1000.
    """

    timestep: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.timestep <= 1000:
            raise ValueError(f"timestep={self.timestep}: from 0 to 1000")


class OneStep(LatentModel):
    """RL's LoRA attaches to the layers of the stock network, beside the updates, which belong to the SFT policy.

    A saved folder holds stock diffusers networks and in updates/ the released layout of the updates.
    """

    NETWORK: ClassVar[str]  # the policy's network, and its folder
    STOCK: ClassVar[type[nn.Module]]  # its class in diffusers
    SETTINGS: ClassVar[type[OneStepSettings]]
    SAMPLER = SamplerSettings(steps=1)
    settings: OneStepSettings

    def __init__(
        self,
        vae: AutoencoderKL,
        policy: nn.Module,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        settings: OneStepSettings,
        downsampling: int,
        widths: Mapping[str, int],
    ) -> None:
        """`widths`: of all the embeddings that the network looks at. Raises ValueError for parts that don't fit."""
        network: Any = policy.get_submodule(self.NETWORK)
        config = network.config
        channels = vae.config.latent_channels, config["in_channels"], config["out_channels"]
        if len(set(channels)) > 1:
            raise ValueError(
                f"{self.KIND}: VAE with {channels[0]} latent channels, {self.NETWORK} with {channels[1]} inputs and "
                f"{channels[2]} outputs: must be equal"
            )
        found = {name: value.shape[-1] if value.ndim else 0 for name, value in embeddings.items()}
        if found != dict(widths):
            raise ValueError(f"{self.KIND}: embeddings {found} (name: width), expected {dict(widths)}")
        super().__init__(vae, policy, cleaner, embeddings, settings, downsampling)

    @property
    def lora_targets(self) -> str:
        return rf"(?!.*\.updates\.){self.NETWORK}\.(?:.*\.)?(?:{self.settings.lora_layers})"

    @property
    def train_timesteps(self) -> int:
        """1: the timestep of SFT is not drawn."""
        return 1

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        """One step to z - output, with deviation `sampler.sigma`. Raises ValueError for other numbers of steps."""
        if sampler.steps != 1:
            raise ValueError(f"sampler.steps={sampler.steps}: {self.KIND} takes one step; set sampler.steps to 1")
        return one_step_schedule(self.settings.timestep, x0_from_x=1.0, x0_from_out=-1.0, std=sampler.sigma)

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        """z, the posterior mode of the degraded image's latent, without `noise`.

        The reference samples the posterior; rollout and replay, which makes its conditions anew, must see the same z.
        """
        return condition.latent

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the restored latent z - output, float32 [B]; `timestep` and `noise` are not used.

        The reference's perceptual and distillation terms (LPIPS, CSD, TSD) are not part of it.
        """
        output = self.denoise(condition.latent, self.settings.timestep, condition, guidance_scale=1.0)
        return (condition.latent - output - gt_latent).square().flatten(1).mean(1)

    @abstractmethod
    def updated(self) -> dict[str, tuple[nn.Module, Release]]:
        """The networks with updates, by their folders, and how a released file names these."""

    def parts(self) -> dict[str, Part]:
        network = self._policy.get_submodule(self.NETWORK)
        config = config_file(network) | {"_class_name": self.STOCK.__name__}
        return {self.NETWORK: Part(network, config, stock_key)}

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        super().save(folder, dtype)
        self.save_updates(folder / UPDATES, dtype)

    def save_updates(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the updates, a file a network."""
        for name, (network, release) in self.updated().items():
            save_state(updates_state(network, release), folder / f"{name}.safetensors", dtype)

    def export(self, folder: Path, trained: Collection[str], over: Path | None = None) -> None:
        """The released updates and, where its own layers were trained (by LoRA), the stock network's folder."""
        self.refuse_lora()
        self.refuse_over(over)
        if any(".updates." not in name for name in trained):
            self.parts()[self.NETWORK].save(folder / self.NETWORK)
        self.export_updates(folder)

    @abstractmethod
    def export_updates(self, folder: Path) -> None:
        """Write the files that its authors publish."""


def read_updated(build: Callable[..., Any], folder: Path, updates: Mapping[str, Tensor], updates_from: Path) -> Any:
    """What `build` makes of a diffusers network's folder and the released updates in `updates_from`.

    Args:
        build: `pisa_networks.unet_from_released` or one like it.

    Raises:
        CheckpointError: a file is absent or unreadable, keys are missing or unexpected.
    """
    config = read_json(folder / "config.json")
    return build(read_state_of(folder), config, updates, weights_file(folder), updates_from)


def updates_file(folder: Path, name: str) -> Path:
    """Of a model folder, the updates of the network `name`."""
    return Path(folder) / UPDATES / f"{name}.safetensors"
