"""The records behind the entries of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import redis

from trajectories.client import StoreClient
from trajectories.errors import SchemaError
from trajectories.schema import Trajectories, decode
from trajectories.scripts import Keys

FETCH_BYTES = 16 << 20  # payload asked for in one go; the server holds that much in its output buffer


def fetch(client: StoreClient, keys: Keys, run_id: str, group_ids: Sequence[str]) -> list[Trajectories | SchemaError]:
    """The records of these groups, in order; see `TrajectoryStream.fetch`."""
    names = [keys.payload(group_id) for group_id in group_ids]
    sizes = [0]  # a single record is fetched whatever its size
    if len(names) > 1:
        sizes = client.call("looking up records", partial(_pipelined, command="STRLEN", names=names))
    records: list[Trajectories | SchemaError] = []
    while len(records) < len(names):
        begin, size = len(records), 0
        end = begin
        while end < len(names) and (end == begin or size + sizes[end] <= FETCH_BYTES):
            size += sizes[end]
            end += 1
        part = names[begin:end]
        payloads: list[bytes | None] = client.call("fetching records", partial(_pipelined, command="GET", names=part))
        records += [
            _checked(payload, group_id, run_id)
            for payload, group_id in zip(payloads, group_ids[begin:end], strict=True)
        ]
    return records


def _pipelined(r: redis.Redis, command: str, names: Sequence[str]) -> list[Any]:
    with r.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.execute_command(command, name)
        return pipe.execute()


def _checked(payload: bytes | None, group_id: str, run_id: str) -> Trajectories | SchemaError:
    try:
        if payload is None:
            raise SchemaError("its record is not in the store (not published by RestoRL, or already settled)")
        record = decode(payload)
        if (record.meta.group_id, record.meta.run_id) != (group_id, run_id):
            raise SchemaError(f"its record names group {record.meta.group_id!r} of run {record.meta.run_id!r}")
        return record
    except SchemaError as error:
        return SchemaError(f"group {group_id!r}: {error}")
