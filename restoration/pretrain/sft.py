"""Supervised fine-tuning of any base model on a restoration task: its cleaner, then its own trainable part.

An interrupted training goes on from the last state when started again with the same recipe and folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from restoration.adapters import AdaptSettings, enable_checkpointing, make_trainable, merge, trained_parameters
from restoration.backbones.cleaners import training_loss
from restoration.base_models import CheckpointError, load, sampler_of
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.base_models.networks.control_heads import ControlHeads
from restoration.base_models.pixel_control import PixelControl
from restoration.devices import device_of
from restoration.evaluate import evaluate_pairs, mean_values
from restoration.images import crop_back, pad_to_multiple
from restoration.metrics import DEFAULT_PROTOCOL, protocol
from restoration.precision import AUTO, autocast, resolve, slow_here
from restoration.pretrain.fit import Fit, FitSettings, Progress
from restoration.pretrain.sft_data import HeldOut, SftData, TrainingPairs, held_out, training_pairs
from restoration.restore import seeded_generator

LOG_FILE = "sft.jsonl"
# What may change between an interruption and going on.
_FREE = {"iterations", "anneal", "micro_batch", "log_every", "checkpoint_every", "gradient_checkpointing"}


class RecipeError(ValueError):
    """A recipe that doesn't fit the model or the machine; the message says what to change."""


@dataclass(frozen=True)
class CleanerStage(FitSettings):
    """All of the cleaner on (LQ, GT): L1 for Restormer, Charbonnier for SNR-aware."""


@dataclass(frozen=True)
class DiffusionStage(FitSettings):
    """The model's own SFT loss at random timesteps.

    Attributes:
        adapt: what of the policy is trained; a LoRA is merged in the end.
        heads: weight of the loss of auxiliary heads on the ControlNet, for models whose authors have them (PASD: 1,
            XPSR: 0.05); they are new, are trained along, and are not written with the model.
        noise_offset: deviation of an additional noise that is constant over a channel (FaithDiff: 0.02).
        gradient_checkpointing: recompute activations in the backward, where the networks can.
    """

    adapt: AdaptSettings = field(default_factory=lambda: AdaptSettings(mode="full"))
    heads: float = 0.0
    noise_offset: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heads", "noise_offset"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or above")


@dataclass(frozen=True)
class Validation:
    """PSNR and SSIM of held-out pairs during training, with the weights that would be kept.

    Attributes:
        every: iterations; 0 for the ends only.
        images: how many pairs, evenly chosen.
        crop: largest side in pixels, cut from the middle; 0 for whole images.
        batch: pictures of equal size restored together.
    """

    every: int = 1000
    images: int = 16
    crop: int = 512
    batch: int = 4
    protocol: str = DEFAULT_PROTOCOL
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("images", 1), ("crop", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"validation.{name}={getattr(self, name)}: at least {least}")
        protocol(self.protocol)


@dataclass(frozen=True)
class SftRecipe:
    """What `restorl pretrain` fine-tunes.

    Attributes:
        model: folder of the model to start from, which is left as it is.
        cleaner, diffusion: stages, in this order; null leaves one out.
        sampler: of the validation and of the model that is written; null: the one the model restores with. Keys that
            are left out have their defaults, not the model's.
        device: auto, cpu, cuda, cuda:1, ...
        threads: CPU threads, 0 for torch's choice.
        dtype: how the weights of the model are stored.
    """

    model: Path
    data: SftData
    kind: Literal["sft"] = "sft"
    cleaner: CleanerStage | None = None
    diffusion: DiffusionStage | None = field(default_factory=DiffusionStage)
    validation: Validation = field(default_factory=Validation)
    sampler: SamplerSettings | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.cleaner is None and self.diffusion is None:
            raise ValueError("diffusion: null with cleaner: null trains nothing; give a stage")
        if self.seed < 0 or self.threads < 0:
            raise ValueError(f"seed={self.seed}, threads={self.threads}: 0 or above")


