"""`level_tokens` on tiny Qwen2-VL, Qwen2.5-VL and LLaVA with random weights, against one whole forward a picture."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from reward_service.errors import ScorerFailed
from reward_service.probe import Probe
from reward_service.scorers import LEAST_SIDE, Scorer, make_scorer
from reward_service.scorers.level_tokens import LevelSettings, LevelTokens
from tests.reward_service.company import scores_in_any_company
from tests.reward_service.vlm_folders import LLAVA_PROMPT, write_llava, write_qwen

WRITTEN = {
    "qwen2_vl": write_qwen,
    "qwen2_5_vl": lambda folder: write_qwen(folder, newer=True),
    "llava": write_llava,
}
CHAT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How would you rate the quality of this image?"
    "<|im_end|>\n<|im_start|>assistant\n"
)
STEM = "The quality of the image is"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("vlm")
    return {kind: write(root / kind) for kind, write in WRITTEN.items()}


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["qwen2_vl"]


@pytest.fixture(autouse=True)
def loaded_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scorers of one folder share its model, but for tests of loading."""
    if "fresh" not in request.fixturenames:
        monkeypatch.setattr(LevelTokens, "_load", lambda self, folder: _loaded(folder, self.dtype))


@lru_cache
def _loaded(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    asks = LevelTokens.__new__(LevelTokens)
    asks.device, asks.dtype = torch.device("cpu"), dtype
    return LOAD(asks, folder)


LOAD = LevelTokens._load


@pytest.fixture
def fresh() -> None:
    """The test loads its models itself."""


@pytest.fixture
def scorer(folder: Path) -> LevelTokens:
    return made(folder)


def made(folder: Path, **settings: Any) -> LevelTokens:
    asked = {"prompt": LLAVA_PROMPT} if folder.name == "llava" else {}
    found = make_scorer("level_tokens", "cpu", weights=str(folder), **({"dtype": "float32"} | asked | settings))
    assert isinstance(found, LevelTokens) and isinstance(found, Scorer)
    return found


def pictures(count: int = 5, height: int = 64, width: int = 90) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@torch.no_grad()
def wanted(folder: Path, images: np.ndarray, values: tuple[float, ...] = (5.0, 4.0, 3.0, 2.0, 1.0)) -> np.ndarray:
    """One picture a forward, all positions and words of it, from Pillow's pictures."""
    processor = AutoProcessor.from_pretrained(str(folder))
    model = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32).eval()
    text = (LLAVA_PROMPT if folder.name == "llava" else CHAT) + STEM
    words = [f" {level}" for level in LevelSettings.levels]
    ids = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    scores = []
    for image in images:
        inputs = processor(text=[text], images=[Image.fromarray(image)], return_tensors="pt")
        logits = model(**inputs).logits[0, -1]
        scores.append(torch.stack([logits[i] for (i,) in ids]).softmax(0) @ torch.tensor(values))
    return torch.stack(scores).numpy()


# -- scores


@pytest.mark.parametrize("kind", WRITTEN)
def test_scores_are_those_of_a_whole_forward_for_each_picture(folders: dict[str, Path], kind: str) -> None:
    images = pictures()
    expected = wanted(folders[kind], images)
    assert expected.std() > 0.05
    for batch in (None, 2, 5):
        scorer = made(folders[kind], batch=batch)
        scores = scorer.score(images)
        assert scores.dtype == np.float32 and scorer.range == (1.0, 5.0)
        np.testing.assert_allclose(scores, expected, atol=scorer.batch_tolerance or 2e-5)


@pytest.mark.parametrize("kind", WRITTEN)
def test_alone_on_a_cpu_or_deterministic_a_score_has_the_same_bits_in_any_company(
    folders: dict[str, Path], kind: str
) -> None:
    images = pictures()
    alone = made(folders[kind])
    assert alone.batch == alone.preferred_batch == 1 and alone.batch_tolerance == 0
    scores_in_any_company(alone, images)
    square = pictures(5, 112, 112)
    fixed = made(folders[kind], batch=3, deterministic=True)
    assert fixed.batch_tolerance == 0
    np.testing.assert_allclose(scores_in_any_company(fixed, square), alone.score(square), atol=2e-5)


