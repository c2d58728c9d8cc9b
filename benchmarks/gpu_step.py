"""Cost of a rollout step and of a replay step at full size, from random weights, of DiffBIR (SD 2.1) and PASD (SD 1.5):

    python -m benchmarks.gpu_step [--model diffbir pasd] [--batch 1 2 4 8 16] [--size 512]

Needs torch, diffusers and peft, and a GPU for figures that mean something (`--tiny` runs small models anywhere). A
rollout step is one evaluation of ControlNet and UNet with the transition, without gradient; a replay step is the same
with the log-prob, the surrogate and the backward pass, for LoRA and for full training of the model's own trainable
part. No guidance, which doubles the evaluations. Peak memory is torch's, weights and gradients included, without
optimiser state and without a reference policy, as RL trains at kl_beta 0. Nothing of VAE, cleaner, text, DeepSpeed
or Ray is in these figures.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.report import RESULTS, write
from learner.objective import surrogate
from restoration.adapters import AdaptSettings, frozen_type, make_trainable, trained_parameters
from restoration.base_models.diffbir import DiffBIRSettings, Policy
from restoration.base_models.networks.attended import build_attended, config_from_shapes
from restoration.base_models.pasd import PASD, PASDSettings
from restoration.base_models.pixel_control import HEADS_OF_SFT, KINDS, PixelPolicy
from restoration.precision import AUTO, DTYPES, autocast, enable_tf32, resolve
from restoration.transition import ddim_schedule, scaled_linear_alphas, transition

SD21: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
TINY = SD21 | {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": (2, 2, 2, 2), "cross_attention_dim": 32}


KEYS = Path(__file__).parents[1] / "tests/golden"  # shapes of PASD's released weights


@dataclass
class Model:
    """As much of a `BaseModel` as adapting takes, and what its policy is given.

    Attributes:
        width: of the text; side: what the size of the image is divided by for the control, which has `channels`.
    """

    name: str
    policy: nn.Module
    trainable_names: tuple[str, ...]
    lora_targets: str
    width: int
    side: int
    channels: int


def diffbir(tiny: bool, device: str) -> Model:
    config = TINY if tiny else SD21
    with torch.device(device):
        unet = UNet2DConditionModel(in_channels=4, out_channels=4, sample_size=64, **config)
        policy = Policy(unet, ControlNetModel(in_channels=8, **config)).eval()
    targets = rf"controlnet\.(?:.*\.)?(?:{DiffBIRSettings().lora_layers})"
    return Model("diffbir", policy, ("controlnet.",), targets, config["cross_attention_dim"], 8, 4)


def pasd(tiny: bool, device: str) -> Model:
    parts: dict[str, Any] = {}
    for part, kind in KINDS.items():
        shapes = {
            k: tuple(v) for k, v in json.loads((KEYS / f"pasd_{part}.full_keys.json").read_text())["state"].items()
        }
        shapes = {k: v for k, v in shapes.items() if not HEADS_OF_SFT.search(k)}
        if tiny:  # an eighth of every width but those of latents and pixels
            shapes = {k: tuple(n // 8 if n >= 256 else n for n in v) for k, v in shapes.items()}
        config = config_from_shapes(shapes) | {"attention_head_dim": 8, "norm_num_groups": 8 if tiny else 32}
        parts[part] = build_attended(kind, config, shapes, PASD.ATTENTIONS).to_empty(device=device)
        for parameter in parts[part].parameters():
            nn.init.normal_(parameter, std=0.02)
    policy = PixelPolicy(**parts, second=PASD.SECOND).eval()
    settings = PASDSettings()
    targets = rf"(?:{'|'.join(settings.trainable)})(?:.*\.)?(?:{settings.lora_layers})"
    return Model("pasd", policy, settings.trainable, targets, parts["unet"].config.cross_attention_dim, 1, 3)


MODELS: dict[str, Callable[[bool, str], Model]] = {"diffbir": diffbir, "pasd": pasd}


def seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """The fastest of `rounds`, after one to warm up."""

    def once() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(rounds))


def measure(name: str, mode: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    device = options.device
    model = MODELS[name](options.tiny, device)
    products = resolve(options.dtype, device)
    settings = AdaptSettings(mode, rank=16, frozen_dtype=options.frozen)  # type: ignore[arg-type]
    make_trainable(model, settings, keep_reference=False)
    trained, frozen = trained_parameters(model), frozen_type(settings, device, products)
    for key, parameter in model.policy.named_parameters():
        if key not in trained:
            parameter.data = parameter.data.to(frozen)
    if options.checkpointing:
        for network in model.policy.children():
            network.enable_gradient_checkpointing()  # type: ignore[operator]
    side = options.size // 8
    x, noise = (torch.randn(batch, 4, side, side, device=device) for _ in range(2))
    seen = torch.rand(batch, model.channels, *[options.size // model.side] * 2, device=device)
    text = torch.randn(batch, 77, model.width, device=device)
    step = ddim_schedule(scaled_linear_alphas(), 10, 1.0, "epsilon").steps[4]
    times = torch.full((batch,), int(step.timestep), device=device)

    def output() -> Tensor:
        with autocast(device, products):
            found: Tensor = model.policy(x, times, seen, text)
        return found

    @torch.no_grad()
    def rollout() -> None:
        transition(step, output(), x, noise=noise)

    with torch.no_grad():
        taken = transition(step, output(), x, noise=noise)

    def replay() -> None:
        model.policy.zero_grad(set_to_none=True)
        log_prob = transition(step, output(), x, action=taken.action).log_prob
        (-surrogate(log_prob, taken.log_prob, torch.ones_like(log_prob), 1e-4).value.mean()).backward()

    result: dict[str, Any] = {"model": name, "mode": mode, "batch": batch, "size": options.size}
    for phase, work in (("rollout", rollout), ("replay", replay)):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = seconds(work, device, options.rounds)
        result[f"{phase}_s"], result[f"{phase}_images_per_s"] = took, batch / took
        if device == "cuda":
            result[f"{phase}_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=[*MODELS])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--dtype", choices=[AUTO, *DTYPES], default=AUTO, help="of matrix products")
    parser.add_argument("--frozen", choices=["auto", "float32", "bfloat16"], default="auto", help="of frozen weights")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script without a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu_step.json")
    options = parser.parse_args()
    enable_tf32()
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    rows = []
    for name, mode, batch in itertools.product(options.model, ("lora", "full"), options.batch):
        try:
            rows.append(measure(name, mode, batch, options))
        except torch.OutOfMemoryError:
            about = {"model": name, "mode": mode, "batch": batch, "size": options.size}
            rows.append(about | {"out_of_memory": True})
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        print(rows[-1], flush=True)
    write(
        options.output,
        {
            "device": where,
            "torch": torch.__version__,
            "dtype": f"{str(resolve(options.dtype, options.device)).removeprefix('torch.')} autocast",
            "frozen": options.frozen,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
