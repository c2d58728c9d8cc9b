"""Released key layouts of every width and depth, wrappers around state dicts, and errors that say what is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from restoration.base_models.networks.released import (
    controlnet_from_released,
    empty_controlnet,
    empty_unet,
    empty_vae,
    unet_from_released,
    vae_from_released,
)
from restoration.checkpoints import CheckpointError, check_fit, empty, load_strict, read_json, read_state
from restoration.ldm_layout import controlnet_layout, unet_layout, vae_layout
from tests.restoration.ldm_keys import Shapes, diffusion_keys, vae_keys

DIFFUSION_VARIANTS: list[dict[str, Any]] = [
    {},
    {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)},
    {"channel_mult": (1, 2, 3), "num_res_blocks": 3, "attention_resolutions": (1, 4), "context_dim": 40},
    {"attention_resolutions": (), "transformer_depth": 2},
    {"use_linear_in_transformer": False, "transformer_depth": 2, "model_channels": 64},
    {"use_scale_shift_norm": True, "channel_mult": (1, 2), "in_channels": 8},
    {"channel_mult": (1,), "attention_resolutions": (1,)},
]


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v, generator=generator) for k, v in shapes.items()}


class Drawn(TorchDispatchMode):
    """Devices of the tensors that random numbers are drawn for inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("uniform_", "normal_"):
            self.devices.append(args[0].device.type)
        return func(*args, **(kwargs or {}))


def test_nothing_is_drawn_for_an_empty_network_and_what_has_values_is_initialised_as_ever() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 3), nn.Conv2d(1, 2, 3), nn.Embedding(3, 2), nn.LayerNorm(2))
            self.own = nn.Parameter(nn.init.normal_(torch.empty(2, 2)))
            self.scale = nn.init.constant_(torch.empty(2, device="cpu"), 3.0)
            self.spread = torch.zeros(50, device="cpu").uniform_()

    with Drawn() as drawn:
        network = empty(Network)
    assert all(p.is_meta for p in network.parameters()) and len(list(network.parameters())) == 8
    assert network.scale.tolist() == [3.0, 3.0] and network.spread.std() > 0.1
    assert drawn.devices == ["cpu"]


@pytest.mark.parametrize("variant", DIFFUSION_VARIANTS)
def test_every_unet_of_the_released_layout_maps_onto_the_stock_network(variant: dict[str, Any]) -> None:
    shapes = diffusion_keys(**variant)
    layout = unet_layout(shapes, head_channels=16)
    check_fit(empty_unet(layout), layout.shapes(shapes), "unet")
    assert {layout.released(k) for k in layout.shapes(shapes)} == set(shapes)


@pytest.mark.parametrize("variant", DIFFUSION_VARIANTS)
def test_every_controlnet_of_the_released_layout_maps_onto_the_stock_network(variant: dict[str, Any]) -> None:
    shapes = diffusion_keys(**variant, hint_channels=variant.get("in_channels", 4))
    layout = controlnet_layout(shapes, head_channels=16)
    check_fit(empty_controlnet(layout), layout.shapes(shapes), "controlnet")
    assert layout.config["in_channels"] == 2 * variant.get("in_channels", 4)


def test_a_unet_whose_levels_differ_in_depth_maps_and_a_controlnet_is_refused() -> None:
    shapes = diffusion_keys(num_res_blocks=(1, 2, 1, 1))
    layout = unet_layout(shapes, head_channels=16)
    check_fit(empty_unet(layout), layout.shapes(shapes), "unet")
    with pytest.raises(CheckpointError, match="same number of blocks"):
        controlnet_layout(diffusion_keys(num_res_blocks=(1, 2, 1, 1), hint_channels=4), head_channels=16)


def test_a_first_level_wider_than_the_first_convolution_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"channel_mult\[0\]"):
        unet_layout(diffusion_keys(channel_mult=(2, 2)), head_channels=16)


def test_heads_come_from_their_width_or_their_number() -> None:
    shapes = diffusion_keys(channel_mult=(1, 2, 4))
    assert unet_layout(shapes, head_channels=16).config["attention_head_dim"] == (2, 4, 8)
    assert unet_layout(shapes, head_channels=None, heads=4).config["attention_head_dim"] == (4, 4, 4)
    with pytest.raises(CheckpointError, match="heads of 48 channels"):
        unet_layout(shapes, head_channels=48)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 8},
        {"ch": 64, "ch_mult": (1, 1, 2), "attention_levels": (1, 2)},
    ],
)
def test_every_autoencoder_of_the_released_layout_maps_onto_the_stock_network(variant: dict[str, Any]) -> None:
    shapes = vae_keys(**variant)
    layout = vae_layout(shapes)
    check_fit(empty_vae(layout), layout.shapes(shapes), "vae")
    assert {layout.released(k) for k in layout.shapes(shapes)} == set(shapes)


