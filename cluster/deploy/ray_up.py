"""`ray up`: the launcher of Ray for machines of a cloud, and for hosts that are there already."""

from __future__ import annotations

import shlex
from typing import Any

from cluster.config.recipe import RunConfig
from cluster.deploy import deployed
from cluster.deploy.deployed import PASSWORD
from cluster.deploy.layout import ACTOR, LEARNER, REWARD, Group, groups_of
from cluster.deploy.noted import Noted, text_of
from cluster.deploy.order import Order
from cluster.deploy.shell import draw_secrets, environment, password, resources_flag, script
from cluster.deploy.store_manifest import memory_mib

CLONE, FILES = "$HOME/restorl", "$HOME/restorl_files"
SECRETS = f"{FILES}/secrets"
GCS, STORE, METRICS = 6379, 6380, 8080
INSTANCES = {0: "m7i.2xlarge", 1: "g6e.4xlarge", 4: "g6e.24xlarge", 8: "p5.48xlarge"}  # by GPUs
SCALE = {
    ACTOR: "Spot: what a lost actor had is given out again. `restorl actors scale N` finds room up to max_workers.",
    REWARD: "Ray Serve scales the replicas by their queue, nodes follow.",
    LEARNER: "On demand, and min_workers stays max_workers: a lost rank costs the steps since the last checkpoint.",
}
HOSTS = ("HEAD_IP", ("WORKER_IP_1", "WORKER_IP_2"))


def texts(config: RunConfig, order: Order) -> dict[str, str]:
    """File -> its text.

    Raises:
        ConfigError: roles that don't fit into the hosts.
    """
    config = deployed.on_shared_storage(config, order.work)
    config = deployed.patient(deployed.joining(config, autoscaling=True))
    on_cloud = deployed.with_actors(deployed.pinned(config), order.hosts)
    recipe = text_of([deployed.recipe_of(deployed.with_store(on_cloud, f"redis://127.0.0.1:{STORE}"))], RECIPE_HEAD)
    return {
        "secrets.sh": script(["#!/bin/sh", SECRETS_HEAD, "set -eu", 'cd "$(dirname "$0")"', *draw_secrets("secrets")]),
        "recipe.yaml": recipe,
        "cloud.yaml": text_of([cloud(on_cloud, order)], CLOUD_HEAD.format(out=order.out)),
        "hosts.yaml": text_of([on_premise(on_cloud, order)], HOSTS_HEAD.format(out=order.out)),
        "run.sh": run_script(on_cloud, order),
    }


def cloud(config: RunConfig, order: Order) -> dict[str, Any]:
    """Machines that come and go, a type for each role."""
    groups = groups_of(config, order.hosts)
    head = {
        "resources": {"CPU": 0},
        "node_config": Noted({"InstanceType": INSTANCES[0]}, "The driver, the store and Ray's own processes."),
    }
    types = {"head": head, **{group.name: Noted(_type(group), SCALE[group.name]) for group in groups}}
    return {
        "cluster_name": order.name,
        "max_workers": sum(group.most for group in groups),
        "idle_timeout_minutes": 10,
        "provider": Noted(
            {"type": "aws", "region": "us-east-1", "cache_stopped_nodes": False},
            "Change: your cloud; node_config below is what it calls its machines.",
        ),
        "auth": {"ssh_user": "ubuntu"},
        "head_node_type": "head",
        "available_node_types": types,
        "initialization_commands": Noted(
            [
                f"mountpoint -q {order.work} || {{ sudo mkdir -p {order.work} && sudo mount -t nfs4 FILE_SERVER:/ "
                f"{order.work}; }}"
            ],
            "Change: storage that all machines share, with data, models and runs.",
        ),
        **_common(config, order),
    }


def on_premise(config: RunConfig, order: Order) -> dict[str, Any]:
    """Hosts that are always there; each offers what any role asks for, as they may all be alike."""
    groups = groups_of(config, order.hosts)
    head_ip, workers = HOSTS
    offers: dict[str, int] = {}
    for group in groups:
        offers |= {name: max(amount, offers.get(name, 0)) for name, amount in group.offers.items()}
    return {
        "cluster_name": order.name,
        "provider": Noted(
            {"type": "local", "head_ip": head_ip, "worker_ips": list(workers)},
            f"Change: your hosts; the recipe wants {sum(group.first for group in groups)} besides the head.",
        ),
        "auth": Noted({"ssh_user": "ubuntu"}, "Change: who may log in there, with a key (ssh_private_key)."),
        **_common(config, order, offers),
    }


