"""PiSA-SR (arXiv 2412.03017): the UNet of Stable Diffusion 2.1 with updates for pixels and for semantics.

One step: restored latent = z - output, z the scaled latent of the degraded image, at timestep 1 with an empty prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from restoration.base_models.networks.attended import config_from_shapes
from restoration.base_models.networks.low_rank import (
    Release,
    RemembersActive,
    active,
    load_updates,
    updates_of,
    updates_state,
)
from restoration.checkpoints import CheckpointError, Shapes, empty, load_strict, read_raw
from restoration.precision import dtype_of

Mode = Literal["pix_sem", "pix", "sem", "mixed", "base"]
_PARTS = ("encoder", "decoder", "others")
PIX = tuple(f"default_{part}_pix" for part in _PARTS)
SEM = tuple(f"default_{part}_sem" for part in _PARTS)
RELEASE = Release(alpha=8)  # peft's default, whatever the rank
_ACTIVE = {"pix_sem": PIX + SEM, "pix": PIX, "sem": SEM, "base": ()}


class UpdatedUNet(RemembersActive, UNet2DConditionModel):
    """The stock network; its layers may have updates."""


class PisaPolicy(nn.Module):
    """The network of the one step, `unet` with the updates `PIX` and `SEM`.

    Raises:
        ValueError: `unet` has other updates.
    """

    def __init__(self, unet: UpdatedUNet) -> None:
        super().__init__()
        if updates_of(unet) != {*PIX, *SEM}:
            raise ValueError(f"PiSA-SR has the updates {PIX + SEM}, this network {sorted(updates_of(unet))}")
        self.unet = unet

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        text: Tensor,
        mode: Mode = "pix_sem",
        weights: tuple[float, float] | None = None,
    ) -> Tensor:
        """z [B,C,h,w]; timestep [B]; text [B,tokens,width] -> float32 like z.

        Args:
            mode: the updates that act: "pix_sem" all, "pix" and "sem" their own, "base" none. "mixed" is
                w_pix * pix + w_sem * (pix_sem - pix) in two passes; (1, 1) is "pix_sem".
            weights: (w_pix, w_sem) of "mixed".

        Raises:
            ValueError: an unknown mode; weights without "mixed" or the reverse.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r}: choose {', '.join(get_args(Mode))}")
        if (mode == "mixed") != (weights is not None):
            raise ValueError(f"mode={mode!r}, weights={weights}: weights go with mode 'mixed' and only with it")
        if weights is None:
            return self._run(z, timestep, text, _ACTIVE[mode])
        pix = self._run(z, timestep, text, PIX)
        both = self._run(z, timestep, text, PIX + SEM)
        return weights[0] * pix + weights[1] * (both - pix)

    def _run(self, z: Tensor, timestep: Tensor, text: Tensor, names: tuple[str, ...]) -> Tensor:
        dtype = dtype_of(self.unet)
        with active(names):
            output: Tensor = self.unet(z.to(dtype), timestep, text.to(dtype), return_dict=False)[0]
        return output.float()


def empty_unet(shapes: Shapes, config: Mapping[str, Any], file: str) -> UpdatedUNet:
    """The network, without weights and updates, of a UNet's keys in the diffusers layout.

    Args:
        config: its config.json, for what no shape tells, such as `attention_head_dim`, which diffusers means as the
            number of heads.

    Raises:
        CheckpointError: no such UNet, or no number of heads.
    """
    if "attention_head_dim" not in config:
        raise CheckpointError(f"{file}: its config.json has no attention_head_dim, and the weights don't tell it")
    try:
        known = config_from_shapes(shapes) | {"out_channels": shapes["conv_out.weight"][0]}
    except KeyError as error:
        raise CheckpointError(f"{file} is no UNet in the diffusers layout: it has no {error}") from error
    return empty(lambda: UpdatedUNet.from_config({**config, **known}))