def test_loaded_networks_hold_the_values_of_the_file_and_run() -> None:
    state = random_state(diffusion_keys(channel_mult=(1, 2), num_res_blocks=1))
    unet = unet_from_released(state, "sd.ckpt", head_channels=16)
    control = random_state(diffusion_keys(channel_mult=(1, 2), num_res_blocks=1, hint_channels=4))
    controlnet = controlnet_from_released(control, "v2.pth", head_channels=16)
    vae_state = random_state(vae_keys(ch_mult=(1, 2), num_res_blocks=1))
    vae = vae_from_released(vae_state, "sd.ckpt")
    assert torch.equal(unet.up_blocks[0].upsamplers[0].conv.weight, state["output_blocks.1.2.conv.weight"])
    assert torch.equal(controlnet.controlnet_mid_block.weight, control["middle_block_out.0.weight"])
    query = vae.decoder.mid_block.attentions[0].to_q.weight
    assert torch.equal(query, vae_state["decoder.mid.attn_1.q.weight"][:, :, 0, 0])
    with torch.no_grad():
        x = torch.randn(1, 4, 4, 6)
        assert unet(x, 5, torch.randn(1, 3, 24)).sample.shape == x.shape
        assert vae.decode(x).sample.shape == (1, 3, 8, 12)


def test_a_missing_or_unexpected_key_is_named_as_the_file_names_it() -> None:
    state = random_state(diffusion_keys(channel_mult=(1, 2), num_res_blocks=1))
    del state["output_blocks.1.0.in_layers.0.bias"]
    state["label_emb.0.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        unet_from_released(state, "folder/sd.ckpt", head_channels=16)
    for part in ("folder/sd.ckpt", "output_blocks.1.0.in_layers.0.bias", "label_emb.0.weight", "Check that"):
        assert part in str(caught.value)


def test_a_file_of_another_model_is_refused() -> None:
    other = {"conv1.weight": torch.zeros(3, 3, 1, 1)}
    for load in (unet_from_released, controlnet_from_released, vae_from_released):
        with pytest.raises(CheckpointError, match="missing"):
            load(other, "other.pth")


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "params", "module.", "state_dict+module."])
def test_wrappers_around_a_state_dict_are_taken_off(wrap: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    raw: dict[str, Any] = {f"module.{k}": v for k, v in state.items()} if wrap.endswith("module.") else dict(state)
    if wrap.startswith(("state_dict", "params")):
        raw = {"epoch": 3, wrap.split("+")[0]: raw}
    torch.save(raw, tmp_path / "x.pth")
    assert {k: v.tolist() for k, v in read_state(tmp_path / "x.pth").items()} == {"a.weight": [1, 1], "b": [0]}


def test_safetensors_are_read_and_half_precision_becomes_float32(tmp_path: Path) -> None:
    save_file(
        {"weight": torch.full((1, 2), 0.5, dtype=torch.float16), "bias": torch.zeros(1)}, tmp_path / "x.safetensors"
    )
    network = nn.Linear(2, 1)
    load_strict(network, read_state(tmp_path / "x.safetensors"), tmp_path / "x.safetensors")
    assert network.weight.dtype == torch.float32 and network.weight.tolist() == [[0.5, 0.5]]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


@pytest.mark.filterwarnings("ignore:.*objects of other programs")
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"callbacks": _Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(_Evil()))
    for name in ("evil.ckpt", "bare.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
    torch.save({"state_dict": {"a": torch.ones(1)}, "callbacks": _Evil()}, tmp_path / "beside.ckpt")
    with pytest.warns(UserWarning, match=r"beside.ckpt.*builtins\.print.*none of their code was run"):
        assert read_state(tmp_path / "beside.ckpt")["a"].tolist() == [1]
    assert "code ran" not in capsys.readouterr().out


def test_absent_truncated_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    (tmp_path / "cut.json").write_text("{")
    for name in ("none.pth", "cut.safetensors", "cut.pth", "empty.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
    for name in ("none.json", "cut.json"):
        with pytest.raises(CheckpointError, match=name):
            read_json(tmp_path / name)
