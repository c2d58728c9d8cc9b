"""The reading end of the stream: which entries have been handed out, and the summaries that they carry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from trajectories.client import StoreClient
from trajectories.errors import CAUSES_OF_LOSS, SchemaError, StaleEpoch, StoreError, StoreLost
from trajectories.schema import Summary, decode_summary, other_version
from trajectories.scripts import CLAIM, GROUP, READ, Keys

PAGE = 256  # entries, ids or pending records in one command


@dataclass(frozen=True)
class Entry:
    """A group as the consumer gets it, without its latents.

    Attributes:
        rows, nbytes: trajectories and bytes of the record that `TrajectoryStream.fetch` gives.
        summary: a SchemaError when it can't be read or disagrees with the entry: settle it as dropped.
    """

    entry_id: str
    group_id: str
    rows: int
    nbytes: int
    summary: Summary | SchemaError


@dataclass(frozen=True)
class RawEntry:
    """An entry as it is in the stream."""

    entry_id: str
    fields: Mapping[bytes, bytes]

    @property
    def group_id(self) -> str:
        return self.fields.get(b"g", b"").decode(errors="replace")

    def number(self, name: bytes) -> int:
        value = self.fields.get(name, b"")
        return int(value) if value.isdigit() else 0


def entry_order(entry_id: str) -> tuple[int, int]:
    """Sort key: the order of publication."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