def read_pisa(file: Path) -> dict[str, Tensor]:
    """The updates that PiSA-SR's own file (`pisa_sr.pkl`) holds, by its keys.

    Raises:
        CheckpointError: unreadable, not such a file, or its lists of modules and ranks contradict its weights.
    """
    raw = read_raw(file)
    if not isinstance(raw, Mapping) or not isinstance(raw.get("state_dict_unet"), Mapping):
        raise CheckpointError(f"{file} is no file of PiSA-SR: it holds no mapping 'state_dict_unet'")
    if others := [k for k, v in raw.items() if isinstance(v, Mapping | Tensor) and k != "state_dict_unet"]:
        raise CheckpointError(f"{file} holds weights that PiSA-SR doesn't have: {others}")
    state = dict(raw["state_dict_unet"])
    if wrong := [k for k, v in state.items() if not isinstance(v, Tensor)]:
        raise CheckpointError(f"{file}: state_dict_unet holds more than tensors: {wrong[:3]}")
    ranks: dict[str, dict[str, set[int]]] = {name: {} for name in PIX + SEM}
    for key, value in state.items():
        module, name, matrix = RELEASE.read(key) or ("", "", "")
        if name not in ranks or value.ndim < 2:
            raise CheckpointError(f"{file}: {key} {tuple(value.shape)} is no matrix of an update of PiSA-SR")
        ranks[name].setdefault(module, set()).add(value.shape[0 if matrix == "A" else 1])
    for name, modules in ranks.items():
        part, kind = name.split("_")[1:]
        listed, rank = f"unet_lora_{part}_modules_{kind}", f"lora_rank_unet_{kind}"
        if listed not in raw or rank not in raw:
            raise CheckpointError(f"{file} is no file of PiSA-SR: it has no {listed if listed not in raw else rank}")
        if differing := sorted(set(raw[listed]) ^ modules.keys()):
            raise CheckpointError(f"{file}: {listed} and the weights of {name} differ in {differing[:3]}")
        if differing := sorted(m for m, found in modules.items() if found != {raw[rank]}):
            raise CheckpointError(f"{file}: {rank} is {raw[rank]}, not so the weights of {name} at {differing[:3]}")
    return state


def pisa_content(unet: UpdatedUNet) -> dict[str, Any]:
    """What PiSA-SR's own file holds of a network's updates: the inverse of `read_pisa`, to be written by `torch.save`.

    Raises:
        ValueError: updates for pixels, or for semantics, of several ranks, of which the file can't tell.
    """
    state = {k: v.cpu().clone() for k, v in updates_state(unet, RELEASE).items()}
    content: dict[str, Any] = {"state_dict_unet": state}
    ranks: dict[str, set[int]] = {}
    for name in PIX + SEM:
        part, kind = name.split("_")[1:]
        modules = content[f"unet_lora_{part}_modules_{kind}"] = []
        for key, value in state.items():
            module, found, matrix = RELEASE.read(key) or ("", "", "")
            if found == name and matrix == "A":
                modules.append(module)
                ranks.setdefault(f"lora_rank_unet_{kind}", set()).add(value.shape[0])
    if several := {rank: sorted(found) for rank, found in ranks.items() if len(found) > 1}:
        raise ValueError(f"PiSA-SR's file has one rank for each kind of update, not {several}")
    return content | {rank: found.pop() for rank, found in ranks.items()}


def unet_from_released(
    unet: Mapping[str, Tensor],
    config: Mapping[str, Any],
    updates: Mapping[str, Tensor],
    unet_file: Path | str,
    updates_file: Path | str,
) -> UpdatedUNet:
    """The network of released weights, in evaluation mode, float32.

    Args:
        unet: weights of Stable Diffusion 2.1's UNet in the diffusers layout.
        config: its config.json, as `empty_unet` needs it.
        updates: PiSA-SR's, by the keys that `read_pisa` gives.

    Raises:
        CheckpointError: a key is missing, unknown or of another shape.
    """
    network = empty_unet({k: tuple(v.shape) for k, v in unet.items()}, config, str(unet_file))
    load_strict(network, unet, unet_file)
    load_updates(network, updates, RELEASE, str(updates_file))
    network.eval()
    return network


def policy_from_released(
    unet: Mapping[str, Tensor], config: Mapping[str, Any], unet_file: Path | str, pisa_file: Path
) -> PisaPolicy:
    """The policy of `unet_from_released`, with PiSA-SR's own file. Raises CheckpointError."""
    return PisaPolicy(unet_from_released(unet, config, read_pisa(pisa_file), unet_file, pisa_file)).eval()