def test_no_pass_has_padding_and_only_the_last_position_is_computed(
    scorer: LevelTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, whole = [], scorer._model.forward

    def forward(**inputs: Any) -> Any:
        out = whole(**inputs)
        seen.append((inputs["attention_mask"], out.logits))
        return out

    monkeypatch.setattr(scorer._model, "forward", forward)
    scorer.batch = 3
    for images in (pictures(4), pictures(3, 112, 56)):
        scorer.score(images)
    assert [len(mask) for mask, _ in seen] == [3, 1, 3]
    for mask, logits in seen:
        assert bool(mask.all()) and logits.shape[:2] == (len(mask), 1)


def test_deterministic_passes_have_one_shape(folder: Path) -> None:
    scorer = made(folder, batch=4, deterministic=True)
    rows, read = [], scorer._levels
    scorer._levels = lambda inputs: (rows.append(len(inputs["input_ids"])), read(inputs))[1]  # type: ignore
    scorer.score(pictures(5))
    scorer.score(pictures(1))
    assert rows == [4] * 8  # five to see that the size keeps its bits


def test_deterministic_is_refused_where_a_place_in_the_batch_changes_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LevelTokens._levels

    def by_place(self: LevelTokens, inputs: Any) -> Tensor:
        levels = plain(self, inputs)
        return levels + torch.arange(len(levels))[:, None] * torch.linspace(0, 1e-4, 5)

    monkeypatch.setattr(LevelTokens, "_levels", by_place)
    with pytest.raises(ValueError, match="deterministic=true, but on cpu .* set batch=1"):
        made(folder, batch=4, deterministic=True).score(pictures(2))
    made(folder, batch=1, deterministic=True).score(pictures(2))


def test_deterministic_is_refused_at_a_size_at_which_a_place_changes_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LevelTokens._levels

    def by_place(self: LevelTokens, inputs: Any) -> Tensor:
        levels = plain(self, inputs)
        odd = len(inputs["pixel_values"]) % 64 > 0
        return levels + odd * torch.arange(len(levels))[:, None] * torch.linspace(0, 1e-4, 5)

    monkeypatch.setattr(LevelTokens, "_levels", by_place)
    scorer = made(folder, batch=4, deterministic=True)
    assert np.isfinite(scorer.score(pictures(2, 112, 112))).all()
    with pytest.raises(ValueError, match="the score of a picture of 90x64 differs by .* in a batch of 4: set batch=1"):
        scorer.score(pictures(2))


def test_a_replica_is_ready_if_bits_are_kept_at_the_size_it_is_for_whatever_the_probes_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, bad = LevelTokens._levels, 0

    def by_place(self: LevelTokens, inputs: Any) -> Tensor:
        levels = plain(self, inputs)
        side = 192 if len(inputs["pixel_values"]) > 600 else 112
        return levels + (side == bad) * torch.arange(len(levels))[:, None] * torch.linspace(0, 1e-4, 5)

    monkeypatch.setattr(LevelTokens, "_levels", by_place)
    params = {"weights": str(folder)}
    for bad in (192, 112):
        probe = Probe(made(folder, batch=4, deterministic=True), "level_tokens", params, side=112)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is stored of it
            if bad == 192:
                assert np.isfinite(probe.check()) and np.isfinite(probe.check())
                continue
            with pytest.raises(ScorerFailed, match="of 112 x 112, the size that it is served for .*set batch=1"):
                probe.check()


def test_levels_weights_stem_and_question_are_the_users(folder: Path) -> None:
    images = pictures(3)
    fewer = made(folder, levels=["good", "bad"], level_weights=[1, 0])
    assert fewer.range == (0.0, 1.0)
    scores, plain = fewer.score(images), made(folder)
    assert ((scores > 0) & (scores < 1)).all()
    realign = made(folder, level_weights=[1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(realign.score(images), (plain.score(images) - 1) / 4, atol=1e-5)
    for other in ({"question": "How good?"}, {"stem": "It is"}, {"template": {"enable_thinking": False}}):
        assert np.abs(made(folder, **other).score(images) - plain.score(images)).max() > 1e-3
    same = made(folder, prompt=CHAT)
    np.testing.assert_array_equal(same.score(images), plain.score(images))
    smaller = made(folder, processor={"size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}})
    assert smaller.tokens < plain.tokens and np.abs(smaller.score(images) - plain.score(images)).max() > 1e-4


def test_without_a_stem_levels_follow_the_prompt_without_a_space(folder: Path) -> None:
    assert LevelSettings(stem="").spelt("good") == "good" and LevelSettings(stem="is ").spelt("good") == "good"
    assert LevelSettings().spelt("good") == " good"
    assert np.isfinite(made(folder, stem="", levels=["a", "b"], level_weights=[1, 0]).score(pictures(1))).all()


def test_a_picture_that_the_model_gives_no_number_for_is_nan_and_its_mates_keep_theirs(folder: Path) -> None:
    images, scorer = pictures(), made(folder, batch=5)
    before, read = scorer.score(images), scorer._levels

    def overflowing(inputs: Any) -> Tensor:
        levels = read(inputs)
        levels[1, 2], levels[3] = -torch.inf, torch.nan
        return levels

    scorer._levels = overflowing  # type: ignore[method-assign]
    scores = scorer.score(images)
    assert np.isnan(scores).tolist() == [False, True, False, True, False]
    np.testing.assert_array_equal(scores[[0, 2, 4]], before[[0, 2, 4]])


def little_memory(scorer: LevelTokens, most: int) -> None:
    read = scorer._levels

    def limited(inputs: Any) -> Tensor:
        if len(inputs["input_ids"]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return read(inputs)

    scorer._levels = limited  # type: ignore[method-assign]


def test_without_memory_for_its_batch_it_is_halved_and_everything_is_scored(folder: Path) -> None:
    images = pictures(7)
    expected, scorer = made(folder).score(images), made(folder, batch=7)
    little_memory(scorer, 2)
    with pytest.warns(UserWarning, match="level_tokens: not enough memory on cpu for .* pictures at once: . from here"):
        scores = scorer.score(images)
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert scorer.batch == scorer.preferred_batch == 1
    fixed = made(folder, batch=4, deterministic=True)
    little_memory(fixed, 3)
    with pytest.raises(MemoryError, match="deterministic=true keeps the batch: set batch=2"):
        fixed.score(pictures(1))
    little_memory(scorer, 0)
    with pytest.raises(MemoryError, match="for 1 pictures at once: give"):
        scorer.score(pictures(2))


def test_other_errors_of_a_pass_are_not_taken_for_memory(scorer: LevelTokens) -> None:
    def broken(inputs: Any) -> Tensor:
        raise RuntimeError("device-side assert")

    scorer._levels = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="device-side assert"):
        scorer.score(pictures(2))


def test_half_types_score_nearly_the_same(folder: Path, scorer: LevelTokens) -> None:
    images = pictures(3)
    for dtype in ("bfloat16", "float16"):
        assert 0 < np.abs(made(folder, dtype=dtype).score(images) - scorer.score(images)).max() < 0.2


def test_the_least_side_is_what_it_takes(scorer: LevelTokens) -> None:
    side = LEAST_SIDE["level_tokens"]
    assert scorer.least_side == side and np.isfinite(scorer.score(pictures(1, side, side))).all()
    for images, told in (
        (pictures(1, side, side - 1), "too small"),
        (pictures(1).astype(np.float32), "not float32"),
        (pictures(0), "empty"),
    ):
        with pytest.raises(ValueError, match=told):
            scorer.score(images)


def test_the_estimate_of_memory_counts_the_weights_and_grows_with_the_batch(folder: Path, scorer: LevelTokens) -> None:
    weights = sum(v.nbytes for v in load_file(folder / "model.safetensors").values())
    assert weights < scorer.memory_bytes(1) < scorer.memory_bytes(2)
    assert scorer.memory_bytes(2) - scorer.memory_bytes(1) == scorer.memory_bytes(3) - scorer.memory_bytes(2)


# -- the version


def test_the_version_tells_weights_files_and_settings_apart_but_not_the_batch(folder: Path, tmp_path: Path) -> None:
    usual = made(folder).version
    assert usual.startswith("level_tokens-") and made(folder, batch=3).version == usual
    versions = [usual]
    for settings in (
        {"stem": "It is"},
        {"question": "Good?"},
        {"level_weights": [9, 4, 3, 2, 1]},
        {"template": {"enable_thinking": False}},
        {"dtype": "bfloat16"},
        {"deterministic": True},
        {"processor": {"do_normalize": False}},
    ):
        versions.append(made(folder, **settings).version)
    other = copied(folder, tmp_path / "weights")
    state = load_file(other / "model.safetensors")
    state["lm_head.weight"][0, 0] += 1
    save_file(state, other / "model.safetensors", {"format": "pt"})
    versions.append(made(other).version)
    other = copied(folder, tmp_path / "processor")
    config = json.loads((other / "processor_config.json").read_text())
    config["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    (other / "processor_config.json").write_text(json.dumps(config))
    versions.append(made(other).version)
    assert len(set(versions)) == len(versions)
    (copied(folder, tmp_path / "more") / "README.md").write_text("a model")
    assert made(tmp_path / "more").version == usual


# -- what is refused


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"level_weights": [5, 4, 3, 2]}, "one finite number for each of excellent"),
        ({"level_weights": [5, 4, 3, 2, float("nan")]}, "one finite number"),
        ({"level_weights": [1, 2, 3, 4, 5]}, "must fall from excellent to bad"),
        ({"levels": ["good"], "level_weights": [1]}, "two different words at least"),
        ({"levels": ["good", "good"], "level_weights": [1, 0]}, "two different words"),
        ({"question": ""}, "question='': ask something"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 2.5}, "batch=2.5"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"prompts": "?"}, "unexpected keyword argument 'prompts'"),
    ],
)
def test_bad_settings_are_refused_by_name_before_anything_is_read(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_scorer("level_tokens", weights="absent", **settings)


def test_a_level_that_is_no_single_token_behind_the_stem_is_named(folder: Path) -> None:
    with pytest.raises(
        ValueError, match="the level 'unheard' is no single token behind .*The quality of the image is'"
    ):
        made(folder, levels=["good", "unheard"], level_weights=[1, 0])
    with pytest.raises(ValueError, match="the level 'good' is no single token"):
        made(folder, stem="", levels=["bad", "good"], level_weights=[1, 0])  # only " good" is one


def test_two_levels_of_one_token_are_named(folder: Path, tmp_path: Path) -> None:
    one = copied(folder, tmp_path / "one")
    spelling = json.loads((one / "tokenizer.json").read_text())
    spelling["normalizer"] = {"type": "Lowercase"}
    (one / "tokenizer.json").write_text(json.dumps(spelling))
    with pytest.raises(ValueError, match="'good' and 'GOOD' are the same token"):
        made(one, levels=["good", "GOOD"], level_weights=[1, 0])


def test_a_prompt_without_a_picture_or_with_two_is_refused(folder: Path, folders: dict[str, Path]) -> None:
    for prompt in ("How good is it? ", CHAT + CHAT):
        with pytest.raises(
            ValueError, match="its processor refuses a picture with the text .* mark of a picture, once"
        ):
            made(folder, prompt=prompt)
    with pytest.raises(ValueError, match="has no chat template .*: give the whole text as `prompt`"):
        made(folders["llava"], prompt="")


def test_what_is_no_folder_of_a_model_is_told(folder: Path, tmp_path: Path, fresh: None) -> None:
    with pytest.raises(ValueError, match="scorer level_tokens needs `weights`.*docs/reward.md"):
        make_scorer("level_tokens")
    with pytest.raises(ValueError, match="absent holds no config.json"):
        made(tmp_path / "absent")
    lora = copied(folder, tmp_path / "lora")
    (lora / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a LoRA; merge it"):
        made(lora)
    other = copied(folder, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=f"scorer level_tokens: {other}: "):
        made(other)
    pointer = copied(folder, tmp_path / "pointer")
    (pointer / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1700000000\n"
    )
    with pytest.raises(ValueError, match="Git LFS pointer"):
        made(pointer)
    damaged = copied(folder, tmp_path / "damaged")
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"scorer level_tokens: {damaged}: "):
        made(damaged)


def test_missing_and_unexpected_keys_are_named_and_never_drawn_at_random(
    folder: Path, tmp_path: Path, fresh: None
) -> None:
    for number, what in enumerate(("missing", "unexpected")):
        other = copied(folder, tmp_path / str(number))
        state = load_file(other / "model.safetensors")
        key = "visual.merger.ln_q.weight"
        value = next(v for k, v in state.items() if k.endswith(key))
        if what == "missing":
            state = {k: v for k, v in state.items() if not k.endswith(key)}
        else:
            state["lm_head.bias"] = value.clone()
        save_file(state, other / "model.safetensors", {"format": "pt"})
        named = key if what == "missing" else "lm_head.bias"
        with pytest.raises(ValueError, match=f"does not fit its config.json: {what} keys .*{named}"):
            made(other)


def test_a_torch_file_is_not_read(folder: Path, tmp_path: Path, fresh: None) -> None:
    other = copied(folder, tmp_path / "bin")
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no file named model.safetensors"):
        made(other)


def test_a_models_own_program_is_not_run(folder: Path, tmp_path: Path, fresh: None) -> None:
    other = copied(folder, tmp_path / "program")
    config = json.loads((other / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoConfig": "mine.C", "AutoModelForImageTextToText": "mine.M"},
    }
    (other / "config.json").write_text(json.dumps(config))
    (other / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match="scorer level_tokens: "):
        made(other)


def test_weights_that_the_device_has_no_memory_for_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", full)
    with pytest.raises(MemoryError, match="level_tokens: the weights don't fit on cpu in torch.float32"):
        made(folder)
