"""Both released layouts are read whole, shard by shard, and what doesn't fit is named."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.deqa import loading
from restoration.checkpoints import CheckpointError
from reward_service.scorers.mplug_owl2 import loading as loader
from reward_service.scorers.mplug_owl2.loading import load_owl2
from reward_service.scorers.mplug_owl2.prompt import LEVEL_IDS, check_tokenizer
from tests.golden.case import Golden
from tests.reward_service.owl2_folders import (
    ADAPTED,
    ALPHA,
    RANK,
    golden,
    lora_matrices,
    vocabulary,
    write_config,
    write_full,
    write_lora,
    write_sentencepiece,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def source() -> Golden:
    return golden()


@pytest.fixture(scope="module")
def state(source: Golden) -> State:
    return source.state("model")


@pytest.fixture(scope="module")
def full(source: Golden, state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full(tmp_path_factory.mktemp("full"), state, source)


@pytest.fixture
def copied(full: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "copied"))


def trained(state: State) -> State:
    """What a LoRA's release holds beside it: vision model and abstractor, other than the base's."""
    return {k: v * 1.5 for k, v in state.items() if "vision_model" in k or "visual_abstractor" in k}


def test_a_network_in_shards_or_one_file_of_either_format_has_the_files_weights_and_one_digest(
    source: Golden, state: State, full: Path, tmp_path: Path
) -> None:
    write_full(tmp_path / "bin", state, source, 3, "bin")
    write_full(tmp_path / "one", state, source, 1)
    loaded = [load_owl2(folder) for folder in (full, tmp_path / "bin", tmp_path / "one")]
    for found in loaded:
        values = found.network.state_dict()
        assert values.keys() == state.keys()
        assert all(torch.equal(values[k], state[k]) for k in state)
        assert not any(p.requires_grad for p in found.network.parameters()) and not found.network.training
        assert found.parameters == sum(v.numel() for v in state.values())
    assert len({found.digest for found in loaded}) == 1


def test_weights_are_kept_in_the_type_asked_for_and_the_digest_is_the_files(full: Path, state: State) -> None:
    half = load_owl2(full, dtype=torch.bfloat16)
    values = half.network.state_dict()
    assert {v.dtype for v in values.values()} == {torch.bfloat16}
    assert torch.equal(values["lm_head.weight"], state["lm_head.weight"].bfloat16())
    assert half.digest == load_owl2(full).digest


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_lora_is_added_to_its_base_and_what_was_trained_beside_it_replaces_the_bases(
    source: Golden, state: State, full: Path, tmp_path: Path, suffix: str
) -> None:
    beside = trained(state)
    lora = write_lora(tmp_path / "lora", source, beside, suffix)
    found = load_owl2(lora, full)
    values, matrices = found.network.state_dict(), lora_matrices(source)
    updated = {f"model.layers.{i}.{layer}.weight" for i in range(2) for layer in ADAPTED}
    for key, value in values.items():
        wanted = beside.get(key, state[key])
        if key in updated:
            name = f"base_model.model.{key.removesuffix('.weight')}.lora"
            wanted = wanted + ALPHA / RANK * (matrices[f"{name}_B.weight"] @ matrices[f"{name}_A.weight"])
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(value, state[key]) is (key not in updated and key not in beside)
    assert found.digest != load_owl2(full).digest


def test_the_digest_tells_one_changed_number_of_any_weight(copied: Path, full: Path) -> None:
    before = load_owl2(full).digest
    for shard in sorted(copied.glob("*.safetensors")):
        for key in list(load_file(shard))[::19]:
            weights = {k: v.clone() for k, v in load_file(shard).items()}
            weights[key].view(-1)[-1] += 1e-3
            save_file(weights, shard)
            changed = load_owl2(copied).digest
            assert changed != before
            before = changed


def test_the_digest_of_a_lora_tells_its_matrices_and_its_scale(
    source: Golden, state: State, full: Path, tmp_path: Path
) -> None:
    lora = write_lora(tmp_path / "lora", source, trained(state))
    digests = {load_owl2(lora, full).digest}
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    digests.add(load_owl2(lora, full).digest)
    matrices = lora_matrices(source)
    matrices[next(iter(matrices))][0, 0] += 1
    save_file(matrices, lora / "adapter_model.safetensors")
    digests.add(load_owl2(lora, full).digest)
    assert len(digests) == 3


def test_a_file_is_mapped_for_a_portion_at_a_time(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    reads, read = 0, loader.read_state

    def watched(file: Path) -> State:
        nonlocal reads
        found = read(file)
        if not any(v.is_meta for v in found.values()):
            assert not any(ref() is not None for ref in alive)  # what was read before is given back
            alive[:] = [weakref.ref(v) for v in found.values()]
            reads += 1
        return found

    monkeypatch.setattr(loader, "read_state", watched)
    load_owl2(full)
    assert reads >= 4  # two shards; the embeddings and the head are portions of their own


def test_portions_are_at_most_a_sixteenth_or_one_weight(state: State) -> None:
    shapes = {k: tuple(v.shape) for k, v in state.items() if v.numel() < 5000}
    total = sum(state[k].numel() for k in shapes)
    portions = list(loader._portions({k: k for k in shapes}, shapes))
    assert [k for portion in portions for k in portion] == list(shapes)
    assert all(len(p) == 1 or sum(state[k].numel() for k in p) <= total / 16 for p in portions)
    assert 16 <= len(portions) < 40


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_loading_takes_at_most_a_fifth_more_than_the_checkpoint(suffix: str) -> None:
    found = loading(suffix)
    assert 0.9 <= found["ratio"] <= 1.2, found


def rewrite(folder: Path, change: Callable[[State], Any]) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    weights = {k: v.clone() for k, v in load_file(shard).items()}
    change(weights)
    save_file(weights, shard)


LAST = "model.vision_model.post_layernorm.bias"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("model.visual_abstractor.vit_eos"), "1 missing: model.visual_abstractor.vit_eos"),
        (lambda w: w.update({"model.extra": torch.zeros(1)}), "1 unexpected: model.extra"),
        (lambda w: w.update({"model.visual_abstractor.vit_eos": torch.zeros(1, 1, 8)}), r"vit_eos \(1, 1, 8\) instead"),
    ],
)
def test_missing_unexpected_and_misshapen_keys_are_named_before_any_value_is_read(
    copied: Path, change: Callable[[State], Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(copied, change)
    monkeypatch.setattr(loader._Filling, "take", lambda *_: pytest.fail("values were read"))
    with pytest.raises(CheckpointError, match=told):
        load_owl2(copied)


def test_an_absent_shard_is_named(copied: Path) -> None:
    (copied / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards are absent: model-00002-of-00002.safetensors"):
        load_owl2(copied)


def test_tables_that_some_versions_wrote_beside_the_weights_are_passed_over(copied: Path, full: Path) -> None:
    rewrite(copied, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert load_owl2(copied).digest == load_owl2(full).digest


def test_a_key_in_two_files_is_named(copied: Path) -> None:
    rewrite(copied, lambda w: w.update({"lm_head.weight": torch.zeros(32000, 64)}))
    with pytest.raises(CheckpointError, match="lm_head.weight lie in two of its files"):
        load_owl2(copied)


def test_what_is_no_released_folder_is_told(full: Path, source: Golden, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        load_owl2(tmp_path / "absent")
    write_config(tmp_path / "empty", source)
    with pytest.raises(CheckpointError, match=r"holds no weights: model.safetensors or .* it holds config.json"):
        load_owl2(tmp_path / "empty")
    write_config(copied, source, hidden_act="gelu")
    with pytest.raises(CheckpointError, match="config.json: hidden_act='gelu'"):
        load_owl2(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"):
        load_owl2(copied)
    with pytest.raises(CheckpointError, match="`base` is for a LoRA, and .* holds no adapter_config.json"):
        load_owl2(full, full)


def test_an_index_is_not_followed_out_of_its_folder_nor_when_it_is_none(copied: Path) -> None:
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="names files outside its folder: ../other.safetensors"):
        load_owl2(copied)
    index.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(CheckpointError, match="holds no weight_map"):
        load_owl2(copied)


def test_an_incomplete_or_unknown_lora_is_told(source: Golden, state: State, full: Path, tmp_path: Path) -> None:
    lora, matrices = write_lora(tmp_path / "lora", source, trained(state)), lora_matrices(source)
    with pytest.raises(CheckpointError, match="holds a LoRA: give `base`"):
        load_owl2(lora)
    first, second = list(matrices)[:2]

    def refused(content: State, told: str) -> None:
        save_file(content, lora / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=told):
            load_owl2(lora, full)

    refused({k: v for k, v in matrices.items() if k != second}, "q_proj.lora_B is missing")
    refused(matrices | {"base_model.model.model.norm.other": torch.zeros(1)}, "model.norm.other belongs to no layer")
    refused(matrices | {"base_model.model.model.other.lora_A.weight": torch.zeros(1)}, "belongs to no layer")
    refused(matrices | {first: torch.zeros(RANK, 7)}, r"the update \(64, 4\) x \(4, 7\) of model.layers.0.self_attn")
    refused(matrices | {first: torch.zeros(2, 64), second: torch.zeros(64, 2)}, "r=4, but an update has the rank 2")
    save_file(matrices, lora / "adapter_model.safetensors")
    described = json.loads((lora / "adapter_config.json").read_text())
    for change, told in (
        ({"use_dora": True}, "use_dora=True is not known"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"lora_alpha": 0}, "lora_alpha=0: must be"),
    ):
        (lora / "adapter_config.json").write_text(json.dumps(described | change))
        with pytest.raises(CheckpointError, match=told):
            load_owl2(lora, full)
    (lora / "adapter_config.json").write_text(json.dumps(described))
    (lora / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match="non_lora_trainables.bin is missing"):
        load_owl2(lora, full)
    (lora / "adapter_model.safetensors").unlink()
    write_lora(tmp_path / "other", source, {"model.vision_model.unknown": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="1 unexpected: model.vision_model.unknown"):
        load_owl2(tmp_path / "other", full)


def as_json(pieces: list[str]) -> str:
    return json.dumps({"model": {"vocab": {piece: i for i, piece in enumerate(pieces)}}})


def test_a_vocabulary_in_the_folder_is_held_against_the_five_levels_and_the_question(tmp_path: Path) -> None:
    assert not check_tokenizer(tmp_path)
    right = vocabulary()
    write_sentencepiece(tmp_path / "tokenizer.model", right)
    assert check_tokenizer(tmp_path)
    moved = list(right)
    moved[LEVEL_IDS[2]], moved[100] = moved[100], moved[LEVEL_IDS[2]]
    write_sentencepiece(tmp_path / "tokenizer.model", moved)
    with pytest.raises(CheckpointError, match="tokenizer.model: 'fair' has the token 100, expected 6534"):
        check_tokenizer(tmp_path)
    write_sentencepiece(tmp_path / "tokenizer.model", [p for p in right if p != "\u2581bad"])
    with pytest.raises(CheckpointError, match="'bad' has the token none, expected 4319|expected"):
        check_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(as_json(right))
    assert check_tokenizer(tmp_path)
    moved = list(right)
    moved[338] = "\u2581was"
    (tmp_path / "tokenizer.json").write_text(as_json(moved))
    with pytest.raises(CheckpointError, match="the prompt's tokens spell .*image was"):
        check_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x0a\xff", b"\x0a\x09\x0a\x03ab", b"\x0f", b"\x10\x01", b"\xff" * 20])
def test_a_damaged_vocabulary_is_told_and_not_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer.model is (no sentencepiece model|empty)"):
        check_tokenizer(tmp_path)
