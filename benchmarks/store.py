"""Cost of the trajectory store: our records against the same bytes moved through the same server without our code.

    python -m benchmarks.store [--repetitions 7] [--count 40] [--output benchmarks/results/store.json]

Ours: a producer process publishes records (validate, encode, summarise, back-pressure, ledger), a consumer process
reads their summaries, fetches the records into torch tensors and settles them. Raw: the same two processes move the
same number of bytes by redis-py alone: XADD of one bytes object, XREADGROUP, XACK + XDEL. Both settle each batch they
read; the server is the embedded one with `appendfsync always`, and once more without its append-only file, where the
disk hides nothing. Repetitions alternate; the ratio of each pair is throughput of ours / raw.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
import torch

from benchmarks.records import make_record
from benchmarks.report import RESULTS, show, spread, write
from trajectories.schema import Summary, Trajectories, encode, encode_summary
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreAddress, StoreSettings
from trajectories.stream import TrajectoryStream

TARGET = 0.85
BATCH = 4  # entries a read asks for, in both paths
IN_FLIGHT = 16  # most entries unsettled, in both paths
SHAPES = {  # K, S, C, h, w, float32
    "1.0 MB": (8, 4, 4, 32, 32),  # 8 rollouts of 4 steps of a 128 px (f=4) image
    "1.5 MB": (12, 4, 4, 32, 32),  # 12 of them
    "4 MB": (8, 4, 4, 64, 64),  # 8 rollouts of 4 steps of a 512 px (f=8) image
}
SETTINGS = StoreSettings(max_entries=IN_FLIGHT, max_bytes=256 << 20)


def make_latents(shape: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape) for _ in range(2)]


def produce_ours(address: StoreAddress, run_id: str, shape: tuple[int, ...], count: int, ready: Any) -> None:
    latents = make_latents(shape)
    records = [make_record(f"g{n}", *latents, run_id=run_id) for n in range(count)]  # they share the latents
    with TrajectoryStream(address, run_id, SETTINGS) as stream:
        ready.wait()
        for record in records:
            stream.publish(record)


def consume_ours(address: StoreAddress, run_id: str, shape: tuple[int, ...], count: int, ready: Any) -> float:
    with TrajectoryStream(address, run_id, SETTINGS) as stream:
        ready.wait()
        start, seen, total = time.perf_counter(), 0, 0.0
        while seen < count:
            entries = stream.read("rank0", BATCH, block_ms=5000)
            for entry in entries:
                assert isinstance(entry.summary, Summary)
            for record in stream.fetch([entry.group_id for entry in entries]):
                assert isinstance(record, Trajectories) and record.states.shape == shape
                total += float(record.targets[-1, -1, -1, -1, -1])
            stream.settle([entry.entry_id for entry in entries], "consumed:bench")
            seen += len(entries)
        return time.perf_counter() - start


def raw_client(address: StoreAddress) -> redis.Redis:
    return redis.Redis.from_url(address.url_with_password, protocol=2)


def produce_raw(address: StoreAddress, run_id: str, shape: tuple[int, ...], count: int, ready: Any) -> None:
    payload = encode(make_record("g0", *make_latents(shape), run_id=run_id))
    client = raw_client(address)
    client.ping()
    ready.wait()
    for _ in range(count):
        pause = 0.005
        while int(client.xlen(run_id)) >= IN_FLIGHT:  # type: ignore[arg-type]
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        client.xadd(run_id, {"p": payload})


def consume_raw(address: StoreAddress, run_id: str, shape: tuple[int, ...], count: int, ready: Any) -> float:
    client = raw_client(address)
    client.xgroup_create(run_id, "learner", id="0", mkstream=True)
    ready.wait()
    start, seen, total = time.perf_counter(), 0, 0
    while seen < count:
        answer: Any = client.xreadgroup("learner", "rank0", {run_id: ">"}, count=BATCH, block=5000)
        entries = answer[0][1] if answer else []
        for _, fields in entries:
            total += fields[b"p"][-1]
        ids = [entry_id for entry_id, _ in entries]
        with client.pipeline() as pipe:
            pipe.xack(run_id, "learner", *ids)
            pipe.xdel(run_id, *ids)
            pipe.execute()
        seen += len(entries)
    return time.perf_counter() - start


def child(work: Callable[..., Any], result: Any, *arguments: Any) -> None:
    torch.set_num_threads(1)
    result.put(work(*arguments))


def megabytes_per_second(
    produce: Callable[..., None],
    consume: Callable[..., float],
    address: StoreAddress,
    shape: Any,
    count: int,
    size: int,
) -> float:
    """Throughput seen by the consumer, from the common start to its last settlement."""
    run_id = f"bench-{os.urandom(4).hex()}"
    context = multiprocessing.get_context("fork")  # the imports of a new interpreter take seconds
    ready, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=child, args=(work, results, address, run_id, shape, count, ready))
        for work in (produce, consume)
    ]
    for process in processes:
        process.start()
    seconds = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    with redis.Redis.from_url(address.url_with_password) as client:
        client.flushall()
    return size * count / next(s for s in seconds if s is not None) / 1e6


def compare(name: str, shape: tuple[int, ...], options: argparse.Namespace, address: StoreAddress) -> dict[str, Any]:
    """Alternate ours and raw; print and return ratio and rates."""
    record = make_record("g0", *make_latents(shape))
    size, summary = len(encode(record)), len(encode_summary(record))
    with_actions = size + record.states.nbytes  # what schema version 1 sent: the actions beside the next states
    paths: dict[str, tuple[Any, Any]] = {"ours": (produce_ours, consume_ours), "raw": (produce_raw, consume_raw)}
    rates: dict[str, list[float]] = {which: [] for which in paths}
    for repetition in range(options.repetitions + 1):
        for which in sorted(paths, reverse=bool(repetition % 2)):
            rate = megabytes_per_second(*paths[which], address, shape, options.count, size)
            if repetition:  # the first pair warms up
                rates[which].append(rate)
    ratio = spread([ours / raw for ours, raw in zip(rates["ours"], rates["raw"], strict=True)])
    result = {which: spread(values) for which, values in rates.items()}
    print(
        f"{name}: ours / raw {show(ratio)}, target {TARGET}: "
        f"{'ok' if ratio['median'] >= TARGET else 'BELOW TARGET'}; "
        f"ours {result['ours']['median']:.0f} MB/s, raw {result['raw']['median']:.0f} MB/s; "
        f"{size} bytes a record (with actions {with_actions}) and {summary} of summary",
        flush=True,
    )
    sizes = {"bytes": size, "bytes_with_actions": with_actions, "bytes_of_summary": summary}
    return {**sizes, "ratio": ratio, "mb_per_s": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--count", type=int, default=40, help="records moved in a repetition")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--output", type=Path, default=RESULTS / "store.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    report: dict[str, Any] = {"target": TARGET, "repetitions": options.repetitions, "count": options.count}
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder), SETTINGS) as server:
        for persistence in ("append-only file", "memory only"):
            with redis.Redis.from_url(server.address.url_with_password) as client:
                client.config_set("appendonly", "yes" if persistence == "append-only file" else "no")
            report[persistence] = {
                name: compare(f"{name}, {persistence}", shape, options, server.address)
                for name, shape in SHAPES.items()
                if name in options.shapes
            }
    report["load_average"] = [load, os.getloadavg()[0]]
    write(options.output, report)


if __name__ == "__main__":
    main()
