"""Whether a scorer is what it was: it scores known pictures, and its scores are compared with those stored before.

A version names the weights that were read. The probe tries what is made of them on this device: it refuses weights
that were changed beside their stored scores, a device that computes wrongly, and a library that does something else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restoration.whole_files import written_whole
from reward_service.errors import ScorerFailed
from reward_service.probe_pictures import COUNT, PICTURES, probe_pictures
from reward_service.scorers import SCORERS
from reward_service.scorers.interface import Scorer, traits

FILE = "restorl_probe.json"
SHIPPED = Path(__file__).parent / "scorers" / "probes.json"
"""Of the scorers whose weights are shipped or that have none."""
SIDE = 192
"""Of the pictures, for a scorer that takes any size: enough for several blocks of every metric."""
UNBOUNDED_SPAN = 100.0
"""In place of the range of a score without bounds: shipped ones are 100 less an index that runs to about 100."""
SHARES = {"bfloat16": 0.02, "float16": 0.005}
SHARE = 0.005
"""The tolerance, as a share of the range. Another order of addition in float32 changes a score by 1e-6 of it. But GPUs
take convolutions in TF32: `lite0_levels` with its operands rounded to TF32's (and float16's) ten bits is 0.003 off, to
bfloat16's seven 0.010, a tiny `deqa` in float16 0.0005, in bfloat16 0.008."""
_PLACES = ("weights", "model", "folder", "base", "backbone", "checkpoint", "file", "path")
_SAME_SCORE = ("device", "dtype", "batch", "chunk", "deterministic", "compile")
"""Parameters that no score depends on beyond the tolerance."""


@dataclass(frozen=True)
class Stored:
    """What a scorer gave to the probe pictures.

    Attributes:
        scores: of the pictures.
        tolerance: the most that each may differ, where it was stored; a replica's own counts if that is more.
        version: of the scorer then. Another may give the same scores.
    """

    scores: tuple[float, ...]
    tolerance: float
    version: str


