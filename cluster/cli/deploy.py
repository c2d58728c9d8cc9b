"""`restorl deploy render|check|store`: ready files that start a run on a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.errors import UserMistake, guarded

deploy_app = typer.Typer(help="Files that start a run on a cluster.", no_args_is_help=True)


@deploy_app.command("render")
@guarded
def render(
    target: Annotated[str, typer.Argument(help="kuberay, ray-up or slurm.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Of the recipe, such as `data.root=data/LOLv1`.", metavar="[KEY=VALUE]..."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML recipe.", metavar="RECIPE")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files, new or empty.", metavar="FOLDER")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(help="GPUs of the cluster: actors take what ranks and rewards leave. Else as the recipe."),
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="Of a host; default 8 for kuberay, else 1.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; default: the recipe's.")] = None,
    image: Annotated[
        str | None, typer.Option(help="With kuberay: the image made of Dockerfile; default restorl:VERSION.")
    ] = None,
    work: Annotated[
        str, typer.Option(help="Folder that all nodes share: relative paths of the recipe are in it.")
    ] = "/mnt/restorl",
) -> None:
    """Write the files that start a run on Kubernetes (KubeRay), by `ray up`, or on Slurm.

    restorl deploy render kuberay --config configs/gpu/diffbir.yaml model=models/mine data.root=data/LOLv1 --out deploy

    restorl deploy render slurm --config configs/gpu/diffbir.yaml --gpus 16 --gpus-per-node 8 --work $PWD --out deploy

    Nothing is started. What to change is said in the files, what to do with them in docs/deploy.md.
    """
    if config is None or out is None:
        raise UserMistake("give --config RECIPE and --out FOLDER: what to run, and where the files go")
    if not work.startswith("/"):
        raise UserMistake(f"--work {work}: an absolute path, the same on all nodes")
    from importlib.metadata import version

    from cluster.config.configure import load_config
    from cluster.config.recipe import RunConfig
    from cluster.deploy.deployed import name_of
    from cluster.deploy.layout import Hosts
    from cluster.deploy.order import Order
    from cluster.deploy.render import KUBERAY, TARGETS, files_of, write

    if image is not None and target in TARGETS and target != KUBERAY:
        raise UserMistake(f"--image {image}: {target} runs no containers; leave it out, or choose {KUBERAY}")
    recipe = load_config(RunConfig, config, overrides or [])
    hosts = Hosts(gpus, gpus_per_node, whole=target != KUBERAY)
    order = Order(
        name_of(recipe, name), work.rstrip("/"), out.as_posix(), image or f"restorl:{version('restorl')}", hosts
    )
    files = files_of(target, recipe, order)
    write(files, out)
    print("\n".join(str(out / file) for file in files))
    print("what each is for stands at its head; docs/deploy.md says what to do with them")


@deploy_app.command("check")
@guarded
def check(folder: Annotated[Path, typer.Argument(help="Of manifests for KubeRay, after you edited them.")]) -> None:
    """Would these manifests run? Tells what KubeRay refuses and what a run would stumble over; status 2 if anything.

    restorl deploy check deploy
    """
    from cluster.deploy.render import documents_in
    from cluster.deploy.traps import traps

    documents = documents_in(folder)
    problems = traps(documents)
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        raise typer.Exit(2)
    print(f"{len(documents)} objects, nothing known against them; `kubectl apply --dry-run=server` checks their schema")


@deploy_app.command("store")
@guarded
def store(
    folder: Annotated[Path, typer.Argument(help="Where its append-only file is, on a disk that stays.")],
    port: Annotated[int, typer.Option(help="Where it listens.")] = 6379,
    memory_mib: Annotated[int, typer.Option("--memory-mib", help="At which it takes no more trajectories.")] = 2048,
    host: Annotated[
        str, typer.Option(help="Address it listens at; let only the cluster's nodes reach it.")
    ] = "0.0.0.0",
    password_env: Annotated[str, typer.Option(help="Variable that holds the password it asks for.")] = "STORE_PASSWORD",
) -> None:
    """Run a trajectory store for a cluster, until it is stopped: the server of the embedded store, by itself.

    STORE_PASSWORD="$(cat password)" restorl deploy store /data/store --port 6380
    """
    password = os.environ.get(password_env)
    if not password:
        raise UserMistake(f"--password-env {password_env}: this variable is not set; set it to the store's password")
    from cluster.deploy.store_server import StoreServer, become
    from trajectories.server import server_binary

    become(StoreServer(host, port, memory_mib, password), folder, server_binary())


@deploy_app.command("wait")
@guarded
def wait(
    nodes: Annotated[int, typer.Argument(help="That have joined, the head among them.", min=1)],
    address: Annotated[str, typer.Option(help="Of the cluster: host:port, or auto.")] = "auto",
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Longest time.", min=0)] = 600.0,
) -> None:
    """Wait until a cluster that is just starting has its nodes, as the script for Slurm does.

    restorl deploy wait 4 --address 10.0.0.1:6379
    """
    from cluster.deploy.waiting import wait_for_nodes

    print(f"{wait_for_nodes(nodes, address, timeout_s)} nodes")
