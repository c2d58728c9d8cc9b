"""From a recipe and an order to the files of a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.deploy import kuberay, ray_up, slurm
from cluster.deploy.deployed import PASSWORD
from cluster.deploy.noted import bare
from cluster.deploy.order import Order
from cluster.deploy.pods import Names
from cluster.deploy.traps import traps
from cluster.files import write_text

KUBERAY, RAY_UP, SLURM = TARGETS = ("kuberay", "ray-up", "slurm")


def files_of(target: str, config: RunConfig, order: Order) -> dict[str, str]:
    """File -> its text.

    Raises:
        ConfigError: no such target, roles that don't fit into the hosts, or manifests that would not run.
    """
    if target == RAY_UP:
        return ray_up.texts(config, order)
    if target == SLURM:
        return slurm.texts(config, order)
    if target != KUBERAY:
        raise ConfigError.of(f"{target}: no target; choose {', '.join(TARGETS)}")
    password = PASSWORD if config.store.is_embedded else config.store.password_env or PASSWORD
    names = Names(order.name, order.image, order.work, password)
    manifests = kuberay.manifests(config, names, order.hosts)
    documents = [bare(document) for found in manifests.values() for document in found]
    if problems := traps(documents):
        raise ConfigError.of("\n".join(problems))
    return kuberay.texts(manifests, names)


def write(files: dict[str, str], out: Path) -> None:
    """Into a new folder, or an empty one.

    Raises:
        ConfigError: it holds something.
        OSError: it can't be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError.of(f"{out} isn't empty; give a new folder, so that nothing you edited is lost")
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(out / name, text)


def documents_in(folder: Path) -> list[dict[str, Any]]:
    """Of all YAML files of a folder.

    Raises:
        ConfigError: there are none, or one can't be read.
    """
    files = sorted(folder.rglob("*.y*ml"))
    if not files:
        raise ConfigError.of(f"{folder} holds no YAML file; give the folder of `restorl deploy render kuberay`")
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValueError) as error:  # the latter of bytes that aren't UTF-8, or of a 13th month
            raise ConfigError.of(f"{file}: not YAML ({' '.join(str(error).split())}); correct it") from None
        wrong = next((d for d in documents if d is not None and not isinstance(d, dict)), None)
        if wrong is not None:
            raise ConfigError.of(f"{file}: holds {wrong!r}, which is no object of Kubernetes; take it out")
        found += [document for document in documents if document]
    return found
