"""Train a small model from scratch: VAE, cleaner, denoiser, each of which goes on from its last state."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from restoration.base_models.diffbir import DiffBIR, build_small
from restoration.base_models.interface import SamplerSettings
from restoration.checkpoints import CheckpointError
from restoration.evaluate import evaluate_pairs, mean_values
from restoration.precision import resolve, slow_here
from restoration.pretrain import cleaner as cleaning
from restoration.pretrain import denoiser as denoising
from restoration.pretrain import vae as autoencoding
from restoration.pretrain.cleaner import CleanerRecipe
from restoration.pretrain.denoiser import DenoiserRecipe
from restoration.pretrain.fit import Fit, FitSettings, Progress, iterations_of, kept_weights
from restoration.pretrain.pairs import PairRecipe
from restoration.pretrain.sft import RecipeError, device_for
from restoration.pretrain.tiles import heldout_tiles, judge, judge_autoencoder
from restoration.pretrain.vae import VaeRecipe

Stage = Literal["vae", "cleaner", "denoiser"]
LOG_FILE = "pretrain.jsonl"
# What may change between an interruption and going on; the VAE's deviations are set when it is trained.
_FREE = {"iterations", "anneal", "micro_batch", "log_every", "checkpoint_every", "whiten", "bfloat16"}


@dataclass(frozen=True)
class PretrainRecipe:
    """What `restorl pretrain` trains; photographs of `photos`/train, judged on tiles of `photos`/heldout.

    Attributes:
        stages: those to train. Of the others the states of earlier trainings are taken as they are, finished or
            not; the model is written when the denoiser is among them.
        sampler: how the model restores, here and when it is loaded.
        tiles: held-out tiles of each degradation (`make_demo`).
        validate_every: iterations after which they are judged; 0 for the ends of a stage only.
        threads: CPU threads.
        workers: processes that make crops ahead of the training, for a GPU; 0 where the cores train.
        device: auto, cpu, cuda, cuda:1, ...
        products: in which matrix products of what is trained are taken; "auto" is bfloat16 where the device multiplies
            that natively.
    """

    kind: Literal["scratch"] = "scratch"
    photos: Path = Path("data/photos")
    pairs: PairRecipe = field(default_factory=PairRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    cleaner: CleanerRecipe = field(default_factory=CleanerRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    stages: tuple[Stage, ...] = ("vae", "cleaner", "denoiser")
    tiles: int = 48
    validate_every: int = 500
    threads: int = 2
    workers: int = 0
    device: str = "auto"
    products: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("workers", 0), ("tiles", 1), ("validate_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")
        if not self.stages:
            raise ValueError("stages: none trains nothing; choose of vae, cleaner, denoiser")


def pretrain(recipe: PretrainRecipe, out: Path, progress: Progress | None = None) -> DiffBIR | None:
    """Train the stages; with the denoiser among them, write the model to `out` (float16) with its log and recipe.

    States and logs of the stages lie in `out`/stages. Started again, each stage goes on from its state: to its end, or
    on where more iterations are asked for. A denoiser may go on with a cleaner that was trained further, and is trained
    anew for another autoencoder.

    Raises:
        FileNotFoundError, DataError, ImageError: the photographs.
        RecipeError: networks or crops that don't fit.
        CheckpointError: a state of other settings; no state of a stage that isn't trained.
        FloatingPointError: a stage diverged.
    """
    torch.set_num_threads(recipe.threads)
    return _Training(recipe, out, progress).run()


class _Training:
    def __init__(self, recipe: PretrainRecipe, out: Path, progress: Progress | None) -> None:
        self.recipe, self.out, self.progress = recipe, out, progress
        self.device = device_for(recipe.device)
        self.products = resolve(recipe.products, self.device)
        if (warning := slow_here(self.products, self.device)) is not None:
            warnings.warn(f"products={recipe.products}: {warning}; set it to auto", stacklevel=3)
        self.states = out / "stages"
        self.states.mkdir(parents=True, exist_ok=True)
        self.photos = recipe.photos / "train"
        self.tiles = heldout_tiles(recipe.photos, recipe.pairs, recipe.tiles, self.states / "tiles")

    def run(self) -> DiffBIR | None:
        self._try()
        vae = self._vae() if {"vae", "denoiser"} & set(self.recipe.stages) else None
        cleaner = self._cleaner() if {"cleaner", "denoiser"} & set(self.recipe.stages) else None
        if "denoiser" not in self.recipe.stages:
            return None
        assert vae is not None and cleaner is not None
        model = self._denoiser(vae, cleaner)
        model.save(self.out, torch.float16)
        logs = (self.states / f"{name}.jsonl" for name in ("vae", "cleaner", "denoiser"))
        # a state that was brought here has no log
        (self.out / LOG_FILE).write_bytes(b"".join(log.read_bytes() for log in logs if log.exists()))
        told = json.dumps(asdict(self.recipe), indent=2, default=str)
        (self.out / "recipe.json").write_text(told + "\n", encoding="utf-8")
        return model

    def _try(self) -> None:
        """What would end a stage after hours ends it now.

        Raises:
            RecipeError: networks that can't be made, or not together; crops that a network can't take.
            CheckpointError: the autoencoder is to be trained further than the one that the denoiser knows.
        """
        recipe = self.recipe
        try:
            vae, cleaner = autoencoding.build_vae(recipe.vae), cleaning.build_cleaner(recipe.cleaner)
            if "denoiser" in recipe.stages:
                small = build_small(vae, cleaner, **recipe.denoiser.network, settings=denoising.settings_of())
                denoising.keep_the_condition(small)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"networks of the stages: {error}") from error
        for name in ("crop", "late_crop"):
            if (side := getattr(recipe.cleaner, name)) % cleaner.size_multiple:
                raise RecipeError(f"cleaner.{name}={side}: a multiple of {cleaner.size_multiple}")
        vae_file, denoiser_file = (self.states / f"{stage}.safetensors" for stage in ("vae", "denoiser"))
        if "vae" in recipe.stages and denoiser_file.exists() and iterations_of(vae_file) != recipe.vae.iterations:
            raise CheckpointError(
                f"{vae_file}: of another number of iterations than vae.iterations={recipe.vae.iterations}, and "
                f"{denoiser_file.name} rests on it; leave the autoencoder as it is, or delete the denoiser's files"
            )

    def _vae(self) -> AutoencoderKL:
        recipe = self.recipe.vae
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            vae = autoencoding.build_vae(recipe)
        crops = autoencoding.crops_of(self.photos, recipe, self.recipe.workers)
        autoencoding.start_from_components(vae, torch.cat([crops.make(2**31 + i)[0] for i in range(16)]))
        vae.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        losses = autoencoding.vae_losses(vae, recipe, crops, self.device, self.products)
        self._fit(
            "vae",
            recipe,
            vae,
            losses,
            {"photos": str(self.recipe.photos)},
            lambda: judge_autoencoder(vae, self.tiles, self.device),
        )
        self.latents = f"{digest(vae)}, whiten={recipe.whiten:g}"  # before rounding that a device may do otherwise
        autoencoding.normalise(vae, self.photos, recipe, self.device)
        return vae.eval()

    def _cleaner(self) -> nn.Module:
        recipe, pairs = self.recipe.cleaner, self.recipe.pairs
        cleaner = cleaning.build_cleaner(recipe).to(self.device)
        crops = cleaning.pairs_of(self.photos, pairs, recipe, self.recipe.workers)
        losses = cleaning.cleaner_losses(cleaner, recipe, crops, self.device, self.products)
        self._fit("cleaner", recipe, cleaner, losses, self._data(), lambda: judge(cleaner, self.tiles, self.device))
        return cleaner.eval()

    def _denoiser(self, vae: AutoencoderKL, cleaner: Any) -> DiffBIR:
        recipe = self.recipe.denoiser
        model = build_small(vae, cleaner, **recipe.network, seed=recipe.seed, settings=denoising.settings_of())
        denoising.keep_the_condition(model)
        model.to(self.device)

        def validate() -> dict[str, float]:
            found: dict[str, float] = {}
            for kind, pairs in self.tiles.items():
                rows = evaluate_pairs(model, pairs, self.recipe.sampler, {}, device=self.device)
                means = mean_values(rows)
                found |= {f"{kind}_{name}": means[name] for name in ("psnr", "ssim")}
            return found

        losses = denoising.denoiser_losses(model, recipe, self.recipe.pairs, self.photos, self.device, self.products)
        identity = self._data() | {"vae": self.latents}
        self._fit("denoiser", recipe, model.policy, losses, identity, validate)
        return model

    def _data(self) -> dict[str, Any]:
        return {"photos": str(self.recipe.photos), "pairs": asdict(self.recipe.pairs)}

    def _fit(
        self,
        stage: Stage,
        settings: FitSettings,
        network: nn.Module,
        losses: Callable[[int], Iterator[Tensor]],
        identity: Mapping[str, Any],
        validate: Callable[[], dict[str, float]],
    ) -> None:
        """Train `network`, or give it the weights that its state keeps."""
        parameters, file = dict(network.named_parameters()), self.states / f"{stage}.safetensors"
        if stage not in self.recipe.stages:
            found = kept_weights(file)
            if {n: v.shape for n, v in found.items()} != {n: p.shape for n, p in parameters.items()}:
                raise CheckpointError(
                    f"{file} holds another network than the settings of {stage} name; take those back, or train it anew"
                )
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(found[name])
            return
        if not file.exists():
            (self.states / f"{stage}.jsonl").unlink(missing_ok=True)  # of a state that was deleted
        chosen = {k: v for k, v in asdict(settings).items() if k not in _FREE}
        Fit(
            stage=stage,
            parameters=parameters,
            losses=losses,
            settings=settings,
            file=file,
            identity=json.loads(json.dumps({**identity, **chosen}, default=str)),
            log=self.states / f"{stage}.jsonl",
            validate=validate,
            validate_every=self.recipe.validate_every,
            progress=self.progress,
        ).run()


def digest(network: nn.Module) -> str:
    """Of all weights."""
    found = sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
