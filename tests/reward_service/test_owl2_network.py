"""Our network against a plain forward of the published one, at other sizes than the golden files'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.reward import NEEDED
from benchmarks.owl2_published import published_levels
from restoration.checkpoints import empty
from reward_service.scorers.mplug_owl2.config import AbstractorConfig, OwlConfig, VisionConfig
from reward_service.scorers.mplug_owl2.language import Rotation
from reward_service.scorers.mplug_owl2.network import LevelReader, Owl2
from reward_service.scorers.mplug_owl2.prompt import IMAGE
from tests.golden.__main__ import check_file
from tests.golden.case import recipe_tensor
from tests.reward_service.owl2_folders import GOLDEN, golden

WORDS, LEVELS = 97, (5, 90, 31, 2, 60)
QUESTION = (1, 9, 4, IMAGE, 7, 7, 3)
# Fewer key heads than query heads, other depths, odd numbers of tokens.
OTHER = OwlConfig(
    WORDS, 48, 40, 3, 6, 2, 1e-5, 500.0, VisionConfig(24, 32, 3, 3, 30, 6), AbstractorConfig(5, 24, 20, 1, 2)
)


def filled(config: OwlConfig) -> Owl2:
    network = Owl2(config).eval().requires_grad_(False)
    network.load_state_dict({k: recipe_tensor(k, list(v.shape)) for k, v in network.state_dict().items()})
    return network


@pytest.fixture(scope="module")
def network() -> Owl2:
    return filled(OTHER)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(4, 3, 30, 30, generator=torch.Generator().manual_seed(1))


def test_the_short_way_gives_the_levels_of_the_published_forward(network: Owl2, pixels: Tensor) -> None:
    levels = LevelReader(network, QUESTION, LEVELS)(pixels)
    wanted = published_levels(network.state_dict(), OTHER, pixels, QUESTION, LEVELS)
    torch.testing.assert_close(levels, wanted, atol=2e-5, rtol=1e-4)
    assert wanted.std() > 0.1


def test_the_whole_forward_gives_them_too_wherever_the_picture_stands(network: Owl2, pixels: Tensor) -> None:
    for question in (QUESTION, (1, IMAGE, 9, 4, 7, 7, 3)):
        at = question.index(IMAGE)
        ids = torch.tensor(question).clamp_min(0).expand(4, -1)
        logits = network(ids, pixels, at)
        assert logits.shape == (4, len(question) - 1 + OTHER.image_tokens, WORDS)
        wanted = published_levels(network.state_dict(), OTHER, pixels, question, LEVELS)
        torch.testing.assert_close(logits[:, -1, LEVELS], wanted, atol=2e-5, rtol=1e-4)


def test_no_position_sees_what_stands_behind_it(network: Owl2, pixels: Tensor) -> None:
    ids = torch.tensor([QUESTION, QUESTION]).clamp_min(0)
    ids[1, -2:] = 11
    first, second = network(ids, pixels[:1].expand(2, -1, -1, -1), 3)
    torch.testing.assert_close(first[:-2], second[:-2])
    assert (first[-2:] - second[-2:]).abs().max() > 0.1


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.widths: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.add(func.overloadpacket.__name__)
        if isinstance(result, Tensor):
            self.widths |= set(result.shape)
        return result


@contextmanager
def watched() -> Iterator[_Seen]:
    with _Seen() as seen:
        yield seen


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal"}


def test_a_pass_waits_for_nothing_asks_for_no_words_and_embeds_no_question(network: Owl2, pixels: Tensor) -> None:
    reader = LevelReader(network, QUESTION, LEVELS)
    with watched() as seen:
        reader(pixels)
    assert not seen.operations & (WAITING | {"embedding"})
    assert WORDS not in seen.widths
    with watched() as control:
        published_levels(network.state_dict(), OTHER, pixels, QUESTION, LEVELS)
    assert {"nonzero", "embedding"} <= control.operations and WORDS in control.widths


def test_a_weight_is_multiplied_once_a_batch_and_not_row_by_row(network: Owl2, pixels: Tensor) -> None:
    """Keys and values of slices in place were products of a row each, of 65 and 12 tokens, which fill no GPU's tile."""
    reader = LevelReader(network, QUESTION, LEVELS)
    with torch.no_grad(), watched() as seen:
        reader(pixels)
    assert {"mm", "addmm"} <= seen.operations and not seen.operations & {"bmm", "baddbmm"}


@pytest.mark.slow
def test_at_full_size_a_picture_takes_the_arithmetic_that_is_needed() -> None:
    full = empty(lambda: Owl2(OwlConfig()))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        reader, before = LevelReader(full), counter.get_total_flops()
        reader(pixels := torch.empty(1, 3, 448, 448))
        counted, before = counter.get_total_flops() - before, counter.get_total_flops()
        past = list(zip(reader.keys, reader.values, strict=True))
        x = torch.cat([full.see(pixels), reader.after], 1)
        full.decode(x, reader.image, Rotation(reader.cos, reader.sin), reader.mask, past)
        last_whole = counter.get_total_flops() - before
    page = (Path(__file__).parents[2] / "docs" / "reward.md").read_text()
    assert f"| {counted / 1e9:.0f} GFLOP a picture, counted" in page and f"; {NEEDED / 1e9:.0f} if the last" in page
    assert abs(last_whole - NEEDED) < 1e-3 * NEEDED


