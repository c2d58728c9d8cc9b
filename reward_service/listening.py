"""On which interface a replica waits for other deployments."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

import ray


def listen_on_node_address() -> None:
    """In this process, Serve's gRPC server of a replica listens on the node's address, as all of Ray does.

    Serve itself would listen on every interface; others reach a replica by the node's address. To be called before the
    replica has started, from the deployment's constructor.
    """
    from ray.serve._private import replica

    original = getattr(replica, "add_port_to_grpc_server", None)
    if original is None:  # a private name
        logging.getLogger(__name__).warning("this version of Ray Serve listens on all interfaces with its replicas")
        return
    node = ray.util.get_node_ip_address()
    host = f"[{node}]" if ipaddress.ip_address(node).version == 6 else node

    def add_port(server: Any, address: str) -> Any:
        return original(server, address.replace("[::]", host))

    replica.add_port_to_grpc_server = add_port
