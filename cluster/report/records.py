"""The metrics of a run: one JSON object a line is the source of truth, TensorBoard stands beside it."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.files import JsonLines, read_json_lines

FILE_NAME = "metrics.jsonl"
NEEDS = ("kind", "iteration")
Record = dict[str, Any]


class MetricsLog:
    """Appends records to `<run folder>/metrics.jsonl`.

    A record has "kind" ("train", "eval", ...) and "iteration"; everything else is free. Numbers that aren't finite
    are written as null, which every JSON reader understands; other values keep all their digits.

    Args:
        folder: the run folder, made if missing. A torn last line, left by a crash, is cut off.
        tensorboard: also write `<run folder>/tensorboard`; costs the import of torch on the first record.
        lost: gets the error when TensorBoard's files can't be written, which ends them and not the run; else it is a
            warning.
        also: gets each record once it is written.

    Raises:
        OSError: metrics.jsonl can't be opened or written; every method's error names it.
    """

    def __init__(
        self,
        folder: Path | str,
        tensorboard: bool = True,
        lost: Callable[[Exception], None] | None = None,
        also: Callable[[Record], None] | None = None,
    ) -> None:
        self.path = Path(folder) / FILE_NAME
        self._tensorboard, self._lost = tensorboard, lost or self._warn
        self._also = also
        self._purge_step: int | None = None
        self._writer: Any = None
        self._lines = JsonLines(self.path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record, handed to the operating system before this returns.

        Raises:
            ValueError: a value JSON has no form for, or no "kind" or "iteration".
        """
        if not record.keys() >= set(NEEDS):
            raise ValueError(f"a metrics record needs 'kind' and 'iteration', got {sorted(record)}")
        row = _plain(record)
        self._lines.append(row)
        if self._also is not None:
            self._also(row)
        if self._tensorboard:
            try:
                self._to_tensorboard(row)
            except OSError as error:
                self._give_up_tensorboard(error)

    def truncate_after(self, iteration: int) -> int:
        """Drop the records of later iterations, which a resumed run makes again; returns how many."""
        self._purge_step = iteration + 1
        return self._lines.keep(lambda row: int(row["iteration"]) <= iteration)

    def close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._give_up_tensorboard(error)
        finally:
            self._writer = None
            self._lines.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _give_up_tensorboard(self, error: OSError) -> None:
        writer, self._writer, self._tensorboard = self._writer, None, False
        if writer is not None:
            with suppress(OSError):  # the same error again, as it has lines that it could not write
                writer.close()
        self._lost(error)

    def _warn(self, error: Exception) -> None:
        warnings.warn(f"{self.path.parent} gets no figures for TensorBoard any more: {error}", stacklevel=2)

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
        ValueError: a line that isn't JSON or no record, with its number.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no metrics; give the folder of a run that has trained")
    return [r for r in read_json_lines(path, NEEDS) if (kind is None or r.get("kind") == kind) and where(r)]


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