def fine_tune(recipe: SftRecipe, out: Path, progress: Progress | None = None) -> BaseModel:
    """Train the stages and write the model to `out`, beside its states (stages/), log (sft.jsonl) and recipe.json.

    Args:
        progress: called with (stage, iterations done, of how many, last figures of the held-out pairs).

    Raises:
        CheckpointError: no model; `out` holds another model or a training with other settings.
        RecipeError: a stage the model can't have, a crop it can't work on, a device that isn't there.
        FileNotFoundError, DataError, ImageError: the data.
        AdapterError: LoRA targets that match nothing.
        FloatingPointError: a stage diverged.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    _refuse_foreign(out, recipe.model)
    device = device_for(recipe.device)
    model = load(recipe.model, recipe.data.embeddings)
    sampler = recipe.sampler or sampler_of(recipe.model, model)
    _check(recipe, model)
    heads = _heads(recipe, model)
    for name, stage in (("cleaner", recipe.cleaner), ("diffusion", recipe.diffusion)):
        if stage is not None and (warning := slow_here(products(stage, device), device)) is not None:
            warnings.warn(f"{name}.bfloat16=true: {warning}; set it to auto", stacklevel=2)
    model.to(device)
    out.mkdir(parents=True, exist_ok=True)
    pairs = held_out(recipe.data, recipe.validation.images, recipe.validation.crop)
    stages = {"cleaner": recipe.cleaner, "diffusion": recipe.diffusion}
    drawn = {n: training_pairs(recipe.data, s.crop, recipe.seed) for n, s in stages.items() if s is not None}
    data = _plain(recipe.data)
    if not recipe.data.sets:
        del data["sets"]  # a training on one set is the same whether recipes know several or not
    identity: dict[str, Any] = {"model": str(recipe.model), "data": data, "seed": recipe.seed}

    def fit(
        stage: str, parameters: Mapping[str, nn.Parameter], losses: Any, validate: Callable[[], dict[str, float]]
    ) -> None:
        settings = stages[stage]
        assert settings is not None
        kept = {k: v for k, v in _plain(settings).items() if k not in _FREE}
        identity.update({f"{stage}.{k}": v for k, v in kept.items()})
        Fit(
            stage=stage,
            parameters=parameters,
            losses=losses,
            settings=settings,
            file=out / "stages" / f"{stage}.safetensors",
            identity=dict(identity),
            log=out / LOG_FILE,
            validate=validate,
            validate_every=recipe.validation.every,
            progress=progress,
        ).run()
        identity[f"{stage}.iterations"] = settings.iterations  # the next stage builds on it

    if recipe.cleaner is not None:
        cleaner = model.cleaner
        assert cleaner is not None
        cleaner.requires_grad_(True)
        fit(
            "cleaner",
            dict(cleaner.named_parameters()),
            _cleaner_losses(cleaner, drawn["cleaner"], recipe.cleaner, recipe.seed, device),
            lambda: _judge_cleaner(cleaner, pairs, model.size_multiple, recipe.validation.protocol, device),
        )
        cleaner.requires_grad_(False)
    if recipe.diffusion is not None:
        make_trainable(model, recipe.diffusion.adapt, keep_reference=False)
        model.policy.eval()
        if heads is not None:
            heads.to(device)
        if recipe.diffusion.gradient_checkpointing:
            enable_checkpointing(model)
        fit(
            "diffusion",
            trained_parameters(model) | ({f"heads.{n}": p for n, p in heads.named_parameters()} if heads else {}),
            diffusion_losses(model, drawn["diffusion"], recipe.diffusion, recipe.seed, device, heads),
            lambda: _judge(model, pairs, sampler, recipe.validation, device),
        )
        merge(model)
    model.save(out, getattr(torch, recipe.dtype))
    written = _plain(recipe) | {"sampler": asdict(sampler)}
    (out / "recipe.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return model


def diffusion_losses(
    model: BaseModel,
    pairs: TrainingPairs,
    settings: DiffusionStage,
    seed: int,
    device: torch.device,
    heads: ControlHeads | None = None,
) -> Callable[[int], Iterator[Tensor]]:
    """Iteration -> shares of the mean SFT loss, one a micro-batch; crops, timesteps and noise by seed and iteration.

    All are drawn for the whole batch on the CPU, so that neither the micro-batch nor the device changes them.
    """

    def losses(iteration: int) -> Iterator[Tensor]:
        lq, gt, ids = pairs.batch(settings.batch_size, (seed, 1, iteration))
        generator = seeded_generator(f"diffusion/{iteration}", seed)
        timestep = torch.randint(model.train_timesteps, (len(lq),), generator=generator)
        seeds = torch.randint(2**62, (len(lq),), generator=generator).tolist()
        for rows in torch.arange(len(lq)).split(settings.micro_batch):
            with torch.no_grad():
                condition = model.condition(lq[rows].to(device), [ids[i] for i in rows] if ids else ())
                latent = model.encode(gt[rows].to(device))
            noise = torch.stack([_noise(latent.shape[1:], seeds[i], settings.noise_offset) for i in rows.tolist()])
            with _precision(settings, device):
                if heads is None:
                    each = model.sft_loss(latent, condition, timestep[rows].to(device), noise.to(device))
                else:
                    with heads.watch(model.policy.get_submodule("controlnet")) as seen:  # type: ignore[arg-type]
                        each = model.sft_loss(latent, condition, timestep[rows].to(device), noise.to(device))
                    each = each + settings.heads * heads(seen, gt[rows].to(device), latent)
            yield each.float().sum() / len(lq)

    return losses


def _noise(shape: torch.Size, seed: int, offset: float) -> Tensor:
    """Standard normal [C, h, w], with `offset` times one more number a channel."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn((shape[0], 1, 1), generator=generator) if offset else noise


