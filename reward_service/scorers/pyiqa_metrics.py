"""`pyiqa:NAME`: a no-reference metric of the package pyiqa (IQA-PyTorch), an extra under a non-commercial licence.

Nothing is fetched: a metric that wants a file is told which, and its files are read without unpickling.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import json
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from restoration.file_kinds import first
from restoration.trouble import is_memory
from reward_service.scorers.digests import digest_of
from reward_service.scorers.interface import check_block
from reward_service.scorers.offline import Unsafe, offline

PREFIX = "pyiqa:"
LEAST_SIDE = 32
LICENCE = "PolyForm-Noncommercial-1.0.0"
_OF_MANY = {
    "fid": "judges sets of pictures", "fid_dinov2": "judges sets of pictures", "sfid": "judges sets of pictures",
    "inception_score": "judges sets of pictures", "clipscore": "compares pictures with captions",
}  # fmt: skip
_DEEP = 4


class PyiqaMetric:
    """Scores of the metric, their sign turned where lower is better, so that higher is better here as everywhere.

    Args:
        name: `pyiqa:NAME`.
        device: where to run.
        batch: pictures at once. One by default: not every metric of the package scores a picture in company as alone.
        least_side: pixels a side that pictures must have; the metrics' own least sides are not told by the package.
        options: what the metric takes besides, such as `pretrained_model_path`, a file of the user's.

    Raises:
        ValueError: the package isn't there, has no such metric, or none that scores one picture without a reference;
            a file is missing, or would have been fetched or unpickled.
    """

    def __init__(
        self,
        name: str,
        /,
        device: str = "cpu",
        batch: int = 1,
        least_side: int = LEAST_SIDE,
        **options: Any,
    ) -> None:
        self.name, self.device = name, torch.device(device)
        self.metric = name.removeprefix(PREFIX)
        for key, value in (("batch", batch), ("least_side", least_side)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}={value!r}: a whole number of at least 1")
        self.preferred_batch, self.least_side = batch, least_side
        for key, value in options.items():
            if key.endswith("_path") and not Path(str(value)).exists():
                raise ValueError(f"scorer {name}: {key}={value}: no such file")
        with offline(unpickling=True):
            package = self._package()
        self._check(package)
        warnings.warn(
            f"scorer {name}: pyiqa is under {LICENCE}, and its metrics and their weights under terms of their own: "
            "for research and other non-commercial use only",
            stacklevel=3,
        )
        self._made = self._make(package, options)
        self._sign = -1.0 if self._made.lower_better else 1.0
        self.range = _range(self._made.score_range, self._sign)
        state = digest_of(dict(_tensors(self._made)))
        told = {key: _content(value) if key.endswith("_path") else value for key, value in options.items()}
        said = json.dumps([self.metric, told, state], sort_keys=True, default=str)
        digest = hashlib.sha256(said.encode()).hexdigest()[:12]
        self.version = f"pyiqa-{package.__version__}-{self.metric}-{digest}"

    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least `least_side` -> float32 [N]; NaN where the metric gives no number.

        A picture that the metric fails on is NaN, with a warning, if it scores others of the block.

        Raises:
            ValueError: another dtype or shape, or smaller pictures.
            RuntimeError: the metric fails on all of them, or returns something else than a number for each.
            MemoryError: not enough for a batch.
        """
        images = check_block(images, self.least_side)
        parts: list[np.ndarray | Exception] = []
        for start in range(0, len(images), self.preferred_batch):
            block = images[start : start + self.preferred_batch]
            try:
                parts.append(self._scores(block))
            except Exception as error:
                if is_memory(error):
                    raise MemoryError(
                        f"scorer {self.name}: not enough memory on {self.device} for {len(block)} pictures of "
                        f"{images.shape[2]}x{images.shape[1]}: set a smaller `batch`, or give it a larger device"
                    ) from error
                parts.append(error)
        errors = [part for part in parts if isinstance(part, Exception)]
        told = f"scorer {self.name}: the metric fails on pictures of {images.shape[2]}x{images.shape[1]}"
        if len(errors) == len(parts):
            raise RuntimeError(f"{told} ({type(errors[0]).__name__}: {_line(errors[0])})") from errors[0]
        if errors:
            warnings.warn(f"{told}, {len(errors)} of {len(parts)}: {_line(errors[0])}", stacklevel=2)
        size = self.preferred_batch
        lacking = [np.full(len(images[i * size : (i + 1) * size]), np.nan, np.float32) for i in range(len(parts))]
        return np.concatenate([lacking[i] if isinstance(part, Exception) else part for i, part in enumerate(parts)])

    @torch.inference_mode()
    def _scores(self, block: np.ndarray) -> np.ndarray:
        pixels = torch.tensor(block, device=self.device).permute(0, 3, 1, 2).float().div_(255)
        with offline() as wanted, _same_chance(self.device):
            found = self._made(pixels)
        if wanted:
            raise RuntimeError(f"it wanted {first(wanted)}, and nothing is fetched")
        if isinstance(found, tuple | list):
            found = found[0]
        if not isinstance(found, Tensor) or found.numel() != len(block):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RuntimeError(f"it returned {shape} for {len(block)} pictures, where a number for each is wanted")
        scores = found.detach().float().reshape(-1).cpu().numpy() * np.float32(self._sign)
        return np.where(np.isfinite(scores), scores, np.float32(np.nan))

    def _package(self) -> Any:
        try:
            return importlib.import_module("pyiqa")
        except ImportError as error:
            if error.name == "pyiqa":
                raise ValueError(
                    f"scorer {self.name} needs the package pyiqa, an extra ({LICENCE}): "
                    "python -m pip install 'restorl[pyiqa]', on every node that scores"
                ) from error
            raise ValueError(f"scorer {self.name}: pyiqa can't be imported: {_line(error)}") from error

    def _check(self, package: Any) -> None:
        known = list(package.list_models())
        if self.metric not in known:
            near = difflib.get_close_matches(self.metric, known) or ["niqe", "musiq", "topiq_nr"]
            raise ValueError(f"scorer {self.name}: pyiqa has no such metric; choose {', '.join(near)}, ...")
        if self.metric in package.list_models("FR"):
            raise ValueError(
                f"scorer {self.name}: {self.metric} compares with the ground truth, which a scorer isn't given; as "
                "terms there are psnr, ssim, lpips and reconstruction, or choose a metric without reference, such as "
                f"{PREFIX}musiq"
            )
        if (what := _OF_MANY.get(self.metric)) is not None:
            raise ValueError(f"scorer {self.name}: {self.metric} {what}: no score of one picture; choose another")

    def _make(self, package: Any, options: Mapping[str, Any]) -> Any:
        with offline() as wanted:
            try:
                made = package.create_metric(self.metric, device=self.device, **options)
            except Exception as error:
                raise self._refusal(error, wanted) from error
        return made.eval().requires_grad_(False)

    def _refusal(self, error: Exception, wanted: list[str]) -> Exception:
        lacking = [*wanted, *_offline(error)]
        if lacking:
            return ValueError(
                f"scorer {self.name} wants a file that isn't here, and nothing is fetched in the background: "
                f"{first(lacking)}. Download it yourself and give it as `pretrained_model_path`, or, for a metric that "
                "takes no path, lay it where it is looked for (hub/pyiqa or hub/checkpoints in torch's cache, or the "
                "hub's)"
            )
        if isinstance(error, Unsafe) or "weights_only" in str(error) or "Weights only" in str(error):
            return ValueError(f"scorer {self.name}: its file isn't tensors alone, and isn't unpickled: {_line(error)}")
        if is_memory(error):
            return MemoryError(f"scorer {self.name} doesn't fit on {self.device}: give it a larger device")
        if isinstance(error, TypeError):
            return error  # an option that the metric doesn't take: `make_scorer` tells them all
        return ValueError(f"scorer {self.name}: {type(error).__name__}: {_line(error)}")


