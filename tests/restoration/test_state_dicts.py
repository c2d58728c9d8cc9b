"""Weights are found inside what trainers, wrappers and averages put around them; what doesn't fit is named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from restoration.backbones.cleaners import cleaner_from_released
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.networks.released import controlnet_from_released, unet_from_released, vae_from_released
from restoration.checkpoints import CheckpointError, load_strict, read_state
from restoration.ldm_layout import bare
from restoration.state_dicts import preferring, unprefixed
from tests.restoration.ldm_keys import diffusion_keys, vae_keys

STATE = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
OTHER = {k: v + 5 for k, v in STATE.items()}


def stored(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "x.pth")
    return folder / "x.pth"


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


def values(state: dict[str, Tensor]) -> dict[str, Any]:
    return {k: v.tolist() for k, v in state.items()}


CONTAINERS = ("state_dict", "model_state_dict", "net", "network", "weights", "generator", "net_g", "g_ema", "ema")


@pytest.mark.parametrize("container", [*CONTAINERS, "ema_state_dict", "model_ema", "state_dict_ema", "params_ema"])
def test_a_state_dict_is_found_in_every_usual_container(container: str, tmp_path: Path) -> None:
    file = stored({"epoch": 3, container: STATE, "optimizer": {"state": {}}}, tmp_path)
    assert values(read_state(file)) == values(STATE)
    assert values(read_state(stored({"checkpoint": 1, "model": {container: STATE}}, tmp_path))) == values(STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_the_prefixes_of_torchs_own_wrappers_are_taken_off_every_file(prefix: str, tmp_path: Path) -> None:
    assert values(read_state(stored({"state_dict": prefixed(prefix, STATE)}, tmp_path))) == values(STATE)
    inner = {"net.module.a._orig_mod.weight": torch.ones(1), "net._fsdp_wrapped_module.b": torch.ones(1)}
    assert set(read_state(stored(inner, tmp_path))) == {"net.module.a.weight", "net.b"}


def test_an_average_of_torch_is_read_without_its_count(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    file = stored(AveragedModel(network).state_dict(), tmp_path)
    assert values(read_state(file)) == values(network.state_dict())


def test_keys_that_are_the_same_without_a_wrapper_are_refused(tmp_path: Path) -> None:
    file = stored({"a.weight": torch.ones(1), "a._orig_mod.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"x\.pth holds keys twice"):
        read_state(file)


WRAPPERS = (
    *("module.", "_orig_mod.", "model.", "net_g.", "generator.", "network.", "unet.", "control_model.", "ema."),
    *("ema_model.", "model_ema.", "ema_model.module.", "net_g._orig_mod.module.", "model.generator."),
)


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_what_a_wrapper_puts_before_every_key_is_taken_off(prefix: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    given = {k: torch.rand_like(v) for k, v in network.state_dict().items()}
    file = stored({"state_dict": prefixed(prefix, given)}, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_strict(network, read_state(file), file)
    assert values(network.state_dict()) == values(given)


def test_a_prefix_of_some_keys_only_or_an_unknown_one_is_named_with_the_file(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    state = network.state_dict()
    some = {"model.weight": state["weight"], "bias_of_it": state["bias"]}
    for given in (some, prefixed("teacher.", state)):
        file = stored(given, tmp_path)
        with pytest.raises(CheckpointError) as caught:
            load_strict(network, read_state(file), file)
        for part in (str(file), "2 missing: bias, weight", "2 unexpected: ", sorted(given)[0]):
            assert part in str(caught.value)


def test_a_network_with_a_module_of_a_wrappers_name_keeps_it(tmp_path: Path) -> None:
    network = nn.Module()
    network.model = nn.Linear(2, 1)
    file = stored(network.state_dict(), tmp_path)
    load_strict(network, read_state(file), file)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.bias"):
        load_strict(network, {"model.weight": network.model.weight}, file)


@pytest.mark.parametrize("prefix", ["", "control_model.", "module.control_model.", "ema.", "model.control_model."])
def test_controlnets_are_found_under_their_prefix(prefix: str) -> None:
    shapes = diffusion_keys(channel_mult=(1, 2), num_res_blocks=1, hint_channels=4)
    state = {k: torch.rand(v) for k, v in shapes.items()}
    network = controlnet_from_released(prefixed(prefix, state), "v2.pth", head_channels=16)
    assert torch.equal(network.controlnet_mid_block.weight, state["middle_block_out.0.weight"])


def test_a_controlnet_is_taken_out_of_a_whole_training_file_and_the_rest_is_told() -> None:
    shapes = diffusion_keys(channel_mult=(1, 2), num_res_blocks=1)
    control = diffusion_keys(channel_mult=(1, 2), num_res_blocks=1, hint_channels=4)
    whole = {f"model.diffusion_model.{k}": torch.rand(v) for k, v in shapes.items()} | {
        f"control_model.{k}": torch.rand(v) for k, v in control.items()
    }
    with pytest.warns(UserWarning, match=r"below control_model\. are taken, the others are left out \(model\.diff"):
        network = controlnet_from_released(whole, "whole.ckpt", head_channels=16)
    assert torch.equal(network.controlnet_mid_block.weight, whole["control_model.middle_block_out.0.weight"])


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "unet.", "diffusion_model."])
def test_unets_and_autoencoders_are_found_under_their_prefix(prefix: str) -> None:
    state = {k: torch.rand(v) for k, v in diffusion_keys(channel_mult=(1, 2), num_res_blocks=1).items()}
    unet = unet_from_released(prefixed(prefix, state), "sd.ckpt", head_channels=16)
    assert torch.equal(unet.conv_out.weight, state["out.2.weight"])
    coder = {k: torch.rand(v) for k, v in vae_keys(ch_mult=(1, 2), num_res_blocks=1).items()}
    for before in ("first_stage_model.", "model.first_stage_model.", "vae."):
        vae = vae_from_released(prefixed(before, coder), "vae.ckpt")
        assert torch.equal(vae.encoder.conv_in.weight, coder["encoder.conv_in.weight"])


@pytest.mark.parametrize("build", [unet_from_released, controlnet_from_released, vae_from_released])
def test_an_error_about_a_released_file_names_it_with_its_first_keys_and_those_expected(build: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        build({"teacher.x.weight": torch.ones(1), "teacher.y": torch.ones(1)}, "folder/sd.ckpt")
    for part in ("folder/sd.ckpt", "teacher.x.weight, teacher.y", ".weight is missing", "Check that"):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"folder/sd\.ckpt"):
        keys = ("out.2.weight", "zero_convs.0.0.weight", "encoder.conv_in.weight")
        build({k: torch.ones(1, 1, 1, 1) for k in keys}, "folder/sd.ckpt")


@pytest.mark.parametrize("prefix", ["", "net_g.", "generator.", "network.module.", "model."])
def test_cleaners_are_found_under_their_prefix_beside_a_discriminator_too(prefix: str) -> None:
    torch.manual_seed(0)
    config = RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 2, 2))
    own = Restormer(config).state_dict()
    found = cleaner_from_released(prefixed(prefix, own), "derain.pth").state_dict()
    assert all(torch.equal(v, own[k]) for k, v in found.items())
    if prefix:
        with pytest.warns(UserWarning, match=r"derain\.pth.*left out \(net_d\.conv\)"):
            cleaner_from_released(prefixed(prefix, own) | {"net_d.conv": torch.ones(1)}, "derain.pth")


def test_what_is_no_cleaner_is_told_with_its_first_keys() -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth holds no cleaner.*begin teacher\.a"):
        cleaner_from_released({"teacher.a": torch.ones(1)}, "x.pth")


# -- weights and their average


@pytest.mark.parametrize(
    ("plain", "average", "auto"),
    [
        ("params", "params_ema", "average"),
        ("state_dict", "ema_state_dict", "plain"),
        ("state_dict", "state_dict_ema", "plain"),
        ("model", "model_ema", "plain"),
        ("model", "ema", "plain"),
        ("g", "g_ema", "plain"),
        ("net_g", "net_g_ema", "plain"),
    ],
)
def test_of_weights_and_their_average_one_is_taken_told_and_chosen(
    plain: str, average: str, auto: str, tmp_path: Path
) -> None:
    file = stored({average: OTHER, plain: STATE}, tmp_path)
    for preferred, expected in (("plain", STATE), ("ema", OTHER), ("auto", {"plain": STATE, "average": OTHER}[auto])):
        with preferring(preferred), pytest.warns(UserWarning, match=rf"{file} holds both: .*--weights") as told:  # type: ignore[arg-type]
            assert values(read_state(file)) == values(expected)
        taken = average if expected is OTHER else plain
        assert f" in {taken} are taken" in str(told[0].message)


def test_of_prefixes_of_weights_and_their_average_one_is_taken_told_and_chosen() -> None:
    both = prefixed("net_g.", STATE) | prefixed("net_g_ema.", OTHER)
    for preferred, expected in (("auto", STATE), ("plain", STATE), ("ema", OTHER)):
        with preferring(preferred), pytest.warns(UserWarning, match="x.ckpt holds both"):  # type: ignore[arg-type]
            found = unprefixed(both, STATE.__contains__, "x.ckpt")
        assert values(found) == values(expected)


def latent_diffusion() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict, and the average that LitEma stores beside it, with its names."""
    keys = ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.bias"]
    state = {k: torch.zeros(2) for k in keys} | {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)}
    average = {"model_ema." + k.removeprefix("model.").replace(".", ""): torch.full((2,), 5.0) for k in keys}
    return state, average | {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}


