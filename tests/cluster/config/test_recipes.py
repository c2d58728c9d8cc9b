from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from benchmarks.study import ARMS, RECIPE, Arm
from cluster.config.configure import load_config, value_of
from cluster.config.recipe import RunConfig
from cluster.run.checks.findings import Checked
from cluster.run.checks.pictures import Pictures
from cluster.run.checks.roles import number_types
from cluster.run.machine import Machine
from cluster.run.preflight import of_config, of_model
from cluster.run.single import method_of
from restoration.base_models import KINDS, class_of
from restoration.datasets.matching import Match
from restoration.pretrain.run import PretrainRecipe
from restoration.pretrain.sft import SftRecipe
from tests.cluster.run.checks.cases import LOL, Facts

CONFIGS = Path(__file__).parents[3] / "configs"
ABLATIONS = {
    "diff_sft": ("objective.recipe", "diff_sft"),
    "base": ("objective.recipe", "base"),
    "ablations/rec_reward": ("reward.terms", ({"weight": 0}, {"scorer": "reconstruction"})),
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


def given(path: Path) -> list[str]:
    """The model, which recipes for a model of one's own leave open."""
    named = value_of("model", path) is not None
    return [] if named else ["model=models/demo"]


def recipe(name: str) -> dict[str, Any]:
    return flat(load_config(RunConfig, CONFIGS / f"{name}.yaml", ["model=models/demo"]).model_dump())


@pytest.mark.parametrize("match", get_args(Match))
def test_every_way_to_pair_files_can_be_told_in_a_recipe(match: str) -> None:
    chosen = [f"data.match={match}", "model=models/demo"]
    assert load_config(RunConfig, CONFIGS / "demo.yaml", chosen).data.match == match
    assert load_config(SftRecipe, CONFIGS / "sft.yaml", [*chosen, "data.root=data/demo/rain"]).data.match == match


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    if path.stem.startswith("pretrain"):
        load_config(PretrainRecipe, path)
    elif path.stem == "sft":
        load_config(SftRecipe, path, ["model=models/demo", "data.root=data/demo/rain"])
    else:
        load_config(RunConfig, path, given(path))


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


GPU = sorted((CONFIGS / "gpu").glob("*.yaml"))
# Where a recipe differs from its model's class on purpose; each says why.
OWN_CHAIN = {"diffbir": "50 linspace, guidance 4", "stablesr": "50 of 200 steps", "controlnet": "no authors"}


@pytest.mark.parametrize("path", [CONFIGS / "gpu.yaml", *GPU], ids=lambda p: p.stem)
def test_a_recipe_for_gpus_has_neither_problems_nor_warnings_on_pictures_of_lol(path: Path) -> None:
    kind = {"sdxl": "controlnet", "sd3": "controlnet_sd3", "flux": "controlnet_flux"}.get(path.stem, path.stem)
    channels = 16 if kind in ("controlnet_sd3", "controlnet_flux", "tsdsr") else 4
    facts = Facts(kind, latent_channels=channels)
    config = load_config(RunConfig, path, ["model=models/x"])
    assert Checked.of(of_config(config, Machine(8))) == Checked((), ())
    assert Checked.of(of_model(config, facts, Pictures(LOL, LOL))) == Checked((), ())
    types = number_types(config, Machine(8, bf16=False))  # of the GPUs' device, whatever the processor is
    speedy = {key: str(found) for key, found in types.items() if key != "evaluation.dtype"}
    assert set(speedy.values()) == {"bfloat16 (auto)"} and len(speedy) == 5
    assert config.learner.gradient_checkpointing and not config.learner.norms_every
    assert config.checkpoint_every == 10 and config.evaluation.batch <= 4
    assert config.actors.num_gpus == config.ranks.num_gpus == config.reward.num_gpus == 1


def test_every_kind_of_base_model_has_a_recipe_for_gpus_with_its_own_chain() -> None:
    files = {"controlnet_sd3": "sd3", "controlnet_flux": "flux"}
    for kind in KINDS:
        config = load_config(RunConfig, CONFIGS / "gpu" / f"{files.get(kind, kind)}.yaml", ["model=models/x"])
        if kind not in OWN_CHAIN:
            assert config.sampler == class_of(kind).SAMPLER, kind
    assert {p.stem for p in GPU} == {files.get(kind, kind) for kind in KINDS} | {"sdxl"}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_no_shipped_recipe_names_a_type_that_a_processor_may_be_slow_in(path: Path) -> None:
    """`decode_dtype: bfloat16` made the demo ten times slower on a processor without instructions for it."""
    shipped = flat(yaml.safe_load(path.read_text()))
    assert not {key for key, value in shipped.items() if value in ("bfloat16", "float16")}
    assert all(value in ("auto", False) for key, value in shipped.items() if key.endswith(".bfloat16"))


def test_figures_that_are_compared_between_machines_are_computed_in_float32_by_name() -> None:
    for arm, overrides in ARMS.items():
        config = load_config(RunConfig, RECIPE, overrides)
        types = number_types(config, Machine())
        assert {found.given for found in types.values()} == {"float32"}, arm


@pytest.mark.parametrize(
    "path", [p for p in sorted(CONFIGS.rglob("*.yaml")) if p.parent.name != "gpu"], ids=lambda p: p.stem
)
def test_every_shipped_recipe_passes_the_checks_that_need_no_model(path: Path) -> None:
    if path.stem not in ("sft", "pretrain_demo", "gpu"):
        config = load_config(RunConfig, path, given(path))
        assert Checked.of(of_config(config, Machine())).problems == ()


def test_the_example_of_a_cluster_in_the_readme_feeds_all_its_actors() -> None:
    text = (CONFIGS.parent / "README.md").read_text()
    command = re.search(r"ray job submit -- \$RESTORL train (.*?)\n(?!    )", text, re.S)
    assert command is not None
    words = command.group(1).replace("\\\n", " ").replace("$PWD/", "").split()
    config = load_config(RunConfig, CONFIGS.parent / words[0], [w for w in words[1:] if "=" in w])
    assert config.actors.count == 8 and config.reward.num_gpus == 1
    assert Checked.of(of_config(config, Machine(8))) == Checked((), ())
    assert Checked.of(of_model(config, Facts(), Pictures(LOL, LOL))) == Checked((), ())
