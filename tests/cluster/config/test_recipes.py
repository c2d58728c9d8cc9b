from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from benchmarks.study import ARMS, RECIPE, Arm
from cluster.cli.plan import too_large
from cluster.config.configure import load_config, value_of
from cluster.config.recipe import RunConfig
from cluster.run.checks.findings import Checked
from cluster.run.checks.pictures import Pictures
from cluster.run.checks.resources import packs
from cluster.run.checks.roles import as_here, number_types
from cluster.run.flow import GPU as GPU_BYTES
from cluster.run.flow import flow
from cluster.run.machine import Machine
from cluster.run.memory_plan import CONTEXT, memory_plan
from cluster.run.preflight import of_config, of_model
from cluster.run.reward_memory import reward_memory
from cluster.run.single import method_of
from restoration.base_models import KINDS, ModelFacts, class_of
from restoration.datasets.matching import Match
from restoration.pretrain.run import PretrainRecipe
from restoration.pretrain.sft import SftRecipe
from restoration.stock import stock
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

# Of the paper's Table 6, which has them of DiffBIR with the real rewards.
REWARDS = {"ablations/qalign_reward": "qalign", "ablations/clip_iqa_reward": "clip_iqa"}
PAPER = sorted(p for p in (CONFIGS / "paper").glob("*.yaml") if p.stem != "method")


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
    elif path.stem.startswith("sft"):
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
    assert shipped <= ABLATIONS.keys() | REWARDS.keys()


@pytest.mark.parametrize("name", REWARDS)
def test_an_ablation_of_the_papers_reward_differs_from_its_recipe_in_the_scorer_alone(name: str) -> None:
    paper, other = recipe("paper/diffbir"), recipe(name)
    changed = {key for key in paper.keys() | other.keys() if paper.get(key) != other.get(key)}
    assert "reward.scorer" in changed and other["reward.scorer"] == REWARDS[name]
    assert all(key == "name" or key.startswith(("reward.scorer", "reward.params", "reward.start")) for key in changed)


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
OWN_CHAIN = {"stablesr": "50 of 200 steps", "controlnet": "no authors"}


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


def test_each_base_model_of_the_papers_first_table_has_a_recipe() -> None:
    kinds = {"diffbir", "stablesr", "pasd", "xpsr", "tsdsr", "rap", "faithdiff", "pisa"}  # the last is its "Pixel"
    assert {p.stem for p in PAPER} == kinds


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_a_recipe_of_the_paper_is_its_models_chain_with_deqa_and_has_no_problems_on_pictures_of_lol(path: Path) -> None:
    config, chain = load_config(RunConfig, path), recipe(f"gpu/{path.stem}")
    assert (config.name, config.reward.scorer) == (f"paper_{path.stem}", "deqa")
    own = flat(config.model_dump())
    assert {k: v for k, v in own.items() if k.startswith("sampler.")} == {
        k: v for k, v in chain.items() if k.startswith("sampler.")
    }
    assert own["objective.kl_beta"] > 0 and own["rollout.reward_at"] == "every_step"
    assert (own["rollout.action_target"], own["advantage.stats"]) == ("enhanced", "track+batch")
    assert own["learner.micro_batch"] == own["rollout.images_per_batch"] * own["rollout.rollouts_per_image"]
    assert Checked.of(of_config(config, Machine(8))) == Checked((), ())
    facts = Facts(path.stem, latent_channels=16 if path.stem == "tsdsr" else 4)
    assert Checked.of(of_model(config, facts, Pictures(LOL, LOL))) == Checked((), ())


def test_the_settings_of_each_task_on_the_papers_page_fit_its_recipes_and_pictures() -> None:
    text = (CONFIGS.parent / "docs" / "paper.md").read_text()
    rows = re.findall(r"^\| Table \d \| ([^|]+) \| ([^|]+) \| `([^`]+)`", text, flags=re.M)
    sizes = {
        "SID, SMID": (512, 960),
        "deraining": (321, 481),
        "motion blur": (512, 512),
        "defocus, one picture": (512, 512),
    }
    assert len(rows) == 6 and sizes.keys() <= {task for task, _, _ in rows}
    for task, models, settings in rows:
        pictures = [sizes.get(task, LOL[0] if "real" in task else (384, 384))] * 100
        for kind in ("diffbir", "tsdsr") if models == "all eight" else models.lower().split(", "):
            config = load_config(RunConfig, CONFIGS / "paper" / f"{kind}.yaml", settings.split())
            facts = Facts(kind, latent_channels=16 if kind == "tsdsr" else 4)
            assert Checked.of(of_config(config, Machine(8))) == Checked((), ()), task
            assert Checked.of(of_model(config, facts, Pictures(pictures, pictures))) == Checked((), ()), (task, kind)
    switches = re.findall(r"^\| [^|]+ \| \d+\.\d+ \| `([^`/]+=[^`]+)` \|$", text, flags=re.M)
    assert len(switches) == 6
    for switch in switches:
        load_config(RunConfig, CONFIGS / "paper" / "diffbir.yaml", [switch])


def test_the_parts_of_one_gpu_add_up_to_it() -> None:
    config = load_config(RunConfig, CONFIGS / "one_gpu.yaml")
    assert config.actors.count == config.reward.replicas == config.ranks.count == 1
    shares = [config.actors.num_gpus, config.reward.num_gpus, config.ranks.num_gpus]
    assert all(0 < share < 1 for share in shares) and sum(shares) <= 1 + 1e-9 and packs(shares, 1)
    assert Checked.of(of_config(config, Machine(1))) == Checked((), ())


@pytest.mark.slow
def test_on_one_gpu_each_role_stays_in_its_part_and_all_in_80_gb() -> None:
    config = as_here(load_config(RunConfig, CONFIGS / "one_gpu.yaml"), Machine(1))
    facts = ModelFacts.of(stock("sd21"))
    heldout = [LOL[0]] * 100
    schedule = facts.schedule(config.sampler)
    moved = flow(config, (384, 384), facts.vae_factor, facts.latent_channels, len(schedule.decisions))
    reward = reward_memory(config.reward)
    assert reward is not None
    roles = [*memory_plan(config, facts, moved, heldout), reward]
    shares = {"actor": config.actors.num_gpus, "rank": config.ranks.num_gpus, "reward": config.reward.num_gpus}
    assert shares.keys() == {role.role for role in roles}
    for role in roles:
        assert too_large(role, shares[role.role]) == ""
    stated = re.findall(r"(\w+) (\d+\.\d) GiB", (CONFIGS / "one_gpu.yaml").read_text())
    held = {role.role: (role.device_bytes + CONTEXT) / 2**30 for role in roles}
    held["sum"] = sum(held.values())
    assert {name: float(gib) for name, gib in stated} == pytest.approx(held, abs=0.1)
    assert held["sum"] * 2**30 <= GPU_BYTES


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
    if path.stem not in ("sft", "sft_demo", "pretrain_demo", "gpu"):
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
