from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.configure import ConfigError, load_config
from cluster.config.recipe import RunConfig

OURS = Path(__file__).parents[3] / "configs" / "ours.yaml"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["source.groups_per_step=6", "rollout.images_per_batch=4"], "whole rollout batches"),
        (["store.max_entries=8"], "between two checkpoints"),
        (["rollout.denoise_dtype=bfloat16"], "two precisions"),
        (["adapt.mode=full", "optimiser.zero_stage=3", "objective.kl_beta=0.1"], "no reference policy"),
        (["learner.compile=inductor", "optimiser.zero_stage=3"], "use compile none or zero_stage 2"),
        (["rollout.rollouts_per_image=1", "advantage.stats=track"], "no other rollout"),
        (["advantage.clamp_to_gt=true", "reward.terms=[{}, {scorer: psnr}]"], "not comparable"),
        (["advantage.clamp_to_gt=true", "reward.terms=[{weight: 0.5}]"], "not comparable"),
        (["rollout.rollouts_per_image=1", "reward.combine=gdpo"], "no other rollout"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_settings_that_do_not_fit_together_are_refused_before_anything_starts(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(RunConfig, OURS, ["model=models/demo", *overrides])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("actors.num_gpus=.nan", "actors.*num_gpus=nan; a number of at least 0"),
        ("ranks.num_cpus=.inf", "ranks.*num_cpus=inf"),
        ("actors.count=0", "actors.*count=0; a number of at least 1"),
        ("actors.min=2", "actors.min.*min=2; from 1 to count=1, or null for all"),
        ("actors.min=0", "actors.min.*min=0; from 1 to count"),
        ("ranks.min=1", "ranks.min"),
        ("ranks.resources={here: 0}", r"ranks.*resources\['here'\]=0.*leave it out"),
        ("reward.resources={here: -1}", "reward.*must be above 0"),
    ],
)
def test_what_no_process_can_reserve_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(RunConfig, OURS, ["model=models/demo", override])
