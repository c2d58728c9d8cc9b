from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from cluster.config.configure import ConfigError, build_config
from cluster.config.recipe import RunConfig
from cluster.deploy import slurm
from cluster.deploy.layout import Hosts
from tests.cluster.deploy.cases import GPU, order, recipe

CPU = ("model=models/demo", "actors.num_gpus=0", "ranks.num_gpus=0", "reward.num_gpus=0")


def job(*overrides: str, gpus: int | None = None, per_node: int | None = None) -> str:
    return slurm.texts(recipe(*(overrides or GPU)), order(gpus=gpus, per_node=per_node))["job.sh"]


def options(text: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, flags=re.MULTILINE))


def test_a_job_has_nodes_for_all_roles() -> None:
    found = options(job(per_node=8))
    assert (found["nodes"], found["gpus-per-node"], found["ntasks-per-node"]) == ("3", "8", "1")  # 6 + 4 + 8 GPUs
    assert found["requeue"] == "" and found["signal"] == "B:USR1@300"
    alone = options(job(*CPU))
    assert alone["nodes"] == "1" and "gpus-per-node" not in alone
    assert "srun" not in job(*CPU) and "srun --nodes=2" in job(per_node=8)


def test_every_gpu_of_a_node_finds_the_cpus_of_the_process_that_asks_for_most() -> None:
    """Eight ranks of 4 CPUs fit on one node of eight GPUs, although rewards ask for 1."""
    assert slurm.nodes_of(recipe(*GPU), Hosts(None, 8, True)).cpus == 8 * 4 + slurm.HEAD_CPUS
    shared = recipe(*GPU, "actors.num_gpus=0.5")
    assert slurm.nodes_of(shared, Hosts(None, 8, True)).cpus == 8 * 8 + slurm.HEAD_CPUS
    without = recipe(*GPU, "reward.num_gpus=0", "reward.num_cpus=3")  # 4 replicas on 2 nodes
    assert slurm.nodes_of(without, Hosts(None, 8, True)) == slurm.Nodes(2, 8 * 4 + 2 * 3 + slurm.HEAD_CPUS, 8, {})
    alone = recipe(*GPU, "ranks.num_gpus=0")  # whose ranks are put together
    assert slurm.nodes_of(alone, Hosts(None, 8, True)).cpus == 8 * 4 + 8 * 4 + slurm.HEAD_CPUS


def test_a_process_that_no_node_holds_is_told_before_the_job_waits_for_nodes() -> None:
    with pytest.raises(ConfigError, match="actors.num_gpus=2 on hosts of 1 GPUs; give a larger --gpus-per-node"):
        job(*GPU, "actors.num_gpus=2")


def test_shares_that_leave_a_rest_of_each_gpu_get_more_of_them_or_one_line() -> None:
    shares = ("model=models/mine", "actors.num_gpus=0.75", "actors.count=4", "ranks.count=1", "reward.num_gpus=0")
    assert slurm.nodes_of(recipe(*shares), Hosts(None, 1, True)).count == 5  # not the 4 that 4 x 0.75 + 1 add up to
    with pytest.raises(ConfigError, match="--gpus 4: a process uses one GPU") as error:
        slurm.nodes_of(recipe(*shares), Hosts(4, 4, True))
    assert len(str(error.value).splitlines()) == 1


def test_a_step_gets_the_cpus_that_its_nodes_offer_to_ray() -> None:
    text = job(per_node=8)
    (given,) = re.findall(r"srun .*--cpus-per-task=(\d+)", text)
    assert given == options(text)["cpus-per-task"]
    assert text.count(f"--num-cpus={given} ") == 2


def test_actors_take_the_gpus_that_are_left() -> None:
    text = slurm.texts(recipe(*GPU), order(gpus=32, per_node=8))["recipe.yaml"]
    config = build_config(RunConfig, yaml.safe_load(text))
    assert config.actors.count == 20 and not config.cluster.autoscaling
    assert slurm.nodes_of(config, Hosts(32, 8, True)).count == 4


