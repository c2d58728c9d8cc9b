"""The reading end of the stream: which entries have been handed out, and their records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import redis

from trajectories.client import StoreClient
from trajectories.errors import SchemaError, StoreError
from trajectories.schema import Trajectories, decode
from trajectories.scripts import GROUP, Keys

FETCH_BYTES = 16 << 20  # payload asked for in one go; the server holds that much in its output buffer
PAGE = 256  # entries, ids or pending records in one command


@dataclass(frozen=True)
class Entry:
    """A group as the consumer gets it. `record` is a SchemaError when it can't be read: settle it as dropped."""

    entry_id: str
    group_id: str
    rows: int
    nbytes: int
    record: Trajectories | SchemaError


@dataclass(frozen=True)
class RawEntry:
    """An entry before decoding; `payload` is None when not fetched or gone."""

    entry_id: str
    group_id: str
    rows: int
    nbytes: int
    payload: bytes | None = None


def entry_order(entry_id: str) -> tuple[int, int]:
    """Sort key: the order of publication."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


class Deliveries:
    """Hands each entry out once a consumer name, and finds those whose hand-out was interrupted."""

    def __init__(self, client: StoreClient, keys: Keys, run_id: str) -> None:
        self._client, self._keys, self._run_id = client, keys, run_id
        self._delivered: dict[str, set[str]] = {}
        self._scanned: set[str] = set()  # consumers whose own pending entries have all been handed out

    def deliver(self, consumer: str, what: str, exchange: Callable[[redis.Redis], list[RawEntry]]) -> list[Entry]:
        """Run an exchange (repeated when the connection breaks), remember and decode what it gave, in order."""
        try:
            raws = self._client.call(what, exchange)
        except StoreError:
            self._scanned.discard(consumer)
            raise
        self._delivered.setdefault(consumer, set()).update(raw.entry_id for raw in raws)
        return [self._decode(raw) for raw in sorted(raws, key=lambda raw: entry_order(raw.entry_id))]

    def forget(self, consumer: str) -> None:
        """Hand out this consumer's unsettled entries again."""
        self._delivered.pop(consumer, None)
        self._scanned.discard(consumer)

    def settled(self, entry_ids: Iterable[str]) -> None:
        for delivered in self._delivered.values():
            delivered.difference_update(entry_ids)

    def read(self, r: redis.Redis, consumer: str, count: int, block: int | None, own_first: bool) -> list[RawEntry]:
        """One attempt: own unsettled entries first, then new ones; waits `block` ms only if there are none."""
        found: list[RawEntry] = []
        if own_first and consumer not in self._scanned:
            cursor = "0"
            while len(found) < count:
                page = _entries(r.xreadgroup(GROUP, consumer, {self._keys.entries: cursor}, count=PAGE))
                if not page:
                    self._scanned.add(consumer)
                    break
                cursor = page[-1][0].decode()
                found += self.undelivered(consumer, page)
        if len(found) >= count:
            return self.fetch(r, found[:count])
        # Were the answer lost, its entries would be this consumer's already: the next attempt must look there.
        scanned = consumer in self._scanned
        self._scanned.discard(consumer)
        wait = None if found else block
        new = r.xreadgroup(GROUP, consumer, {self._keys.entries: ">"}, count=count - len(found), block=wait)
        raws = self.fetch(r, found + self.undelivered(consumer, _entries(new)))
        if scanned:
            self._scanned.add(consumer)
        return raws

    def claim_idle(self, r: redis.Redis, consumer: str, min_idle_ms: int, count: int) -> list[RawEntry]:
        """Take over entries idle for at least `min_idle_ms`."""
        cursor: Any = b"0-0"
        found: list[RawEntry] = []
        while len(found) < count:
            wanted = count - len(found)
            answer: Any = r.xautoclaim(self._keys.entries, GROUP, consumer, min_idle_ms, cursor, count=wanted)
            cursor = answer[0]
            found += self.undelivered(consumer, answer[1])
            if cursor == b"0-0":
                break
        return self.fetch(r, found)

    def claim_from(self, r: redis.Redis, dead: str, consumer: str, count: int | None) -> list[RawEntry]:
        """Take over what `dead` has read."""
        found: list[RawEntry] = []
        while count is None or len(found) < count:
            page = PAGE if count is None else min(PAGE, count - len(found))
            owned: Any = r.xpending_range(self._keys.entries, GROUP, "-", "+", page, consumername=dead)
            if not owned:
                break
            ids = [pending["message_id"] for pending in owned]
            claimed: Any = r.xclaim(self._keys.entries, GROUP, consumer, 0, ids)
            found += self.undelivered(consumer, claimed)
        return self.fetch(r, found)

    def undelivered(self, consumer: str, entries: Iterable[Any]) -> list[RawEntry]:
        delivered, raws = self._delivered.get(consumer, set()), []
        for entry_id, fields in entries:
            # An entry deleted by hand while pending has no fields; the audit reports it.
            if fields and entry_id.decode() not in delivered:
                rows, nbytes = (int(v) if (v := fields.get(name, b"")).isdigit() else 0 for name in (b"r", b"n"))
                raws.append(RawEntry(entry_id.decode(), fields.get(b"g", b"").decode(errors="replace"), rows, nbytes))
        return raws

    def fetch(self, r: redis.Redis, raws: list[RawEntry]) -> list[RawEntry]:
        """Add the payloads, a bounded number of bytes at a time."""
        fetched: list[RawEntry] = []
        while len(fetched) < len(raws):
            batch, size = list[RawEntry](), 0
            for raw in raws[len(fetched) :]:
                if batch and size + raw.nbytes > FETCH_BYTES:
                    break
                batch.append(raw)
                size += raw.nbytes
            with r.pipeline(transaction=False) as pipe:
                for raw in batch:
                    pipe.get(self._keys.payload(raw.group_id))
                answers = pipe.execute()
            fetched += [replace(raw, payload=payload) for raw, payload in zip(batch, answers, strict=True)]
        return fetched

    def _decode(self, raw: RawEntry) -> Entry:
        record: Trajectories | SchemaError
        try:
            if raw.payload is None:
                raise SchemaError("its record is not in the store (not published by RestoRL, or already settled)")
            record = decode(raw.payload)
            if (record.meta.group_id, record.meta.run_id, record.rows) != (raw.group_id, self._run_id, raw.rows):
                raise SchemaError(f"its record names group {record.meta.group_id!r} of run {record.meta.run_id!r}")
        except SchemaError as error:
            record = SchemaError(f"entry {raw.entry_id}, group {raw.group_id!r}: {error}")
        return Entry(raw.entry_id, raw.group_id, raw.rows, raw.nbytes, record)


def _entries(answer: Any) -> list[Any]:
    """Entries of the one stream in an XREADGROUP answer."""
    return list(answer[0][1]) if answer else []
