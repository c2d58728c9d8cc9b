"""Training from scratch: where a stage begins, that it can be stopped and go on, its number type."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from restoration.base_models import CheckpointError, load
from restoration.base_models.diffbir import build_small
from restoration.base_models.interface import SamplerSettings
from restoration.datasets.paired import discover
from restoration.demo_data import make_demo
from restoration.evaluate import evaluate_pairs, mean_values
from restoration.pretrain import run
from restoration.pretrain.ahead import Ahead
from restoration.pretrain.cleaner import CleanerRecipe, build_cleaner, pairs_of
from restoration.pretrain.denoiser import DenoiserRecipe, keep_the_condition, settings_of
from restoration.pretrain.fit import Fit, FitSettings
from restoration.pretrain.pairs import DegradedCrops, PairRecipe
from restoration.pretrain.run import PretrainRecipe, Stage, pretrain
from restoration.pretrain.sft import RecipeError
from restoration.pretrain.tiles import heldout_tiles
from restoration.pretrain.vae import VaeRecipe, build_vae, normalise_latents, start_from_components
from restoration.restore import sample

RHYTHM: dict[str, Any] = {"iterations": 3, "anneal": 1, "batch_size": 2, "crop": 32, "warmup": 0, "checkpoint_every": 1}
VAE = VaeRecipe(**RHYTHM, channels=(32, 40, 40), latent_channels=4)
CLEANER = CleanerRecipe(**RHYTHM, network={"channels": [8, 8], "blocks": [1, 1]}, late_crop=64, late_batch=1)
DENOISER = DenoiserRecipe(**RHYTHM, network={"channels": [32]}, pool=2, refresh=2, latent_crop=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph each to learn from and held out, coarse noise."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("train", "heldout"):
        (folder / name).mkdir()
        noise = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        noise.resize((144, 144), Image.Resampling.BICUBIC).save(folder / name / "a.png")
    return folder


@pytest.fixture
def recipe(photos: Path) -> PretrainRecipe:
    return PretrainRecipe(
        photos=photos, pairs=PairRecipe(("rain",)), vae=VAE, cleaner=CLEANER, denoiser=DENOISER, threads=1, tiles=1,
        validate_every=0, sampler=SamplerSettings(steps=2), device="cpu",
    )  # fmt: skip


def weights_of(folder: Path) -> dict[str, Tensor]:
    files = [f for f in folder.rglob("*.safetensors") if "stages" not in f.parts]
    return {f"{f.relative_to(folder).parent}/{k}": v for f in files for k, v in load_file(f).items()}


def log_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) | {"iteration_s": 0, "seconds": 0} for line in file.read_text().splitlines()]


def assert_equal(first: Path, second: Path) -> None:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert log_of(first / "pretrain.jsonl") == log_of(second / "pretrain.jsonl")


def test_killed_or_one_stage_at_a_time_it_ends_in_the_same_model_and_log(
    recipe: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restoration.pretrain.vae._NORMALISED_OVER", 4)
    monkeypatch.setattr(run, "heldout_tiles", lambda *_: {})
    monkeypatch.setattr(run, "judge_autoencoder", lambda *_: {})
    assert pretrain(recipe, tmp_path / "whole") is not None
    for stage, after in (("cleaner", 2), ("denoiser", 1)):

        def kill(name: str, done: int, *_: Any, at: tuple[str, int] = (stage, after)) -> None:
            if (name, done) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tmp_path / "killed", kill)
    pretrain(recipe, tmp_path / "killed")
    assert_equal(tmp_path / "whole", tmp_path / "killed")
    stages: tuple[tuple[Stage, ...], ...] = (("cleaner", "vae"), ("denoiser",))
    made = [pretrain(replace(recipe, stages=chosen), tmp_path / "single") for chosen in stages]
    assert [model is None for model in made] == [True, False]
    assert_equal(tmp_path / "whole", tmp_path / "single")


def test_the_log_says_what_the_model_makes_of_the_held_out_tiles(recipe: PretrainRecipe, tmp_path: Path) -> None:
    once = {"iterations": 1, "anneal": 0}
    stages = {name: replace(getattr(recipe, name), **once) for name in ("vae", "cleaner", "denoiser")}
    pretrain(replace(recipe, **stages), tmp_path)
    figures = {name: [] for name in stages}
    for line in log_of(tmp_path / "pretrain.jsonl"):
        if any(key.endswith("psnr") for key in line):
            figures[line["stage"]].append(line)
    assert [[line["iteration"] for line in lines] for lines in figures.values()] == [[0, 1]] * 3
    tiles = discover(tmp_path / "stages" / "tiles" / "rain", "test")
    model = load(tmp_path)
    assert model.name == "diffbir-small"
    means = mean_values(evaluate_pairs(model, tiles, recipe.sampler, {}))
    told = figures["denoiser"][-1]
    assert math.isclose(told["rain_psnr"], means["psnr"], abs_tol=0.05)
    assert math.isclose(told["rain_ssim"], means["ssim"], abs_tol=0.005)
    assert math.isclose(figures["cleaner"][0]["rain_psnr"], means["input_psnr"], abs_tol=1e-6)
    assert figures["vae"][0]["psnr"] > 15


def test_a_stage_that_is_neither_trained_nor_there_is_told(recipe: PretrainRecipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vae\.safetensors"):
        pretrain(replace(recipe, stages=("denoiser",)), tmp_path)
    pretrain(replace(recipe, stages=("cleaner",)), tmp_path)
    other = replace(recipe, stages=("cleaner",), cleaner=replace(CLEANER, lr=1.0))
    with pytest.raises(CheckpointError, match="lr was 0.001, now 1.0"):
        pretrain(other, tmp_path)


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("denoiser", {"network": {"channels": [8]}}, "networks of the stages: "),
        ("cleaner", {"network": {"channels": [8, 8]}}, "networks of the stages: "),
        ("cleaner", {"late_crop": 33}, "cleaner.late_crop=33: a multiple of 2"),
    ],
)
def test_what_would_end_a_later_stage_is_told_before_the_first(
    recipe: PretrainRecipe, tmp_path: Path, stage: str, change: dict[str, Any], said: str
) -> None:
    stages = {stage: replace(getattr(recipe, stage), **change)}
    with pytest.raises(RecipeError, match=said):
        pretrain(replace(recipe, **stages), tmp_path)
    assert not list((tmp_path / "stages").glob("*.safetensors"))


def test_a_stage_is_not_read_into_another_network_and_an_autoencoder_is_not_taken_from_its_denoiser(
    recipe: PretrainRecipe, tmp_path: Path
) -> None:
    pretrain(replace(recipe, stages=("vae", "cleaner")), tmp_path)
    other = replace(CLEANER, network={"channels": [8, 8], "blocks": [1, 2]})
    with pytest.raises(CheckpointError, match="another network than the settings of cleaner name"):
        pretrain(replace(recipe, stages=("denoiser",), cleaner=other), tmp_path)
    before = (tmp_path / "stages" / "vae.safetensors").read_bytes()
    (tmp_path / "stages" / "denoiser.safetensors").touch()
    with pytest.raises(CheckpointError, match="denoiser.safetensors rests on it; leave the autoencoder as it is"):
        pretrain(replace(recipe, vae=replace(VAE, iterations=9)), tmp_path)
    assert (tmp_path / "stages" / "vae.safetensors").read_bytes() == before


def fit(folder: Path, settings: FitSettings) -> Tensor:
    """Draws a parameter to another number each iteration."""
    weight = nn.Parameter(torch.zeros(2))

    def losses(iteration: int) -> Iterator[Tensor]:
        yield (weight - torch.tensor([1.0, iteration % 3])).square().sum()

    Fit("toy", {"w": weight}, losses, settings, folder / "toy.safetensors", {}, folder / "toy.jsonl", dict).run()
    return weight.detach()


def test_with_more_iterations_it_goes_on_from_before_the_learning_rate_fell(tmp_path: Path) -> None:
    long = FitSettings(iterations=12, anneal=4, lr=0.1, warmup=2, ema=0.9, log_every=1, checkpoint_every=5)
    for name in ("whole", "longer", "lost"):
        (tmp_path / name).mkdir()
    wanted = fit(tmp_path / "whole", long)
    for iterations in (6, 9):
        fit(tmp_path / "longer", replace(long, iterations=iterations))
    assert torch.equal(fit(tmp_path / "longer", long), wanted)
    assert log_of(tmp_path / "longer" / "toy.jsonl") == log_of(tmp_path / "whole" / "toy.jsonl")
    rates = [line["lr"] for line in log_of(tmp_path / "whole" / "toy.jsonl") if "lr" in line]
    assert np.allclose(rates, 0.1 * np.array([0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]))
    fit(tmp_path / "lost", replace(long, iterations=6))
    (tmp_path / "lost" / "toy.plateau.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"toy\.plateau\.safetensors.*take back toy\.iterations=6 and anneal=4"):
        fit(tmp_path / "lost", long)


def test_a_fall_that_begins_where_a_training_was_stopped_can_be_taken_back_too(tmp_path: Path) -> None:
    """As `restorl pretrain cleaner.iterations=<done + anneal>` asks for it."""
    long = FitSettings(iterations=12, anneal=4, lr=0.1, warmup=2, ema=0.9, log_every=1, checkpoint_every=2)
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
    wanted = fit(tmp_path / "whole", long)
    fit(tmp_path / "ended", replace(long, iterations=6, anneal=0))  # as one that was stopped at 6
    fit(tmp_path / "ended", replace(long, iterations=8, anneal=2))
    assert torch.equal(fit(tmp_path / "ended", long), wanted)


def blocks_of_one_colour(count: int) -> Tensor:
    colours = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return interpolate(colours, scale_factor=4, mode="nearest")


@torch.no_grad()
def test_the_autoencoder_begins_as_the_components_of_its_blocks_and_their_colour() -> None:
    torch.manual_seed(0)
    vae, images = build_vae(VAE).eval(), blocks_of_one_colour(8)
    start_from_components(vae, images)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    modes = [vae.encode(v).latent_dist.mode() for v in (x, x * 0.3, torch.zeros_like(x))]
    assert torch.allclose((modes[0] - modes[2]) * 0.3, modes[1] - modes[2], atol=0.02 * float(modes[0].std()))
    # three components hold all of such pictures: their latents have the pictures' length, 48 numbers a block
    latents = vae.encode(images * 2 - 1).latent_dist.mode()
    assert torch.allclose(latents.square().sum(1), 48 * (images * 2 - 1)[..., ::4, ::4].square().mean(1), rtol=0.05)
    y = vae.decode(latents).sample / 2 + 0.5
    assert (y - images).square().mean() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_normalised_latents_have_deviation_1_and_decode_to_the_same_pictures(whiten: float) -> None:
    torch.manual_seed(0)
    vae, images = build_vae(VAE).eval(), torch.rand(4, 3, 32, 32)
    vae.quant_conv.weight[:2] *= 5
    before = vae.encode(images * 2 - 1).latent_dist
    pictures = vae.decode(before.mode()).sample
    normalise_latents(vae, images, whiten)
    after = vae.encode(images * 2 - 1).latent_dist
    assert torch.allclose(vae.decode(after.mode()).sample, pictures, atol=1e-4)
    assert torch.allclose(after.mode().mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    old, new = (d.mode().std((0, 2, 3)) for d in (before, after))
    assert torch.allclose(new.square().mean(), torch.tensor(1.0), atol=1e-3)
    assert torch.allclose(new / new[0], (old / old[0]) ** (1 - whiten), atol=1e-3)
    assert torch.allclose(after.std / before.std, (new / old)[:, None, None].expand_as(after.std), rtol=1e-3)


@torch.no_grad()
def test_an_untrained_denoiser_restores_what_its_cleaner_does() -> None:
    torch.manual_seed(0)
    vae = build_vae(replace(VAE, latent_channels=6)).eval()
    images = torch.rand(8, 3, 32, 32)
    start_from_components(vae, images)
    normalise_latents(vae, images, 1.0)
    cleaner = build_cleaner(CLEANER)
    nn.init.normal_(cleaner.head.weight, std=0.05)  # type: ignore[union-attr]
    model = build_small(vae, cleaner, channels=(32, 64), settings=settings_of())
    keep_the_condition(model)
    restored = sample(model, images, SamplerSettings(steps=3), torch.Generator().manual_seed(0))
    condition = model.condition(images)
    error = (restored - model.decode(condition.latent)).square().mean()
    assert error < 1e-4 and (condition.clean - images).square().mean() > 30 * error


def test_workers_make_the_batches_that_the_training_itself_would(photos: Path) -> None:
    alone, ahead = (pairs_of(photos / "train", PairRecipe(("rain",)), CLEANER, workers) for workers in (0, 1))
    for iteration in (5, 6, 2, 3):
        made = ahead(iteration)
        assert [part.shape for part in made] == [part.shape for part in alone(iteration)]
        assert all(torch.equal(a, b) for a, b in zip(made, alone(iteration), strict=True))
    assert [len(alone(i)[0]) for i in (1, 2)] == [2, 1] and alone(2)[0].shape[-1] == 64


def test_an_error_in_a_worker_is_the_trainings_own() -> None:
    def broken(iteration: int) -> tuple[Tensor, ...]:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        Ahead(broken, 1)(0)


def test_it_is_watched_by_the_very_tiles_of_the_demo(photos: Path, tmp_path: Path) -> None:
    demo = make_demo(photos, tmp_path / "demo", ["rain"], train_count=3, test_count=2)["rain"]
    tiles = heldout_tiles(photos, PairRecipe(("rain",), (0.3, 1.0)), 2, tmp_path / "tiles")["rain"]
    files = sorted(f.relative_to(demo) for f in (demo / "test").rglob("*.png"))
    assert [pair.lq_path.name for pair in tiles.pairs] == sorted({f.name for f in files})
    assert all((tmp_path / "tiles" / "rain" / f).read_bytes() == (demo / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    ("products", "native", "wanted"),
    [
        ("auto", True, {torch.bfloat16}),
        ("auto", False, {torch.float32}),
        ("bfloat16", False, {torch.bfloat16}),
    ],
)
def test_each_stage_multiplies_in_what_the_processor_is_made_for_unless_it_is_named(
    products: Any,
    native: bool,
    wanted: set[torch.dtype],
    recipe: PretrainRecipe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found: dict[str, set[torch.dtype]] = {}

    class Once:
        """Takes the first loss and looks at what the trained convolutions give."""

        def __init__(self, stage: str, losses: Callable[[int], Iterator[Tensor]], log: Path, **_: Any) -> None:
            self.stage, self.losses = stage, losses
            log.touch()

        def run(self) -> None:
            def look(module: nn.Module, given: Any, made: Any) -> None:
                if isinstance(module, nn.Conv2d) and made.requires_grad:
                    found.setdefault(self.stage, set()).add(made.dtype)

            hook = nn.modules.module.register_module_forward_hook(look)
            assert all(share.dtype == torch.float32 for share in self.losses(0))
            hook.remove()

    monkeypatch.setattr(run, "Fit", Once)
    monkeypatch.setattr(run, "heldout_tiles", lambda *_: {})
    monkeypatch.setattr("restoration.precision.multiplies_bf16", lambda device: native)
    told = replace(recipe, products=products)
    if products == "bfloat16":
        with pytest.warns(UserWarning, match="products=bfloat16: bfloat16 takes about ten times as long"):
            pretrain(told, tmp_path / "out")
    else:
        pretrain(told, tmp_path / "out")
    assert found == {"vae": wanted, "cleaner": wanted, "denoiser": wanted}


def test_recoloured_crops_are_the_photographs_with_their_colours_exchanged(photos: Path) -> None:
    plain, other = (
        DegradedCrops(photos / "train", PairRecipe(("rain",)), 16, 0, recolour) for recolour in (False, True)
    )
    wanted, found = plain.batch(16)[1], other.batch(16)[1]
    assert torch.equal(wanted.sort(1).values, found.sort(1).values)
    same = (wanted == found).flatten(1).all(1)
    assert same.any() and not same.all()
