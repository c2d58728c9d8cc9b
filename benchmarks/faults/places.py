"""Wait until a cluster has certain resources: python -m benchmarks.faults.places ADDRESS SECONDS NAME=AMOUNT ..."""

from __future__ import annotations

import logging
import sys
import time

import ray


def main() -> int:
    address, seconds, *words = sys.argv[1:]
    wanted = {name: float(amount) for name, _, amount in (word.partition("=") for word in words)}
    deadline = time.monotonic() + float(seconds)
    found: dict[str, float] = {}
    told = "never reached"
    while time.monotonic() < deadline:
        try:
            if not ray.is_initialized():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
            found = ray.cluster_resources()
        except Exception as error:  # the head is just starting
            told = f"{type(error).__name__}: {error}"
            ray.shutdown()
        else:
            told = f"has {found}"
            if all(found.get(name, 0.0) >= amount for name, amount in wanted.items()):
                return 0
        time.sleep(0.5)
    print(f"{address} lacks some of {wanted} after {seconds} s: {told}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
