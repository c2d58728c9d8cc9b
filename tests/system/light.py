"""Actors that do no work, for the pool of a run: who makes them imports nothing but Ray, so that they start quickly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray

LONGEST_S = 120.0  # that a call lasts


class Light:
    """What the pool asks of an actor, without a model."""

    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def roll(self, task: str, until: Path) -> str:
        """The task, once there is such a file."""
        ends = time.monotonic() + LONGEST_S
        while not until.exists():
            assert time.monotonic() < ends, f"nobody made {until}"
            time.sleep(0.05)
        return task


def make_light() -> Any:
    actor: Any = ray.remote(Light).options(max_restarts=-1, max_concurrency=2, num_cpus=0, resources={"actor": 1})
    return actor.remote()
