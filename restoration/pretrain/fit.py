"""A training that can be killed: AdamW over named parameters, its whole state in one file that appears whole.

Going on from that file gives, on a CPU, the very bits of a training that was never interrupted, as long as the losses
depend on the iteration alone.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from restoration.average import WeightAverage
from restoration.checkpoints import CheckpointError

Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class FitSettings:
    """AdamW and its rhythm.

    Attributes:
        batch_size: crops of an iteration; of which `micro_batch` are computed at once and their gradients added up.
        crop: side of a crop in pixels, a multiple of what the model works on.
        warmup: iterations over which the learning rate grows linearly to `lr`.
        anneal: last iterations, over which it falls linearly to 0. With more iterations asked for later, training goes
            on from before the fall.
        grad_clip: largest global gradient norm, 0 for no clipping.
        ema: decay, an iteration, of the average of the weights that is validated and kept; 0 for the last weights.
        bfloat16: matrix products of the trained forward in bfloat16 (autocast); weights and losses stay float32. "auto"
            where the device multiplies it natively (`restoration.precision.resolve`).
        log_every, checkpoint_every: iterations.
    """

    iterations: int = 10000
    batch_size: int = 8
    micro_batch: int = 8
    crop: int = 256
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 100
    anneal: int = 0
    grad_clip: float = 1.0
    ema: float = 0.0
    bfloat16: bool | Literal["auto"] = False
    log_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "micro_batch", "crop", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        if self.bfloat16 not in (True, False, "auto"):
            raise ValueError(f"bfloat16={self.bfloat16!r}: choose true, false or auto")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: above 0")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas={self.betas}: two numbers in [0, 1)")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: from 0 (none) to below 1")
        for name in ("weight_decay", "warmup", "anneal", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or above")
        if self.anneal > self.iterations:
            raise ValueError(f"anneal={self.anneal}: at most iterations={self.iterations}")

    @property
    def plateau(self) -> int:
        """Iterations before the learning rate falls."""
        return self.iterations - self.anneal

    def lr_at(self, iteration: int) -> float:
        rise = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * rise * (min(1.0, (self.iterations - iteration) / self.anneal) if self.anneal else 1.0)


@dataclass
class Fit:
    """One stage of a training.

    Attributes:
        parameters: what is trained, by name, on its device.
        losses: iteration -> the losses of its micro-batches one after the other, each the share (a scalar with its
            graph) that it adds to the loss of the whole batch.
        file: the state; if it exists, the training goes on from it.
        identity: settings without which a state can't be gone on from; told in the error when they differ.
        log: receives one JSON object a line.
        validate: figures of the weights in effect; called before the first iteration, every `validate_every`
            iterations (0: only at the ends) and at the end.
    """

    stage: str
    parameters: Mapping[str, nn.Parameter]
    losses: Callable[[int], Iterable[Tensor]]
    settings: FitSettings
    file: Path
    identity: Mapping[str, Any]
    log: Path
    validate: Callable[[], dict[str, float]]
    validate_every: int = 1000
    progress: Progress | None = None
    done: int = field(default=0, init=False)
    figures: dict[str, float] = field(default_factory=dict, init=False)

    def run(self) -> dict[str, float]:
        """Train to the end; leaves the parameters holding the average, if there is one. Returns the last figures.

        Raises:
            CheckpointError: a state of another training, or one that is damaged.
            FloatingPointError: the loss or the gradient is not finite.
        """
        chosen = self.settings
        self._optimiser = torch.optim.AdamW(
            list(self.parameters.values()), lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay
        )
        self._average = WeightAverage(chosen.ema) if chosen.ema else None
        self._recent: list[float] = []
        self._seconds = 0.0
        self._fallen = False  # whether its state is of a rate that has begun to fall
        if self.file.exists():
            self._load()
        else:
            self._measure()
            self._save()  # a disk that is too small is found now
        if chosen.anneal and self.done >= chosen.plateau and not self._fallen:
            self._save(self._before_fall)  # with fewer iterations than before, the fall begins here
        self._tell()
        while self.done < chosen.iterations:
            started = time.monotonic()
            loss, norm, lr = self._step()
            took = time.monotonic() - started
            self._seconds += took
            self.done += 1
            self._recent.append(loss)
            last = self.done == chosen.iterations
            if self.done % chosen.log_every == 0 or last:
                mean = math.fsum(self._recent) / len(self._recent)
                self._recent.clear()
                spent = {"iteration_s": round(took, 3), "seconds": round(self._seconds)}
                self._write({"loss": mean, "grad_norm": norm, "lr": lr, **spent})
            if last or (self.validate_every and self.done % self.validate_every == 0):
                self._measure()
            if chosen.anneal and self.done == chosen.plateau:
                self._save(self._before_fall)
            if last or self.done % chosen.checkpoint_every == 0:
                self._save()
            self._tell()
        if self._average is not None:
            _copy(self._average.weights, self.parameters)
        return self.figures

    def _step(self) -> tuple[float, float, float]:
        """(loss, gradient norm before clipping, learning rate)."""
        chosen, parameters = self.settings, list(self.parameters.values())
        lr = chosen.lr_at(self.done)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._optimiser.zero_grad(set_to_none=True)
        loss = 0.0
        for share in self.losses(self.done):
            share.backward()
            loss += float(share.detach())
        norm = float(nn.utils.clip_grad_norm_(parameters, chosen.grad_clip or math.inf))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"{self.stage}: loss {loss}, gradient norm {norm} at iteration {self.done}; lower {self.stage}.lr="
                f"{chosen.lr} or look for NaN in the data, then start again: the last state is {self.file}"
            )
        self._optimiser.step()
        if self._average is not None:
            self._average.update(self.parameters)
        return loss, norm, lr

    def _measure(self) -> None:
        with self._averaged(), torch.no_grad():
            self.figures = self.validate()
        self._write(self.figures)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the parameters hold the average, if there is one."""
        if self._average is None or not self._average.weights:
            yield
            return
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        _copy(self._average.weights, self.parameters)
        try:
            yield
        finally:
            _copy(own, self.parameters)

    def _write(self, values: Mapping[str, float]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "iteration": self.done, **values}) + "\n")

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.stage, self.done, self.settings.iterations, self.figures)

    @property
    def _before_fall(self) -> Path:
        """The state when the learning rate began to fall."""
        return self.file.with_suffix(f".plateau{self.file.suffix}")

    def _save(self, file: Path | None = None) -> None:
        file = file or self.file
        tensors = {f"weights/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            tensors |= {f"adamw.{key}/{name}": value for key, value in self._optimiser.state.get(p, {}).items()}
        if self._average is not None:
            tensors |= {f"average/{name}": value for name, value in self._average.weights.items()}
        about = {
            "done": self.done,
            "recent": self._recent,
            "figures": self.figures,
            "log_bytes": self.log.stat().st_size,
            "averaged": self._average.updates if self._average is not None else 0,
            "seconds": self._seconds,
            "falls": [self.settings.plateau, self.settings.iterations],
            "identity": self.identity,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.part")
        try:
            stored = {name: value.cpu().contiguous() for name, value in tensors.items()}
            save_file(stored, partial, metadata={"restorl_fit": json.dumps(about)})
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, file)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(f"{file} can't be written: {error}; free space and start again") from error

    def _load(self) -> None:
        about, tensors = _read(self.file)
        chosen = [self.settings.plateau, self.settings.iterations]
        falls = about.get("falls", chosen)
        if about["done"] > falls[0] and falls != chosen:
            if not self._before_fall.exists():
                raise CheckpointError(
                    f"{self.file}: its learning rate has begun to fall, and {self._before_fall.name}, the state "
                    f"before, is gone; take back {self.stage}.iterations={falls[1]} and anneal={falls[1] - falls[0]}, "
                    "or delete the file to start anew"
                )
            about, tensors = _read(self._before_fall)
        self._fallen = about["done"] > about.get("falls", chosen)[0]
        wanted = json.loads(json.dumps(self.identity))
        differing = sorted(k for k in wanted | about["identity"] if wanted.get(k) != about["identity"].get(k))
        if differing:
            told = "; ".join(f"{k} was {about['identity'].get(k)}, now {wanted.get(k)}" for k in differing)
            raise CheckpointError(
                f"{self.file} is of a training with other settings: {told}; take those back, choose another folder "
                "(--out), or delete the file to start anew"
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            parts.setdefault(kind, {})[name] = value
        if parts["weights"].keys() != self.parameters.keys():
            raise CheckpointError(f"{self.file} holds other parameters than are trained; delete it to start anew")
        _copy(parts["weights"], self.parameters)
        for name, p in self.parameters.items():
            moments = {kind.removeprefix("adamw."): found[name] for kind, found in parts.items() if name in found}
            state = {k: v for k, v in moments.items() if k not in ("weights", "average")}
            if state:  # AdamW counts its steps on the CPU
                self._optimiser.state[p] = {
                    k: v if k == "step" else torch.empty_like(p).copy_(v) for k, v in state.items()
                }
        if self._average is not None and about["averaged"]:
            device = {name: p.device for name, p in self.parameters.items()}
            self._average.load({n: v.to(device[n]) for n, v in parts["average"].items()}, about["averaged"])
        self.done, self._recent, self.figures = about["done"], about["recent"], about["figures"]
        self._seconds = about.get("seconds", 0.0)
        if self.done > self.settings.iterations:
            raise CheckpointError(
                f"{self.file} is at iteration {self.done} already, beyond {self.stage}.iterations="
                f"{self.settings.iterations}; ask for more, choose another folder (--out), or delete the file"
            )
        unfinished = self.done < self.settings.iterations  # of a finished stage, the next one's lines follow
        if unfinished and self.log.exists() and self.log.stat().st_size > about["log_bytes"]:
            os.truncate(self.log, about["log_bytes"])  # what was logged after the state is logged again


def iterations_of(file: Path) -> int:
    """How many a state has behind it. Raises CheckpointError."""
    return int(_read(file)[0]["done"])


def kept_weights(file: Path) -> dict[str, Tensor]:
    """What a training leaves, finished or not: the average of its weights, if there is one. Raises CheckpointError."""
    tensors = _read(file)[1]
    kept = "average/" if any(name.startswith("average/") for name in tensors) else "weights/"
    return {name.removeprefix(kept): value for name, value in tensors.items() if name.startswith(kept)}


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {})["restorl_fit"])
            return about, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file} is no state of a training ({error}); delete it to start anew") from error


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], into: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in into.items():
        parameter.copy_(values[name])
