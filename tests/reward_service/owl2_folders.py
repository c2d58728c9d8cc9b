"""Released folders of a tiny mPLUG-Owl2, made of the golden files' weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reward_service.scorers.mplug_owl2.prompt import IMAGE, LEVEL_IDS, LEVELS, PROMPT_IDS
from tests.golden.case import Golden, recipe_tensor
from tests.golden.deqa import released_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "deqa.json"
RANK, ALPHA = 4, 8
ADAPTED = ("self_attn.q_proj", "self_attn.v_proj.multiway.1")


def golden() -> Golden:
    return Golden.read(GOLDEN)


def write_config(folder: Path, source: Golden, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released_config(source.config) | changes))


def write_full(
    folder: Path, state: Mapping[str, Tensor], source: Golden, shards: int = 2, suffix: str = "safetensors"
) -> Path:
    """A whole network, in shards with their index, or in one file."""
    write_config(folder, source)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    keys = sorted(state)
    size = -(-len(keys) // shards)
    index: dict[str, str] = {}
    for i in range(shards):
        name = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}"
        part = {k: state[k].contiguous() for k in keys[i * size : (i + 1) * size]}
        index |= dict.fromkeys(part, name)
        if suffix == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_lora(folder: Path, source: Golden, beside: Mapping[str, Tensor], suffix: str = "safetensors") -> Path:
    """A LoRA of the layers `ADAPTED` with seeded matrices, and `beside` under the trainer's names."""
    write_config(folder, source)
    described = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    matrices = lora_matrices(source)
    if suffix == "safetensors":
        save_file(matrices, folder / "adapter_model.safetensors")
    else:
        torch.save(matrices, folder / "adapter_model.bin")
    torch.save({f"base_model.model.{k}": v for k, v in beside.items()}, folder / "non_lora_trainables.bin")
    return folder


def lora_matrices(source: Golden) -> dict[str, Tensor]:
    matrices = {}
    for i in range(source.config["llm"]["num_hidden_layers"]):
        for layer in ADAPTED:
            out, into = source.keys["model"][f"model.layers.{i}.{layer}.weight"]
            name = f"base_model.model.model.layers.{i}.{layer}"
            matrices[f"{name}.lora_A.weight"] = recipe_tensor(f"{name}.A", [RANK, into])
            matrices[f"{name}.lora_B.weight"] = recipe_tensor(f"{name}.B", [out, RANK])
    return matrices


def vocabulary(words: int = 32000) -> list[str]:
    """Pieces of which those of the question and the levels stand where LLaMA's vocabulary has them."""
    pieces = [f"piece{i}" for i in range(words)]
    question = "_US ER : _How _would _you _rate _the _quality _of _this _image ? <0x0A>"
    answer = "_ <0x0A> ASS IST ANT : _The _quality _of _the _image _is"
    at = PROMPT_IDS.index(IMAGE)
    spelt = [*zip(PROMPT_IDS[1:at], question.split(), strict=True)]
    spelt += [*zip(PROMPT_IDS[at + 1 :], answer.split(), strict=True)]
    for number, piece in [*spelt, *zip(LEVEL_IDS, (f"_{level}" for level in LEVELS), strict=True)]:
        pieces[number] = piece.replace("_", "\u2581")
    return pieces


def write_sentencepiece(file: Path, pieces: Sequence[str]) -> None:
    """As protocol buffers: field 1 of each piece is its text, field 2 a float."""

    def field(number: int, content: bytes) -> bytes:
        size, head = len(content), bytearray([number << 3 | 2])
        while size > 127:
            head.append(size & 127 | 128)
            size >>= 7
        return bytes(head) + bytes([size]) + content

    scored = b"\x15\x00\x00\x80\xbf"
    file.write_bytes(b"".join(field(1, field(1, piece.encode()) + scored) for piece in pieces) + field(2, b"\x08\x01"))
