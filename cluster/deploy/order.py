"""What is ordered by `restorl deploy render`, whatever the target."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.deploy.layout import Hosts


@dataclass(frozen=True)
class Order:
    """Where a run goes.

    Attributes:
        name: of the run, its cluster and its folder.
        work: folder that all nodes share, with data, models and runs.
        out: where the files are written, as the user named it.
        image: container image, where there are containers.
        hosts: what there is to run on.
    """

    name: str
    work: str
    out: str
    image: str
    hosts: Hosts

    @property
    def run(self) -> str:
        return f"{self.work}/runs/{self.name}"
