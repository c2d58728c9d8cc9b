"""A run's history, read from the store a page at a time: a long one holds the server up no more than a short one.

What it costs, of n groups published in the run and m unsettled ones (at most `max_entries`): 3 n / PAGE calls that
each look at about PAGE entries, whatever n is; one call for the m unsettled, which copies their summaries; and one
more for every PAGE groups that were settled meanwhile. The client holds all n entries, the server none. Of 1 million
groups, on two busy cores, the longest call took the server 5 ms and a usual one 0.3 ms; one call for all, 100 s.

Why pages give the ledger of one instant although the run goes on: publications and settlements are only ever added,
and entry ids only grow. The instant is that of the call for what is unsettled. What was settled is read before, so that
nothing in it is later than the instant, and what was settled between is looked up by what has left the stream. What was
published is read after, and later ids are left out. How many of both there were is counted at the instant: a page that
went missing (a cursor means nothing to a server that was started again) shows, and all is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trajectories.audit import Ledger, ledger_of
from trajectories.client import StoreClient
from trajectories.consumer import entry_order
from trajectories.errors import StoreError
from trajectories.scripts import GROUP, INSTANT, Keys

PAGE = 500  # entries of a hash in one call
TRIES = 5


@dataclass(frozen=True)
class _Instant:
    """What is unsettled, and how much there is of the rest.

    Attributes:
        waiting: entry id -> bytes of the record that are there.
        owners: entry id -> consumer that has read it.
        last: the id given last, or empty if there is no stream.
        published, settled: entries of either kind.
    """

    waiting: dict[str, int]
    owners: dict[str, str]
    held_bytes: int
    epoch: int
    last: str
    published: int
    settled: int


def read_ledger(client: StoreClient, keys: Keys, run_id: str) -> Ledger:
    """All publications and settlements up to an instant during the call.

    Raises:
        StoreError: it can't be read whole; StoreUnreachable and others of `StoreClient.call`.
    """
    for _ in range(TRIES):
        settled = _settled(client, keys)
        now = _instant(client, keys)
        published = _published(client, keys, now.last)
        gone = [(entry_id, line) for entry_id, line in published.items() if entry_id not in now.waiting]
        settled |= _lookup(client, keys, [entry_id for entry_id, _ in gone if entry_id not in settled])
        if (len(published), len(settled)) == (now.published, now.settled):
            held = _left_behind(client, keys, gone)
            return ledger_of(
                run_id, published, settled, now.waiting, now.owners, held, held_bytes=now.held_bytes, epoch=now.epoch
            )
    raise StoreError(
        f"store {client.address.url}: the ledger of run {run_id!r} could not be read whole in {TRIES} tries: its "
        "server was started again each time, or other hands than RestoRL's change it"
    )


def published_groups(client: StoreClient, keys: Keys) -> set[str]:
    """Ids of all groups published before the call, and of some published during it."""
    least = int(client.call("counting groups", lambda r: r.hlen(keys.groups)))  # type: ignore[arg-type]
    for _ in range(TRIES):
        groups = {name for name, _ in _scan(client, keys.groups, "listing published groups")}
        if len(groups) >= least:
            return groups
    raise StoreError(
        f"store {client.address.url}: {len(groups)} of {least} published groups could be listed in {TRIES} tries"
    )


def _scan(client: StoreClient, key: str, what: str) -> list[tuple[str, str]]:
    """Fields and values of a hash, some perhaps twice."""
    found: list[tuple[str, str]] = []
    cursor = 0
    while True:
        cursor, page = client.call(what, lambda r, cursor=cursor: r.hscan(key, cursor, count=PAGE))  # type: ignore[misc]
        found += [(_text(field), _text(value)) for field, value in page.items()]
        if not cursor:
            return found


def _settled(client: StoreClient, keys: Keys) -> dict[str, str]:
    """Entry id -> lines, see `trajectories.scripts`."""
    return dict(_scan(client, keys.settled, "reading what was settled"))


def _lookup(client: StoreClient, keys: Keys, entry_ids: Sequence[str]) -> dict[str, str]:
    """The same of certain entries, without those that aren't settled."""
    found: dict[str, str] = {}
    for start in range(0, len(entry_ids), PAGE):
        page = list(entry_ids[start : start + PAGE])
        values: list[Any] = client.call("reading what was settled", lambda r, page=page: r.hmget(keys.settled, page))  # type: ignore[misc]
        found |= {e: _text(value) for e, value in zip(page, values, strict=True) if value is not None}
    return found


def _published(client: StoreClient, keys: Keys, last: str) -> dict[str, str]:
    """Entry id -> line of what was published up to the id `last`."""
    found = dict(_scan(client, keys.published, "reading what was published"))
    if not last:
        return found
    end = entry_order(last)
    return {entry_id: line for entry_id, line in found.items() if entry_order(entry_id) <= end}


def _left_behind(client: StoreClient, keys: Keys, lines: Sequence[tuple[str, str]]) -> set[str]:
    """Those of these entries whose records are there; none, unless other hands have been at the store."""
    held: set[str] = set()
    for start in range(0, len(lines), PAGE):
        records = {e: keys.payload(line.partition("\t")[0]) for e, line in lines[start : start + PAGE]}
        if _exist(client, *records.values()):
            held |= {entry_id for entry_id, record in records.items() if _exist(client, record)}
    return held


def _exist(client: StoreClient, *names: str) -> bool:
    return bool(client.call("looking for records left behind", lambda r: r.exists(*names)))


def _instant(client: StoreClient, keys: Keys) -> _Instant:
    state = keys.state
    arguments: list[str] = [*state, GROUP, keys.payload_prefix]
    answer: Any = client.call("reading what is unsettled", lambda r: r.eval(INSTANT, len(state), *arguments))
    waiting, pending, held_bytes, epoch, last, published, settled = answer
    return _Instant(
        waiting={_text(entry_id): int(size) for entry_id, size in waiting},
        owners={_text(entry_id): _text(owner) for entry_id, owner in pending},
        held_bytes=int(held_bytes),
        epoch=int(epoch),
        last=_text(last),
        published=int(published),
        settled=int(settled),
    )


def _text(value: bytes) -> str:
    return bytes(value).decode(errors="replace")
