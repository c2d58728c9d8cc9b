"""The one record that crosses process borders: K rollouts of one image, as one Arrow IPC message.

Layout (schema version 1): one record batch of K rows in an uncompressed Arrow IPC stream. Latents are
`fixed_shape_tensor` columns [S, C, h, w] a row (bfloat16 as its uint16 bits), per-step numbers are fixed-size lists,
a reward that was not scored is null. What holds for the whole group (`RecordMeta`, `step_index`, `gt_reward`) is JSON
in the schema's metadata. Nothing is ever unpickled, and Arrow's own reader checks all offsets against the message.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trajectories.errors import SchemaError

SCHEMA_VERSION = 1
STORAGE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_ID_LENGTH = 400

_ARROW_DTYPES = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}
_LATENTS = ("states", "actions", "targets")
_VERSION_KEY, _RECORD_KEY = b"restorl.schema_version", b"restorl.record"


@dataclass(frozen=True, kw_only=True)
class RecordMeta:
    """What is known of a group of rollouts beside its tensors.

    Attributes:
        run_id: the run that made it; a stream belongs to one run.
        epoch: the run's epoch (fencing token): publishers of an older one are refused.
        weights_version: version of the policy that rolled out.
        reward_version: name and version of the scorer.
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


@dataclass(frozen=True, eq=False)
class Trajectories:
    """K rollouts (rows) of one image over S trained steps.

    After `decode`, tensors may view the received bytes: **never write into them**, clone first.

    Attributes:
        meta: see `RecordMeta`.
        trajectory_ids: K unique ids.
        states: x_t, [K, S, C, h, w] in `meta.dtype`.
        actions: the sampled x_{t-1}, same shape and dtype.
        targets: the action whose log-prob is trained (enhanced, or equal to `actions`), same shape and dtype.
        step_index: int32 [S], index into the schedule.
        log_probs: float32 [K, S], of `targets` under the behaviour policy; finite.
        rewards: float32 [K, S]; NaN where not scored, else finite.
        scored: bool [K, S].
        final_reward: float32 [K], finite: the score of x_0 by the scorer alone.
        gt_reward: of the ground truth, finite, or None when not scored.
        error_l1, error_l2: float32 [K], norms of the final output minus ground truth in [0, 1] pixels.
        shift: float32 [K, S], mean |targets - actions| / std; finite.
    """

    meta: RecordMeta
    trajectory_ids: list[str]
    states: Tensor
    actions: Tensor
    targets: Tensor
    step_index: Tensor
    log_probs: Tensor
    rewards: Tensor
    scored: Tensor
    final_reward: Tensor
    gt_reward: float | None
    error_l1: Tensor
    error_l2: Tensor
    shift: Tensor

    @property
    def rows(self) -> int:
        """K, the number of trajectories."""
        return len(self.trajectory_ids)

    @property
    def steps(self) -> int:
        """S, the number of trained steps."""
        return int(self.step_index.shape[0])


def validate(record: Trajectories) -> None:
    """Check types, shapes, dtypes, finiteness and ids of a record.

    Raises:
        SchemaError: naming the group, the field and what it should be.
    """
    _validate_meta(record.meta)
    _validate_tensors(record)


def encode_buffer(record: Trajectories) -> pa.Buffer:
    """`encode` without the copy into a bytes object; `memoryview(buffer)` can be sent as it is."""
    validate(record)
    if record.meta.schema_version != SCHEMA_VERSION:
        raise SchemaError(
            f"group {record.meta.group_id!r}: can't write schema version {record.meta.schema_version}, "
            f"this is RestoRL with version {SCHEMA_VERSION}"
        )
    rows, steps, *latent = record.states.shape
    schema = _schema(record.meta.dtype, steps, tuple(latent), _metadata(record))
    unscored = ~record.scored.cpu().contiguous().numpy().reshape(-1)
    columns = [pa.array(record.trajectory_ids, pa.string())]
    for name in _LATENTS:
        kind = schema.field(name).type
        storage = kind.storage_type
        flat = pa.Array.from_buffers(storage.value_type, rows * storage.list_size, _bits(record, name))
        columns.append(pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, type=storage)))
    for name in ("log_probs", "rewards", "shift"):
        values = getattr(record, name).detach().cpu().contiguous().numpy().reshape(-1)
        flat = pa.array(values, pa.float32(), mask=unscored if name == "rewards" else None)
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type))
    for name in ("final_reward", "error_l1", "error_l2"):
        columns.append(pa.array(getattr(record, name).detach().cpu().numpy(), pa.float32()))
    return _write(pa.RecordBatch.from_arrays(columns, schema=schema))


