from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from reward_service.scorers import LEAST_SIDE, make_scorer
from reward_service.scorers.clip_iqa import ATTRIBUTES
from reward_service.scorers.clip_resnet import read_clip

WIDTH, LAYERS, OUT, TEXT, DEPTH, WORDS, LENGTH = 4, (1, 2, 1, 1), 24, 64, 2, 49408, 77


def released(seed: int = 0) -> dict[str, Tensor]:
    return dict(_released(seed))


@lru_cache
def _released(seed: int) -> dict[str, Tensor]:
    """A tiny CLIP in the layout of OpenAI's RN50, float16, with random weights and what its file has besides."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, scale: float = 0.0, about: float = 0.0) -> None:
        scale = scale or shape[-1] ** -0.5
        state[name] = torch.randn(shape, generator=generator) * scale + about

    def convolve(name: str, channels: int, out: int, kernel: int) -> None:
        put(name + ".weight", out, channels, kernel, kernel, scale=(2 / (channels * kernel**2)) ** 0.5)

    def norm(name: str, channels: int) -> None:
        put(name + ".weight", channels, scale=0.1, about=1)
        put(name + ".bias", channels, scale=0.1)
        put(name + ".running_mean", channels, scale=0.1)
        state[name + ".running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[name + ".num_batches_tracked"] = torch.tensor(7)

    def linear(name: str, channels: int, out: int) -> None:
        put(name + ".weight", out, channels)
        put(name + ".bias", out, scale=0.1)

    for number, (channels, out) in enumerate(((3, WIDTH // 2), (WIDTH // 2, WIDTH // 2), (WIDTH // 2, WIDTH)), 1):
        convolve(f"visual.conv{number}", channels, out, 3)
        norm(f"visual.bn{number}", out)
    channels = WIDTH
    for stage, blocks in enumerate(LAYERS):
        planes = WIDTH << stage
        for block in range(blocks):
            at = f"visual.layer{stage + 1}.{block}."
            for number, (before, out, kernel) in enumerate(
                ((channels, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)), 1
            ):
                convolve(f"{at}conv{number}", before, out, kernel)
                norm(f"{at}bn{number}", out)
            if not block:
                convolve(f"{at}downsample.0", channels, 4 * planes, 1)
                norm(f"{at}downsample.1", 4 * planes)
            channels = 4 * planes
    put("visual.attnpool.positional_embedding", 50, channels)
    for name in ("q_proj", "k_proj", "v_proj"):
        linear(f"visual.attnpool.{name}", channels, channels)
    linear("visual.attnpool.c_proj", channels, OUT)
    put("token_embedding.weight", WORDS, TEXT, scale=0.5)
    put("positional_embedding", LENGTH, TEXT, scale=0.5)
    for block in range(DEPTH):
        at = f"transformer.resblocks.{block}."
        put(at + "attn.in_proj_weight", 3 * TEXT, TEXT, scale=0.3)
        put(at + "attn.in_proj_bias", 3 * TEXT, scale=0.1)
        for name, sizes in (
            ("attn.out_proj", (TEXT, TEXT)),
            ("mlp.c_fc", (TEXT, 4 * TEXT)),
            ("mlp.c_proj", (4 * TEXT, TEXT)),
        ):
            linear(at + name, *sizes)
        for name in ("ln_1", "ln_2"):
            put(f"{at}{name}.weight", TEXT, scale=0.1, about=1)
            put(f"{at}{name}.bias", TEXT, scale=0.1)
    put("ln_final.weight", TEXT, scale=0.1, about=1)
    put("ln_final.bias", TEXT, scale=0.1)
    put("text_projection", TEXT, OUT)
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    state["logit_scale"] = torch.tensor(3.0)
    numbers = {"input_resolution": 224, "context_length": LENGTH, "vocab_size": WORDS}
    return {**state, **{k: torch.tensor(v) for k, v in numbers.items()}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    save_file(released(), file)
    return file


def noise(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


# -- the published forward, written down again without the modules


def picture_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        parts = [state[f"visual.{name}.{part}"].float() for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    def convolve(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, state[f"visual.{name}.weight"].float(), **how)

    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    x = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    x = F.relu(norm(convolve(x, "conv1", stride=2, padding=1), "bn1"))
    x = F.relu(norm(convolve(x, "conv2", padding=1), "bn2"))
    x = F.avg_pool2d(F.relu(norm(convolve(x, "conv3", padding=1), "bn3")), 2)
    for stage, blocks in enumerate(LAYERS, 1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(convolve(x, at + "conv1"), at + "bn1"))
            y = F.relu(norm(convolve(y, at + "conv2", padding=1), at + "bn2"))
            y = norm(convolve(F.avg_pool2d(y, stride), at + "conv3"), at + "bn3")
            if block == 0:
                x = norm(convolve(F.avg_pool2d(x, stride), at + "downsample.0"), at + "downsample.1")
            x = F.relu(x + y)
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x])
    pool = {k.removeprefix("visual.attnpool."): v.float() for k, v in state.items() if k.startswith("visual.attnpool.")}
    found, _ = F.multi_head_attention_forward(
        query=x, key=x, value=x, embed_dim_to_check=x.shape[-1], num_heads=x.shape[-1] // 64,
        q_proj_weight=pool["q_proj.weight"], k_proj_weight=pool["k_proj.weight"], v_proj_weight=pool["v_proj.weight"],
        in_proj_weight=None, in_proj_bias=torch.cat([pool[f"{n}_proj.bias"] for n in "qkv"]), bias_k=None, bias_v=None,
        add_zero_attn=False, dropout_p=0.0, out_proj_weight=pool["c_proj.weight"], out_proj_bias=pool["c_proj.bias"],
        use_separate_proj_weight=True, training=False, need_weights=False,
    )  # fmt: skip
    return found[0]


def text_features(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """By transformers' own model of CLIP's text."""
    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=TEXT, intermediate_size=4 * TEXT, projection_dim=OUT, num_hidden_layers=DEPTH,
        num_attention_heads=TEXT // 64, max_position_embeddings=LENGTH, hidden_act="quick_gelu", bos_token_id=49406,
        eos_token_id=49407,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval()
    names = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
    }
    given = {theirs: state[ours] for ours, theirs in names.items()}
    given["text_projection.weight"] = state["text_projection"].T
    for block in range(DEPTH):
        ours, theirs = f"transformer.resblocks.{block}.", f"text_model.encoder.layers.{block}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", state[f"{ours}attn.in_proj_{kind}"].chunk(3), strict=True):
                given[f"{theirs}self_attn.{name}_proj.{kind}"] = part
            for a, b in (
                ("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
            ):  # fmt: skip
                given[f"{theirs}{b}.{kind}"] = state[f"{ours}{a}.{kind}"]
    model.load_state_dict({k: v.float() for k, v in given.items()})
    with torch.no_grad():
        return model(tokens).text_embeds


def prompts(*names: str) -> Tensor:
    rows = [[49406, *ids, 49407] for name in names for ids in ATTRIBUTES[name]]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


@pytest.mark.parametrize("names", [["quality"], ["quality", "noise", "contrast"]])
@pytest.mark.parametrize("size", [(32, 32), (97, 70), (224, 224)])
def test_it_equals_the_published_forward_for_any_size(weights: Path, names: list[str], size: tuple[int, int]) -> None:
    state, images = released(), noise(2, *size)
    pictures = F.normalize(picture_features(state, torch.tensor(images).permute(0, 3, 1, 2) / 255), dim=-1)
    texts = F.normalize(text_features(state, prompts(*names)), dim=-1)
    logits = state["logit_scale"].exp() * pictures @ texts.T
    wanted = logits.reshape(2, -1, 2).softmax(-1)[..., 0].mean(1)
    found = make_scorer("clip_iqa", model=str(weights), attributes=names).score(images)
    assert found.dtype == np.float32 and found == pytest.approx(wanted.numpy(), abs=2e-6)
    assert abs(found - 0.5).max() > 0.01


def test_its_texts_equal_those_of_transformers(weights: Path) -> None:
    tokens = prompts(*ATTRIBUTES)
    wanted = F.normalize(text_features(released(), tokens), dim=-1)
    assert torch.allclose(read_clip(weights).embed(tokens), wanted, atol=2e-6)
    assert (wanted[::2] * wanted[1::2]).sum(-1).max() < 0.99


class Node(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def as_program(state: dict[str, Tensor]) -> Node:
    root = Node()
    for key, value in state.items():
        *path, name = key.split(".")
        node: nn.Module = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node.get_submodule(part)
        if value.is_floating_point():
            node.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            node.register_buffer(name, value)
    return root


def test_openais_own_kind_of_file_a_program_gives_the_same_scores_and_version(weights: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(as_program(released())), tmp_path / "RN50.pt")
    images = noise(2, 40, 40)
    ours, other = make_scorer("clip_iqa", model=str(weights)), make_scorer("clip_iqa", model=str(tmp_path / "RN50.pt"))
    assert np.array_equal(ours.score(images), other.score(images)) and ours.version == other.version


def test_its_version_changes_with_weights_and_attributes(weights: Path, tmp_path: Path) -> None:
    save_file(released(1), tmp_path / "other.safetensors")
    versions = [
        make_scorer("clip_iqa", model=str(file), attributes=names).version
        for file, names in (
            (weights, "quality"), (tmp_path / "other.safetensors", "quality"), (weights, "sharpness"),
            (weights, ["quality", "sharpness"]),
        )
    ]  # fmt: skip
    assert len(set(versions)) == 4 and all(v.startswith("clip_iqa-1-") for v in versions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"visual.bn2.bias": None, "visual.layer3.0.conv2.weight": None}, "2 missing: visual.bn2.bias, visual.layer3"),
        ({"visual.layer9.weight": torch.zeros(1)}, "1 unexpected: visual.layer9.weight"),
        ({"transformer.resblocks.1.ln_1.bias": None}, "1 missing: transformer.resblocks.1.ln_1.bias"),
        ({"logit_scale": None}, "logit_scale is missing; give OpenAI's RN50.pt"),
        ({"text_projection": torch.zeros(TEXT, 7)}, r"text_projection \(64, 7\) instead of \(64, 24\)"),
        ({"visual.proj": torch.zeros(1)}, "vision transformer; CLIP-IQA is defined on RN50"),
    ],
)
def test_a_file_of_other_tensors_is_told_by_name(tmp_path: Path, change: dict[str, Tensor | None], said: str) -> None:
    changed = {k: v for k, v in {**released(), **change}.items() if v is not None}
    save_file(changed, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match=f"clip_iqa: .*changed.safetensors.*{said}"):
        make_scorer("clip_iqa", model=str(tmp_path / "changed.safetensors"))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "needs its weights: set reward.params.model to OpenAI's CLIP RN50.pt"),
        ({"model": "nowhere.pt"}, "nowhere.pt is missing"),
        ({"model": "x", "attributes": ["beauty"]}, "no 'beauty'; choose of quality, brightness"),
        ({"model": "x", "attributes": []}, "name one at least"),
        ({"model": "x", "batch": 0}, "batch=0: 1 at least"),
    ],
)
def test_settings_that_make_no_scorer_are_told(params: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_scorer("clip_iqa", **params)


def test_its_least_side_is_what_it_takes(weights: Path) -> None:
    side = LEAST_SIDE["clip_iqa"]
    scorer = make_scorer("clip_iqa", model=str(weights))
    assert np.isfinite(scorer.score(noise(1, side, side))).all()
    with pytest.raises(ValueError, match="31x64 are too small: sides of 32"):
        scorer.score(noise(1, side - 1, 64))
