"""All stages of pretraining in order; a finished stage is kept, so an interrupted run goes on after it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import DiffBIR, build_small
from restoration.base_models.interface import SamplerSettings
from restoration.precision import resolve, slow_here
from restoration.pretrain.cleaner import CleanerRecipe, train_cleaner
from restoration.pretrain.denoiser import DenoiserRecipe, train_denoiser
from restoration.pretrain.pairs import PairRecipe
from restoration.pretrain.vae import VaeRecipe, train_vae


@dataclass(frozen=True)
class PretrainRecipe:
    """What `restorl pretrain` trains; photographs of `photos`/train, judged on `photos`/heldout.

    Attributes:
        products: in which matrix products of what is trained are taken, on the CPU; "auto" is bfloat16 where it
            multiplies that natively.
    """

    kind: Literal["scratch"] = "scratch"
    photos: Path = Path("data/photos")
    pairs: PairRecipe = field(default_factory=PairRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    cleaner: CleanerRecipe = field(default_factory=CleanerRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    threads: int = 2
    products: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        resolve(self.products, "cpu")
        if self.threads < 1:
            raise ValueError(f"threads={self.threads}: at least 1")


def pretrain(recipe: PretrainRecipe, out: Path, progress: Callable[..., None] | None = None) -> DiffBIR:
    """Train VAE, cleaner, denoiser; write the model to `out` (float16) with its log and recipe.

    Raises:
        FileNotFoundError: no photographs.
        FloatingPointError: a stage diverged.
    """
    torch.set_num_threads(recipe.threads)
    products = resolve(recipe.products, "cpu")
    if (warning := slow_here(products, "cpu")) is not None:
        warnings.warn(f"products={recipe.products}: {warning}; set it to auto", stacklevel=2)
    out.mkdir(parents=True, exist_ok=True)
    stages = out / "stages"
    log = out / "pretrain.jsonl"
    train, heldout = recipe.photos / "train", recipe.photos / "heldout"
    if (stages / "vae" / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(stages / "vae", local_files_only=True)
    else:
        vae, _ = train_vae(recipe.vae, train, heldout, log, progress, products)
        vae.save_pretrained(stages / "vae")
    cleaner = Restormer(RestormerConfig(**recipe.cleaner.network))
    cleaner_file = stages / "cleaner.safetensors"
    if cleaner_file.exists():
        cleaner.load_state_dict(load_file(cleaner_file))
    else:
        train_cleaner(cleaner, recipe.cleaner, recipe.pairs, train, heldout, log, progress, products)
        save_file(cleaner.state_dict(), cleaner_file)
    model = build_small(vae, cleaner, **recipe.denoiser.network, seed=recipe.denoiser.seed)
    train_denoiser(model, recipe.denoiser, recipe.pairs, recipe.sampler, train, heldout, log, progress, products)
    model.save(out, torch.float16)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2, default=str) + "\n")
    return model