def encode(record: Trajectories) -> bytes:
    """The record as an Arrow IPC stream. Raises SchemaError when it breaks the rules of `validate`."""
    return bytes(encode_buffer(record).to_pybytes())


def decode(payload: bytes | memoryview | pa.Buffer) -> Trajectories:
    """The record in `payload`; latents and log-probs view the bytes (zero copy, read only), rewards are copied.

    Raises:
        SchemaError: another schema version (says found and wanted), truncated or corrupt bytes, broken rules.
    """
    buffer = payload if isinstance(payload, pa.Buffer) else pa.py_buffer(payload)
    try:
        return _read(buffer)
    except SchemaError:
        raise
    # Corrupt bytes make Arrow and JSON fail in many ways (ArrowInvalid, KeyError, OverflowError, MemoryError, ...);
    # each of them means the same to the caller.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise SchemaError(f"record of {buffer.size} bytes is corrupt or no trajectory record ({reason})") from error


def _read(buffer: pa.Buffer) -> Trajectories:
    with pa.ipc.open_stream(buffer) as reader:
        metadata = reader.schema.metadata or {}
        if _VERSION_KEY not in metadata:
            raise SchemaError(f"record of {buffer.size} bytes carries no RestoRL schema version")
        found = metadata[_VERSION_KEY].decode()
        if found != str(SCHEMA_VERSION):
            raise SchemaError(
                f"record has schema version {found}, this RestoRL reads version {SCHEMA_VERSION}: drop it, or run "
                "actors and learner from the same release"
            )
        group = _group_from_json(json.loads(metadata[_RECORD_KEY]))
        meta: RecordMeta = group["meta"]
        _validate_meta(meta)
        wanted = _schema(meta.dtype, len(group["step_index"]), tuple(group["latent"]), metadata)
        if not reader.schema.equals(wanted):
            raise SchemaError(f"group {meta.group_id!r}: Arrow fields disagree with the record's metadata")
        batch = reader.read_next_batch()
    batch.validate(full=True)
    record = _from_batch(batch, group)
    _validate_tensors(record)
    return record


def _from_batch(batch: pa.RecordBatch, group: dict[str, Any]) -> Trajectories:
    meta: RecordMeta = group["meta"]
    steps, latent = len(group["step_index"]), group["latent"]
    shape, dtype = (batch.num_rows, steps, *latent), STORAGE_DTYPES[meta.dtype]

    def numbers(name: str) -> pa.Array:
        column = batch.column(name)
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        values = column.flatten() if isinstance(column, pa.FixedSizeListArray) else column
        if name != "rewards" and values.null_count:
            raise SchemaError(f"group {meta.group_id!r}: {name} holds nulls")
        return values

    # DLPack, because torch.from_numpy warns on the read-only arrays that views of received bytes are.
    def view(name: str) -> Tensor:
        return torch.from_dlpack(numbers(name))

    rewards = numbers("rewards")
    return Trajectories(
        meta=meta,
        trajectory_ids=batch.column("trajectory_id").to_pylist(),
        **{name: view(name).view(dtype).reshape(shape) for name in _LATENTS},
        step_index=torch.tensor(group["step_index"], dtype=torch.int32),
        log_probs=view("log_probs").reshape(-1, steps),
        rewards=torch.from_numpy(np.array(rewards.to_numpy(zero_copy_only=False), np.float32)).reshape(-1, steps),
        scored=torch.from_numpy(np.array(rewards.is_valid().to_numpy(zero_copy_only=False))).reshape(-1, steps),
        final_reward=view("final_reward"),
        gt_reward=group["gt_reward"],
        error_l1=view("error_l1"),
        error_l2=view("error_l2"),
        shift=view("shift").reshape(-1, steps),
    )


def _schema(dtype: str, steps: int, latent: tuple[int, ...], metadata: dict[bytes, bytes]) -> pa.Schema:
    tensor = pa.fixed_shape_tensor(_ARROW_DTYPES[dtype], (steps, *latent))
    per_step = pa.list_(pa.float32(), steps)
    return pa.schema(
        [
            pa.field("trajectory_id", pa.string(), nullable=False),
            *(pa.field(name, tensor, nullable=False) for name in _LATENTS),
            *(pa.field(name, per_step, nullable=False) for name in ("log_probs", "rewards", "shift")),
            *(pa.field(name, pa.float32(), nullable=False) for name in ("final_reward", "error_l1", "error_l2")),
        ],
        metadata=metadata,
    )


