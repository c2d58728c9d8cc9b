"""Supervised fine-tuning of a base model on a task."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from restoration.adapters import AdapterError, AdaptSettings, load_trainable, make_trainable, reference
from restoration.backbones.cleaners import training_loss
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.backbones.snr import SNRAware, SNRConfig
from restoration.base_models import CheckpointError, load, sampler_of
from restoration.base_models.interface import SamplerSettings
from restoration.base_models.networks.control_heads import ControlHeads
from restoration.checkpoints import empty
from restoration.datasets.paired import DataError, discover
from restoration.evaluate import evaluate_pairs, mean_values
from restoration.images import ImageError
from restoration.pretrain.crops import PhotoCrops
from restoration.pretrain.pairs import PairRecipe
from restoration.pretrain.sft import (
    CleanerStage,
    DiffusionStage,
    RecipeError,
    SftRecipe,
    Validation,
    diffusion_losses,
    fine_tune,
)
from restoration.pretrain.sft_data import SftData, TrainingSet, held_out, training_pairs
from restoration.restore import sample
from tests.restoration.released_folders import write_embeddings
from tests.restoration.released_models import EACH
from tests.restoration.tiny_model import TinyModel

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
QUICK = SamplerSettings(steps=1)
LORA = AdaptSettings("lora", rank=2, alpha=2.0)
ENDS = Validation(every=0, images=1, crop=64, batch=1)


COLOURED = tuple(
    f"{name}.jpg"
    for name in (
        *("aitzgorri", "astronaut", "bird", "bridge", "brushes", "clock", "dragonfly"),
        *("fig", "flower", "life", "rocket", "sunset", "wine"),
    )
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """Photographs, and the same darkened with red and blue exchanged."""
    root = tmp_path_factory.mktemp("pairs")
    coloured = tmp_path_factory.mktemp("photographs")  # of grey ones there is little to learn
    for name in COLOURED:
        (coloured / name).symlink_to(photo_folder.resolve() / "train" / name)
    for split, source, count in (("train", coloured, 24), ("test", photo_folder / "heldout", 4)):
        crops = PhotoCrops(source, 64, (0.25, 0.25), seed=0)
        for name in ("input", "target"):
            (root / split / name).mkdir(parents=True)
        for i in range(count):
            gt = crops.one()
            Image.fromarray(gt).save(root / split / "target" / f"{i}.png")
            Image.fromarray((gt[..., ::-1] * 0.5).round().astype(np.uint8)).save(root / split / "input" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path]) -> Path:
    """A tiny ControlNet of Stable Diffusion."""
    return model_folder("controlnet")


def stage(**settings: Any) -> DiffusionStage:
    chosen = {"iterations": 2, "batch_size": 2, "micro_batch": 2, "crop": 16, "lr": 1e-3, "warmup": 0, **settings}
    return DiffusionStage(**chosen)


def cleaning(**settings: Any) -> CleanerStage:
    chosen = {"iterations": 2, "batch_size": 2, "micro_batch": 2, "crop": 16, "lr": 1e-3, "warmup": 0, **settings}
    return CleanerStage(**chosen)


def recipe(model: Path, root: Path, **settings: Any) -> SftRecipe:
    chosen = {"diffusion": stage(), "validation": ENDS, "sampler": QUICK, "device": "cpu", **settings}
    return SftRecipe(model=model, data=SftData(root=root), **chosen)


def log_of(out: Path, name: str, key: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "sft.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line["stage"] == name and key in line]


def weights_of(model: Path) -> dict[str, Tensor]:
    files = [f for f in model.rglob("*.safetensors") if "stages" not in f.parts]
    return {f"{f.relative_to(model).parent}/{k}": v for f in files for k, v in load_file(f).items()}


@pytest.mark.slow
def test_a_model_learns_a_task_it_did_not_know_and_its_folder_restores_as_well_as_the_log_says(
    pairs: Path, tmp_path: Path
) -> None:
    told = recipe(
        DEMO,
        pairs,
        cleaner=cleaning(iterations=14, batch_size=4, crop=32, warmup=2, log_every=5),
        diffusion=stage(iterations=24, batch_size=4, crop=32, warmup=4, ema=0.8, log_every=6),
        validation=Validation(every=0, images=4, crop=32, batch=4),
        sampler=SamplerSettings(steps=2),
    )
    fine_tune(told, tmp_path / "out")
    cleaned, restored = (log_of(tmp_path / "out", name, "psnr") for name in ("cleaner", "diffusion"))
    loss = log_of(tmp_path / "out", "diffusion", "loss")
    assert cleaned[-1] > cleaned[0] + 2
    assert len(restored) == 2 and restored[-1] > restored[0] + 3
    assert sum(loss[-2:]) < 0.7 * sum(loss[:2])
    model = load(tmp_path / "out")
    sampler = sampler_of(tmp_path / "out", model)
    assert sampler == told.sampler
    rows = evaluate_pairs(model, held_out(told.data, 4, 32), sampler, {})
    assert math.isclose(mean_values(rows)["psnr"], restored[-1], abs_tol=0.01)


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ("controlnet", {"diffusion": stage()}),
        ("controlnet", {"diffusion": stage(adapt=LORA)}),
        ("cleaner", {"diffusion": None, "cleaner": cleaning()}),
    ],
    ids=["full", "lora", "cleaner"],
)
def test_only_the_declared_part_changes(
    changed: str, settings: dict[str, Any], folder: Path, pairs: Path, tmp_path: Path
) -> None:
    fine_tune(recipe(folder, pairs, **settings), tmp_path)
    before, after = weights_of(folder), weights_of(tmp_path)
    assert before.keys() == after.keys()
    differing = {name.split("/")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert differing == {changed}
    assert (tmp_path / "restorl_model.json").read_text() == (folder / "restorl_model.json").read_text()


@pytest.mark.parametrize(("killed_in", "after"), [("cleaner", 3), ("diffusion", 1)])
def test_a_killed_training_goes_on_to_the_same_bits_and_log(
    killed_in: str, after: int, folder: Path, pairs: Path, tmp_path: Path
) -> None:
    rhythm = {"iterations": 4, "checkpoint_every": 2, "log_every": 3, "ema": 0.9, "warmup": 4}
    told = recipe(
        folder,
        pairs,
        cleaner=cleaning(**rhythm),
        diffusion=stage(**rhythm, adapt=LORA),
        validation=replace(ENDS, every=3, crop=16),
    )
    fine_tune(told, tmp_path / "whole")

    def kill(name: str, done: int, total: int, figures: dict[str, float]) -> None:
        if (name, done) == (killed_in, after):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(told, tmp_path / "killed", kill)
    assert not (tmp_path / "killed" / "restorl_model.json").exists()
    fine_tune(told, tmp_path / "killed")
    whole, again = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    states = [load_file(tmp_path / f / "stages" / "diffusion.safetensors") for f in ("whole", "killed")]
    assert states[0].keys() == states[1].keys() and any(k.startswith("adamw.exp_avg_sq/") for k in states[0])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    logs = [(tmp_path / f / "sft.jsonl").read_text().splitlines() for f in ("whole", "killed")]
    whole_log, again_log = ([json.loads(line) | {"iteration_s": 0, "seconds": 0} for line in log] for log in logs)
    assert whole_log == again_log


def test_a_finished_training_goes_on_when_more_iterations_are_asked_for(
    folder: Path, pairs: Path, tmp_path: Path
) -> None:
    fine_tune(recipe(folder, pairs, diffusion=stage()), tmp_path / "whole")
    for iterations in (1, 2):
        fine_tune(recipe(folder, pairs, diffusion=stage(iterations=iterations)), tmp_path / "longer")
    whole, longer = weights_of(tmp_path / "whole"), weights_of(tmp_path / "longer")
    assert all(torch.equal(value, longer[name]) for name, value in whole.items())


def test_the_merged_lora_gives_the_pictures_that_the_adapter_gave(folder: Path, pairs: Path, tmp_path: Path) -> None:
    fine_tune(recipe(folder, pairs, diffusion=stage(iterations=4, lr=0.03, adapt=LORA)), tmp_path)
    adapted = load(folder)
    make_trainable(adapted, LORA)
    state = load_file(tmp_path / "stages" / "diffusion.safetensors")
    load_trainable(adapted, {k.removeprefix("weights/"): v for k, v in state.items() if k.startswith("weights/")})
    lq = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    base, with_adapter, merged = (
        sample(m, lq, QUICK, torch.Generator().manual_seed(0)) for m in (load(folder), adapted, load(tmp_path))
    )
    assert (base - merged).abs().max() > 0.01
    assert torch.allclose(with_adapter, merged, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_every_model_takes_two_steps(
    name: str, model_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    before = load(model_folder(name))
    after = fine_tune(
        recipe(
            model_folder(name),
            pairs,
            diffusion=stage(crop=32, batch_size=1, adapt=LORA),
            validation=replace(ENDS, crop=32),
        ),
        tmp_path / "out",
    )
    assert all(math.isfinite(loss) and loss > 0 for loss in log_of(tmp_path / "out", "diffusion", "loss"))
    old, new = before.policy.state_dict(), after.policy.state_dict()
    changed = [k for k, v in old.items() if not torch.equal(v, new[k])]
    assert changed and all(re.fullmatch(before.lora_targets, k.rpartition(".")[0]) for k in changed)


def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_split(folder: Path, pairs: Path) -> None:
    model, drawn = load(folder), training_pairs(SftData(root=pairs), 16, seed=0)
    split = [
        [float(share.detach()) for share in diffusion_losses(model, drawn, s, 0, torch.device("cpu"))(7)]
        for s in (stage(batch_size=3, micro_batch=3), stage(batch_size=3, micro_batch=2))
    ]
    assert [len(shares) for shares in split] == [1, 2]
    assert math.isclose(sum(split[0]), sum(split[1]), rel_tol=1e-5)


def test_what_saves_memory_or_time_leaves_the_loss_about_the_same(folder: Path, pairs: Path, tmp_path: Path) -> None:
    plain = stage(log_every=1)
    saving = replace(plain, bfloat16=True, gradient_checkpointing=True)
    for name, settings in (("plain", plain), ("saving", saving)):
        fine_tune(recipe(folder, pairs, diffusion=settings), tmp_path / name)
    losses = [log_of(tmp_path / name, "diffusion", "loss") for name in ("plain", "saving")]
    assert losses[0] != losses[1]
    assert np.allclose(*losses, rtol=0.02)


def test_auto_computes_in_what_the_device_multiplies_and_bfloat16_by_name_is_told_where_it_is_slow(
    folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stage(log_every=1, iterations=1)
    losses = {}
    for native in (True, False):
        monkeypatch.setattr("restoration.precision.multiplies_bf16", lambda device, native=native: native)
        for given in (False, True, "auto"):
            out = tmp_path / f"{native}{given}"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fine_tune(recipe(folder, pairs, diffusion=replace(plain, bfloat16=given)), out)
            told = any("diffusion.bfloat16=true: bfloat16 takes about ten times" in str(w.message) for w in caught)
            assert told == (given is True and not native)
            losses[native, given] = log_of(out, "diffusion", "loss")
    assert losses[True, "auto"] == losses[True, True] == losses[False, True]
    assert losses[False, "auto"] == losses[False, False] != losses[False, True]
    with pytest.raises(ValueError, match="bfloat16='fast': choose true, false or auto"):
        stage(bfloat16="fast")


def test_an_offset_gives_the_noise_of_a_channel_a_mean_of_its_own(pairs: Path) -> None:
    class Listening(TinyModel):
        def sft_loss(self, gt_latent: Tensor, condition: Any, timestep: Tensor, noise: Tensor) -> Tensor:
            self.noise = noise  # type: ignore[assignment]
            return super().sft_loss(gt_latent, condition, timestep, noise)

    heard = []
    for offset in (0.0, 0.5):
        model = Listening()
        drawn = training_pairs(SftData(root=pairs), 16, seed=0)
        list(diffusion_losses(model, drawn, stage(noise_offset=offset), 0, torch.device("cpu"))(0))  # type: ignore[arg-type]
        heard.append(model.noise)
    added = heard[1] - heard[0]  # type: ignore[operator]
    assert added.abs().min() > 1e-3
    assert torch.allclose(added, added[..., :1, :1].expand_as(added), atol=1e-5)


def test_several_sets_are_drawn_from_by_their_weights_whatever_their_sizes_and_the_same_again(tmp_path: Path) -> None:
    for name, count, level in (("many", 9, 50), ("few", 2, 200)):
        for side in ("input", "target"):
            (tmp_path / name / "train" / side).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 20), (level,) * 3).save(tmp_path / name / "train" / side / f"{name}{i}.png")
    both = (TrainingSet(tmp_path / "many", weight=1), TrainingSet(tmp_path / "few", weight=3))
    data = SftData(root=tmp_path / "many", sets=both)
    drawn, again = (training_pairs(data, 16, seed=0) for _ in range(2))
    lq, gt, ids = drawn.batch(400, (0, 1))
    of_few = [name.startswith("few") for name in ids]
    assert sum(of_few) / 400 == pytest.approx(0.75, abs=0.06) and len({*ids}) == 11
    assert torch.equal((lq[:, 0, 0, 0] * 255).round() == 200, torch.tensor(of_few))
    again.batch(3, (0, 7))
    assert again.batch(400, (0, 1))[2] == ids and torch.equal(again.batch(400, (0, 1))[1], gt)
    assert drawn.batch(400, (0, 2))[2] != ids
    with pytest.raises(DataError, match="images are smaller than the crop of 32 px"):
        training_pairs(data, 32, seed=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (lambda: TrainingSet(Path("a"), weight=0), "data.sets: weight=0 of a: a number above 0"),
        (lambda: TrainingSet(Path("a"), set="rain100"), "data.sets: set=rain100: no public set named"),
        (
            lambda: TrainingSet(Path("a"), set="rain100h", train="val"),
            "data.sets: train=val: rain100h has no such split",
        ),
        (lambda: SftData(photos=Path("a"), sets=(TrainingSet(Path("b")),)), "data.sets: give data.root, too"),
        (
            lambda: SftData(Path("a"), sets=(TrainingSet(Path("b")),), embeddings=Path("c")),
            "data.sets with data.embeddings: pictures of two sets may have one id",
        ),
    ],
)
def test_a_mistake_in_several_sets_says_what_to_do(settings: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        settings()


def test_pairs_depend_on_the_seed_and_not_on_those_before(pairs: Path, photo_folder: Path) -> None:
    degraded = SftData(photos=photo_folder, pairs=PairRecipe(scale=(0.25, 0.25)))
    for data in (SftData(root=pairs), degraded):
        first, other = (training_pairs(data, 16, seed=0) for _ in range(2))
        first.batch(3, (0, 1))
        for a, b in zip(first.batch(2, (0, 2))[:2], other.batch(2, (0, 2))[:2], strict=True):
            assert torch.equal(a, b) and a.shape == (2, 3, 16, 16)
        assert not torch.equal(first.batch(2, (0, 2))[1], first.batch(2, (0, 3))[1])


def test_crops_of_a_pair_lie_at_the_same_place(pairs: Path) -> None:
    lq, gt, _ = training_pairs(SftData(root=pairs), 16, seed=0).batch(8, (0,))
    assert torch.allclose(lq, gt.flip(1) / 2, rtol=0, atol=0.6 / 255)


def test_held_out_pairs_are_the_same_every_time_and_cut_from_the_middle(pairs: Path, photo_folder: Path) -> None:
    shown = held_out(SftData(root=pairs), count=3, crop=32)
    folder = discover(pairs, "test")
    assert [p.image_id for p in shown.pairs] == [folder.pairs[i].image_id for i in (0, 1, 2)]
    whole = folder.load(shown.pairs[0].image_id)
    for cut, image in zip(shown.load(shown.pairs[0].image_id), whole, strict=True):
        assert torch.equal(cut, image[:, 16:48, 16:48])
    assert {p.size for p in held_out(SftData(root=pairs), count=99, crop=0).pairs} == {(64, 64)}
    degraded = SftData(photos=photo_folder, pairs=PairRecipe(scale=(0.25, 0.25)))
    first, again = (held_out(degraded, 2, 32) for _ in range(2))
    assert torch.equal(first.load("0001")[0], again.load("0001")[0])


def test_the_cleaners_are_trained_by_their_authors_losses() -> None:
    restored, gt = torch.tensor([[[[0.2]]], [[[0.5]]]]), torch.tensor([[[[0.5]]], [[[0.5]]]])
    restormer = empty(lambda: Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1))))
    assert torch.allclose(training_loss(restormer, restored, gt), torch.tensor([0.3, 0.0]))
    snr = empty(lambda: SNRAware(SNRConfig()))
    assert torch.allclose(training_loss(snr, restored, gt), torch.tensor([(0.09 + 1e-6) ** 0.5, 1e-3]))


def test_training_without_a_reference_keeps_none(folder: Path) -> None:
    model = load(folder)
    make_trainable(model, AdaptSettings("full"), keep_reference=False)
    with pytest.raises(AdapterError, match="keep_reference"), reference(model):
        pass


def test_a_users_mistakes_are_told(folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = recipe(folder, pairs)
    for told, error, message in (
        (replace(fine, diffusion=stage(crop=24)), RecipeError, r"diffusion.crop=24: .* multiples of 16"),
        (replace(fine, diffusion=stage(crop=128)), DataError, "24 of 24 images are smaller than the crop of 128 px"),
        (replace(fine, model=tmp_path / "none"), CheckpointError, "not a folder"),
        (replace(fine, data=SftData(root=tmp_path / "none")), FileNotFoundError, "no folder"),
        (replace(fine, device="cuda:77"), RecipeError, "GPUs here"),
        (replace(fine, device="gpu"), RecipeError, "no device"),
        (replace(fine, diffusion=stage(adapt=AdaptSettings(targets="nothing"))), AdapterError, "no module"),
        (replace(fine, diffusion=stage(adapt=AdaptSettings(frozen_dtype="auto"))), RecipeError, "would be rounded"),
    ):
        with pytest.raises(error, match=message):
            fine_tune(told, tmp_path / "out")
    with pytest.raises(CheckpointError, match="model to start from"):
        fine_tune(fine, folder)
    with pytest.raises(CheckpointError, match="made otherwise"):
        fine_tune(replace(fine, model=folder), DEMO)
    monkeypatch.setattr("restoration.pretrain.sft.load", lambda *_: TinyModel())
    with pytest.raises(RecipeError, match="tiny has no cleaner"):
        fine_tune(replace(fine, cleaner=cleaning()), tmp_path / "out")
    with pytest.raises(ValueError, match="one of them"):
        SftData()
    with pytest.raises(ValueError, match="one of them"):
        SftData(root=pairs, photos=pairs)
    with pytest.raises(ValueError, match="trains nothing"):
        recipe(folder, pairs, diffusion=None)
    with pytest.raises(ValueError, match="ema=1"):
        stage(ema=1.0)


def test_a_state_of_other_settings_is_not_gone_on_from(folder: Path, pairs: Path, tmp_path: Path) -> None:
    fine_tune(recipe(folder, pairs), tmp_path)
    with pytest.raises(CheckpointError, match=r"diffusion.lr was 0.001, now 0.002; take those back"):
        fine_tune(recipe(folder, pairs, diffusion=stage(lr=2e-3)), tmp_path)
    with pytest.raises(CheckpointError, match="at iteration 2 already"):
        fine_tune(recipe(folder, pairs, diffusion=stage(iterations=1)), tmp_path)
    (tmp_path / "stages" / "diffusion.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="no state of a training"):
        fine_tune(recipe(folder, pairs), tmp_path)


def test_a_training_that_diverges_stops_and_says_so(folder: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"lower diffusion.lr"):
        fine_tune(recipe(folder, pairs, diffusion=stage(iterations=4, lr=1e30, grad_clip=0)), tmp_path)


def test_embeddings_of_single_pictures_are_found_by_the_ids_of_the_pairs(
    model_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    model = model_folder("seesr")
    (tmp_path / "each").mkdir()
    data = replace(recipe(model, pairs).data, embeddings=tmp_path / "each")
    short = replace(recipe(model, pairs, diffusion=stage(batch_size=1, adapt=LORA)), data=data)
    with pytest.raises(CheckpointError, match=r"each/.*safetensors is missing"):
        fine_tune(short, tmp_path / "none")
    for folder in ("train", "test"):
        for pair in discover(pairs, folder).pairs:
            write_embeddings(tmp_path / "each" / f"{pair.image_id}.safetensors", image=(1, 5, 512))
    fine_tune(short, tmp_path / "out")
    with pytest.raises(ValueError, match="have none; give data.root"):
        SftData(photos=tmp_path, embeddings=tmp_path)


def test_heads_teach_the_controlnet_go_on_after_an_interruption_and_are_not_part_of_the_model(
    model_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    def told(iterations: int, heads: float) -> SftRecipe:
        return recipe(model_folder("xpsr"), pairs, diffusion=stage(iterations=iterations, heads=heads, batch_size=1))

    fine_tune(told(2, 0.0), tmp_path / "plain")
    fine_tune(told(1, 1.0), tmp_path / "parts")
    fine_tune(told(2, 1.0), tmp_path / "parts")
    fine_tune(told(2, 1.0), tmp_path / "whole")
    plain, parts, whole = (weights_of(tmp_path / name) for name in ("plain", "parts", "whole"))
    assert plain.keys() == whole.keys() and all(torch.equal(v, parts[k]) for k, v in whole.items())
    hint = "controlnet/controlnet_cond_embedding.blocks.0.weight"
    assert not torch.equal(plain[hint], whole[hint])
    trained = load_file(tmp_path / "whole" / "stages" / "diffusion.safetensors")
    assert all(any(f"heads.{name}.0.weight" in k for k in trained) for name in ("rgbs", "latents"))


def test_the_loss_of_the_heads_is_what_separates_them_from_the_ground_truth() -> None:
    torch.manual_seed(0)
    control = ControlNetModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 8),
    )
    heads = ControlHeads(control, latents=4)
    for head in (*heads.rgbs, *heads.latents):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, 0.25)
    gt, latent = torch.full((2, 3, 16, 16), 0.5), torch.full((2, 4, 8, 8), 1.0)
    with heads.watch(control) as seen:
        control(torch.randn(2, 4, 8, 8), 1, torch.randn(2, 3, 8), torch.rand(2, 3, 16, 16))
    pictures, latents = heads.read(seen)
    assert [p.shape[1] for p in pictures] == [3] and [x.shape[1] for x in latents] == [4] * 5
    expected = 0.25 * len(pictures) + 0.75 * len(latents)  # a grey picture is 0 in [-1, 1]
    assert heads(seen, gt, latent).tolist() == pytest.approx([expected] * 2)
    with heads.watch(control) as again:
        pass
    assert again.hints == [] and len(seen.hints) == 1


def test_heads_are_refused_for_a_model_without_them(folder: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"diffusion\.heads=1\.0: controlnet has no such heads; set it to 0"):
        fine_tune(recipe(folder, pairs, diffusion=stage(heads=1.0)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def damaged(tmp_path: Path, pairs: Path) -> Path:
    """A copy of `pairs` with one picture of each split damaged where headers and end don't show it."""
    root = tmp_path / "pairs"
    shutil.copytree(pairs, root)
    for split in ("train", "test"):
        path = min((root / split / "target").iterdir())
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 9] = bytes(9)
        path.write_bytes(content)
    return root


