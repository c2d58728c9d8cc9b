"""StableSR's denoiser (arXiv 2305.07015): a Stable Diffusion UNet steered by an encoder of the LQ latent."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from restoration.base_models.networks.spade import Spade
from restoration.base_models.networks.structure import StructureEncoder
from restoration.precision import dtype_of


class StableSRPolicy(nn.Module):
    """UNet and structure encoder: what a denoising step runs."""

    def __init__(self, unet: UNet2DConditionModel, structure_encoder: StructureEncoder) -> None:
        super().__init__()
        self.unet = unet
        self.structure_encoder = structure_encoder

    @property
    def trained(self) -> tuple[str, ...]:
        """Prefixes, in this module's parameter names, of what StableSR trains: structure encoder and every SPADE."""
        spades = (f"unet.{name}." for name, module in self.unet.named_modules() if isinstance(module, Spade))
        return ("structure_encoder.", *spades)

    def forward(self, x_t: Tensor, timestep: Tensor, lq_latent: Tensor, text: Tensor) -> Tensor:
        """x_t, lq_latent [B,C,h,w]; timestep [B], for both networks; text [B,tokens,width] -> float32 like x_t."""
        dtype = dtype_of(self.unet)
        features = self.structure_encoder(lq_latent.to(dtype_of(self.structure_encoder)), timestep)
        output = self.unet(
            x_t.to(dtype),
            timestep,
            text.to(dtype),
            timestep_cond=[f.to(dtype) for f in features],
            return_dict=False,
        )[0]
        return output.float()
