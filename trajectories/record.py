"""The record that crosses process borders, as types and rules: K rollouts of one image, and their summary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectories.errors import SchemaError

SCHEMA_VERSION = 3
STORAGE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_ID_LENGTH = 400


@dataclass(frozen=True, kw_only=True)
class RecordMeta:
    """What is known of a group of rollouts beside its tensors.

    Attributes:
        run_id: the run that made it; a stream belongs to one run.
        epoch: the run's epoch (fencing token): publishers of an older one are refused.
        weights_version: version of the policy that rolled out.
        reward_version: of the scorer, or of several and their weights.
        scheduler_fingerprint: of the noise schedule; a learner with another one can't replay the log-probs.
        dtype: of the latents, a key of `STORAGE_DTYPES`.
        actor: name of the actor.
        group_id: unique in the run; publishing it twice has no effect.
        image_id: the training image.
        crop: (y, x, h, w) in pixels of that image.
        flip: whether the crop was mirrored.
        seed: of the rollout's generator, >= 0.
        schema_version: of the record.
    """

    run_id: str
    epoch: int
    weights_version: int
    reward_version: str
    scheduler_fingerprint: str
    dtype: str
    actor: str
    group_id: str
    image_id: str
    crop: tuple[int, int, int, int]
    flip: bool
    seed: int
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """All of K rollouts (rows) of one image over S trained steps that is small: everything but latents and log-probs.

    A few kilobytes, from which a learner decides whether to train on the group, and computes its advantages.
    After `decode_summary`, tensors may view the received bytes: **never write into them**, clone first.

    Attributes:
        meta: see `RecordMeta`.
        trajectory_ids: K unique ids.
        latent: (C, h, w) of one latent.
        step_index: int32 [S], index into the schedule.
        rewards: float32 [K, S]; NaN where not scored, else finite.
        scored: bool [K, S].
        terms: float32 [K, S] by name, of a reward that is made of several scores; finite where scored, else NaN.
        final_reward: float32 [K], finite: the score of x_0 by the first term alone.
        gt_reward: of the ground truth, finite, or None when not scored.
        error_l1, error_l2: float32 [K], norms of the final output minus ground truth in [0, 1] pixels.
        shift: float32 [K, S], mean |targets - sampled x_{t-1}| / std; finite.
    """

    meta: RecordMeta
    trajectory_ids: list[str]
    latent: tuple[int, int, int]
    step_index: Tensor
    rewards: Tensor
    scored: Tensor
    final_reward: Tensor
    gt_reward: float | None
    error_l1: Tensor
    error_l2: Tensor
    shift: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """K, the number of trajectories."""
        return len(self.trajectory_ids)

    @property
    def steps(self) -> int:
        """S, the number of trained steps."""
        return int(self.step_index.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectories(Summary):
    """A whole group: its summary, and what a replay needs.

    After `decode`, tensors may view the received bytes: **never write into them**, clone first.

    Attributes:
        states: x_t, [K, S, C, h, w] in `meta.dtype`.
        targets: the action whose log-prob is trained (enhanced, or the sampled x_{t-1}), same shape and dtype.
        log_probs: float32 [K, S], of `targets` under the behaviour policy; finite.
    """

    states: Tensor
    targets: Tensor
    log_probs: Tensor

    def summary(self) -> Summary:
        """The same group without its latents and log-probs; tensors are shared."""
        return Summary(**{name: getattr(self, name) for name in _SUMMARY_FIELDS})


_SUMMARY_FIELDS = tuple(f.name for f in fields(Summary))


def validate(record: Summary) -> dict[str, np.ndarray]:
    """Check types, shapes, dtypes, finiteness and ids of a summary or of a whole record.

    Returns:
        All tensors but the latents as arrays on the CPU, of the tensors' own memory where it is there already.

    Raises:
        SchemaError: naming the group, the field and what it should be.
    """
    validate_meta(record.meta)
    return validate_tensors(record)


def validate_meta(meta: RecordMeta) -> None:
    """The part of `validate` that needs no tensor."""
    where = f"group {meta.group_id!r}"
    for name in ("run_id", "reward_version", "scheduler_fingerprint", "dtype", "actor", "group_id", "image_id"):
        value = getattr(meta, name)
        if not isinstance(value, str) or len(value) > MAX_ID_LENGTH or not value.isprintable():
            raise SchemaError(f"{where}: meta.{name} must be printable text of at most {MAX_ID_LENGTH} characters")
    for name in ("run_id", "group_id", "image_id"):
        if not getattr(meta, name):
            raise SchemaError(f"{where}: meta.{name} is empty")
    for name in ("epoch", "weights_version", "seed", "schema_version"):
        if type(getattr(meta, name)) is not int or getattr(meta, name) < 0:
            raise SchemaError(f"{where}: meta.{name} must be an integer >= 0, got {getattr(meta, name)!r}")
    if len(meta.crop) != 4 or not all(type(v) is int and v >= 0 for v in meta.crop):
        raise SchemaError(f"{where}: meta.crop must be (y, x, h, w) integers >= 0, got {meta.crop!r}")
    if type(meta.flip) is not bool:
        raise SchemaError(f"{where}: meta.flip must be a bool, got {meta.flip!r}")
    if meta.dtype not in STORAGE_DTYPES:
        raise SchemaError(f"{where}: meta.dtype={meta.dtype!r}, choose one of {', '.join(STORAGE_DTYPES)}")


def validate_tensors(record: Summary) -> dict[str, np.ndarray]:
    """The part of `validate` behind `validate_meta`."""
    where = f"group {record.meta.group_id!r}"
    ids = record.trajectory_ids
    if not ids or not all(isinstance(i, str) and i for i in ids) or len(set(ids)) != len(ids):
        raise SchemaError(f"{where}: trajectory_ids must be at least one non-empty id, all different")
    latent = record.latent
    if len(latent) != 3 or not all(type(side) is int and side > 0 for side in latent):
        raise SchemaError(f"{where}: latent must be (C, h, w), integers > 0, got {latent!r}")
    if record.step_index.ndim != 1 or not len(record.step_index):
        raise SchemaError(f"{where}: step_index has shape {list(record.step_index.shape)}, wanted [S], S > 0")
    f32, per_row = torch.float32, (len(ids),)
    per_step = (*per_row, len(record.step_index))
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"step_index": (per_step[1:], torch.int32)}
    if isinstance(record, Trajectories):
        storage = STORAGE_DTYPES[record.meta.dtype]
        wanted |= {name: ((*per_step, *latent), storage) for name in ("states", "targets")}
        wanted["log_probs"] = (per_step, f32)
    wanted |= {"rewards": (per_step, f32), "shift": (per_step, f32), "scored": (per_step, torch.bool)}
    wanted |= {name: (per_row, f32) for name in ("final_reward", "error_l1", "error_l2")}
    wanted |= {term_column(name): (per_step, f32) for name in record.terms}
    of_terms = {term_column(name): values for name, values in record.terms.items()}
    tensors: dict[str, Tensor] = {n: of_terms[n] if n in of_terms else getattr(record, n) for n in wanted}
    for name, (shape, dtype) in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise SchemaError(
                f"{where}: {name} is {tensor.dtype} {list(tensor.shape)}, wanted {dtype} {list(shape)} (meta.dtype="
                f"{record.meta.dtype}, K={len(ids)} ids, S={len(record.step_index)} steps, latent={list(latent)})"
            )
    # In numpy, whose calls on such small arrays cost a tenth of torch's.
    small: dict[str, np.ndarray] = {
        name: host_array(tensor) for name, tensor in tensors.items() if name not in ("states", "targets")
    }
    if (small["step_index"] < 0).any():
        raise SchemaError(f"{where}: step_index must be >= 0")
    for name in ("log_probs", "shift", "final_reward", "error_l1", "error_l2"):
        if name in small and not np.isfinite(small[name]).all():
            raise SchemaError(f"{where}: {name} holds NaN or infinity")
    for name in record.terms:
        if not isinstance(name, str) or not name or len(name) > MAX_ID_LENGTH or not name.isprintable():
            raise SchemaError(f"{where}: a term's name must be printable text, got {name!r}")
    scored = small["scored"]
    for name in ("rewards", *map(term_column, record.terms)):
        if (np.isfinite(small[name]) != scored).any() or (np.isnan(small[name]) == scored).any():
            raise SchemaError(f"{where}: {name} must be finite where scored and NaN elsewhere")
    gt_reward = record.gt_reward
    if gt_reward is not None and not (isinstance(gt_reward, float) and math.isfinite(gt_reward)):
        raise SchemaError(f"{where}: gt_reward must be a finite float or None, got {gt_reward!r}")
    return small


def term_column(name: str) -> str:
    """Of a term, among the names of the other tensors."""
    return f"term:{name}"


def host_array(tensor: Tensor) -> np.ndarray:
    """The tensor's values on the CPU; of its own memory where it is there already. Not of bfloat16."""
    return np.asarray(tensor.detach().cpu().numpy())


def meta_from_json(given: dict[str, Any]) -> RecordMeta:
    """A `RecordMeta` of its JSON form, not yet validated. Raises SchemaError for missing or unknown names."""
    unknown = set(given) ^ _META_FIELDS
    if unknown:
        raise SchemaError(f"record metadata lacks or adds {', '.join(sorted(unknown))}")
    return RecordMeta(**{**given, "crop": tuple(given["crop"])})


_META_FIELDS = {f.name for f in fields(RecordMeta)}