def test_latent_diffusions_average_takes_the_place_of_the_weights_where_it_is_wanted(tmp_path: Path) -> None:
    state, average = latent_diffusion()
    file = stored({"state_dict": state | average}, tmp_path)
    for preferred, value in (("auto", 0), ("plain", 0), ("ema", 5)):
        with preferring(preferred), pytest.warns(UserWarning, match="holds both"):  # type: ignore[arg-type]
            found = bare(read_state(file), file)
        assert found.keys() == state.keys()
        assert {k: v[0].item() for k, v in found.items()} == {k: value * k.startswith("model.") for k in state}


def test_an_average_under_whole_names_is_taken_likewise(tmp_path: Path) -> None:
    state = latent_diffusion()[0]
    whole = {k.replace("model.", "model_ema.", 1): v + 5 for k, v in state.items() if k.startswith("model.")}
    file = stored(state | whole, tmp_path)
    for preferred, value in (("plain", 0), ("ema", 5)):
        with preferring(preferred), pytest.warns(UserWarning, match="holds both"):  # type: ignore[arg-type]
            found = read_state(file)
        assert found.keys() == state.keys() and found["model.diffusion_model.out.2.bias"][0] == value


def test_an_average_of_other_weights_is_no_hindrance_unless_it_is_wanted(tmp_path: Path) -> None:
    state = latent_diffusion()[0]
    file = stored(state | {"model_ema.otherweight": torch.ones(1)}, tmp_path)
    with pytest.warns(UserWarning, match="holds both"):
        assert read_state(file).keys() == state.keys()
    with preferring("ema"), pytest.raises(CheckpointError, match=r"model_ema\.otherweight are averages of weights"):
        read_state(file)


def test_an_average_without_its_weights_is_refused_since_its_names_are_lost(tmp_path: Path) -> None:
    state, average = latent_diffusion()
    file = stored(average | {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"x\.pth: model_ema\.diffusion_modelinput_blocks00w.*lost their dots"):
        read_state(file)


def test_a_file_without_an_average_says_nothing(tmp_path: Path) -> None:
    state, average = latent_diffusion()
    pruned = state | {k: v for k, v in average.items() if v.ndim == 0}
    save_file(pruned, tmp_path / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert state.keys() <= read_state(tmp_path / "x.safetensors").keys()
