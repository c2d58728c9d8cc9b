"""The metrics of a run: one JSON object a line is the source of truth, TensorBoard stands beside it."""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

FILE_NAME = "metrics.jsonl"
Record = dict[str, Any]


class MetricsLog:
    """Appends records to `<run folder>/metrics.jsonl`.

    A record has "kind" ("train", "eval", ...) and "iteration"; everything else is free. Numbers that aren't finite
    are written as null, which every JSON reader understands; other values keep all their digits.

    Args:
        folder: the run folder, made if missing. A torn last line, left by a crash, is cut off.
        tensorboard: also write `<run folder>/tensorboard`; costs the import of torch on the first record.
    """

    def __init__(self, folder: Path | str, tensorboard: bool = True):
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tensorboard = tensorboard
        self._purge_step: int | None = None
        self._writer: Any = None
        _cut_torn_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record, handed to the operating system before this returns.

        Raises:
            ValueError: a value JSON has no form for, or no "kind" or "iteration".
        """
        if "kind" not in record or "iteration" not in record:
            raise ValueError(f"a metrics record needs 'kind' and 'iteration', got {sorted(record)}")
        row = _plain(record)
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._tensorboard:
            self._to_tensorboard(row)

    def truncate_after(self, iteration: int) -> int:
        """Drop the records of later iterations, which a resumed run makes again; returns how many."""
        self._file.close()
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if int(json.loads(line)["iteration"]) <= iteration]
        partial = self.path.with_name(self.path.name + ".part")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self._purge_step = iteration + 1
        return len(lines) - len(kept)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _to_tensorboard(self, row: Record) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # not for readers

            self._writer = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._purge_step)
        group = "/".join(str(row[k]) for k in ("kind", "who") if k in row)
        for name, value in _scalars(row):
            if name not in ("iteration", "kind", "who"):
                self._writer.add_scalar(f"{group}/{name}", value, row["iteration"])
        self._writer.flush()


def read_metrics(
    folder: Path | str, kind: str | None = None, where: Callable[[Record], bool] = lambda record: True
) -> list[Record]:
    """Records of a run folder in order of writing, of one kind if given; a torn last line is left out.

    Raises:
        FileNotFoundError: the folder has no metrics.
        ValueError: a line that isn't JSON, with its number.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no metrics; give the folder of a run that has trained")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}); remove the line") from None
        if (kind is None or record.get("kind") == kind) and where(record):
            records.append(record)
    return records


def without_timings(records: Iterable[Record]) -> list[Record]:
    """What two runs of the same seed must share: without seconds (`seconds_*`, `*_s`), rates (`*_per_s`) and MB."""
    return [{k: v for k, v in r.items() if not is_timing(k)} for r in records]


def is_timing(key: str) -> bool:
    """Whether a key of a record depends on the machine and not on the run."""
    return key.startswith("seconds_") or key.endswith(("_s", "_mb"))


def series(records: Iterable[Record], key: str) -> tuple[list[int], list[float]]:
    """(iterations, values) of the records that have a finite number under `key`."""
    found = [(r["iteration"], r[key]) for r in records if isinstance(r.get(key), (int, float))]
    return [i for i, _ in found], [float(v) for _, v in found]


def _cut_torn_line(path: Path) -> None:
    """A crash while writing leaves a last line without its newline."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def _plain(value: Any) -> Any:
    """JSON's own types; numbers of numpy and 0-dimensional tensors too."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise ValueError(f"metrics: can't write a {type(value).__name__} ({value!r}) as JSON; give a number, text or list")


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value)