def test_a_picture_that_is_damaged_within_does_not_end_a_training(damaged: Path) -> None:
    drawn = training_pairs(SftData(damaged), 32, seed=0)
    name = min((damaged / "train" / "target").iterdir()).stem
    with pytest.warns(UserWarning, match=rf"{name}\.png: can't be read.*; the pair {name} is left out of the training"):
        batches = [drawn.batch(8, (0, 1, n)) for n in range(12)]
    ids = {image_id for _, _, image_ids in batches for image_id in image_ids}
    assert name not in ids and len(ids) > 10 and all(len(lq) == 8 for lq, _, _ in batches)
    again = drawn.batch(8, (0, 1, 5))
    assert torch.equal(again[0], batches[5][0]) and again[2] == batches[5][2]


def test_a_folder_of_which_nothing_can_be_read_is_given_up(damaged: Path) -> None:
    drawn = training_pairs(SftData(damaged), 32, seed=0)
    for path in (damaged / "train" / "input").iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="20 pictures in a row can't be read"):
        drawn.batch(1, (0,))


def test_a_held_out_picture_that_is_damaged_within_is_found_before_the_training_starts(damaged: Path) -> None:
    name = min((damaged / "test" / "target").iterdir()).name
    with pytest.raises(ImageError, match=rf"target.{re.escape(name)}: can't be read"):
        held_out(SftData(damaged), 4, 0)
