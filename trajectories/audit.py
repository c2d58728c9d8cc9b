"""The ledger of a run and the proof that each trajectory was used exactly once."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trajectories.consumer import entry_order
from trajectories.errors import StoreError

LEDGER_FORMAT = 1


@dataclass(frozen=True)
class LedgerEntry:
    """One published group. `outcomes` has one text per settlement, oldest first: exactly one when all is well.

    Attributes:
        in_stream: the entry is still in the stream.
        payload_bytes: bytes of its record that the server holds (0: none).
        owner: consumer that has read it and not settled it, or empty.
    """

    entry_id: str
    group_id: str
    rows: int
    nbytes: int
    epoch: int
    outcomes: tuple[str, ...] = ()
    in_stream: bool = False
    payload_bytes: int = 0
    owner: str = ""

    @property
    def is_pending(self) -> bool:
        return not self.outcomes


@dataclass(frozen=True)
class Ledger:
    """All publications and settlements of a run at one instant.

    Attributes:
        strangers: ids of stream entries that were not put there by `publish`.
        unpublished: entry id -> outcomes, for settled ids that were never published.
        held_bytes: the store's own counter of payload bytes.
    """

    run_id: str
    epoch: int
    entries: tuple[LedgerEntry, ...]
    strangers: tuple[str, ...] = ()
    unpublished: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held_bytes: int = 0

    def groups(self) -> dict[str, list[LedgerEntry]]:
        """Group id -> its publications (one, when all is well)."""
        by_group: dict[str, list[LedgerEntry]] = {}
        for entry in self.entries:
            by_group.setdefault(entry.group_id, []).append(entry)
        return by_group

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all, also while another process writes the same file."""
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
        try:
            temporary.write_text(json.dumps({"format": LEDGER_FORMAT, **asdict(self)}, indent=1))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """A ledger written by `write`. Raises StoreError when the file is missing or damaged."""
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != LEDGER_FORMAT:
                raise StoreError(f"{path}: ledger of another format; this RestoRL reads format {LEDGER_FORMAT}")
            entries = [{**entry, "outcomes": tuple(entry["outcomes"])} for entry in content["entries"]]
            content["entries"] = tuple(LedgerEntry(**entry) for entry in entries)
            content["strangers"] = tuple(content["strangers"])
            content["unpublished"] = {k: tuple(v) for k, v in content["unpublished"].items()}
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: no readable ledger ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class AuditReport:
    """What became of every published group and trajectory (row).

    published = consumed + sum(dropped) + pending, each group counted by its first outcome; everything that breaks
    "exactly once" is a line in `problems`.
    """

    published: int
    consumed: int
    dropped: dict[str, int]
    pending: int
    published_rows: int
    consumed_rows: int
    dropped_rows: dict[str, int]
    pending_rows: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def render(self) -> str:
        """The report as lines of text."""
        groups, rows = sum(self.dropped.values()), sum(self.dropped_rows.values())
        reasons = "".join(f"\n  {r}: {n} groups, {self.dropped_rows[r]} trajectories" for r, n in self.dropped.items())
        verdict = "each published trajectory was consumed once, dropped with a reason, or is pending"
        return "\n".join(
            [
                f"published: {self.published} groups, {self.published_rows} trajectories",
                f"consumed: {self.consumed} groups, {self.consumed_rows} trajectories",
                f"dropped: {groups} groups, {rows} trajectories{reasons}",
                f"pending: {self.pending} groups, {self.pending_rows} trajectories",
                *(f"PROBLEM: {problem}" for problem in self.problems),
                f"FAIL: {len(self.problems)} problems" if self.problems else f"OK: {verdict}",
            ]
        )


def drop_reason(outcome: str) -> str:
    """`stale` of the outcome `dropped:stale` or `dropped:stale:by=3`."""
    return outcome.partition(":")[2].partition(":")[0]


