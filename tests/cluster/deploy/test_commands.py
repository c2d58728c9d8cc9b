"""What containers, hosts and batch scripts are told to run is something that this version runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cluster.cli.app import app
from cluster.deploy import ray_up, slurm
from cluster.deploy.deployed import recipe_of
from cluster.deploy.traps import groups_of_spec
from tests.cluster.deploy.cases import (
    GPU,
    cluster_of,
    of_kind,
    order,
    ray_start,
    recipe,
    rendered,
    shell_commands,
)

COMMANDS: Any = typer.main.get_command(app)
OWN_STORE = ("store.url=rediss://store:1", "store.password_env=MINE")


def restorl_commands() -> dict[str, list[str]]:
    """Where it stands -> its words, of all targets."""
    documents = rendered()
    (store,) = of_kind(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    found = {
        "RayJob": shlex.split(of_kind(documents, "RayJob")["spec"]["entrypoint"]),
        "StatefulSet": store["command"],
    }
    texts = {
        **ray_up.texts(recipe(*GPU), order()),
        **slurm.texts(recipe(*GPU), order(gpus=32, per_node=8)),
        **{f"own store, {file}": text for file, text in slurm.texts(recipe(*GPU, *OWN_STORE), order()).items()},
    }
    for file, text in texts.items():
        if file.endswith(("cloud.yaml", "hosts.yaml")):
            text = "\n".join(yaml.safe_load(text)["head_start_ray_commands"])
        if file.endswith("recipe.yaml"):
            continue
        found |= {f"{file} {i}": words for i, words in enumerate(shell_commands(text, "restorl"))}
    return found


FOUND = restorl_commands()


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters of a command as the command line takes them; nothing is run."""
    command, words = COMMANDS, words[1:]
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    # What the shell puts in where a number belongs.
    words = ["7" if word.startswith("$((") else word for word in _one_word(words)]
    return dict(command.make_context(command.name, words).params)


def _one_word(words: list[str]) -> list[str]:
    """Arithmetic of the shell, which shlex takes apart."""
    joined = " ".join(words)
    while "$((" in joined:
        begins = joined.index("$((")
        joined = joined[:begins] + "7" + joined[joined.index("))", begins) + 2 :]
    return joined.split(" ")


@pytest.mark.parametrize("where", FOUND)
def test_every_command_of_ours_parses(where: str) -> None:
    words = FOUND[where]
    assert words[0] == "restorl" and parsed(words)


def test_runs_begin_and_go_on_by_one_command() -> None:
    trains = [words for words in FOUND.values() if words[1] == "train"]
    assert len(trains) >= 4
    for words in trains:
        given = parsed(words)
        assert (
            given["run"] == Path("/mnt/restorl/runs/diffbir")
            and given["if_there"]
            and given["config"].endswith("recipe.yaml")
        )


def test_a_command_that_is_none_is_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["restorl", "deploy", "store", "/data", "--prot", "1"])


@pytest.mark.parametrize("name", ["head", "actor", "reward", "learner"])
def test_ray_takes_the_flags_that_kubernetes_starts_a_node_with(name: str) -> None:
    from ray.scripts.scripts import start

    groups = groups_of_spec(cluster_of(of_kind(rendered(), "RayJob")))
    (spec,) = (each for each in groups if each.get("groupName", "head") == name)
    words = ray_start(spec, head=name == "head")[2:]
    given = start.make_context("start", words if name == "head" else [*words, "--address=head:6379"]).params
    assert given["block"] and given["metrics_export_port"] == 8080
    assert given["num_cpus"] == {"head": 0, "learner": 32, "actor": 4, "reward": 1}[name]


@pytest.mark.parametrize(
    "text",
    [
        *(ray_up.texts(recipe(*GPU), order())[file] for file in ("cloud.yaml", "hosts.yaml")),
        slurm.texts(recipe(*GPU, "actors.resources={rollout: 1}"), order(gpus=32, per_node=8))["job.sh"],
    ],
    ids=["cloud", "hosts", "slurm"],
)
def test_ray_takes_the_flags_of_scripts(text: str) -> None:
    from ray.scripts.scripts import start

    lines = text
    if "cluster_name" in text:
        config = yaml.safe_load(text)
        lines = "\n".join([*config["head_start_ray_commands"], *config["worker_start_ray_commands"]])
    found = [words[2:] for words in shell_commands(lines, "ray") if words[1] == "start"]
    assert len(found) == 2
    for words in found:
        given = start.make_context("start", _one_word_each(words)).params
        assert given["head"] or given["address"]
        assert isinstance(given["metrics_export_port"], int)


def _one_word_each(words: list[str]) -> list[str]:
    joined = "\0".join(words)
    while "$((" in joined:
        begins = joined.index("$((")
        joined = joined[:begins] + "7" + joined[joined.index("))", begins) + 2 :]
    return [word.replace("$port", "7") if word.startswith("--port=") else word for word in joined.split("\0")]


def test_what_a_script_leaves_to_the_command_line_is_a_key_of_recipes() -> None:
    assert recipe_of(recipe(*GPU))["ranks"]["count"] == 8
    for where, words in FOUND.items():
        keys = [word.split("=")[0] for word in words if "=" in word and not word.startswith("-")]
        assert set(keys) <= {"store.url", "cluster.address"}, where
