"""The stream between actors and learner: publish, read, settle, reclaim, account.

One entry is one group (K rollouts of one image). An entry lives from `publish` to `settle`; in between it belongs
to the consumer that read it, and passes to another one by `reclaim_others`. All operations have deadlines and may be
repeated after a broken connection without effect on the count: nothing is lost and nothing is used twice.

Fencing: a process that was replaced may go on for a while. Whatever changes the stream for others (publish, read,
reclaim, settle) can be given the run's epoch, and is refused as `StaleEpoch` in another one.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import redis

from trajectories.audit import AuditReport, Ledger, LedgerEntry, audit, lines_of
from trajectories.client import StoreClient
from trajectories.consumer import PAGE, Deliveries, Entry, entry_order, stale_epoch
from trajectories.errors import CAUSES_OF_LOSS, BackPressureTimeout, RecordTooLarge, SchemaError, StoreError, StoreLost
from trajectories.history import published_groups, read_ledger
from trajectories.payloads import fetch
from trajectories.schema import Trajectories, encode_both
from trajectories.scripts import ADMIT, COMMIT, GROUP, RESTORE, SETTLE, WAITING, Keys
from trajectories.settings import StoreAddress, StoreSettings

_OUTCOME = re.compile(r"(consumed|dropped):[^\s:].*")
_TOKEN = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True)
class Receipt:
    """A group is in the store.

    Attributes:
        repeated: the store had the group already (published before, or the answer to a first attempt was lost).
        waited_s: time spent in back-pressure.
    """

    entry_id: str
    repeated: bool
    waited_s: float


@dataclass(frozen=True)
class Depth:
    """Unsettled groups in the stream, bytes of their records, and how many of them a consumer has read."""

    entries: int
    nbytes: int
    pending: int


class TrajectoryStream:
    """A run's stream in the store at `address`. Use one instance a process; threads may share it.

    An instance remembers which entries it has handed to which consumer, so that `read` gives each once. A new
    instance (a restarted process) starts with the entries its consumer has read and not settled.

    Raises (constructor):
        StoreUnreachable, StoreAuthError, StoreError: no usable server there; says what to change.
    """

    def __init__(self, address: StoreAddress, run_id: str, settings: StoreSettings | None = None) -> None:
        if not run_id or not re.fullmatch(r"[\w.:@+-]+", run_id):
            raise ValueError(f"run_id={run_id!r}: use letters, digits and . _ : @ + -")
        self.run_id, self.settings, self.keys = run_id, settings or StoreSettings(), Keys(run_id)
        self.client = StoreClient(address, self.settings)
        self._was_full = False  # the last publication met a full stream: ask before megabytes are sent in vain
        self._deliveries = Deliveries(self.client, self.keys, run_id)
        try:
            self.client.check_server()
            self.client.call("creating the consumer group", self._create_group)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> TrajectoryStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # epochs (fencing)

    def begin_epoch(self) -> int:
        """Start a new epoch and return it: whoever publishes, reads or settles in an earlier one is refused."""
        return int(self.client.call("beginning an epoch", lambda r: r.incr(self.keys.epoch)))  # type: ignore[arg-type]

    def epoch(self) -> int:
        """The current epoch; 0 before the first `begin_epoch`."""
        return int(self.client.call("reading the epoch", lambda r: r.get(self.keys.epoch)) or 0)  # type: ignore[arg-type]

    def require_epoch(self, epoch: int) -> None:
        """Raises StaleEpoch when a later one has begun, StoreLost when the store doesn't know of it any more."""
        if (current := self.epoch()) != epoch:
            raise stale_epoch("going on", self.run_id, epoch, b"%d" % current)

    # actors

    def publish(self, record: Trajectories, timeout_s: float | None = None) -> Receipt:
        """Put a group into the stream; wait while the stream is at its bound.

        Publishing a group id again changes nothing. Room is checked and taken in one step; a publisher that meets
        a full stream has sent one record in vain and from then on asks before it sends.

        Raises:
            SchemaError: the record breaks the schema.
            BackPressureTimeout: no room within `timeout_s` (default `publish_timeout_s`).
            StaleEpoch: `meta.epoch` is not the current epoch.
            RecordTooLarge, StoreFull, StoreUnreachable, StoreError.
        """
        if record.meta.run_id != self.run_id:
            raise SchemaError(
                f"group {record.meta.group_id!r} is of run {record.meta.run_id!r}, the stream of {self.run_id!r}"
            )
        meta = record.meta
        payload, summary = encode_both(record)
        return self.publish_payload(meta.group_id, payload, summary, record.rows, meta.epoch, timeout_s)

    def publish_payload(
        self,
        group_id: str,
        payload: bytes | pa.Buffer,
        summary: bytes | pa.Buffer,
        rows: int,
        epoch: int,
        timeout_s: float | None = None,
    ) -> Receipt:
        """`publish` for a record that is already encoded; the bytes are not looked at."""
        data = memoryview(payload)
        if data.nbytes > self.settings.max_bytes:
            raise RecordTooLarge(
                f"group {group_id!r} has {data.nbytes} bytes, the whole stream may hold max_bytes="
                f"{self.settings.max_bytes}: raise store.max_bytes, or use fewer rollouts or float16 storage"
            )
        settings, arriving = self.settings, self.keys.arriving_prefix + uuid.uuid4().hex
        argv = [group_id, self.keys.payload(group_id), data.nbytes, epoch, settings.max_entries, settings.max_bytes]
        more = [rows, arriving, memoryview(summary)]

        def commit(r: redis.Redis) -> Any:
            with r.pipeline(transaction=True) as pipe:
                pipe.set(arriving, data)  # type: ignore[arg-type]
                pipe.eval(COMMIT, len(self.keys.state), *self.keys.state, *argv, *more)  # type: ignore[arg-type]
                return pipe.execute()[1]

        start, pause = time.monotonic(), 0.005
        limit = settings.publish_timeout_s if timeout_s is None else timeout_s
        ask_first = self._was_full
        while True:
            verdict, *details = self._eval("publish", ADMIT, argv) if ask_first else [b"room"]
            if verdict == b"room":
                verdict, *details = self.client.call("publish", commit)
            self._was_full = ask_first = verdict == b"full"
            waited = time.monotonic() - start
            if verdict in (b"published", b"known"):
                return Receipt(details[0].decode(), verdict == b"known", waited)
            if verdict == b"epoch":
                raise stale_epoch(f"publishing group {group_id!r}", self.run_id, epoch, details[0])
            if waited + pause > limit:
                raise BackPressureTimeout(
                    f"no room for group {group_id!r} ({data.nbytes} bytes) in {waited:.1f} s: the stream holds "
                    f"{int(details[0])} of {settings.max_entries} groups and {int(details[1])} of {settings.max_bytes} "
                    "bytes; the learner is slower than the actors or has stopped"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    # learner

    def read(
        self, consumer: str, count: int, block_ms: int = 0, own_pending_first: bool = True, epoch: int | None = None
    ) -> list[Entry]:
        """Up to `count` entries for `consumer`, in the order of publication; no payload is moved, see `fetch`.

        First come entries that this consumer has read but not settled and that this instance has not handed out
        yet (a restart, or an answer that was lost); then new ones. Waits up to `block_ms` for the first entry
        (0: not at all) and does not wait for more.

        Args:
            own_pending_first: False reads new entries only.
            epoch: read nothing unless it is the current one (a reader that was replaced).

        Raises:
            StaleEpoch, StoreUnreachable, StoreAuthError, StoreError.
        """
        if count < 1:
            raise ValueError(f"count={count}: at least 1")
        deadline = time.monotonic() + block_ms / 1000
        last = self._deliveries.drained_at(consumer)  # one exchange less, where nothing can have been missed
        while True:
            # Well below the socket's deadline, which would otherwise end the wait as an error.
            slice_ms = min(1000 * (deadline - time.monotonic()), 500 * self.settings.op_timeout_s)
            if last and slice_ms >= 1:
                # Waiting takes nothing: what comes is read by the script, which looks at the epoch first.
                self._wait(last, int(slice_ms))
            entries, last = self._deliveries.read(consumer, count, own_pending_first, epoch)
            if entries or slice_ms < 1:
                return entries

    def fetch(self, group_ids: Sequence[str]) -> list[Trajectories | SchemaError]:
        """The whole records of unsettled groups, in the order asked for, a bounded number of bytes at a time.

        Needs no reading before and changes nothing, so that any process or thread may call it, beside the reader.

        Returns:
            For each group its record, or a SchemaError that names the group and says what is wrong: it is gone
            (settled, never published), corrupt, or its record is of another group or run.

        Raises:
            StoreUnreachable, StoreAuthError, StoreError.
        """
        return fetch(self.client, self.keys, self.run_id, group_ids)

    def settle(
        self, entry_ids: Iterable[str], outcome: str, token: str | None = None, epoch: int | None = None
    ) -> list[str]:
        """Acknowledge and delete entries and note their outcome. Call it when the outcome is durable.

        Args:
            outcome: `consumed:...` (`consumed:step=12`) or `dropped:REASON` (`dropped:stale`), more may follow behind
                another colon (`dropped:picture:a.png is missing`); one line.
            token: names this settlement. A second call with the same token changes nothing, so a learner resumed
                from a checkpoint repeats the checkpoint's settlement safely with a token such as `step=12`.
                Default: a new one, so that settling an entry in two calls shows in the audit.
            epoch: refuse unless it is the current one (a learner that was cut off).

        Returns:
            For each entry `settled`, `repeated` (same token), `twice` (settled before: a fault) or, without an epoch,
            `unknown` (never published: a fault).

        Raises:
            StaleEpoch, StoreUnreachable, StoreError; ValueError for a malformed outcome or token.
            StoreLost: with an epoch, for an entry that the store doesn't know: its reader has got it from there.
        """
        if not _OUTCOME.fullmatch(outcome) or not outcome.isprintable():
            raise ValueError(f"outcome={outcome!r}: write consumed:... or dropped:REASON on one line")
        token = uuid.uuid4().hex if token is None else token
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"token={token!r}: 1 to 200 printable characters without spaces")
        ids, results = list(entry_ids), list[str]()
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            head = [GROUP, self.keys.payload_prefix, token, outcome, "" if epoch is None else epoch]
            verdict, *details = self._eval("settle", SETTLE, [*head, *page])
            if verdict == b"epoch":
                raise stale_epoch(f"settling {len(ids)} entries", self.run_id, epoch, details[0])
            results += [d.decode() for d in details]
            if epoch is not None and "unknown" in results:
                raise StoreLost(
                    f"settling {len(ids)} entries of run {self.run_id!r}: {results.count('unknown')} of them, as "
                    f"{ids[results.index('unknown')]}, aren't known to its store any more: {CAUSES_OF_LOSS}"
                )
        self._deliveries.settled(ids)
        return results

    def forget_settled(self, entry_ids: Iterable[str]) -> None:
        """Don't remember as handed out what another instance has settled: that would grow for ever."""
        self._deliveries.settled(entry_ids)

    def reclaim_others(self, consumer: str, epoch: int | None = None) -> list[Entry]:
        """Take over everything that any other consumer has read and not settled, in the order of publication.

        For the one reader of a new epoch, whose predecessors have other names: it calls this once, before it reads,
        and nothing that they took is lost.

        Args:
            epoch: take nothing unless it is the current one.

        Raises:
            StaleEpoch, StoreUnreachable, StoreAuthError, StoreError.
        """
        return self._deliveries.claim_others(consumer, epoch)

    def rewind(self, consumer: str) -> None:
        """Let `read` hand out this consumer's unsettled entries again (learner went back to a checkpoint)."""
        self._deliveries.forget(consumer)

    # accounts

    def pending_count(self, consumer: str | None = None) -> int:
        """Entries read and not settled, by one consumer or by all."""
        summary: Any = self.client.call("counting", lambda r: r.xpending(self.keys.entries, GROUP))
        if consumer is None:
            return int(summary["pending"])
        owned = {c["name"].decode(): int(c["pending"]) for c in summary["consumers"]}
        return owned.get(consumer, 0)

    def depth(self) -> Depth:
        """How full the stream is."""

        def count(r: redis.Redis) -> Any:
            with r.pipeline(transaction=True) as pipe:
                pipe.xlen(self.keys.entries)
                pipe.get(self.keys.bytes)
                pipe.xpending(self.keys.entries, GROUP)
                return pipe.execute()

        entries, held, pending = self.client.call("counting", count)
        return Depth(int(entries), int(held or 0), int(pending["pending"]))

    def memory(self) -> tuple[int | None, int | None]:
        """Bytes that the server uses, and at which it refuses more; None: this user may not ask, or it has no limit."""
        try:
            info: Any = self.client.call("reading INFO", lambda r: r.info("memory"))
        except StoreError as error:
            if isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                return None, None
            raise
        return int(info["used_memory"]), int(info.get("maxmemory", 0)) or None

    def unsettled(self, epoch: int | None = None) -> dict[str, str]:
        """Group id -> entry id of everything that is published and not settled, in the order of publication.

        The truth for admission control: a group published twice is in it once, a dropped one is not in it. Costs time
        in proportion to what is unsettled (at most `max_entries`), not to the history of the run; no summary and no
        payload is moved. Entries that `publish` did not put there are not in it.

        It is read in pages: each entry's state is that of some instant during the call.

        Args:
            epoch: refuse unless it is the current one.

        Raises:
            StaleEpoch, StoreLost, StoreUnreachable, StoreError.
        """
        found: dict[str, str] = {}
        first: bytes | str = "-"
        while first:
            head = [first, PAGE, "" if epoch is None else epoch]
            verdict, *answer = self._eval("listing unsettled groups", WAITING, head)
            if verdict == b"epoch":
                raise stale_epoch("listing unsettled groups", self.run_id, epoch, answer[0])
            texts = [text.decode() for text in answer[0]]
            found |= dict(zip(texts[::2], texts[1::2], strict=True))
            first = b"(" + answer[1] if answer[1] else ""
        return found

    def published_groups(self) -> set[str]:
        """Ids of all groups ever published in this run, settled or not: what a resumed run need not roll out again.

        Costs time and memory in proportion to the run's history (some 100 bytes a group); call it once, at a start.
        """
        return published_groups(self.client, self.keys)

    def known(self, entry_ids: Iterable[str]) -> set[str]:
        """Those that the store knows to have been published."""
        ids, found = list(entry_ids), set[str]()
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            lines: Any = self.client.call("looking up entries", lambda r, page=page: r.hmget(self.keys.published, page))  # type: ignore[misc]
            found.update(entry_id for entry_id, line in zip(page, lines, strict=True) if line is not None)
        return found

    def ledger(self) -> Ledger:
        """All publications and settlements up to an instant during the call; read in pages, see `history.py`."""
        return read_ledger(self.client, self.keys, self.run_id)

    def audit(self) -> AuditReport:
        """Check that each published group was consumed once, dropped with a reason, or is pending."""
        return audit(self.ledger())

    def export_ledger(self, path: Path, epoch: int | None = None) -> AuditReport:
        """Write the ledger as JSON for `audit_file`, and return its audit.

        Args:
            epoch: write nothing unless it is the current one (the successor's newer ledger may be there already).

        Raises:
            StaleEpoch, StoreUnreachable, StoreError; OSError when it can't be written.
        """
        ledger = self.ledger()
        if epoch is not None and epoch != ledger.epoch:
            raise stale_epoch(f"writing {path}", self.run_id, epoch, b"%d" % ledger.epoch)
        ledger.write(path)
        return audit(ledger)

    def restore(self, entries: Iterable[LedgerEntry], epoch: int) -> int:
        """Tell a store that has lost the run what is known of it; repeating that changes nothing.

        Ids and epochs go on behind those given. What was not settled is left out: its record is gone, and its group
        may be published again.

        Args:
            entries: of an earlier ledger.
            epoch: the last one that has begun.

        Returns:
            How many settlements the store did not know.

        Raises:
            StoreUnreachable, StoreError.
        """
        known = list(entries)
        last = max((entry.entry_id for entry in known), key=entry_order, default="0-0")
        head, restored = [GROUP, self.keys.payload_prefix, epoch, last], 0
        settled = [entry for entry in known if not entry.is_pending]
        for start in range(0, max(1, len(settled)), PAGE):
            page = [text for entry in settled[start : start + PAGE] for text in lines_of(entry)]
            restored += int(self._eval("restoring the ledger", RESTORE, [*head, *page])[1])
        return restored

    # inside

    def _eval(self, what: str, script: str, argv: Sequence[Any]) -> list[Any]:
        # The whole script, not its hash: a restarted server has forgotten the hashes.
        keys = self.keys.state
        return self.client.call(what, lambda r: r.eval(script, len(keys), *keys, *argv))  # type: ignore[arg-type,return-value]

    def _wait(self, last: str, milliseconds: int) -> None:
        """Until there is an entry behind `last`, or the time is over."""
        self.client.call("waiting", lambda r: r.xread({self.keys.entries: last}, count=1, block=milliseconds))

    def _create_group(self, r: redis.Redis) -> None:
        try:
            r.xgroup_create(self.keys.entries, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
