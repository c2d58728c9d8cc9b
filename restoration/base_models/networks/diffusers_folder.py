"""Parts of a model in diffusers' folder layout, as users have downloaded it; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from restoration.base_models.interface import NEGATIVE
from restoration.base_models.networks.sdxl import POOLED
from restoration.checkpoints import CheckpointError, check_fetched, empty, load_strict, read_json, read_state

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_FORMER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def weights_file(folder: Path) -> Path:
    """The weights of a network's folder, or the index of their shards: safetensors, full before half, else .bin.

    Raises:
        CheckpointError: there are none, or .bin files of several parts.
    """
    stems = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")
    sharded = ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.fp16.json")
    safe = [name for stem, index in zip(stems, sharded, strict=True) for name in (f"{stem}.safetensors", index)]
    for name in (*safe, *(f"{stem}.bin" for stem in stems)):
        if (folder / name).is_file():
            return folder / name
    if list(folder.glob("*.bin.index*.json")):
        raise CheckpointError(f"{folder}: weights in several .bin files are not read; save them as safetensors")
    raise CheckpointError(f"{folder / WEIGHTS_FILE} is missing: is {folder} the folder of a diffusers network?")


def read_shards(index: Path) -> dict[str, Tensor]:
    """The weights of a `*.safetensors.index.json`, whose `weight_map` names the file of each key.

    Raises:
        CheckpointError: no such map, a file outside the folder, a shard absent or unreadable or with other keys.
    """
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{index} holds no weight_map of keys and files")
    state: dict[str, Tensor] = {}
    for name in sorted(set(placed.values())):
        shard = index.parent / name
        if Path(name).name != name or shard.suffix != ".safetensors":
            raise CheckpointError(f"{index} names {name!r}; shards are .safetensors files beside it")
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing: {index.name} spreads the weights over files; fetch all of them")
        held = read_state(shard)
        if differing := held.keys() ^ {key for key, file in placed.items() if file == name}:
            raise CheckpointError(f"{shard} and {index.name} differ in {len(differing)} keys, such as {min(differing)}")
        state |= held
    return state


def read_state_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a network's folder; the autoencoder's former names of attention layers become today's."""
    file, state = weights_file(folder), {}
    for key, value in (read_shards if file.suffix == ".json" else read_state)(file).items():
        *path, layer, what = key.split(".") if key.count(".") > 1 else ("", "", key)
        if layer in _FORMER_ATTENTION and "attentions" in path:
            key = ".".join([*path, _FORMER_ATTENTION[layer], what])
            value = value[..., 0, 0] if value.ndim == 4 else value
        state[key] = value
    return state


def read_network(kind: Any, folder: Path, change: Callable[[Any], Any] = lambda network: network) -> Any:
    """A stock diffusers network in evaluation mode, float32; `change`d before it gets its weights.

    Raises:
        CheckpointError: a file is absent or unreadable, keys are missing or unexpected.
    """
    config = read_json(folder / "config.json")
    network = change(empty(lambda: kind.from_config(config)))
    load_strict(network, read_state_of(folder), weights_file(folder))
    return network.eval()


def read_vae(base: Path) -> AutoencoderKL:
    """The autoencoder of a pipeline's folder, or in a folder of its own."""
    vae: AutoencoderKL = read_network(AutoencoderKL, base / "vae" if (base / "vae").is_dir() else base)
    return vae


@torch.no_grad()
def embed(base: Path, prompt: str) -> dict[str, Tensor]:
    """The embedding of a prompt by the text encoders of a pipeline's folder.

    Returns:
        "text" [1, tokens, width]; of SDXL, whose two encoders stand in text_encoder/ and text_encoder_2/, the
        last but one layers side by side, and "pooled" [1, width].

    Raises:
        CheckpointError: no encoder or tokenizer there.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    encoders = [n for n in ("", "_2") if (base / f"text_encoder{n}").is_dir() and (base / f"tokenizer{n}").is_dir()]
    if not encoders:
        raise CheckpointError(f"{base}: no text_encoder/ with tokenizer/ there; give a diffusers folder that has both")
    layers, pooled = [], {}
    for number in encoders:
        check_fetched(base / f"text_encoder{number}")
        check_fetched(base / f"tokenizer{number}")
        kind = CLIPTextModelWithProjection if number else CLIPTextModel
        encoder = kind.from_pretrained(str(base / f"text_encoder{number}"), local_files_only=True).float().eval()
        tokenizer = CLIPTokenizer.from_pretrained(str(base / f"tokenizer{number}"), local_files_only=True)
        length = encoder.config.max_position_embeddings
        ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        given = encoder(ids["input_ids"], output_hidden_states=len(encoders) > 1)
        layers.append(given.last_hidden_state if len(encoders) == 1 else given.hidden_states[-2])
        if number:
            pooled[POOLED] = given.text_embeds
    return {"text": torch.cat(layers, -1), **pooled}


def embed_prompts(base: Path, prompt: str, negative_prompt: str | None) -> dict[str, Tensor]:
    """`embed` of both; the second's under names that begin with "negative_", absent without one."""
    negative: Mapping[str, Tensor] = {} if negative_prompt is None else embed(base, negative_prompt)
    return embed(base, prompt) | {NEGATIVE + name: value for name, value in negative.items()}
