from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.configure import ConfigError, build_config
from cluster.config.recipe import RunConfig
from cluster.deploy import ray_up
from tests.cluster.deploy.cases import GPU, order, recipe

CPU = ("model=models/demo", "actors.num_gpus=0", "ranks.num_gpus=0", "reward.num_gpus=0")


def files(*overrides: str, per_node: int | None = None) -> dict[str, str]:
    return ray_up.texts(recipe(*(overrides or GPU)), order(per_node=per_node))


@pytest.mark.parametrize("file", ["cloud.yaml", "hosts.yaml"])
@pytest.mark.parametrize("overrides", [GPU, CPU, (*GPU, "reward.app=shared")])
def test_rays_own_validator_takes_it(file: str, overrides: tuple[str, ...]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(files(*overrides)[file]))
    validate_config(config)
    assert "make setup" in " ".join(config["worker_setup_commands"])


def test_rays_own_validator_finds_a_key_that_is_none() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config({**yaml.safe_load(files()["cloud.yaml"]), "max_worker": 3})
    with pytest.raises(Exception, match="max_worker"):
        validate_config(config)


def test_machines_of_a_cloud_are_the_groups_of_the_recipe_and_offer_what_its_roles_ask_for() -> None:
    written = files(*GPU, per_node=4)
    config: dict[str, Any] = yaml.safe_load(written["cloud.yaml"])
    types = config["available_node_types"]
    assert {name: (t.get("min_workers"), t.get("max_workers"), t["resources"]) for name, t in types.items()} == {
        "head": (None, None, {"CPU": 0}),
        "actor": (0, 4, {"CPU": 16, "GPU": 4, "actor": 4}),
        "reward": (1, 1, {"CPU": 4, "GPU": 4, "reward": 4}),
        "learner": (2, 2, {"CPU": 16, "GPU": 4, "learner": 4}),
    }
    assert config["max_workers"] == 7
    spot = [name for name, t in types.items() if t["node_config"].get("InstanceMarketOptions")]
    assert spot == ["actor"]
    runs = build_config(RunConfig, yaml.safe_load(written["recipe.yaml"]))
    assert (runs.actors.resources, runs.ranks.resources, runs.reward.resources) == (
        {"actor": 1.0},
        {"learner": 1.0},
        {"reward": 1.0},
    )
    assert runs.cluster.autoscaling and runs.store.password_env == "STORE_PASSWORD"


def test_hosts_that_are_alike_offer_what_any_role_asks_for() -> None:
    config = yaml.safe_load(files()["hosts.yaml"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert '--resources=\'{"actor": 1, "reward": 1, "learner": 1}\'' in commands[-1]


def test_every_process_knows_the_token_and_none_shows_a_secret() -> None:
    written = files()
    config = yaml.safe_load(written["cloud.yaml"])
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/restorl_files/secrets/ray_token" in command
    assert "RAY_AUTH_MODE=token" in written["run.sh"]


def test_secrets_are_drawn_once_and_only_their_user_reads_them(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_text(files()["secrets.sh"])
    for _ in range(2):
        subprocess.run(["sh", str(script)], check=True, timeout=20)
        drawn = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
        assert set(drawn) == {"ray_token", "store_password"} and len(set(drawn.values())) == 2
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "secrets").iterdir())
        assert all(len(value.strip()) == 64 for value in drawn.values())
        before = drawn
    assert before == drawn


def test_the_scripts_are_shell(tmp_path: Path) -> None:
    for name in ("run.sh", "secrets.sh"):
        subprocess.run(["bash", "-n"], input=files()[name], text=True, check=True, timeout=20)
    config = yaml.safe_load(files()["cloud.yaml"])
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True, timeout=20)


def test_storage_that_is_mounted_already_is_left_so_when_a_host_is_set_up_again(tmp_path: Path) -> None:
    (command,) = yaml.safe_load(files()["cloud.yaml"])["initialization_commands"]
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    for name, status in (("sudo", 0), ("mountpoint", "${MOUNTED}")):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\nexit {status}\n')
        (folder / name).chmod(0o755)
    for mounted in (1, 0):  # statuses of mountpoint
        given = {"PATH": f"{folder}:/usr/bin:/bin", "MOUNTED": str(mounted)}
        subprocess.run(["sh", "-c", command], env=given, check=True, timeout=20)
    assert calls.read_text().count("sudo mount") == 1


def test_a_role_that_no_host_holds_is_one_line() -> None:
    with pytest.raises(ConfigError, match="actors.num_gpus=2 on hosts of 1 GPUs; give a larger --gpus-per-node"):
        files(*GPU, "actors.num_gpus=2")