@pytest.mark.parametrize(
    ("gpus", "per_node", "told"),
    [(8, 8, "the roles ask for 13"), (12, 8, "leaves a part of a node"), (4, None, "the roles ask for 13")],
)
def test_too_few_gpus_are_one_line(gpus: int, per_node: int | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        job(gpus=gpus, per_node=per_node)
    assert len(str(error.value).splitlines()) == 1


def test_every_node_offers_the_resources_that_the_recipe_names() -> None:
    text = job(*GPU, "actors.resources={rollout: 0.5}", "ranks.resources={big: 1}")
    assert text.count('--resources=\'{"big": 8, "rollout": 3}\'') == 2
    assert "--resources" not in job()


FAKES = {
    "hostname": "echo 10.0.0.1 10.0.0.2",
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" = show ] && echo here || true',
    "srun": 'echo "srun $*" >> "$CALLS"; exec sleep 60',
    "ray": 'echo "ray $* token $RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"; exec sleep 60',
    "restorl": """
if [ "$1" = train ]; then
    trap 'echo "checkpoint" >> "$CALLS"; [ "${HANGS:-}" ] || { kill $sleeping; exit 143; }' TERM
    echo "train $* password $STORE_PASSWORD" >> "$CALLS"
    [ "${ENDS:-}" ] && exit "$ENDS"
    sleep 60 & sleeping=$!
    wait
    wait
fi
echo "restorl $*" >> "$CALLS"
[ "$2" = wait ] || exec sleep 60
until grep -q "^srun" "$CALLS" && grep -q "^ray" "$CALLS" && grep -q "deploy store" "$CALLS"; do sleep 0.05; done
""",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder in which the script finds programs that write down how they were called."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f'PATH="{tmp_path}/.venv/bin:$PATH"\n')
    for name, body in FAKES.items():
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    return tmp_path


def begin(clone: Path, leave_s: int = slurm.LEAVE_S, **environment: str) -> subprocess.Popen[str]:
    text = slurm.texts(recipe(*GPU), order(per_node=8))["job.sh"].replace("/mnt/restorl", str(clone))
    text = text.replace(f"timeout {slurm.LEAVE_S} ", f"timeout {leave_s} ")
    (clone / "job.sh").write_text(text)
    of_slurm = {
        **{"SLURM_JOB_ID": "4001", "SLURM_JOB_NODELIST": "here", "SLURM_SUBMIT_DIR": str(clone)},
        "SLURMD_NODENAME": "first",
    }
    given = {**os.environ, **of_slurm, "HOME": str(clone), "CALLS": str(clone / "calls"), **environment}
    return subprocess.Popen(
        ["bash", str(clone / "job.sh")],
        env=given, cwd=clone, text=True, start_new_session=True, stderr=subprocess.PIPE, umask=0o022,
    )  # fmt: skip


def calls_until(clone: Path, wanted: str) -> str:
    ends = time.monotonic() + 60
    while wanted not in (found := (clone / "calls").read_text() if (clone / "calls").exists() else ""):
        assert time.monotonic() < ends, found
        time.sleep(0.05)
    return found


def test_the_script_starts_store_head_nodes_and_run_and_its_status_is_that_of_the_run(clone: Path) -> None:
    process = begin(clone, ENDS="3")
    assert process.wait(60) == 3, process.communicate()
    calls = (clone / "calls").read_text()
    token = (clone / ".restorl" / "diffbir" / "ray_token").read_text().strip()
    password = (clone / ".restorl" / "diffbir" / "store_password").read_text().strip()
    assert calls.count("ray start --head --node-ip-address=") == 1 and f"token token {token}" in calls
    assert re.search(r"srun --nodes=2 --ntasks=2 --cpus-per-task=\d+ --exclude=first ray start", calls)
    assert f"restorl deploy store {clone}/runs/diffbir.store --port 24014" in calls and "restorl deploy wait 3" in calls
    assert re.search(
        rf"train train {clone}/out/recipe.yaml cluster.address=\S+:24010 store.url=redis://\S+:24014 --run "
        rf"{clone}/runs/diffbir --resume-if-there password {password}",
        calls,
    )


def test_secrets_are_the_users_only_and_what_a_run_writes_is_as_the_user_has_it(clone: Path) -> None:
    process = begin(clone, ENDS="0")
    assert process.wait(60) == 0, process.communicate()
    secrets = clone / ".restorl" / "diffbir"
    for path in (secrets, secrets / "ray_token", secrets / "store_password"):
        assert path.stat().st_mode & 0o077 == 0
    assert (clone / "calls").stat().st_mode & 0o777 == 0o644  # written by what the script starts


@pytest.mark.parametrize("number", [0, 1199, 3999, 123_456_789])
def test_ports_of_a_job_are_none_that_a_connection_gets_from_linux(number: int) -> None:
    (line,) = re.findall(r"^port=.*$", job(), flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", f"{line}; echo $port"],
        env={"SLURM_JOB_ID": str(number)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 20000 and int(done.stdout) + 9 < 32768


def test_two_heads_on_one_node_share_no_port() -> None:
    (head,) = (line for line in job().splitlines() if line.startswith("ray start --head"))
    assert "--ray-client-server-port=$((port + 5))" in head
    offsets = re.findall(r"\$\(\(port \+ (\d)\)\)", head)
    assert len(offsets) == len(set(offsets)) == 4 and "4" not in offsets  # the store has that


@pytest.mark.parametrize(("name", "status", "again"), [("USR1", 0, True), ("TERM", 143, False)])
def test_at_its_end_the_driver_writes_a_checkpoint_and_only_a_job_without_time_queues_itself_again(
    clone: Path, name: str, status: int, again: bool
) -> None:
    process = begin(clone)
    calls_until(clone, "--resume-if-there")
    subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    assert process.wait(60) == status
    calls = calls_until(clone, "checkpoint")
    assert ("scontrol requeue 4001" in calls) == again


def test_a_driver_that_hangs_in_leaving_is_killed_so_that_the_job_is_queued_again_in_time(clone: Path) -> None:
    process = begin(clone, leave_s=1, HANGS="1")
    calls_until(clone, "--resume-if-there")
    began = time.monotonic()
    subprocess.run(["kill", "-USR1", str(process.pid)], check=True)
    try:
        assert process.wait(60) == 0 and time.monotonic() - began < 30
        assert "scontrol requeue 4001" in calls_until(clone, "checkpoint")
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # what the driver had started, which Slurm would end
