from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.config.configure import ConfigError, build_config, load_config
from cluster.config.recipe import RunConfig
from cluster.deploy import deployed
from cluster.deploy.noted import text_of
from tests.cluster.deploy.cases import GPU, ROOT, recipe

RECIPES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml"))
OF_RUNS = [
    p for p in RECIPES if not p.startswith(("configs/rewards", "configs/sft", "configs/pretrain", "configs/study"))
]


@pytest.mark.parametrize("path", OF_RUNS)
def test_a_recipe_in_few_lines_gives_the_same_configuration(path: str, tmp_path: Path) -> None:
    config = deployed.pinned(deployed.patient(recipe("model=models/x", path=path)))
    written = tmp_path / "recipe.yaml"
    written.write_text(text_of([deployed.recipe_of(config)]))
    assert load_config(RunConfig, written) == config
    assert len(written.read_text().splitlines()) < 90


def test_relative_paths_are_in_the_shared_folder_weights_of_scorers_among_them() -> None:
    terms = "reward.terms=[{scorer: deqa, params: {weights: weights/deqa, batch: 2}}, {}]"
    given = recipe(*GPU, "data.embeddings=/own/e", terms, "reward.scorer=clip_iqa", "reward.params={model: RN50.pt}")
    config = deployed.on_shared_storage(given, "/mnt/restorl")
    assert (config.model, config.data.root) == (Path("/mnt/restorl/models/mine"), Path("/mnt/restorl/data/LOLv1"))
    assert config.data.embeddings == Path("/own/e")
    deqa, clip = config.reward.services.values()
    assert deqa.params == {"weights": "/mnt/restorl/weights/deqa", "batch": 2} and clip.params == {
        "model": "/mnt/restorl/RN50.pt"
    }


@pytest.mark.parametrize(
    ("scorer", "parameter"),
    [
        *(("brisque", "model"), ("niqe", "model"), ("lite0_levels", "weights"), ("lite0_levels", "backbone")),
        *(("lpips", "weights"), ("pyiqa:musiq", "pretrained_model_path"), ("https://judge", "token_file")),
    ],
)
def test_every_file_that_a_term_names_is_in_the_shared_folder(scorer: str, parameter: str) -> None:
    given = recipe(*GPU, f"reward.terms=[{{scorer: piqe}}, {{scorer: '{scorer}', params: {{{parameter}: its/file}}}}]")
    _, term = deployed.on_shared_storage(given, "/mnt/restorl").reward.terms
    assert term["params"] == {parameter: "/mnt/restorl/its/file"}


def test_each_role_is_pinned_and_the_recipes_own_resources_stay() -> None:
    config = deployed.pinned(recipe(*GPU, "ranks.resources={big: 1}"))
    assert (config.actors.resources, config.ranks.resources) == ({"actor": 1.0}, {"big": 1.0})
    (reward,) = config.reward.services.values()
    assert reward.resources == {"reward": 1.0} and (reward.min_replicas, reward.max_replicas) == (1, 4)


@pytest.mark.parametrize(
    "own",
    [("reward.min_replicas=2", "reward.max_replicas=3"), ("reward.terms=[{replicas: 2}]",), ("reward.replicas=1",)],
)
def test_a_number_of_replicas_that_the_recipe_says_more_of_is_left_alone(own: tuple[str, ...]) -> None:
    before = recipe(*GPU, *own)
    assert deployed.pinned(before).reward.min_replicas == before.reward.min_replicas


def test_a_store_of_the_recipes_own_stays() -> None:
    own = recipe(*GPU, "store.url=rediss://store:1", "store.password_env=MINE")
    assert deployed.with_store(own, "redis://other:6379") == own
    given = deployed.with_store(recipe(*GPU), "redis://other:6379").store
    assert (given.url, given.password_env) == ("redis://other:6379", "STORE_PASSWORD")


def test_nodes_get_time_to_come_and_longer_times_stay() -> None:
    config = deployed.patient(
        recipe(*GPU, "start_timeout_s=7200", "reward.terms=[{start_timeout_s: 60}, {scorer: piqe}]")
    )
    assert config.start_timeout_s == 7200
    assert [of.start_timeout_s for of in config.reward.services.values()] == [1800.0, 1800.0]


@pytest.mark.parametrize(("given", "name"), [(None, "gpu-diffbir"), ("a-1", "a-1")])
def test_a_name_is_one_that_kubernetes_takes(given: str | None, name: str) -> None:
    assert deployed.name_of(recipe(*GPU), given) == name
    assert deployed.name_of(recipe(*GPU, "name='12 Größe_x!'"), None) == "gr--e-x"


@pytest.mark.parametrize("given", ["", "A", "1a", "a_b", "a-", "x" * 41, "é"])
def test_another_name_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="small letters, digits and dashes"):
        deployed.name_of(recipe(*GPU), given)


def test_what_is_written_is_what_the_model_takes() -> None:
    assert build_config(RunConfig, yaml.safe_load(text_of([deployed.recipe_of(recipe(*GPU))]))) == recipe(*GPU)
