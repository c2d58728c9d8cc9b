"""Results of cells that nobody measured."""

from __future__ import annotations

from typing import Any

from cluster.paper.cells import Key
from cluster.paper.results import Result
from cluster.paper.tables import Line, Part


def made(line: Line, part: Part, seed: int = 0, **figures: Any) -> Result:
    """Of a row and a part of a table; `figures` are means, or fields of `Result`."""
    of_result = {name: figures.pop(name) for name in list(figures) if name in Result.__dataclass_fields__}
    base: dict[str, Any] = {
        "key": Key(line.model, part.trained_on, line.arm, seed),
        "set": part.set,
        "split": part.split,
        "settings": {},
        "scale": "tiny",
        "protocol": "lowlight_rgb",
        "told": "RGB, 8 bits",
        "n": 4,
        "published": 100,
        "means": figures,
        "counts": dict.fromkeys(figures, 4),
        "scenes": None,
        "of_sets": {},
        "missing": 0,
        "seconds": 1.0,
        "versions": {"restorl": "0.1.0", "torch": "2.11"},
    }
    return Result(**base | of_result)