class _same_chance:
    """Inside, whatever draws at random draws the same each time: some metrics look at random crops."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []

    def __enter__(self) -> None:
        self.torch = torch.random.fork_rng(self.devices)
        self.torch.__enter__()
        torch.manual_seed(0)
        self.numpy, self.python = np.random.get_state(), random.getstate()
        np.random.seed(0)
        random.seed(0)

    def __exit__(self, *_: object) -> None:
        np.random.set_state(self.numpy)
        random.setstate(self.python)
        self.torch.__exit__(None, None, None)


def _range(said: str | None, sign: float) -> tuple[float, float]:
    """pyiqa's "0, ~100" as bounds: what it calls rough bounds nothing."""
    bounds = [-math.inf, math.inf]
    parts = (said or "").split(",")
    if len(parts) == 2:
        for i, part in enumerate(parts):
            try:
                bounds[i] = float(part)
            except ValueError:
                continue
    least, most = sorted(sign * bound + 0.0 for bound in bounds)  # without -0
    return least, most


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every number that a metric was given: parameters, buffers, and tensors and arrays in plain attributes."""
    yield from module.state_dict().items()
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if not key.startswith("_"):
                yield from _within(f"{path}:{key}", value, _DEEP)


def _within(path: str, value: Any, deep: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        yield path, torch.tensor(value)
    elif deep and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _within(f"{path}.{key}", item, deep - 1)
    elif deep and isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _within(f"{path}.{i}", item, deep - 1)


def _content(path: Any) -> str:
    """What tells a file from another wherever it lies; of a folder its name."""
    file = Path(str(path))
    if not file.is_file():
        return file.name
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _offline(error: BaseException | None) -> list[str]:
    """What the client of the Hugging Face hub says of a file that it isn't allowed to fetch."""
    said = []
    while error is not None:
        if type(error).__name__ in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
            said.append(_line(error).removeprefix("Cannot reach ").split(": offline")[0])
        error = error.__cause__ or error.__context__
    return [line for line in said if "://" in line][:1] or said[:1]


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return first([lines[0][:200]], 1) if lines else type(error).__name__
