"""How `opinions` and `strengths` were made: python tests/golden/make_ratings.py FOLDER, where `sureal` is installed.

Ten sets of random ratings with missing and repeated votes, by sureal's solver of ITU-T P.910 Annex E; three sets of
random comparisons by its Bradley-Terry and by its Thurstone model, whose unit here is the deviation of one opinion and
there that of a difference. Made with sureal 0.9.0 in an environment of its own:

    uv venv oracle && uv pip install --python oracle sureal==0.9.0 safetensors
    oracle/bin/python tests/golden/make_ratings.py tests/golden
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SETS, PAIR_SETS = 10, 3


def drawn(rng: np.random.Generator) -> np.ndarray:
    """Votes [pictures, annotators, repetitions], NaN where there is none."""
    pictures, people = int(rng.integers(12, 60)), int(rng.integers(4, 20))
    repeats = int(rng.integers(1, 3))
    quality = rng.uniform(1.3, 4.7, (pictures, 1, 1))
    bias, deviation = rng.normal(0, 0.5, (1, people, 1)), rng.uniform(0.5, 1.3, (1, people, 1))
    votes = np.clip(np.round(quality + bias + deviation * rng.normal(size=(pictures, people, repeats))), 1, 5)
    votes[rng.random(votes.shape) < rng.uniform(0.05, 0.5)] = np.nan
    votes[..., 1:][rng.random(votes[..., 1:].shape) < 0.7] = np.nan
    few = np.isfinite(votes).sum((1, 2)) < 2
    votes[few, :2, 0] = 3
    return votes


def opinions(votes: np.ndarray) -> dict[str, np.ndarray]:
    from sureal.dataset_reader import RawDatasetReader
    from sureal.subjective_model import SubjectMLEModelProjectionSolver

    shown = []
    for j, of_picture in enumerate(votes):
        given = {f"a{i:03d}": [v for v in of if np.isfinite(v)] for i, of in enumerate(of_picture)}
        scores = {name: values for name, values in given.items() if values}
        shown.append({"asset_id": j, "content_id": 0, "path": f"{j}", "os": scores})
    data = SimpleNamespace(ref_videos=[{"content_id": 0, "path": "x"}], dis_videos=shown)
    found = SubjectMLEModelProjectionSolver(RawDatasetReader(data)).run_modeling()
    names = {"quality": "quality_scores", "error": "quality_scores_std"}
    names |= {"bias": "observer_bias", "inconsistency": "observer_inconsistency"}
    return {ours: np.array(found[theirs], np.float64) for ours, theirs in names.items()}


def strengths(wins: np.ndarray, model: str) -> np.ndarray:
    from sureal import pc_subjective_model as models

    class Reader:
        opinion_score_3darray = wins[..., None]

    solver: Any = {
        "bradley-terry": models.BradleyTerryMlePairedCompSubjectiveModel,
        "thurstone": models.ThurstoneMlePairedCompSubjectiveModel,
    }[model]
    values = np.array(solver._run_modeling(Reader())["quality_scores"], np.float64)
    return (values - values.mean()) * (1 if model == "bradley-terry" else 2**0.5)


def write(folder: Path, name: str, about: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    sides: dict[str, dict[str, Any]] = {"in": {}, "out": {}}
    for key, value in tensors.items():
        side, _, rest = key.partition(".")
        sides[side][rest] = {"shape": list(value.shape), "dtype": str(value.dtype)}
    described = {"name": name, "reference": f"Netflix/sureal {version('sureal')}", **about}
    described |= {"config": {}, "state": {}, "buffers": {}, "inputs": sides["in"], "outputs": sides["out"]}
    (folder / f"{name}.json").write_text(json.dumps(described, indent=0) + "\n")
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / f"{name}.safetensors")


def main() -> None:
    folder, rng = Path(sys.argv[1]), np.random.default_rng(20261128)
    tensors = {}
    for number in range(SETS):
        votes = drawn(rng)
        tensors[f"in.votes.{number}"] = votes
        tensors |= {f"out.{name}.{number}": values for name, values in opinions(votes).items()}
    notes = "votes [pictures, annotators, repetitions], NaN: none. SubjectMLEModelProjectionSolver."
    write(folder, "opinions", {"notes": notes, "tolerance": {"atol": 1e-3, "rtol": 0.0}}, tensors)

    tensors = {}
    for model in ("bradley-terry", "thurstone"):
        for number in range(PAIR_SETS):
            count = int(rng.integers(5, 12))
            wins = rng.integers(1, 12, (count, count)).astype(np.float64) * (1 - np.eye(count))
            tensors[f"in.{model}.wins.{number}"] = wins
            tensors[f"out.{model}.strength.{number}"] = strengths(wins, model)
    notes = "wins [pictures, pictures]: how often the row won. Strengths of mean 0; Thurstone's times the root of 2."
    write(folder, "strengths", {"notes": notes, "tolerance": {"atol": 1e-3, "rtol": 0.0}}, tensors)


if __name__ == "__main__":
    main()
