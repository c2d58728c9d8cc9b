"""Reading a golden file and comparing what our code computes with it."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

Outputs = dict[str, Tensor]


def recipe_tensor(key: str, shape: list[int]) -> Tensor:
    """The weight that the golden data's recipe (its README) gives to a key."""
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    last = key.rsplit(".", 1)[-1]
    if not shape or last in ("temperature", "logit_scale"):
        values = 1 + 0.1 * draw
    elif len(shape) == 1:
        values = 1 + 0.1 * draw if last.endswith("weight") else 0.1 * draw
    else:
        values = draw / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32).reshape(tuple(shape)).copy())


@dataclass(frozen=True)
class Golden:
    """One golden file: settings of the reference, its inputs and its outputs."""

    name: str
    config: dict[str, Any]
    keys: dict[str, dict[str, list[int]]]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    meta: dict[str, Any]
    buffers: dict[str, Tensor]
    folder: Path = Path()

    @classmethod
    def read(cls, file: Path) -> Golden:
        meta = json.loads(file.read_text())
        tensors = load_file(file.with_suffix(".safetensors"))

        def section(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        return cls(
            name=file.stem,
            config=meta.get("config", {}),
            keys=meta.get("state", {}),
            inputs=section("in."),
            outputs=section("out."),
            meta=meta,
            buffers=section("buffers."),
            folder=file.parent,
        )

    def state(self, part: str) -> dict[str, Tensor]:
        """The weights of a part, in released key names."""
        stored, factors = self.meta.get("buffers", {}).get(part, []), self.meta.get("weight_factors", {})
        state = {}
        for key, shape in self.keys[part].items():
            if key in stored:
                state[key] = self.buffers[f"{part}.{key}"]
            else:
                factor = math.prod(v for s, v in factors.items() if s in key)
                state[key] = recipe_tensor(key, shape) * factor
        return state

    def tolerance(self, output: str) -> tuple[float, float]:
        """(absolute, relative) tolerance of an output."""
        common = self.meta.get("tolerance", {})
        described = self.meta.get("outputs", {}).get(output, {})
        return float(described.get("atol", common.get("atol", 1e-6))), float(common.get("rtol", 1e-4))


@dataclass(frozen=True)
class Verdict:
    """One line of the report. `difference` and `tolerance` are those of the output closest to failing."""

    name: str
    status: str  # "ok", "FAIL", "not implemented"
    difference: float = math.nan
    tolerance: float = math.nan
    note: str = ""

    def __str__(self) -> str:
        numbers = (
            "" if math.isnan(self.tolerance) else f"max diff {self.difference:9.2e}  tolerance {self.tolerance:8.1e}"
        )
        return f"{self.name:34} {numbers:41} {self.status:15} {self.note}".rstrip()


@dataclass
class _Worst:
    load: float = -1.0
    difference: float = math.nan
    tolerance: float = math.nan
    output: str = ""
    untrained: int = 0
    failures: list[str] = field(default_factory=list)


def compare(golden: Golden, ours: Mapping[str, Tensor]) -> Verdict:
    """Every output of the golden file against ours: |x - y| <= atol + rtol |y|.

    Where the reference is not finite (log-probability of a step without noise), ours must be NaN: untrained.
    """
    worst = _Worst()
    for name, reference in golden.outputs.items():
        if name not in ours:
            worst.failures.append(f"{name}: not computed")
            continue
        _compare_output(worst, name, ours[name], reference, *golden.tolerance(name))
    notes = [f"worst {worst.output}"] if worst.output else []
    if worst.untrained:
        notes.append(f"{worst.untrained} values without density are untrained steps")
    if worst.failures:
        notes = worst.failures[:3] + ([f"and {len(worst.failures) - 3} more"] if len(worst.failures) > 3 else [])
    status = "FAIL" if worst.failures or not golden.outputs else "ok"
    return Verdict(golden.name, status, worst.difference, worst.tolerance, "; ".join(notes))


def _compare_output(worst: _Worst, name: str, value: Tensor, reference: Tensor, atol: float, rtol: float) -> None:
    x, y = value.detach().double(), reference.double()
    if x.shape != y.shape:
        worst.failures.append(f"{name}: shape {tuple(x.shape)} instead of {tuple(y.shape)}")
        return
    finite = y.isfinite()
    if not bool(x[~finite].isnan().all()):
        worst.failures.append(f"{name}: finite where the reference has no density")
    worst.untrained += int((~finite).sum())
    x, y = x[finite], y[finite]
    if not x.numel():
        return
    difference, bound = (x - y).abs(), atol + rtol * y.abs()
    if not bool(x.isfinite().all()):
        worst.failures.append(f"{name}: not finite")
        return
    load, index = (difference / bound).max(0)
    if float(load) > worst.load:
        worst.load, worst.output = float(load), name
        worst.difference, worst.tolerance = float(difference.max()), float(bound[index])
    if bool((difference > bound).any()):
        worst.failures.append(f"{name}: differs by {float(difference.max()):.2e}")