class Probe:
    """Compares a scorer with what is stored beside its weights, or in the package.

    Args:
        scorer: as made of `name` and `params`.
        name: registered name, or "module:class".
        params: arguments that the scorer was made with. Of a folder of weights the scores lie in it, of a file
            beside it, in `restorl_probe.json`.
        side: of the pictures that it will be asked for, if that is known: the first check tries it, too.

    Where nothing is stored, the first scores are what later ones are compared with, and a warning says how to store
    them.

    Raises:
        ScorerFailed: the stored file can't be read.
        ValueError: the scorer says something impossible of itself (`traits`).
    """

    def __init__(self, scorer: Scorer, name: str, params: Mapping[str, Any], side: int | None = None) -> None:
        self.scorer, self.name, self.params = scorer, name, dict(params)
        own = traits(scorer)
        self.pictures = probe_pictures(own.native_side or max(SIDE, own.least_side))
        self.file = _file_of(name, self.params)
        self.key = _key(name, self.params, self.pictures.shape[1])
        try:
            self.stored = None if self.file is None else _read(self.file).get(self.key)
        except ValueError as error:
            told = f"probe of scorer {name}: {error}; put the file right, or delete it and {self._write}"
            raise ScorerFailed(told) from error
        self._first: tuple[float, ...] | None = None
        self._untried = side

    @property
    def command(self) -> str:
        """What stores this scorer's scores."""
        return "restorl reward probe " + ",".join([self.name, *(f"{k}={_shown(v)}" for k, v in self.params.items())])

    @property
    def _write(self) -> str:
        return f"write its scores anew: {self.command} --force"

    @property
    def own_tolerance(self) -> float:
        """The most that this scorer, as it runs here, may be off, in units of its score."""
        low, high = self.scorer.range
        span = high - low if math.isfinite(high - low) else UNBOUNDED_SPAN
        kind = str(getattr(self.scorer, "dtype", "")).removeprefix("torch.")
        share = SHARES.get(kind, SHARE)
        return max(share * span, traits(self.scorer).batch_tolerance)

    @property
    def tolerance(self) -> float:
        """The most that its scores may differ from those that they are compared with."""
        return max(self.own_tolerance, self.stored.tolerance if self.stored is not None else 0.0)

    def check(self) -> float:
        """Score the probe pictures, in the thread that the scorer is called in; the score of the first.

        Raises:
            ScorerFailed: the scorer raises, gives something else than a finite number each, or another one than is
                stored, or than it gave at first; or raises at the size that it will be asked for.
        """
        found = self.scores()
        if self._untried is not None:
            self._try_size(self._untried)
            self._untried = None
        if self.stored is None and self._first is None:
            self._first = found
            reason = "nowhere to store its scores" if self.file is None else f"none of its scores in {self.file}"
            remedy = "" if self.file is None else f"; store them while you trust it: {self.command}"
            warnings.warn(
                f"probe of scorer {self.name}: {reason}, so that weights changed before now go unnoticed{remedy}",
                stacklevel=2,
            )
        wanted = self.stored.scores if self.stored is not None else self._first
        assert wanted is not None
        if max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > self.tolerance:
            raise ScorerFailed(self._other(found, wanted))
        return found[0]

    def scores(self) -> tuple[float, ...]:
        """What it gives to the pictures. Raises ScorerFailed."""
        try:
            # compared within a tolerance, so that a promise about bits need not hold at their size
            score = getattr(self.scorer, "probed", self.scorer.score)
            given = np.asarray(score(self.pictures.copy()), dtype=np.float64)
        except Exception as error:
            side = self.pictures.shape[1]
            raise ScorerFailed(
                f"scorer {self.name} raised {type(error).__name__} on the probe's pictures of {side} x {side}: {error}"
                "; if it takes other sizes only, give its class a native_side"
            ) from error
        if given.shape != (COUNT,) or not np.isfinite(given).all():
            raise ScorerFailed(
                f"scorer {self.name} gave {np.array2string(given, threshold=8)} to the probe's {COUNT} pictures: must "
                "be a finite number each"
            )
        return tuple(given.tolist())

    def _try_size(self, side: int) -> None:
        """Raises ScorerFailed."""
        times = -(-side // self.pictures.shape[1])
        picture = np.tile(self.pictures[:1], (1, times, times, 1))[:, :side, :side].copy()
        try:
            self.scorer.score(picture)
        except Exception as error:
            raise ScorerFailed(
                f"scorer {self.name} raised {type(error).__name__} on a picture of {side} x {side}, the size that it "
                f"is served for (a run's rollout.crop, or reward.picture_side): {error}"
            ) from error

    def _other(self, found: tuple[float, ...], wanted: tuple[float, ...]) -> str:
        told = f"scorer {self.name} gives {_listed(found)} to the probe's pictures, "
        if self.stored is None:
            return f"{told}and gave {_listed(wanted)} when it started: its device or its weights failed; restart it"
        now, then = self.scorer.version, self.stored.version
        cause = (
            "its version is the stored one's, so that this device or a library computes something else"
            if now == then
            else f"it is version {now}, and they are of {then}: other weights or settings"
        )
        return (
            f"{told}and {self.file} holds {_listed(wanted)}, more than {self.tolerance:g} apart: {cause}. Put back "
            f"what was stored, or, if this scorer is the one you want, {self._write}"
        )


def write_probe(probe: Probe, force: bool = False) -> tuple[Path, Stored]:
    """Score the pictures and store the scores, with `force` in place of others; where they lie, and they.

    Raises:
        ScorerFailed: as `Probe.scores`.
        ValueError: no place for them.
        FileExistsError: other scores are stored.
        OSError: it can't be written there.
    """
    if probe.file is None:
        raise ValueError(
            f"{probe.name}: its parameters name no file or folder of weights that the scores could lie beside, and it "
            "is none of the shipped ones"
        )
    found = Stored(probe.scores(), probe.own_tolerance, probe.scorer.version)
    if probe.stored is not None and not force:
        differ = max(abs(a - b) for a, b in zip(found.scores, probe.stored.scores, strict=True)) > probe.tolerance
        if differ:
            raise FileExistsError(
                f"{probe.file} holds other scores, {_listed(probe.stored.scores)}, than {_listed(found.scores)}: these "
                "are other weights or settings; --force replaces them"
            )
        return probe.file, probe.stored
    entries = {**_read(probe.file), probe.key: found}
    text = json.dumps({key: asdict(entry) for key, entry in sorted(entries.items())}, indent=2) + "\n"
    with written_whole(probe.file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return probe.file, found


def _file_of(name: str, params: Mapping[str, Any]) -> Path | None:
    """Where the scores of a scorer lie; None for a server elsewhere, whose files aren't ours."""
    if name.startswith(("http://", "https://")):
        return None
    if places := _places(params):
        first = Path(params[places[0]])
        return first / FILE if first.is_dir() else first.with_name(FILE)
    return SHIPPED if name in SCORERS else None


def _places(params: Mapping[str, Any]) -> list[str]:
    """Parameters that name files or folders which are there, the weights' first."""
    found = [key for key, value in params.items() if isinstance(value, str | Path) and _is_place(key, str(value))]
    return sorted(found, key=lambda key: (_PLACES.index(key) if key in _PLACES else len(_PLACES), key))


def _is_place(key: str, value: str) -> bool:
    return bool(value) and (key in _PLACES or os.sep in value) and Path(value).exists()


def _key(name: str, params: Mapping[str, Any], side: int) -> str:
    """Scorer, the names of its files, and a digest of whatever else its scores depend on but the weights' place."""
    places = _places(params)
    files = [f"{key}={Path(params[key]).name}" for key in places if Path(params[key]).is_file()]
    kept = {key: value for key, value in params.items() if value is not None and key not in (*places, *_SAME_SCORE)}
    said = json.dumps([kept, side, PICTURES], sort_keys=True, default=str)
    return " ".join([name, *files, hashlib.sha256(said.encode()).hexdigest()[:12]])


def _read(file: Path) -> dict[str, Stored]:
    """All entries of a file; none if there is no file. Raises ValueError."""
    try:
        # plainly, as a scorer that needs no torch brings none in
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {key: _stored(entry) for key, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} holds no scores of a probe: {error!r}") from error


def _stored(entry: Any) -> Stored:
    found = Stored(tuple(float(s) for s in entry["scores"]), float(entry["tolerance"]), str(entry["version"]))
    if len(found.scores) != COUNT or not all(math.isfinite(s) for s in found.scores):
        raise ValueError(f"scores={list(found.scores)}: {COUNT} finite numbers")
    if not 0 <= found.tolerance < math.inf:
        raise ValueError(f"tolerance={found.tolerance}: a finite number of at least 0")
    return found


def _listed(scores: tuple[float, ...]) -> str:
    return ", ".join(f"{score:.4f}" for score in scores)


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
