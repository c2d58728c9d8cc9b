"""The configuration of a run: every switch has its one home here or in the room that reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from actors.rollout import RolloutSettings
from cluster.config.reward import RunReward
from cluster.jobs import ClusterSettings
from learner.advantage import AdvantageSettings
from learner.objective import ObjectiveSettings
from learner.settings import LearnerSettings, OptimiserSettings, StepSettings
from learner.source import SourceSettings
from restoration.adapters import AdaptSettings
from restoration.base_models.interface import SamplerSettings
from restoration.datasets.matching import Match
from restoration.datasets.opening import open_split, wrong_set
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import PIXELS
from restoration.precision import AUTO
from restoration.tiling import Tiling
from trajectories.settings import StoreSettings

TENSORBOARD = "tensorboard"
TRACKERS = (TENSORBOARD, "wandb", "mlflow")


@dataclass(frozen=True)
class RoleSettings:
    """Processes of a role and what Ray reserves for each.

    Attributes:
        count: actors, or learner ranks.
        num_cpus, num_gpus, resources: reserved for each; custom resources such as {"actor": 1} label node groups.
        threads: CPU threads each computes with; the sum over roles should not exceed a machine's cores.
    """

    count: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("num_cpus", 0), ("num_gpus", 0), ("threads", 1)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: a number of at least {least}")
        for name, amount in self.resources.items():
            if not 0 < amount < math.inf:
                raise ValueError(f"resources[{name!r}]={amount}: must be above 0; leave it out instead")

    @property
    def options(self) -> dict[str, object]:
        """Ray's options for one process."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": dict(self.resources)}

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus > 0 else "cpu"


@dataclass(frozen=True)
class ActorSettings(RoleSettings):
    """Rollout actors.

    Attributes:
        min: of `count`, that must be there before the run begins; the others join as soon as there is room for them.
            null: all.
    """

    min: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min is not None and not 1 <= self.min <= self.count:
            raise ValueError(f"min={self.min}: from 1 to count={self.count}, or null for all of them")

    @property
    def at_first(self) -> int:
        """Actors that the run begins with, at least."""
        return self.count if self.min is None else self.min


@dataclass(frozen=True)
class DataSettings:
    """Paired folders: `root`/`train`/{input,target} or LOL's {Low,Normal}; `heldout` is never trained on.

    Attributes:
        set: a public set by its name (docs/data.md), of which `root` is the folder, `train` and `heldout` are splits;
            null, or `paired`, takes any folders.
        embeddings: folder with <image id>.safetensors, what the model sees of each picture besides (docs/models.md).
        match: how LQ and GT are paired: by `stem`, by the `digits` in their names, by `sorted` order, or by `group`,
            several LQ of one GT (`1_1.jpg`, `1_2.jpg` and `1.jpg`); null: by their names, never `sorted`.
    """

    root: Path = Path("data/demo/rain")
    train: str = "train"
    heldout: str = "test"
    match: Match | None = None
    embeddings: Path | None = None
    set: str | None = None

    def __post_init__(self) -> None:
        if problem := wrong_set(self.set, self.match, self.train, self.heldout):
            raise ValueError(problem)

    def open(self, split: str) -> PairedFolder:
        """The pairs of `train` or `heldout`, of the latter with all sizes, which every part of an evaluation asks for.

        Raises:
            FileNotFoundError, DataError, ImageError: as `open_split`.
        """
        pairs = open_split(self.root, split, self.match, self.set)
        if split == self.heldout and split != self.train:
            pairs.read_sizes()
        return pairs