def _type(group: Group) -> dict[str, Any]:
    instance = INSTANCES.get(group.gpus, f"{group.gpus}_GPUS")
    market = {"InstanceMarketOptions": {"MarketType": "spot"}} if group.name == ACTOR else {}
    gpus = {"GPU": group.gpus} if group.gpus else {}
    return {
        "min_workers": group.least,
        "max_workers": group.most,
        "resources": {"CPU": group.cpus, **gpus, **group.offers},
        "node_config": {"InstanceType": instance, **market},
    }


def _common(config: RunConfig, order: Order, offers: dict[str, int] | None = None) -> dict[str, Any]:
    """The clone and the commands of README.md, then Ray and the store."""
    ready = "; ".join([*environment(SECRETS), f". {CLONE}/.venv/bin/activate"])
    flags = " ".join(_flags(offers or {}))
    store = f'restorl deploy store "$HOME/restorl_store" --port {STORE} --memory-mib {memory_mib(config)}'
    return {
        "file_mounts": Noted(
            {"~/restorl": ".", "~/restorl_files": order.out},
            "From the folder of the clone, in which `ray up` is called.",
        ),
        "rsync_exclude": [".venv/", "runs/", ".git/"],
        "setup_commands": [f"cd {CLONE} && make setup"],
        "head_start_ray_commands": [
            f"{ready}; ray stop",
            f"{ready}; {password(SECRETS, PASSWORD)}; nohup {store} > $HOME/restorl_store.log 2>&1 &",
            f"{ready}; ulimit -n 65536; ray start --head --port={GCS} --dashboard-host=127.0.0.1 "
            f"--autoscaling-config=$HOME/ray_bootstrap_config.yaml {flags}",
        ],
        "worker_start_ray_commands": [
            f"{ready}; ray stop",
            f"{ready}; ulimit -n 65536; ray start --address=$RAY_HEAD_IP:{GCS} {flags}",
        ],
    }


def _flags(offers: dict[str, int]) -> list[str]:
    return [f"--metrics-export-port={METRICS}", *resources_flag(offers)]


def run_script(config: RunConfig, order: Order) -> str:
    """What runs on the head: a new run, or what there is of it in its folder."""
    url = [] if not config.store.is_embedded else [f'store.url="redis://$head:{STORE}"']
    train = ["restorl", "train", f"{FILES}/recipe.yaml", *url, "--run", shlex.quote(order.run), "--resume-if-there"]
    return script(
        [
            "#!/bin/bash",
            RUN_HEAD.format(out=order.out),
            "set -eu",
            *environment(SECRETS),
            password(SECRETS, PASSWORD),
            f". {CLONE}/.venv/bin/activate",
            "head=\"$(hostname -I | cut -d' ' -f1)\"",
            f"cd {shlex.quote(order.work)}",
            "exec " + " ".join(train),
        ]
    )


SECRETS_HEAD = "# Once, before `ray up`: the token of Ray and the password of the store, which only you can read."
RECIPE_HEAD = "The recipe as it runs there; docs/cli.md says what its keys mean."
CLOUD_HEAD = (
    "Machines of a cloud. In the folder of the clone:\n"
    "  sh {out}/secrets.sh && ray up {out}/cloud.yaml && ray exec {out}/cloud.yaml 'bash restorl_files/run.sh' --tmux\n"
    "  ray dashboard {out}/cloud.yaml; at the end: ray down {out}/cloud.yaml"
)
HOSTS_HEAD = CLOUD_HEAD.replace("Machines of a cloud", "Hosts of your own").replace("cloud.yaml", "hosts.yaml")
RUN_HEAD = "# The run, on the head: `ray exec {out}/cloud.yaml 'bash restorl_files/run.sh' --tmux`; again, it goes on."
