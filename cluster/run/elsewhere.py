"""Runs whose folder is on another machine of a cluster: where each is, and its status, read there.

The driver leaves a note in Ray's own key-value store; whoever looks has a task read the folder on the driver's node.
The run isn't asked, and a note stays as long as its cluster does, so that a run that has ended can be looked at, too.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path

import pydantic
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.jobs import ClusterError
from cluster.report.status import Status, read_status

PREFIX, NAMESPACE = b"run:", b"restorl"
LOOK_S = 60.0  # a process has to start there first


def announce(run_id: str, folder: Path) -> None:
    """Leave a note where the folder of this process's run is.

    Raises:
        Whatever Ray does if its head doesn't answer.
    """
    from ray.experimental import internal_kv

    node = ray.get_runtime_context().get_node_id()
    note = {"folder": str(folder.resolve()), "node": node, "host": socket.gethostname()}
    internal_kv._internal_kv_put(PREFIX + run_id.encode(), json.dumps(note).encode(), namespace=NAMESPACE)


class Elsewhere:
    """A run of the cluster that this process has joined.

    Raises:
        ClusterError: no run of that id has left a note; names those that have.
    """

    def __init__(self, run_id: str) -> None:
        from ray.experimental import internal_kv

        found = internal_kv._internal_kv_get(PREFIX + run_id.encode(), namespace=NAMESPACE)
        if found is None:
            keys = internal_kv._internal_kv_list(PREFIX, namespace=NAMESPACE) or []
            there = ", ".join(sorted(key.removeprefix(PREFIX).decode() for key in keys)) or "none"
            raise ClusterError(f"no run {run_id!r} on this cluster; there are: {there}")
        self.run_id, self.note = run_id, json.loads(found)

    def status(self) -> Status:
        """Read on the node of its driver.

        Raises:
            ClusterError: that node is gone or doesn't answer.
        """
        on = NodeAffinitySchedulingStrategy(self.note["node"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(_read_there).options(scheduling_strategy=on)
        try:
            text: str = ray.get(task.remote(self.note["folder"]), timeout=LOOK_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            said = str(error).strip().splitlines()
            raise ClusterError(
                f"the folder of {self.run_id}, {self.note['folder']} on {self.note['host']}, can't be read there: "
                f"{said[-1] if said else type(error).__name__}; was it moved, or that node lost?"
            ) from error
        return pydantic.TypeAdapter(Status).validate_json(text)


def _read_there(folder: str) -> str:
    return json.dumps(asdict(read_status(Path(folder))))
