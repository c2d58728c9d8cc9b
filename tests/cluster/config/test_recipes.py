from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import ARMS, RECIPE, Arm
from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.run.single import method_of
from restoration.pretrain.run import PretrainRecipe
from restoration.pretrain.sft import SftRecipe

CONFIGS = Path(__file__).parents[3] / "configs"
ABLATIONS = {
    "diff_sft": ("objective.recipe", "diff_sft"),
    "base": ("objective.recipe", "base"),
    "ablations/rec_reward": ("rollout.reward", "reconstruction"),
    "ablations/no_weights": ("objective.use_weights", False),
    "ablations/sampled_action": ("rollout.action_target", "sampled"),
    "ablations/reward_final": ("rollout.reward_at", "final"),
    "ablations/norm_track": ("advantage.stats", "track"),
    "ablations/piqe_reward": ("reward.scorer", "piqe"),
    "ablations/brisque_reward": ("reward.scorer", "brisque"),
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def recipe(name: str) -> dict[str, Any]:
    return flat(load_config(RunConfig, CONFIGS / f"{name}.yaml", ["model=models/demo"]).model_dump())


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    if path.stem.startswith("pretrain"):
        load_config(PretrainRecipe, path)
    elif path.stem == "sft":
        load_config(SftRecipe, path, ["model=models/demo", "data.root=data/demo/rain"])
    else:
        load_config(RunConfig, path, [] if "model" in path.read_text() else ["model=models/demo"])


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_from_ours_in_the_switch_that_names_it_alone(name: str) -> None:
    ours, other = recipe("ours"), recipe(name)
    key, value = ABLATIONS[name]
    assert {k: v for k, v in other.items() if ours[k] != v and k != "name"} == {key: value}


def test_every_ablation_is_checked_here() -> None:
    shipped = {str(p.relative_to(CONFIGS).with_suffix("")) for p in (CONFIGS / "ablations").glob("*.yaml")}
    assert shipped <= ABLATIONS.keys()


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_of_the_study_loads_and_differs_from_ours_in_what_it_names(name: str) -> None:
    loaded = {
        arm: load_config(RunConfig, CONFIGS / RECIPE.name, Arm("rain", arm, 0).overrides) for arm in (name, "ours")
    }
    for config in loaded.values():
        method_of(config)
    ours, other = flat(loaded["ours"].model_dump()), flat(loaded[name].model_dump())
    changed = {line.partition("=")[0] for line in ARMS[name]}
    assert {key for key in other if ours[key] != other[key]} == changed
