"""`restorl deploy wait`: until the nodes of a cluster that is just starting have joined."""

from __future__ import annotations

import time

from cluster.jobs import ClusterError, ClusterSettings, connect

POLL_S = 2.0


def wait_for_nodes(count: int, address: str, timeout_s: float) -> int:
    """How many nodes the cluster has, `count` at least.

    Raises:
        ClusterError: fewer have joined within `timeout_s`, or nothing answers at `address`.
    """
    ends = time.monotonic() + timeout_s
    while True:
        try:
            connection = connect(ClusterSettings(address))
            break
        except ClusterError:
            if time.monotonic() > ends:
                raise
        time.sleep(POLL_S)
    with connection:
        import ray

        while (there := sum(node["Alive"] for node in ray.nodes())) < count:
            if time.monotonic() > ends:
                raise ClusterError(
                    f"{there} of {count} nodes have joined {address} within {timeout_s:g} s; look at the "
                    "output of `ray start` on the others"
                )
            time.sleep(POLL_S)
    return int(there)