@dataclass(frozen=True)
class EvaluationSettings:
    """Held-out evaluation, before training, every `every` iterations (0: only at the ends) and at the end.

    Attributes:
        protocol: named metric protocol of PSNR and SSIM.
        scorers: no-reference scorers that are never optimised, beside the reward; an alarm tells when the reward
            rises and one of them, PSNR or SSIM falls.
        batch, pixels: pictures of one size that an actor restores together: at most so many, with so many pixels; one
            always goes. Such a batch is what actors share an evaluation by.
        limit: pictures that are evaluated, evenly spread over the set; null for all.
        dtype: float32, bfloat16 or auto, that the networks compute in; float32 is the least, not the only one, where
            `adapt.frozen_dtype` keeps the weights in bfloat16.
        tile: restore larger pictures in tiles of this side, in pixels; 0 restores each whole.
        strips: image strips written at every evaluation.
    """

    every: int = 10
    protocol: str = "lowlight_rgb"
    scorers: tuple[str, ...] = ("piqe",)
    batch: int = 16
    pixels: int = PIXELS
    limit: int | None = None
    dtype: str = "float32"
    tile: int = 0
    seed: int = 0
    strips: int = 4

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("batch", 1), ("pixels", 1), ("tile", 0), ("strips", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name}={getattr(self, name)}: at least {least}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"evaluation.limit={self.limit}: at least 1, or null for all pictures")
        if self.dtype not in ("float32", "bfloat16", AUTO):
            raise ValueError(f"evaluation.dtype={self.dtype!r}: choose float32, bfloat16 or {AUTO}")

    @property
    def tiling(self) -> Tiling | None:
        return Tiling(self.tile, min(Tiling.overlap, self.tile // 4)) if self.tile else None

    def due(self, iteration: int, iterations: int) -> bool:
        """Whether weights are evaluated after `iteration` of `iterations`, the first being 1."""
        return iteration == iterations or bool(iteration and self.every and iteration % self.every == 0)


class RunConfig(BaseModel):
    """One run. Paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("run", description="label of the run in reports")
    seed: int = 0
    iterations: int = Field(50, ge=1, description="learner steps")
    expected_minutes: float | None = Field(
        None, gt=0, description="of the whole run, as who wrote the recipe measured it; a run far above it is told why"
    )
    model: Path = Field(description="folder of the base model")
    data: DataSettings = DataSettings()
    sampler: SamplerSettings = SamplerSettings()
    rollout: RolloutSettings = RolloutSettings()
    reward: RunReward = RunReward()
    adapt: AdaptSettings = AdaptSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    source: SourceSettings = SourceSettings()
    learner: StepSettings = StepSettings()
    actors: ActorSettings = ActorSettings()
    ranks: RoleSettings = RoleSettings()
    store: StoreSettings = StoreSettings()
    cluster: ClusterSettings = ClusterSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: tuple[str, ...] = Field(
        (TENSORBOARD,),
        description="mirrors of metrics.jsonl: any of tensorboard, wandb, mlflow",
    )
    checkpoint_every: int = Field(1, ge=1, description="iterations between checkpoints; trajectories stay until one")
    keep_checkpoints: int = Field(3, ge=1)
    start_timeout_s: float = Field(
        600.0, gt=0, description="longest time for actors and ranks to be placed, and then to load the model"
    )
    stall_timeout_s: float = Field(1800.0, gt=0, description="longest time without any progress before giving up")

    @field_validator("tracking", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("tracking")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in TRACKERS]:
            raise ValueError(f"{unknown[0]!r} is no tracker; choose {', '.join(TRACKERS)}, or [] for none")
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        batch, item = self.source.groups_per_step, self.rollout.images_per_batch
        if batch % item:
            raise ValueError(
                f"source.groups_per_step={batch} must be a multiple of rollout.images_per_batch={item}: "
                "a learner batch is made of whole rollout batches"
            )
        held = batch * (self.checkpoint_every + self.source.max_staleness + 1)
        if self.store.max_entries < held:
            raise ValueError(
                f"store.max_entries={self.store.max_entries} can't hold the {held} groups between two checkpoints "
                f"(source.groups_per_step={batch} x (checkpoint_every={self.checkpoint_every} + "
                f"source.max_staleness={self.source.max_staleness} + 1)); raise it or checkpoint more often"
            )
        if self.objective.needs_policy and self.rollout.denoise_dtype != self.learner.dtype:
            raise ValueError(
                f"rollout.denoise_dtype={self.rollout.denoise_dtype} but learner.dtype={self.learner.dtype}: the ratio "
                "would compare two precisions; set both to the same"
            )
        self.learner_settings()  # which refuses what a rank can't do together
        needs_groups = self.advantage.batch_scope == "same_image" or self.advantage.stats == "track"
        if needs_groups and self.rollout.rollouts_per_image < 2:
            raise ValueError("rollout.rollouts_per_image=1 leaves no other rollout of an image to compare with")
        if self.advantage.clamp_to_gt and not self.reward.resolved.plain:
            raise ValueError(
                "advantage.clamp_to_gt with several reward.terms, or with a weight: the bound is the ground truth's "
                "score by one scorer, which such a reward is not comparable with; use one of them"
            )
        for term in self.reward.resolved.terms if self.reward.terms else ():
            other = term.scorer != term.name or self.reward.services.get(term.name, self.reward).params
            if term.served and term.name in self.evaluation.scorers and other:
                raise ValueError(
                    f"evaluation.scorers has {term.name}, which is the name of another scorer in reward.terms; give "
                    "that term another name"
                )
        if self.reward.combine == "gdpo" and self.rollout.rollouts_per_image < 2:
            raise ValueError(
                "reward.combine=gdpo with rollout.rollouts_per_image=1: there is no other rollout of an image to "
                "normalise with; raise it, or take reward.combine=sum"
            )
        return self

    def learner_settings(self) -> LearnerSettings:
        return LearnerSettings(
            **vars(self.learner),
            adapt=self.adapt,
            sampler=self.sampler,
            objective=self.objective,
            advantage=self.advantage,
            optimiser=self.optimiser,
            seed=self.seed,
            threads=self.ranks.threads,
        )