def test_a_question_without_one_picture_between_text_is_refused(network: Owl2) -> None:
    for question in ((1, 2, 3), (1, IMAGE, 2, IMAGE, 3), (IMAGE, 2), (1, IMAGE)):
        with pytest.raises(ValueError, match="holds -200 once, between text"):
            LevelReader(network, question, LEVELS)


def test_a_network_without_the_questions_words_is_refused(network: Owl2) -> None:
    with pytest.raises(ValueError, match="needs token 29973, and the network has 97"):
        LevelReader(network)


def test_a_golden_file_of_another_size_is_met_and_its_losses_take_the_network_beside_them(tmp_path: Path) -> None:
    described = json.loads(GOLDEN.read_text())
    config = described["config"] | {"level_ids": list(LEVELS), "rms_norm_eps": 1e-5, "rope_theta": 500.0}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config["llm"] = {k: getattr(OTHER, k) for k in (*names, "vocab_size", "num_key_value_heads")}
    config["visual_model"] = {k: getattr(OTHER.vision, k) for k in (*names, "image_size", "patch_size")}
    config["visual_abstractor"] = {k: getattr(OTHER.abstractor, k) for k in (*names, "num_learnable_queries")}
    network = filled(OTHER)
    shapes = {k: list(v.shape) for k, v in network.state_dict().items()}
    pixels = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(2))
    levels = published_levels(network.state_dict(), OTHER, pixels, QUESTION, LEVELS)
    ids = torch.tensor(QUESTION)
    described |= {"config": config, "state": {"model": shapes}, "buffers": {}, "outputs": {}}
    (tmp_path / "deqa_other.json").write_text(json.dumps(described))
    score = levels.softmax(-1) @ torch.tensor([5.0, 4, 3, 2, 1])
    tensors = {"in.images": pixels, "in.input_ids": ids, "out.level_logits": levels, "out.score": score}
    save_file(tensors, tmp_path / "deqa_other.safetensors")
    verdict = check_file(tmp_path / "deqa_other.json")
    assert verdict.status == "ok", verdict
    save_file(tensors | {"out.score": score + 0.001}, tmp_path / "deqa_other.safetensors")
    assert check_file(tmp_path / "deqa_other.json").status == "FAIL"

    losses = json.loads((GOLDEN.parent / "deqa_loss.json").read_text())
    prefix = [7, 7]
    losses["config"] |= {"level_ids": list(LEVELS), "level_prefix": prefix}
    answer = torch.tensor([[*QUESTION[:4], *prefix, LEVELS[1], 3]])
    labels = torch.where(torch.arange(8) < 4, -100, answer)
    inputs = {"input_ids": answer, "labels": labels, "images": pixels[:1], "level_probs": torch.full((1, 5), 0.2)}
    tensors = {f"in.{k}_{tag}": v.clone() for k, v in inputs.items() for tag in "AB"}
    tensors |= {f"in.{k}_{tag}": torch.ones(1) for k in ("gt_score", "gt_std") for tag in "AB"}
    logits = network(answer.clamp_min(0), pixels[:1], 3)[:, -3, LEVELS]
    tensors["out.pred_score_A"] = logits.softmax(-1) @ torch.tensor([5.0, 4, 3, 2, 1])
    (tmp_path / "deqa_other_loss.json").write_text(json.dumps(losses | {"name": "deqa_loss"}))
    save_file(tensors, tmp_path / "deqa_other_loss.safetensors")
    verdict = check_file(tmp_path / "deqa_other_loss.json")
    assert verdict.status == "ok", verdict


def test_the_layout_of_released_keys_is_held_against_each_key_and_shape(tmp_path: Path) -> None:
    file = tmp_path / "deqa.full_keys.json"
    described = json.loads((GOLDEN.parent / file.name).read_text())
    for change, told in (
        ({"model.norm.weight": None}, "1 missing: model.norm.weight"),
        ({"model.norm.bias": [4096]}, "1 unexpected: model.norm.bias"),
        ({"lm_head.weight": [32001, 4096]}, "lm_head.weight"),
    ):
        state = {k: v for k, v in (described["state"] | change).items() if v is not None}
        file.write_text(json.dumps(described | {"state": state}))
        verdict = check_file(file)
        assert verdict.status == "FAIL" and told in verdict.note


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling="),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"num_attention_heads": 5}, "num_attention_heads=5: must divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be a whole number above 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ({"visual_config": {"visual_model": {"hidden_act": "gelu"}}}, "visual_model.hidden_act='gelu'"),
        ({"visual_config": {"visual_model": {"use_cls_token": False}}}, "use_cls_token=False"),
        ({"visual_config": {"visual_abstractor": {"grid_size": 9}}}, "grid_size=9: must be 32"),
        ({"visual_config": {"visual_abstractor": {"hidden_size": 512}}}, "hidden_size=512: must be"),
        ({"visual_config": {"visual_model": {"patch_size": 13}}}, "patch_size=13: must divide image_size=448"),
    ],
)
def test_a_configuration_of_another_network_is_refused_by_the_setting(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        OwlConfig.from_json(change)


def test_a_configuration_has_the_published_sizes_where_it_says_nothing() -> None:
    assert OwlConfig.from_json({}) == OwlConfig()
    assert OwlConfig.from_json({"num_attention_heads": 16, "num_key_value_heads": None}).num_key_value_heads == 16
    assert OwlConfig().vision.tokens == 1025 and OwlConfig().image_tokens == 65
    assert golden().config["rms_norm_eps"] == OwlConfig().rms_norm_eps