def _metadata(record: Trajectories) -> dict[bytes, bytes]:
    group = {
        "meta": asdict(record.meta),
        "step_index": record.step_index.tolist(),
        "latent": list(record.states.shape[2:]),
        "gt_reward": record.gt_reward,
    }
    return {_VERSION_KEY: str(SCHEMA_VERSION).encode(), _RECORD_KEY: json.dumps(group, allow_nan=False).encode()}


def _group_from_json(group: dict[str, Any]) -> dict[str, Any]:
    given = group["meta"]
    unknown = set(given) ^ {f.name for f in fields(RecordMeta)}
    if unknown:
        raise SchemaError(f"record metadata lacks or adds {', '.join(sorted(unknown))}")
    group["meta"] = RecordMeta(**{**given, "crop": tuple(given["crop"])})
    for name, values in (("step_index", group["step_index"]), ("latent", group["latent"])):
        if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
            raise SchemaError(f"record metadata: {name} must be a list of integers >= 0")
    return group


def _bits(record: Trajectories, name: str) -> list[pa.Buffer | None]:
    """Buffers (validity, values) over the tensor's own memory."""
    tensor = getattr(record, name).detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)  # numpy knows no bfloat16
    return [None, pa.py_buffer(tensor.numpy().reshape(-1))]


def _write(batch: pa.RecordBatch) -> pa.Buffer:
    """Measure, then write into one allocation: growing a buffer would copy the latents again."""
    counter = pa.MockOutputStream()
    with pa.ipc.new_stream(counter, batch.schema) as writer:
        writer.write_batch(batch)
    buffer = pa.allocate_buffer(counter.size())
    with pa.ipc.new_stream(pa.FixedSizeBufferWriter(buffer), batch.schema) as writer:
        writer.write_batch(batch)
    return buffer


def _validate_meta(meta: RecordMeta) -> None:
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


def _validate_tensors(record: Trajectories) -> None:
    where = f"group {record.meta.group_id!r}"
    ids = record.trajectory_ids
    if not ids or not all(isinstance(i, str) and i for i in ids) or len(set(ids)) != len(ids):
        raise SchemaError(f"{where}: trajectory_ids must be at least one non-empty id, all different")
    latent = tuple(record.states.shape)
    if len(latent) != 5 or latent[0] != len(ids) or min(latent) < 1:
        raise SchemaError(f"{where}: states have shape {list(latent)}, wanted [K={len(ids)}, S, C, h, w]")
    per_step, rows = latent[:2], latent[:1]
    storage, f32 = STORAGE_DTYPES[record.meta.dtype], torch.float32
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        **{name: (latent, storage) for name in _LATENTS},
        "step_index": (latent[1:2], torch.int32),
        **{name: (per_step, f32) for name in ("log_probs", "rewards", "shift")},
        "scored": (per_step, torch.bool),
        **{name: (rows, f32) for name in ("final_reward", "error_l1", "error_l2")},
    }
    for name, (shape, dtype) in wanted.items():
        tensor = getattr(record, name)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise SchemaError(
                f"{where}: {name} is {tensor.dtype} {list(tensor.shape)}, wanted {dtype} {list(shape)} "
                f"(meta.dtype={record.meta.dtype})"
            )
    if bool((record.step_index < 0).any()):
        raise SchemaError(f"{where}: step_index must be >= 0")
    for name in ("log_probs", "shift", "final_reward", "error_l1", "error_l2"):
        if not bool(getattr(record, name).isfinite().all()):
            raise SchemaError(f"{where}: {name} holds NaN or infinity")
    rewards, scored = record.rewards, record.scored
    if not torch.equal(rewards.isfinite(), scored) or not torch.equal(~rewards.isnan(), scored):
        raise SchemaError(f"{where}: rewards must be finite where scored and NaN elsewhere")
    gt_reward = record.gt_reward
    if gt_reward is not None and not (isinstance(gt_reward, float) and math.isfinite(gt_reward)):
        raise SchemaError(f"{where}: gt_reward must be a finite float or None, got {gt_reward!r}")