class Deliveries:
    """Hands each entry out once a consumer name, and finds those whose hand-out was interrupted. Thread-safe."""

    def __init__(self, client: StoreClient, keys: Keys, run_id: str) -> None:
        self._client, self._keys, self._run_id = client, keys, run_id
        self._lock = threading.Lock()
        self._delivered: dict[str, set[str]] = {}
        self._scanned: set[str] = set()  # consumers whose own pending entries have all been handed out
        self._end = ""  # id behind which there was nothing to read, at the last look

    def read(self, consumer: str, count: int, own_first: bool, epoch: int | None) -> tuple[list[Entry], str]:
        """Own unsettled entries first, then new ones; without any, also the id behind which to wait for more."""
        with self._lock:
            try:
                raws, last = self._client.call("read", lambda r: self._read(r, consumer, count, own_first, epoch))
            except StoreError:
                self._scanned.discard(consumer)
                raise
            self._end = last or (raws[-1].entry_id if 0 < len(raws) < count else "")
            return self._hand_out(consumer, raws), last

    def drained_at(self, consumer: str) -> str:
        """Id behind which `read` found nothing last time, or empty when it may find something without waiting."""
        with self._lock:
            return self._end if consumer in self._scanned else ""

    def claim_others(self, consumer: str, epoch: int | None) -> list[Entry]:
        """Take over what other consumers have read and not settled, a bounded page at a time."""
        found: list[RawEntry] = []
        first: bytes | str = "-"
        with self._lock:
            scanned = consumer in self._scanned
            self._scanned.discard(consumer)  # should a later page fail, `read` must find the earlier ones
            while first:
                page, last = self._client.call("reclaim", self._claim_page(consumer, first, epoch))
                found += page
                first = b"(" + last if last else ""
            if scanned:
                self._scanned.add(consumer)
            return self._hand_out(consumer, found)

    def forget(self, consumer: str) -> None:
        """Hand out this consumer's unsettled entries again."""
        with self._lock:
            self._delivered.pop(consumer, None)
            self._scanned.discard(consumer)

    def settled(self, entry_ids: Iterable[str]) -> None:
        with self._lock:
            for delivered in self._delivered.values():
                delivered.difference_update(entry_ids)

    def _hand_out(self, consumer: str, raws: list[RawEntry]) -> list[Entry]:
        self._delivered.setdefault(consumer, set()).update(raw.entry_id for raw in raws)
        return [self._decode(raw) for raw in sorted(raws, key=lambda raw: entry_order(raw.entry_id))]

    def _read(
        self, r: redis.Redis, consumer: str, count: int, own_first: bool, epoch: int | None
    ) -> tuple[list[RawEntry], str]:
        """One attempt."""
        found: list[RawEntry] = []
        if own_first and consumer not in self._scanned:
            cursor: bytes | str = "0"
            while len(found) < count:
                page, _ = self._fenced(r, READ, "reading", consumer, epoch, cursor, PAGE)
                if not page:
                    self._scanned.add(consumer)
                    break
                cursor = page[-1][0]
                found += self._undelivered(consumer, page)
        if len(found) >= count:
            return found[:count], ""
        # Were the answer lost, its entries would be this consumer's already: the next attempt must look there.
        scanned = consumer in self._scanned
        self._scanned.discard(consumer)
        new, last = self._fenced(r, READ, "reading", consumer, epoch, ">", count - len(found))
        if scanned:
            self._scanned.add(consumer)
        return found + self._undelivered(consumer, new), last.decode()

    def _claim_page(
        self, consumer: str, first: bytes | str, epoch: int | None
    ) -> Callable[[redis.Redis], tuple[list[RawEntry], bytes]]:
        own = 0

        def exchange(r: redis.Redis) -> tuple[list[RawEntry], bytes]:
            nonlocal own
            again, own = own, 1  # were the answer lost, the page's entries would be this consumer's already
            page, last = self._fenced(r, CLAIM, "reclaiming", consumer, epoch, first, PAGE, again)
            return self._undelivered(consumer, page), last

        return exchange

    def _fenced(
        self, r: redis.Redis, script: str, what: str, consumer: str, epoch: int | None, *arguments: Any
    ) -> tuple[list[Any], bytes]:
        keys = self._keys.state
        head = (GROUP, consumer, "" if epoch is None else epoch)
        answer: Any = r.eval(script, len(keys), *keys, *head, *arguments)
        if answer[0] == b"epoch":
            raise stale_epoch(f"{what} as {consumer!r}", self._run_id, epoch, answer[1])
        return answer[1], answer[2]

    def _undelivered(self, consumer: str, entries: Iterable[Any]) -> list[RawEntry]:
        delivered = self._delivered.get(consumer, set())
        # An entry deleted by hand while pending has no fields; the audit reports it.
        return [
            RawEntry(entry_id.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            for entry_id, fields in entries
            if fields and entry_id.decode() not in delivered
        ]

    def _decode(self, raw: RawEntry) -> Entry:
        summary: Summary | SchemaError
        rows, nbytes = raw.number(b"r"), raw.number(b"n")
        try:
            summary = decode_summary(_summary_bytes(raw.fields))
            meta = summary.meta
            if (meta.group_id, meta.run_id, summary.rows) != (raw.group_id, self._run_id, rows):
                raise SchemaError(
                    f"its summary names group {meta.group_id!r} of run {meta.run_id!r} with {summary.rows} "
                    f"trajectories, the entry has {rows}"
                )
        except SchemaError as error:
            summary = SchemaError(f"entry {raw.entry_id}, group {raw.group_id!r}: {error}")
        return Entry(raw.entry_id, raw.group_id, rows, nbytes, summary)


def _summary_bytes(fields: Mapping[bytes, bytes]) -> bytes:
    if b"s" in fields:
        return fields[b"s"]
    if {b"g", b"n", b"r"} <= fields.keys():  # what version 1 wrote
        raise SchemaError(f"entry carries no summary, as of schema version {other_version('1')}")
    names = ", ".join(sorted(repr(name.decode(errors="replace")) for name in fields))
    raise SchemaError(f"entry has the fields {names}: it was not published by RestoRL; drop it")


def stale_epoch(what: str, run_id: str, given: int | None, current: bytes) -> StaleEpoch | StoreLost:
    """Why what was given an epoch is refused: another one has begun, or the store has forgotten (epochs only grow)."""
    if given is not None and int(current) < given:
        return StoreLost(
            f"{what}: run {run_id!r} is in epoch {given}, but its store has {lost_epoch(int(current))} of it: "
            + CAUSES_OF_LOSS
        )
    return StaleEpoch(
        f"{what}: epoch {given} of run {run_id!r} is not the current epoch {int(current)}; this process was replaced "
        "and must stop"
    )


def lost_epoch(epoch: int) -> str:
    """What a store has that should have a later epoch."""
    return f"an older state (of epoch {epoch})" if epoch else "nothing"
