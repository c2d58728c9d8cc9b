"""How large a table is run: as the recipes stand, shortened, or so small that a laptop does it in minutes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.paper.arms import ITERATED


@dataclass(frozen=True)
class Scale:
    """
    Attributes:
        told: what it is, for the head of a table.
        words: `key=value` behind a recipe.
        in_place_of: arm -> words in the place of its own, where what it needs isn't to be had at this scale.
        sft_words: behind the recipe of supervised fine-tuning.
        single: train in one process, without Ray.
        steps: at most so many of a chain; None leaves the recipe's.
        limit: pictures of a test that are measured, evenly spread; None for all.
        tile: larger pictures are restored in tiles of this side, unless another is asked for; 0 restores each whole.
    """

    name: str
    told: str
    words: tuple[str, ...] = ()
    in_place_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sft_words: tuple[str, ...] = ()
    single: bool = False
    steps: int | None = None
    limit: int | None = None
    tile: int = 0


_FLOAT32 = tuple(
    f"{key}=float32"
    for key in (
        *("rollout.denoise_dtype", "rollout.decode_dtype", "rollout.condition_dtype", "rollout.storage_dtype"),
        *("learner.dtype", "adapt.frozen_dtype"),
    )
)
_TINY = (
    *("iterations=2", "rollout.crop=64", "rollout.images_per_batch=2", "rollout.rollouts_per_image=2"),
    *("source.groups_per_step=2", "source.max_staleness=0", "learner.micro_batch=4", "checkpoint_every=1"),
    *("sampler.guidance_scale=1", "learner.gradient_checkpointing=false"),
    *("adapt.rank=2", "optimiser.lr=0.001", "optimiser.warmup=0"),
    *("reward.scorer=lite0_levels", "reward.params={}", "reward.num_gpus=0", "actors.num_gpus=0", "ranks.num_gpus=0"),
    *("evaluation.every=0", "evaluation.limit=1", "evaluation.scorers=[]", "evaluation.strips=0", "tracking=[]"),
    *_FLOAT32,
)

SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale("full", "recipes as they stand"),
        Scale(
            "quick",
            "a tenth of the iterations, 20 pictures of each test",
            ("iterations=50", "evaluation.every=0", "evaluation.limit=20"),
            sft_words=("cleaner.iterations=2000", "diffusion.iterations=2000"),
            limit=20,
        ),
        Scale(
            "tiny",
            "2 iterations on crops of 64 pixels, 2 steps, a reward of lite0_levels (with Q-align: brisque, with "
            "CLIP-IQA: piqe, Iter. RL: piqe in its second round), 4 pictures of each test: that all of it runs",
            _TINY,
            in_place_of={
                "qalign_reward": ("reward.scorer=brisque",),
                "clip_iqa_reward": ("reward.scorer=piqe",),
                ITERATED: ("reward.scorer=piqe",),
            },
            sft_words=(
                *("cleaner.iterations=2", "cleaner.batch_size=2", "cleaner.micro_batch=2", "cleaner.crop=32"),
                *("diffusion.iterations=2", "diffusion.batch_size=2", "diffusion.micro_batch=2", "diffusion.crop=64"),
                *("diffusion.warmup=0", "diffusion.gradient_checkpointing=false", "validation.every=0"),
                *("validation.images=1", "validation.crop=64"),
            ),
            single=True,
            steps=2,
            limit=4,
            tile=128,  # SID and SMID are of 960x512, whose attention takes minutes on a CPU
        ),
    )
}


def scale_of(name: str) -> Scale:
    """Raises ValueError: no such scale."""
    if name not in SCALES:
        raise ValueError(f"--scale {name}: choose one of {', '.join(SCALES)}")
    return SCALES[name]
