"""A reward check from a recipe to its files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.trust import stored
from cluster.trust.measures import Measures
from cluster.trust.rewards import Reward, rewards_of
from cluster.trust.trial import Amount, measure, specimens
from cluster.trust.verdict import Bars, Verdict, judge
from restoration.adapters import frozen_type
from restoration.base_models import load
from restoration.base_models.interface import BaseModel
from restoration.devices import device_of
from restoration.precision import resolve, set_frozen_dtype

PAGE = "report.html"


@dataclass(frozen=True)
class Checked:
    """verdicts: on the recipe's reward first, then on its parts. files: what was written."""

    verdicts: tuple[Verdict, ...]
    files: tuple[Path, ...]


def check(
    config: RunConfig,
    amount: Amount,
    device: str,
    out: Path | None,
    page: bool,
    progress: Callable[[str, int, int], None],
) -> Checked:
    """Try the reward of `config`, and write `check.json` and, with `page`, `report.html`.

    Where `out` is another folder than the usual one, the JSON lies in both, so that a run finds it.

    Raises:
        ConfigError, DataError, ImageError, ModelError, CheckpointError: what the user can put right.
        ValueError: pictures that don't fit the crop, or a scorer that refuses them.
    """
    began = time.monotonic()
    place = device_of(device)
    heldout = config.data.open(config.data.heldout)
    rewards = rewards_of(config, place)
    side = config.rollout.crop or min(min(pair.size) for pair in heldout.pairs)
    if side < (least := max(reward.least_side for reward in rewards)):
        raise ConfigError.of(
            f"rollout.crop={config.rollout.crop}: {rewards[0].name} takes pictures of at least {least} pixels a side, "
            f"and there would be {side}; set a larger crop, or leave smaller held-out pictures out"
        )
    model, dtype = _model(config, place)
    tried = specimens(model, config.sampler, config.rollout, heldout, amount, progress, dtype)
    judged: list[tuple[Reward, Measures, Verdict]] = []
    for reward in rewards:
        found = measure(tried, reward.score, config.evaluation.protocol, progress, reward.batch)
        judged.append((reward, found, judge(reward.name, found)))
    key = stored.key_of(config, heldout.image_ids)
    usual = stored.folder_of(config.name, key)
    folder = out or usual
    result = {
        "key": key,
        "name": config.name,
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": round(time.monotonic() - began, 1),
        "model": str(config.model),
        "data": str(config.data.root),
        "protocol": config.evaluation.protocol,
        "amount": asdict(amount),
        "pictures": [one.image_id for one in tried],
        "bars": asdict(Bars()),
        "rewards": [{**asdict(v), "version": r.version, "measures": asdict(m)} for r, m, v in judged],
    }
    files = [stored.write(folder, result)]
    if folder.resolve() != usual.resolve():
        files.append(stored.write(usual, result))
    if page:
        from cluster.trust.page import write_page

        facts = {
            "model": str(config.model),
            "data": f"{config.data.root}/{config.data.heldout}",
            "pictures": f"{len(tried)}, of which {sum(bool(one.rollouts) for one in tried)} were rolled out",
            "rollouts of each": str(amount.rollouts),
            "seed": str(amount.seed),
            "PSNR": config.evaluation.protocol,
            "took": f"{time.monotonic() - began:.0f} s",
        }
        files.insert(1, write_page(folder / PAGE, config.name, judged, tried, facts))
    return Checked(tuple(verdict for _, _, verdict in judged), tuple(files))


def _model(config: RunConfig, place: str) -> tuple[BaseModel, torch.dtype]:
    """The base model on its device, in the types that an actor has it in, and what it is to compute in."""
    model = load(config.model, config.data.embeddings)
    model.policy.eval().requires_grad_(False)
    frozen = frozen_type(config.adapt, place, resolve(config.rollout.denoise_dtype, place))
    if frozen != torch.float32:
        set_frozen_dtype(model, frozen, keep=())
        return model.to(place), frozen  # products of bfloat16 weights need autocast
    return model.to(place), resolve(config.evaluation.dtype, place)