def audit(ledger: Ledger) -> AuditReport:
    """Judge a ledger."""
    consumed, dropped, pending = Counter[str](), Counter[str](), Counter[str]()
    problems = [f"entry {e}: in the stream, but never published" for e in ledger.strangers]
    problems += [f"entry {e}: settled as {', '.join(o)}, but never published" for e, o in ledger.unpublished.items()]
    for entry in ledger.entries:
        problems += _entry_problems(entry)
        if entry.is_pending:
            pending.update(groups=1, rows=entry.rows)
        elif entry.outcomes[0].startswith("consumed"):
            consumed.update(groups=1, rows=entry.rows)
        else:
            dropped.update({f"g{drop_reason(entry.outcomes[0])}": 1, f"r{drop_reason(entry.outcomes[0])}": entry.rows})
    for group, publications in ledger.groups().items():
        if len(publications) > 1:
            ids = ", ".join(e.entry_id for e in publications)
            problems.append(f"group {group}: published {len(publications)} times ({ids})")
    held = sum(e.nbytes for e in ledger.entries if e.is_pending)
    if held != ledger.held_bytes:
        problems.append(f"the store counts {ledger.held_bytes} bytes, its unsettled records have {held}")
    reasons = sorted(key[1:] for key in dropped if key.startswith("g"))
    return AuditReport(
        published=len(ledger.entries),
        consumed=consumed["groups"],
        dropped={r: dropped[f"g{r}"] for r in reasons},
        pending=pending["groups"],
        published_rows=sum(e.rows for e in ledger.entries),
        consumed_rows=consumed["rows"],
        dropped_rows={r: dropped[f"r{r}"] for r in reasons},
        pending_rows=pending["rows"],
        problems=tuple(problems),
    )


def ledger_of(
    run_id: str,
    published: Mapping[str, str],
    settled: Mapping[str, str],
    waiting: Mapping[str, int],
    owners: Mapping[str, str],
    held: Collection[str],
    held_bytes: int,
    epoch: int,
) -> Ledger:
    """The ledger of one instant.

    Args:
        published, settled: lines by entry id, as `trajectories.scripts` has them.
        waiting: entry id -> bytes of its record, of what is in the stream.
        owners: entry id -> consumer.
        held: ids whose record is there.
    """
    entries = []
    for entry_id, line in published.items():
        group_id, rows, nbytes, of_epoch = line.split("\t")
        lines = settled[entry_id].split("\n") if entry_id in settled else []
        left = int(nbytes) if lines and entry_id in held else 0
        entries.append(
            LedgerEntry(
                entry_id=entry_id,
                group_id=group_id,
                rows=int(rows),
                nbytes=int(nbytes),
                epoch=int(of_epoch),
                outcomes=_outcomes(lines),
                in_stream=entry_id in waiting,
                payload_bytes=waiting.get(entry_id, 0) or left,
                owner=owners.get(entry_id, ""),
            )
        )
    return Ledger(
        run_id=run_id,
        epoch=epoch,
        entries=tuple(sorted(entries, key=lambda entry: entry_order(entry.entry_id))),
        strangers=tuple(sorted(waiting.keys() - published.keys(), key=entry_order)),
        unpublished={e: _outcomes(lines.split("\n")) for e, lines in settled.items() if e not in published},
        held_bytes=held_bytes,
    )


def _outcomes(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(line.partition("\t")[2] for line in lines)


def lines_of(entry: LedgerEntry) -> tuple[str, str, str, str]:
    """Id, group and both lines of a settled entry, as `trajectories.scripts` has them.

    A ledger does not keep tokens: these are the ones that `learner.source` settles with, so that a learner which
    resumes repeats a settlement that was restored without effect.
    """
    published = "\t".join((entry.group_id, str(entry.rows), str(entry.nbytes), str(entry.epoch)))
    tokens = [o.removeprefix("consumed:") if o.startswith("consumed:") else o for o in entry.outcomes]
    settled = "\n".join(f"{''.join(t.split())}\t{o}" for t, o in zip(tokens, entry.outcomes, strict=True))
    return entry.entry_id, entry.group_id, published, settled


def audit_file(path: Path) -> AuditReport:
    """Audit a ledger written by `TrajectoryStream.export_ledger`. Raises StoreError for an unreadable file."""
    return audit(Ledger.read(path))


def _entry_problems(entry: LedgerEntry) -> list[str]:
    name, found = f"group {entry.group_id} (entry {entry.entry_id})", []
    if len(entry.outcomes) > 1:
        found.append(f"{name}: settled {len(entry.outcomes)} times: {', '.join(entry.outcomes)}")
    if entry.outcomes and entry.in_stream:
        found.append(f"{name}: settled as {entry.outcomes[0]}, but still in the stream")
    if entry.outcomes and entry.payload_bytes:
        found.append(f"{name}: settled as {entry.outcomes[0]}, but its record is still held")
    if entry.outcomes and entry.owner:
        found.append(f"{name}: settled as {entry.outcomes[0]}, but still pending at consumer {entry.owner}")
    if entry.is_pending and not entry.in_stream:
        found.append(f"{name}: vanished; published, never settled, and no longer in the stream")
    elif entry.is_pending and entry.payload_bytes != entry.nbytes:
        found.append(f"{name}: record of {entry.nbytes} bytes is damaged, {entry.payload_bytes} bytes are left")
    return found
