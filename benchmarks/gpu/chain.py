"""Rollout, decoding and replay at full size from random weights, as actors and ranks do them, and their agreement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actors.rollout import PairBatch, Rollout, RolloutSettings, rollout
from benchmarks.gpu.parts import Row, measured
from benchmarks.gpu.timing import peak, seconds
from learner.objective import ObjectiveSettings
from learner.replay import PolicyMicro, Replay
from restoration.acceleration import accelerate
from restoration.adapters import (
    AdaptSettings,
    enable_checkpointing,
    frozen_type,
    make_trainable,
    trained_parameters,
)
from restoration.base_models import describe
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.base_models.latent import LatentModel
from restoration.base_models.networks.attended import build_attended, config_from_shapes
from restoration.base_models.pasd import PASD
from restoration.base_models.pixel_control import HEADS_OF_SFT, KINDS
from restoration.precision import autocast, enable_tf32, networks_of, resolve, set_frozen_dtype
from restoration.stock import stock
from restoration.transition import transition

ROOT = Path(__file__).resolve().parents[2]
KEYS = ROOT / "tests" / "golden"  # shapes of PASD's released weights
DEMO = ROOT / "models" / "demo"
CHAINS = {"diffbir": SamplerSettings(steps=50, spacing="linspace", guidance_scale=4.0), "pasd": PASD.SAMPLER}
"""As configs/gpu has them."""
IMAGES, DECODED = 2, 4  # of a rollout batch, and decoded at a time, there
PLACES = 8  # decisions of a chain that are replayed
Mode = Literal["lora", "full"]


def skeleton(name: str, tiny: bool) -> LatentModel:
    """The model without weights."""
    base = describe(DEMO).skeleton if tiny else stock("sd21")
    if name == "diffbir":
        return base
    parts: dict[str, Any] = {}
    for part, kind in KINDS.items():
        released = json.loads((KEYS / f"pasd_{part}.full_keys.json").read_text())["state"]
        shapes = {k: tuple(v) for k, v in released.items() if not HEADS_OF_SFT.search(k)}
        if tiny:  # of every width but those of latents and pixels
            shapes = {k: tuple(n // 32 if n >= 256 else n for n in v) for k, v in shapes.items()}
        config = config_from_shapes(shapes) | {"attention_head_dim": 8, "norm_num_groups": 32}
        config |= {"attention_head_dim": 2, "norm_num_groups": 2} if tiny else {}
        parts[part] = build_attended(kind, config, shapes, PASD.ATTENTIONS)
    vae, texts = base.vae, (1, 77, parts["unet"].config.cross_attention_dim)
    if tiny:  # the demo's has a level less than the ControlNet's image
        from diffusers import AutoencoderKL  # here, behind what makes diffusers' imports lean

        down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        vae = AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=down, up_block_types=up)
    return PASD(vae, **parts, cleaner=base.cleaner, embeddings={"text": torch.empty(texts, device="meta")})


@torch.no_grad()
def fill(model: LatentModel, device: str) -> None:
    """Random weights, made on the device, under which activations and the denoiser's output deviate by about 1."""
    torch.manual_seed(0)
    for network in networks_of(model):
        network.to_empty(device=device)
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            else:
                value.fill_(0 if name.endswith("bias") else 1)
    texts = model.embeddings["text"].shape
    model.embeddings = {name: torch.randn(texts, device=device) for name in ("text", "negative_text")}
    side = model.size_multiple
    condition = model.condition(torch.rand(1, 3, side, side, device=device))
    output = model.denoise(torch.randn(condition.latent.shape, device=device), 500.0, condition, 1.0)
    last = model.policy.get_submodule("unet.conv_out")
    assert isinstance(last, nn.Conv2d)
    last.weight /= output.std()