def _cleaner_losses(
    cleaner: nn.Module, pairs: TrainingPairs, settings: CleanerStage, seed: int, device: torch.device
) -> Callable[[int], Iterator[Tensor]]:
    def losses(iteration: int) -> Iterator[Tensor]:
        lq, gt, _ = pairs.batch(settings.batch_size, (seed, 0, iteration))
        for rows in torch.arange(len(lq)).split(settings.micro_batch):
            with _precision(settings, device):
                restored = cleaner(lq[rows].to(device))
            yield training_loss(cleaner, restored, gt[rows].to(device)).sum() / len(lq)

    return losses


def _precision(settings: FitSettings, device: torch.device) -> AbstractContextManager[object]:
    return autocast(device, products(settings, device))


def products(settings: FitSettings, device: torch.device | str) -> torch.dtype:
    """In which a stage's products are taken on `device`."""
    if settings.bfloat16 == AUTO:
        return resolve(AUTO, device)
    return torch.bfloat16 if settings.bfloat16 else torch.float32


def _judge(
    model: BaseModel, pairs: HeldOut, sampler: SamplerSettings, how: Validation, device: torch.device
) -> dict[str, float]:
    rows = evaluate_pairs(model, pairs, sampler, {}, how.protocol, how.seed, how.batch, device=device)
    return mean_values(rows)


def _judge_cleaner(
    cleaner: nn.Module, pairs: HeldOut, multiple: int, protocol_name: str, device: torch.device
) -> dict[str, float]:
    psnr = protocol(protocol_name).psnr
    sums = {"psnr": 0.0, "input_psnr": 0.0}
    for pair in pairs.pairs:
        lq, gt = pairs.load(pair.image_id)
        cleaned = cleaner(pad_to_multiple(lq, multiple)[None].to(device)).float().clamp(0, 1)
        sums["psnr"] += float(psnr(crop_back(cleaned, *pair.size).cpu(), gt[None])[0])
        sums["input_psnr"] += float(psnr(lq, gt)[0])
    return {name: value / len(pairs.pairs) for name, value in sums.items()}


def _heads(recipe: SftRecipe, model: BaseModel) -> ControlHeads | None:
    if recipe.diffusion is None or not recipe.diffusion.heads:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        heads = model.control_heads() if isinstance(model, PixelControl) else None
    if heads is None:
        raise RecipeError(f"diffusion.heads={recipe.diffusion.heads}: {model.name} has no such heads; set it to 0")
    return heads


def _check(recipe: SftRecipe, model: BaseModel) -> None:
    if recipe.cleaner is not None and model.cleaner is None:
        raise RecipeError(f"cleaner: {model.name} has no cleaner; leave that stage out")
    for name, stage in (("cleaner", recipe.cleaner), ("diffusion", recipe.diffusion)):
        if stage is not None and stage.crop % model.size_multiple:
            raise RecipeError(
                f"{name}.crop={stage.crop}: {model.name} works on multiples of {model.size_multiple}; choose one"
            )
    if recipe.diffusion is not None and recipe.diffusion.adapt.frozen_dtype != "float32":
        raise RecipeError(
            f"diffusion.adapt.frozen_dtype={recipe.diffusion.adapt.frozen_dtype}: the model that SFT writes would be "
            "rounded; leave it at float32"
        )


def _refuse_foreign(out: Path, model: Path) -> None:
    if out.resolve() == model.resolve():
        raise CheckpointError(f"{out} is the model to start from; choose another folder (--out)")
    if (out / "restorl_model.json").exists() and not (out / LOG_FILE).exists():
        raise CheckpointError(f"{out} holds a model that was made otherwise; choose another folder (--out)")


def device_for(name: str) -> torch.device:
    """auto, cpu, cuda, cuda:1, ... Raises RecipeError for one that isn't there."""
    try:
        return torch.device(device_of(name))
    except ValueError as error:
        raise RecipeError(f"{error}; or auto") from error


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as JSON knows it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return plain
