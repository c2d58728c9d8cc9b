"""A recipe as a cluster runs it: roles pinned to their groups, paths on shared storage, time for nodes to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.config.configure import ConfigError, build_config, plain
from cluster.config.recipe import RunConfig
from cluster.config.reward import RunReward
from cluster.deploy.layout import ACTOR, LEARNER, REWARD, Hosts, actors_on
from cluster.jobs import ClusterSettings
from cluster.run.checks.scorer_files import BESIDE, BROUGHT

PATIENCE_S = 1800.0  # a node with GPUs is ordered, boots and fetches an image of several gigabytes
PASSWORD = "STORE_PASSWORD"
# Parameters that name files, of scorers and terms that have files of ours else, or nothing to be checked.
FILES: Mapping[str, tuple[str, ...]] = {
    "brisque": ("model",),
    "lite0_levels": ("weights", "backbone"),
    "lpips": ("weights",),
    "niqe": ("model",),
}
FILES_OF_FAMILIES = {"pyiqa:": "_path", "http://": "token_file", "https://": "token_file"}  # ends of their names


def on_shared_storage(config: RunConfig, work: str) -> RunConfig:
    """With the paths of model, data and weights below `work`, where they are relative."""

    def below(path: Any) -> Any:
        return str(PurePosixPath(work) / str(path))

    data = config.data
    return config.model_copy(
        update={
            "model": Path(below(config.model)),
            "data": dataclasses.replace(
                data,
                root=Path(below(data.root)),
                embeddings=None if data.embeddings is None else Path(below(data.embeddings)),
            ),
            "reward": _with_weights(config.reward, below),
        }
    )


def _with_weights(reward: RunReward, below: Any) -> RunReward:
    def placed(scorer: str, params: Mapping[str, Any]) -> dict[str, Any]:
        paths = {*BROUGHT.get(scorer, ()), *(BESIDE if scorer in BROUGHT else ()), *FILES.get(scorer, ())}
        ends = tuple(end for beginning, end in FILES_OF_FAMILIES.items() if scorer.startswith(beginning))
        named = {name for name in params if name in paths or name.endswith(ends)}
        return {name: below(value) if name in named and value else value for name, value in params.items()}

    terms = tuple(
        {**term, "params": placed(term.get("scorer", reward.scorer), term["params"])} if "params" in term else term
        for term in reward.terms
    )
    return dataclasses.replace(reward, params=placed(reward.scorer, reward.params), terms=terms)


def pinned(config: RunConfig) -> RunConfig:
    """Each role asks for the custom resource that its group's nodes offer: the recipe's own, else its group's name.

    Rewards of a fixed number are scaled between one and that number.
    """
    return config.model_copy(
        update={
            "actors": dataclasses.replace(config.actors, resources=config.actors.resources or {ACTOR: 1.0}),
            "ranks": dataclasses.replace(config.ranks, resources=config.ranks.resources or {LEARNER: 1.0}),
            "reward": scaled(
                dataclasses.replace(config.reward, resources=config.reward.resources or {REWARD: 1.0}),
            ),
        }
    )


def scaled(reward: RunReward) -> RunReward:
    """Scaled by load up to the replicas that the recipe names, unless it says more of their number itself."""
    own = any({"replicas", "min_replicas", "max_replicas"} & set(term) for term in reward.terms)
    if reward.autoscales or own or reward.replicas == 1:
        return reward
    return dataclasses.replace(reward, min_replicas=1, max_replicas=reward.replicas)


def patient(config: RunConfig) -> RunConfig:
    """With time for nodes to come, in which actors, ranks and replicas wait for their places."""
    reward = dataclasses.replace(
        config.reward,
        start_timeout_s=max(config.reward.start_timeout_s, PATIENCE_S),
        terms=tuple(
            {**term, "start_timeout_s": max(term["start_timeout_s"], PATIENCE_S)} if "start_timeout_s" in term else term
            for term in config.reward.terms
        ),
    )
    return config.model_copy(
        update={"reward": reward, "start_timeout_s": max(config.start_timeout_s, PATIENCE_S)},
    )


def joining(config: RunConfig, autoscaling: bool) -> RunConfig:
    """A cluster that runs already, whose nodes an autoscaler may add."""
    before = config.cluster
    cluster = ClusterSettings(
        "auto", namespace=before.namespace, log_to_driver=before.log_to_driver, autoscaling=autoscaling
    )
    return config.model_copy(update={"cluster": cluster})


def with_store(config: RunConfig, url: str) -> RunConfig:
    """The store at `url`, with the password of `PASSWORD`; a recipe that has an external one keeps that."""
    if not config.store.is_embedded:
        return config
    return config.model_copy(update={"store": dataclasses.replace(config.store, url=url, password_env=PASSWORD)})


def with_actors(config: RunConfig, hosts: Hosts) -> RunConfig:
    """As many actors as `hosts` have GPUs for.

    Raises:
        ConfigError: fewer than actors.min.
    """
    return counted(config, actors_on(config, hosts))


def counted(config: RunConfig, count: int) -> RunConfig:
    """With so many actors.

    Raises:
        ConfigError: fewer than actors.min.
    """
    if (least := config.actors.min) is not None and least > count:
        raise ConfigError.of(
            f"--gpus: there is room for {count} actors, and actors.min={least}; give more GPUs, or lower actors.min"
        )
    return config.model_copy(update={"actors": dataclasses.replace(config.actors, count=count)})


def recipe_of(config: RunConfig) -> dict[str, Any]:
    """What a recipe must say to give this configuration: all that isn't a default."""
    given, defaults = plain(config), plain(build_config(RunConfig, {"model": str(config.model)}))
    return {"model": given["model"], **_unlike(given, defaults)}


def _unlike(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict) and set(default) <= set(value):
            if inner := _unlike(value, default):
                found[key] = inner
        elif key not in defaults or value != default:
            found[key] = value
    return found


def name_of(config: RunConfig, given: str | None) -> str:
    """What everything is called, from `given` or the recipe's name; Kubernetes takes it, too.

    Raises:
        ConfigError: it doesn't, or there is nothing to make a name of.
    """
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in config.name.lower()).strip("-")
    name = given if given is not None else name.lstrip("0123456789-")[:LONGEST].rstrip("-")
    fits = 0 < len(name) <= LONGEST and name[0].isalpha() and name[-1] != "-"
    if not fits or any(not (c.isascii() and (c.islower() or c.isdigit() or c == "-")) for c in name):
        raise ConfigError.of(
            f"--name {name!r}: small letters, digits and dashes, a letter first, no dash last, {LONGEST} at most; give "
            "such a --name"
        )
    return name


LONGEST = 40  # KubeRay adds to the names of jobs and services, which may have 47