@dataclass(frozen=True)
class Subject:
    """A model as both roles have it, and what replays it.

    Attributes:
        compute, frozen: types of products, and of weights that aren't trained.
        side: of its pictures.
        group: rollouts of one picture.
    """

    model: LatentModel
    sampler: SamplerSettings
    replay: Replay
    compute: torch.dtype
    frozen: torch.dtype
    device: str
    side: int
    group: int

    @classmethod
    def made(cls, name: str, mode: Mode, tiny: bool, device: str) -> Subject:
        model = skeleton(name, tiny)
        fill(model, device)
        settings = AdaptSettings(mode, rank=16, alpha=16.0, frozen_dtype="auto")
        make_trainable(model, settings, keep_reference=False)
        compute = resolve("auto", device)
        frozen = frozen_type(settings, device, compute)
        if frozen != torch.float32:
            set_frozen_dtype(model, frozen, keep=trained_parameters(model))
        model.policy.eval().to(device)
        if device == "cuda":
            enable_tf32()
        accelerate(model, device)
        enable_checkpointing(model)
        sampler = replace(CHAINS[name], steps=3) if tiny else CHAINS[name]
        products = None if compute == torch.float32 else compute
        replay = Replay(model, model.schedule(sampler), ObjectiveSettings(), sampler.guidance_scale, products)
        side, group = (model.size_multiple, 2) if tiny else (384, 8)
        return cls(model, sampler, replay, compute, frozen, device, side, group)

    def pictures(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.rand(IMAGES, 3, self.side, self.side, generator=generator).to(self.device)

    def condition(self, pictures: Tensor) -> Condition:
        """As a rank makes it."""
        with autocast(self.device, self.frozen):
            return self.model.condition(pictures)

    def micro(self, index: int, states: Tensor, targets: Tensor, old: Tensor, condition: Condition) -> PolicyMicro:
        """Decisions of the step `index`, every advantage and weight 1."""
        one = torch.ones_like(old)
        return PolicyMicro(states, targets, old, one, one, 0 * one, (index,) * len(old), condition)


def costs(name: str, mode: Mode, tiny: bool, device: str) -> Iterator[Row]:
    """Seconds and peak memory of a step of a rollout, of decoding, and of a replay with its backward pass.

    Weights and gradients are in the peaks, AdamW's state is not, nor a reference policy.
    """
    found: Row = {}
    with peak(device, found, "made_peak_gb"):
        subject = Subject.made(name, mode, tiny, device)
    pictures, rounds = subject.pictures(), 1 if tiny else 5
    with peak(device, found, "condition_peak_gb"):
        took = seconds(lambda: subject.condition(pictures), device, rounds, warm=int(rounds > 1))
    trained = sum(p.numel() for p in trained_parameters(subject.model).values())
    guidance = subject.sampler.guidance_scale
    yield {
        **{"compute": str(subject.compute), "frozen": str(subject.frozen), "trained_millions": trained / 1e6},
        **{"side": subject.side, "guidance": guidance, "condition_images_per_s": IMAGES / took, **found},
    }
    for rows in (IMAGES * subject.group,) if tiny else (16, 32, 8):
        yield measured({"rows": rows}, lambda rows=rows: _costs(subject, pictures, rows, rounds))


def _costs(subject: Subject, pictures: Tensor, rows: int, rounds: int) -> Row:
    model, device, found = subject.model, subject.device, {}  # type: ignore[var-annotated]
    condition = subject.condition(pictures).repeat_interleave(rows // IMAGES)
    index = len(subject.replay.schedule) // 2
    step = subject.replay.schedule.steps[index]
    x, noise = (torch.randn(condition.latent.shape, device=device) for _ in range(2))

    @torch.no_grad()
    def rolled() -> Any:
        with autocast(device, subject.compute):
            output = model.denoise(x, step.timestep, condition, subject.sampler.guidance_scale)
        return transition(step, output, x, noise=noise)

    @torch.no_grad()
    def decoded() -> None:
        with autocast(device, subject.compute):
            for latents, seen in zip(x.split(DECODED), condition.split(DECODED), strict=True):
                model.decode(latents, seen)

    taken = rolled()
    micro = subject.micro(index, x, taken.action, taken.log_prob, condition)

    def replayed() -> None:
        model.policy.zero_grad(set_to_none=True)
        subject.replay(micro)[0].backward()

    @torch.no_grad()
    def recomputed() -> None:
        subject.replay(micro, only_log_prob=True)

    works = {"rollout": rolled, "decode": decoded, "replay": replayed, "recompute": recomputed}
    took: dict[str, float] = {}
    for name, work in works.items():
        with peak(device, found, f"{name}_peak_gb"):
            took[name] = seconds(work, device, rounds, warm=int(rounds > 1))
    model.policy.zero_grad(set_to_none=True)
    speeds = {f"{name}_rows_per_s": rows / s for name, s in took.items()}
    return speeds | {"recompute_of_replay": took["recompute"] / took["replay"]} | found


def ratios(name: str, tiny: bool, device: str) -> Iterator[Row]:
    """A rollout, and its log-probs taken again in batches of other shapes: the ratio at a first replay.

    With a LoRA whose update is still 0. Outside of the clip of the default recipe a ratio is cut off before the policy
    has changed. Targets are the sampled actions: under random weights the enhanced ones are many deviations away, under
    trained ones less than one.
    """
    subject = Subject.made(name, "lora", tiny, device)
    pictures, rows = subject.pictures(), IMAGES * subject.group
    settings = RolloutSettings(
        images_per_batch=IMAGES,
        rollouts_per_image=subject.group,
        crop=subject.side,
        action_target="sampled",
        reward_at="final",
        denoise_dtype="auto",
        decode_dtype="auto",
        condition_dtype="auto",
        decode_batch=DECODED,
    )
    crops = [(0, 0, subject.side, subject.side)] * IMAGES
    batch = PairBatch([str(i) for i in range(IMAGES)], crops, [False] * IMAGES, pictures, pictures)
    found: list[Rollout] = []

    def roll() -> None:
        found[:] = [rollout(subject.model, batch, subject.sampler, settings, torch.Generator().manual_seed(2))]

    took = seconds(roll, device, 1, warm=0)
    (rolled,) = found
    decisions, latent = rolled.log_probs.shape[1], rolled.states[0, 0].numel()
    yield {
        **{"rollout_s": took, "rows": rows, "steps": len(rolled.schedule), "decisions": decisions},
        **{"old_log_probs_bytes_a_group": 4 * subject.group * decisions},
        "latents_bytes_a_group": 2 * rolled.states.element_size() * subject.group * decisions * latent,
    }
    together = subject.condition(pictures)
    alone = Condition.cat([subject.condition(picture[None]) for picture in pictures])
    variants = [(rows, "together", True), (rows, "together", False), (rows, "alone", False)]
    variants += [(size, "together", False) for size in sorted({rows // 2, rows // 4, 1}, reverse=True)]
    for size, conditions, graph in variants:
        given = (together if conditions == "together" else alone).repeat_interleave(subject.group)
        about = {"replayed_rows": size, "conditions": conditions, "with_graph": graph}
        yield measured(about, lambda a=size, b=given, c=graph: agreement(subject, rolled, a, b, c))


def agreement(subject: Subject, rolled: Rollout, size: int, condition: Condition, graph: bool) -> Row:
    """Of the decisions at some places of the chain, replayed `size` rows at a time."""
    steps = [i for i, step in enumerate(rolled.schedule.steps) if step.is_decision]
    places = range(0, len(steps), max(1, len(steps) // PLACES))
    apart = []
    for place in places:
        for first in range(0, len(rolled.states), size):
            part = slice(first, first + size)
            states, targets, old = (
                tensor[part, place].to(subject.device) for tensor in (rolled.states, rolled.targets, rolled.log_probs)
            )
            micro = subject.micro(steps[place], states, targets, old, condition[part])
            with torch.set_grad_enabled(graph):
                log_prob = subject.replay.log_prob_and_mean(micro)[0].detach()
            apart.append((log_prob - old).double().cpu())
    of = torch.cat(apart)
    clip = ObjectiveSettings().clip
    return {
        **{"mean": float(of.mean()), "mean_size": float(of.abs().mean()), "largest": float(of.abs().max())},
        **{"clip": clip, "outside_clip": float(((of.exp() - 1).abs() > clip).double().mean())},
        "finite": bool(torch.isfinite(of).all()),
    }
