from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from restoration.base_models import load
from restoration.base_models.interface import Condition
from restoration.base_models.latent import LatentDiffusion
from restoration.base_models.networks.diffusers_folder import embed, embed_prompts
from restoration.base_models.networks.sdxl import time_ids
from restoration.checkpoints import CheckpointError
from tests.restoration import released_folders as files


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.write_sdxl_pipeline(tmp_path_factory.mktemp("sdxl") / "base")


def ids_of(base: Path, second: bool) -> Tensor:
    """The tokens of "x v"; the first tokenizer fills up with its end token, the second with its "!"."""
    vocabulary = json.loads((base / "tokenizer" / "vocab.json").read_text())
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    padding = [vocabulary["!"] if second else end] * 5
    return torch.tensor([[start, vocabulary["x</w>"], vocabulary["v</w>"], end, *padding]])


@torch.no_grad()
def test_sdxl_s_text_is_the_last_but_one_layers_of_both_encoders_and_the_pooled_one_of_the_second(base: Path) -> None:
    given = embed(base, "x v")
    assert given.keys() == {"text", "pooled"}
    assert given["text"].shape == (1, 9, 10 + 14) and given["pooled"].shape == (1, 12)
    # an encoder that ends a layer earlier, without the norm at its end
    for name, kind, part in (
        ("text_encoder", CLIPTextModel, given["text"][..., :10]),
        ("text_encoder_2", CLIPTextModelWithProjection, given["text"][..., 10:]),
    ):
        encoder = kind.from_pretrained(base / name).eval()
        short = CLIPTextModel.from_pretrained(base / name, num_hidden_layers=2).eval()
        (short if hasattr(short, "final_layer_norm") else short.text_model).final_layer_norm = nn.Identity()
        ids = ids_of(base, second=name.endswith("_2"))
        assert torch.allclose(part, short(ids).last_hidden_state, atol=1e-5)
        assert not torch.allclose(part, encoder(ids, output_hidden_states=True).hidden_states[-1], atol=1e-2)
    at_end = encoder.text_model(ids).last_hidden_state[:, 3]
    assert torch.allclose(given["pooled"], encoder.text_projection(at_end), atol=1e-5)


def test_the_unwanted_prompt_has_an_embedding_of_either_kind(base: Path) -> None:
    given = embed_prompts(base, "x", "v")
    assert given.keys() == {"text", "pooled", "negative_text", "negative_pooled"}
    for name, value in embed(base, "v").items():
        assert torch.equal(given[f"negative_{name}"], value) and not torch.allclose(given[name], value, atol=1e-3)


def test_time_ids_are_the_sizes_of_a_whole_picture() -> None:
    assert time_ids(torch.zeros(2, 3, 513, 1025)).tolist() == [[513, 1025, 0, 0, 513, 1025]] * 2


@pytest.mark.parametrize("name", ["controlnet_sdxl", "faithdiff"])
@torch.no_grad()
def test_pooled_text_and_size_reach_the_networks_in_both_branches(
    name: str, model_folder: Callable[[str], Path]
) -> None:
    model = load(model_folder(name))
    assert isinstance(model, LatentDiffusion)
    condition = model.condition(torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0)))
    changed = condition.map(torch.clone)
    changed.others["negative_pooled"].add_(1)
    x = torch.randn(condition.latent.shape, generator=torch.Generator().manual_seed(1))

    def outputs(of: Condition) -> tuple[Tensor, Tensor]:
        return model.denoise(x, 500, of, 1.0), model.denoise(x, 500, of.unconditional, 1.0)

    (wanted, unwanted), (as_before, other) = outputs(condition), outputs(changed)
    assert torch.equal(wanted, as_before)
    assert (other - unwanted).abs().max() > 1e-3 * unwanted.abs().max()
    seen: list[Tensor] = []
    looking = [network for network in model.policy.children() if hasattr(network, "add_embedding")]
    for network in looking:
        network.register_forward_pre_hook(
            lambda _, __, given: seen.append(given["added_cond_kwargs"]["time_ids"]), with_kwargs=True
        )
    model.denoise(x, 500, condition, 3.0)
    assert [sizes.tolist() for sizes in seen] == [[[64, 128, 0, 0, 64, 128]] * 2] * (1 if name == "faithdiff" else 2)


@pytest.mark.parametrize("name", ["controlnet_sdxl", "faithdiff"])
@pytest.mark.parametrize("absent", ["pooled", "negative_pooled"])
def test_a_prompt_without_its_pooled_embedding_is_refused(
    name: str, absent: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load(model_folder(name))
    assert isinstance(model, LatentDiffusion)
    del model.embeddings[absent]
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=f"no embedding {absent};"):
        type(model).load(tmp_path / "model")
