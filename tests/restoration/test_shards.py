"""Weights that diffusers spread over several files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from restoration.base_models.networks.diffusers_folder import read_network, read_state_of, weights_file
from restoration.checkpoints import CheckpointError
from tests.restoration.released_models import FLUX

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def network() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(num_layers=1, num_single_layers=1, **FLUX)


def sharded(folder: Path, variant: str | None = None) -> FluxTransformer2DModel:
    written = network()
    written.save_pretrained(folder, max_shard_size="60KB", variant=variant)
    return written


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_network_in_shards_is_read_whole(tmp_path: Path, variant: str | None) -> None:
    written = sharded(tmp_path, variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and weights_file(tmp_path).suffix == ".json"
    read = read_network(FluxTransformer2DModel, tmp_path).state_dict()
    assert read.keys() == written.state_dict().keys()
    assert all(torch.equal(value, read[key]) for key, value in written.state_dict().items())


def test_full_precision_comes_before_half_also_in_shards(tmp_path: Path) -> None:
    written = sharded(tmp_path)
    half = network().half()
    half.save_pretrained(tmp_path / "half", variant="fp16")
    (tmp_path / "half" / "diffusion_pytorch_model.fp16.safetensors").rename(
        tmp_path / "diffusion_pytorch_model.fp16.safetensors"
    )
    key = "proj_out.weight"
    assert torch.equal(read_state_of(tmp_path)[key], written.state_dict()[key])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        read_state_of(tmp_path)


@pytest.mark.parametrize("change", ["one too many", "one too few"])
def test_a_shard_that_holds_other_keys_than_the_index_says_is_refused(tmp_path: Path, change: str) -> None:
    sharded(tmp_path)
    shard = min(tmp_path.glob("*.safetensors"))
    state = load_file(shard)
    state = state | {"more": torch.zeros(1)} if change == "one too many" else dict(list(state.items())[1:])
    save_file(state, shard)
    with pytest.raises(CheckpointError, match=r"differ in 1 keys, such as \w+"):
        read_state_of(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "shard.bin"])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="files beside it"):
        read_state_of(tmp_path)


@pytest.mark.parametrize("content", [{}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no weight_map"):
        read_state_of(tmp_path)


def test_shards_of_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="save them as safetensors"):
        read_state_of(tmp_path)
