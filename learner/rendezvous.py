"""Where the ranks of a learner meet, and the process group that they join there."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from learner.engine import without_compiler


def listen(address: str, port: int = 0) -> socket.socket:
    """A socket that listens on `address` only, where torch would on every interface; on a free port by default.

    Raises:
        OSError: somebody else has the port, or this machine not the address.
    """
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def join(
    rank: int,
    world: int,
    address: str,
    port: int,
    device: torch.device,
    timeout_s: float,
    listener: socket.socket | None = None,
) -> None:
    """Join the process group of the learner ranks (gloo on CPU, nccl on GPU); again in the same process is free.

    Where `address` is the loopback, the collectives keep to it, too.

    Args:
        timeout_s: longest wait for another rank, at the start and in collectives.
        listener: rank 0's own of `address` and `port` (`listen`), kept since the others were told of it, so that nobody
            else has got the port meanwhile; taken over. Without one it listens from now on.

    Raises:
        OSError: somebody else has the port.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    deepspeed = without_compiler()
    if dist.is_initialized():
        if listener is not None:
            listener.close()
        return
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    if ipaddress.ip_address(address).is_loopback:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, _loopback())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout_s)
    # By its number, which the store closes.
    held = (listener or listen(address, port)).detach() if rank == 0 else None
    store = dist.TCPStore(address, port, world, rank == 0, timeout, master_listen_fd=held)
    # As DeepSpeed would: a device lets NCCL connect at once, and a single rank has nobody to connect to.
    place = device if device.type == "cuda" and world > 1 else None
    dist.init_process_group(backend, timeout=timeout, world_size=world, rank=rank, store=store, device_id=place)
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False, rank=rank, world_size=world
    )


def _loopback() -> str:
    """The name of the loopback interface: lo on Linux, lo0 on macOS."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
