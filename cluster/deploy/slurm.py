"""A batch script for Slurm: a Ray cluster of the job's nodes, the store and the run; queued again, it resumes."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.deploy import deployed
from cluster.deploy.deployed import PASSWORD, counted
from cluster.deploy.layout import Hosts, most_replicas
from cluster.deploy.noted import text_of
from cluster.deploy.order import Order
from cluster.deploy.shell import draw_secrets, environment, password, resources_flag, script
from cluster.deploy.store_manifest import memory_mib
from cluster.run.checks.resources import Demand, demands, packs

STOP_S = 300  # before the time limit the driver is told to end
LEAVE_S = 240  # that it may take for it, so that the job is queued again before its time is over
HEAD_CPUS = 2  # for the driver, the store and Ray's own processes
JOIN_S = 600
SECRETS = '"$secrets"'
HEAD = "The recipe as it runs there; docs/cli.md says what its keys mean."


@dataclass(frozen=True)
class Nodes:
    """Of a job, all alike.

    Attributes:
        count: of nodes.
        cpus, gpus: of each.
        offers: custom resources of each, in plenty: nothing is pinned to a node of a job.
    """

    count: int
    cpus: int
    gpus: int
    offers: dict[str, int]


def texts(config: RunConfig, order: Order) -> dict[str, str]:
    """File -> its text.

    Raises:
        ConfigError: roles that don't fit into the hosts.
    """
    own_store = config.store.is_embedded
    config = deployed.joining(deployed.on_shared_storage(config, order.work), autoscaling=False)
    config = _with_actors(config, order.hosts)
    nodes = nodes_of(config, order.hosts)
    # The address of the head, where the store is, is known only when the job runs.
    recipe = deployed.recipe_of(deployed.with_store(config, "redis://127.0.0.1:6379"))
    lines = [*header(order, nodes), *_ready(order), *_cluster(config, order, nodes, own_store), *_run(order, own_store)]
    return {"recipe.yaml": text_of([recipe], HEAD), "job.sh": script(lines)}


def nodes_of(config: RunConfig, hosts: Hosts) -> Nodes:
    """Enough for all roles, with as many GPUs as `hosts` has, if that is known.

    Raises:
        ConfigError: the roles ask for more GPUs than there are, or a process for more than a node has.
    """
    roles = _demands(config)
    gpus = sum(role.count * role.each.get("GPU", 0.0) for role in roles)
    there = hosts.gpus if hosts.gpus is not None else math.ceil(gpus / hosts.host - 1e-9) * hosts.host
    for role in roles:
        if (share := role.each.get("GPU", 0.0)) > hosts.host:
            raise ConfigError.of(
                f"{role.key}.num_gpus={share:g} on hosts of {hosts.host} GPUs; give a larger --gpus-per-node"
            )
    if gpus > there + 1e-9:
        told = ", ".join(f"{role.key} {role.count * role.each['GPU']:g}" for role in roles if role.each.get("GPU"))
        raise ConfigError.of(
            f"--gpus {there}: the roles ask for {gpus:g} ({told}); give more GPUs, or lower ranks.count or the rewards"
        )
    shares = [role.each.get("GPU", 0.0) for role in roles for _ in range(role.count)]
    while not packs(shares, there):
        if hosts.gpus is not None:
            raise ConfigError.of(
                f"--gpus {there}: a process uses one GPU, and the roles' shares don't fill {there} of them without a "
                "rest; give more GPUs, or shares that add up to whole ones"
            )
        there += hosts.host
    count, each = max(there // hosts.host, 1), hosts.host if there else 0
    offers = {name: math.ceil(amount) for name, amount in _sums(roles).items()}
    return Nodes(count, cpus_of(roles, count, each), each, offers)


def cpus_of(roles: list[Demand], nodes: int, gpus: int) -> int:
    """CPUs of a node with so many GPUs, so that wherever Ray puts a process, it finds its CPUs beside its GPU.

    A mean over the nodes would fit in sum only: ranks, which ask for most, are put together, rewards apart.
    """
    each_gpu = max((role.each.get("CPU", 0.0) / role.each["GPU"] for role in roles if role.each.get("GPU")), default=0)
    without = 0.0
    for role in roles:
        if not role.each.get("GPU"):
            # Ray Serve spreads replicas over the nodes; actors and ranks may all be on one.
            together = role.count if role.key in ("actors", "ranks") else math.ceil(role.count / nodes)
            without += together * role.each.get("CPU", 0.0)
    return math.ceil(gpus * each_gpu + without - 1e-9) + HEAD_CPUS


def _demands(config: RunConfig) -> list[Demand]:
    """With as many reward replicas as there may be."""
    most = {config.reward.key(term): most_replicas(of) for term, of in config.reward.services.items()}
    return [replace(role, count=most.get(role.key, role.count)) for role in demands(config)]


def _sums(roles: list[Demand]) -> dict[str, float]:
    """Custom resources of all processes."""
    found: dict[str, float] = {}
    for role in roles:
        for name in role.each.keys() - {"CPU", "GPU"}:
            found[name] = found.get(name, 0.0) + role.each[name] * role.count
    return dict(sorted(found.items()))


def _with_actors(config: RunConfig, hosts: Hosts) -> RunConfig:
    """As many actors as GPUs are left to them."""
    share = config.actors.num_gpus
    if hosts.gpus is None or not share:
        return config
    taken = sum(role.count * role.each.get("GPU", 0.0) for role in _demands(config) if role.key != "actors")
    count = max(int((hosts.gpus - taken) / share + 1e-9), 1)  # with none left, `nodes_of` says what is too much
    return counted(config, count)


def header(order: Order, nodes: Nodes) -> list[str]:
    """What `sbatch` reads."""
    gpus = [f"#SBATCH --gpus-per-node={nodes.gpus}"] if nodes.gpus else []
    return [
        "#!/bin/bash",
        f"# One run on the nodes of a job. In the folder of the clone: sbatch {order.out}/job.sh",
        "# Change: partition, account, time.",
        f"#SBATCH --job-name={order.name}",
        f"#SBATCH --nodes={nodes.count}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --cpus-per-task={nodes.cpus}",
        *gpus,
        "#SBATCH --time=24:00:00",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:USR1@{STOP_S}",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=%x-%j.log",
        "set -euo pipefail",
        "",
    ]


def _ready(order: Order) -> list[str]:
    """Secrets, ports, the environment."""
    return [
        "# Token and password: in files that only you can read, in a folder that all nodes share.",
        f'secrets="$HOME/.restorl/{order.name}"',
        *draw_secrets(SECRETS),
        *environment(SECRETS),
        "# The ports of this job, so that two on one node don't meet; in a file, for who looks at the run.",
        "# They are below those that Linux gives to connections from 32768 on.",
        "port=$((20000 + SLURM_JOB_ID % 1200 * 10))",
        'echo "$port" > "$secrets/port"',
        '. "$SLURM_SUBMIT_DIR/.venv/bin/activate"',
        f"cd {shlex.quote(order.work)}",
        "",
    ]


def _cluster(config: RunConfig, order: Order, nodes: Nodes, own_store: bool) -> list[str]:
    """The store, Ray's head on the first node, where this script runs, and a step with the others."""
    given = [f"--num-cpus={nodes.cpus}", *([f"--num-gpus={nodes.gpus}"] if nodes.gpus else [])]
    given += ["--dashboard-agent-listen-port=$((port + 2))", "--metrics-export-port=$((port + 3))"]
    flags = " ".join([*given, *resources_flag(nodes.offers), "--block"])
    store = [
        password(SECRETS, PASSWORD),
        f"restorl deploy store {shlex.quote(order.run + '.store')} --port $((port + 4)) "
        f"--memory-mib {memory_mib(config)} &",
    ]
    others = [
        # A step doesn't take over the CPUs that its job asked for.
        f"srun --nodes={nodes.count - 1} --ntasks={nodes.count - 1} --cpus-per-task={nodes.cpus} "
        '--exclude="${SLURMD_NODENAME:-$(hostname -s)}" \\',
        f'    ray start --address="$head:$port" {flags} &',
    ]
    return [
        "# Whatever still runs when the script ends, ends with it. A driver that is told to end finishes a checkpoint",
        f"# that it is writing; one that hangs is killed after {LEAVE_S} s.",
        "# At the end of its time the job is queued again, and goes on with what run folder and store hold.",
        "driver=",
        "end() {",
        '    [ -n "$driver" ] || return 0',
        '    kill -TERM "$driver" 2> /dev/null || true',
        f'    timeout {LEAVE_S} tail --pid="$driver" -s 0.2 -f /dev/null || kill -KILL "$driver" 2> /dev/null || true',
        '    wait "$driver" || true',
        "}",
        "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT",
        "trap 'end; scontrol requeue \"$SLURM_JOB_ID\"; exit 0' USR1",
        "trap 'end; exit 143' TERM",
        "",
        "head=\"$(hostname -I | cut -d' ' -f1)\"",
        *(store if own_store else []),
        "ulimit -n 65536 2> /dev/null || true",
        'ray start --head --node-ip-address="$head" --port="$port" --dashboard-port=$((port + 1)) '
        f"--ray-client-server-port=$((port + 5)) {flags} &",
        *(others if nodes.count > 1 else []),
        f'restorl deploy wait {nodes.count} --address "$head:$port" --timeout-s {JOIN_S} &',
        "wait $!",
        "",
    ]


def _run(order: Order, own_store: bool) -> list[str]:
    """The driver."""
    files = order.out if order.out.startswith("/") else f"$SLURM_SUBMIT_DIR/{order.out}"
    url = ' store.url="redis://$head:$((port + 4))"' if own_store else ""
    return [
        f'restorl train "{files}/recipe.yaml" cluster.address="$head:$port"{url} \\',
        f"    --run {shlex.quote(order.run)} --resume-if-there &",
        "driver=$!",
        'wait "$driver"',
    ]
