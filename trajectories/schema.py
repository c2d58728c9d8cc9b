"""Records and summaries as Arrow IPC messages, and back.

Layout (schema version 3): one record batch of K rows in an uncompressed Arrow IPC stream. Latents are
`fixed_shape_tensor` columns [S, C, h, w] a row (bfloat16 as its uint16 bits), per-step numbers are fixed-size lists,
a reward or term that was not scored is null. What holds for the whole group (`RecordMeta`, `step_index`, `latent`,
`gt_reward`, the names of terms) is JSON in the schema's metadata. A summary has the same metadata and the same
columns without the latents and log-probs. Nothing is ever unpickled, and Arrow's own reader checks all offsets
against the message.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trajectories.errors import SchemaError
from trajectories.record import (
    MAX_ID_LENGTH,
    SCHEMA_VERSION,
    STORAGE_DTYPES,
    RecordMeta,
    Summary,
    Trajectories,
    host_array,
    meta_from_json,
    term_column,
    validate,
    validate_meta,
    validate_tensors,
)

__all__ = [
    "MAX_ID_LENGTH",
    "SCHEMA_VERSION",
    "STORAGE_DTYPES",
    "RecordMeta",
    "Summary",
    "Trajectories",
    "decode",
    "decode_summary",
    "encode",
    "encode_both",
    "encode_summary",
    "validate",
]

Bytes: TypeAlias = "bytes | bytearray | memoryview | pa.Buffer"

_FLOAT32 = pa.float32()
_ARROW_DTYPES = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}
_LATENTS = ("states", "targets")
_WRITE_OPTIONS = pa.ipc.IpcWriteOptions()
_END_OF_STREAM = 8  # bytes behind the last message
_VERSION_KEY, _RECORD_KEY = b"restorl.schema_version", b"restorl.record"


def encode_both(record: Trajectories) -> tuple[pa.Buffer, pa.Buffer]:
    """What a publication sends: the whole record, and its summary. Raises as `encode` does."""
    metadata, arrays = _checked(record)
    small = _small_columns(record, arrays)
    return _write(record, {**small, **_large_columns(record, arrays)}, metadata), _write(record, small, metadata)


def encode(record: Trajectories) -> bytes:
    """The record as an Arrow IPC stream. Raises SchemaError when it breaks the rules of `validate`."""
    return bytes(encode_both(record)[0].to_pybytes())


def encode_summary(summary: Summary) -> bytes:
    """The summary (also: of a whole record) as an Arrow IPC stream. Raises SchemaError as `encode` does."""
    metadata, arrays = _checked(summary)
    return bytes(_write(summary, _small_columns(summary, arrays), metadata).to_pybytes())


def decode(payload: Bytes) -> Trajectories:
    """The record in `payload`; latents and log-probs view the bytes (zero copy, read only), rewards are copied.

    Raises:
        SchemaError: another schema version (says found and wanted), truncated or corrupt bytes, broken rules.
    """
    record = _guarded(payload, "record", whole=True)
    assert isinstance(record, Trajectories)
    return record


def decode_summary(payload: Bytes) -> Summary:
    """The summary in `payload`. Raises SchemaError as `decode` does."""
    return _guarded(payload, "summary", whole=False)


def _guarded(payload: Bytes, what: str, whole: bool) -> Summary:
    buffer = payload if isinstance(payload, pa.Buffer) else pa.py_buffer(payload)
    try:
        return _read(buffer, what, whole)
    except SchemaError:
        raise
    # Corrupt bytes make Arrow and JSON fail in many ways (ArrowInvalid, KeyError, OverflowError, MemoryError, ...);
    # each of them means the same to the caller.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise SchemaError(f"{what} of {buffer.size} bytes is corrupt or no trajectory {what} ({reason})") from error


def _read(buffer: pa.Buffer, what: str, whole: bool) -> Summary:
    with pa.ipc.open_stream(buffer) as reader:
        schema = reader.schema
        metadata = schema.metadata or {}
        if _VERSION_KEY not in metadata:
            raise SchemaError(f"{what} of {buffer.size} bytes carries no RestoRL schema version")
        found = metadata[_VERSION_KEY].decode()
        if found != str(SCHEMA_VERSION):
            raise SchemaError(f"{what} has schema version {other_version(found)}")
        group = json.loads(metadata[_RECORD_KEY])
        meta = meta_from_json(group["meta"])
        validate_meta(meta)
        for name in ("step_index", "latent"):
            if not isinstance(group[name], list) or not all(type(v) is int and v >= 0 for v in group[name]):
                raise SchemaError(f"{what} metadata: {name} must be a list of integers >= 0")
        if not isinstance(group["terms"], list) or not all(type(v) is str for v in group["terms"]):
            raise SchemaError(f"{what} metadata: terms must be a list of names")
        terms = tuple(group["terms"])
        wanted = _schema(meta.dtype, len(group["step_index"]), tuple(group["latent"]), terms, whole)
        if not schema.equals(wanted):
            raise SchemaError(f"group {meta.group_id!r}: Arrow fields of the {what} disagree with its metadata")
        batch = reader.read_next_batch()
    batch.validate(full=True)
    record = _from_batch(batch, meta, group, whole)
    validate_tensors(record)
    return record


def other_version(found: str) -> str:
    """`1, this RestoRL reads ...: what to do`."""
    remedy = "drop it, or run actors and learner from the same release"
    return f"{found}, this RestoRL reads version {SCHEMA_VERSION}: {remedy}"


def _from_batch(batch: pa.RecordBatch, meta: RecordMeta, group: dict[str, Any], whole: bool) -> Summary:
    rows, steps, latent = batch.num_rows, len(group["step_index"]), tuple(group["latent"])

    def numbers(name: str) -> pa.Array:
        column = batch.column(name)
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        values = column.values if isinstance(column, pa.FixedSizeListArray) else column
        if column.null_count or (values.null_count and not _may_lack(name)):
            raise SchemaError(f"group {meta.group_id!r}: {name} holds nulls")
        return values

    def scores(name: str) -> Tensor:
        values = np.array(numbers(name).to_numpy(zero_copy_only=False), np.float32)
        return torch.from_numpy(values).reshape(rows, steps)

    # DLPack, because torch.from_numpy warns on the read-only arrays that views of received bytes are.
    def view(name: str) -> Tensor:
        return torch.from_dlpack(numbers(name))

    rewards, scored = numbers("rewards"), np.ones(rows * steps, bool)
    if rewards.null_count:
        scored = np.array(rewards.is_valid().to_numpy(zero_copy_only=False))
    small: dict[str, Any] = dict(
        meta=meta,
        trajectory_ids=batch.column("trajectory_id").to_pylist(),
        latent=latent,
        step_index=torch.tensor(group["step_index"], dtype=torch.int32),
        rewards=scores("rewards"),
        terms={name: scores(term_column(name)) for name in group["terms"]},
        scored=torch.from_numpy(scored).reshape(rows, steps),
        final_reward=view("final_reward"),
        gt_reward=group["gt_reward"],
        error_l1=view("error_l1"),
        error_l2=view("error_l2"),
        shift=view("shift").reshape(rows, steps),
    )
    if not whole:
        return Summary(**small)
    shape, dtype = (rows, steps, *latent), STORAGE_DTYPES[meta.dtype]
    large: dict[str, Any] = {name: view(name).view(dtype).reshape(shape) for name in _LATENTS}
    return Trajectories(**small, **large, log_probs=view("log_probs").reshape(rows, steps))


@lru_cache(maxsize=64)
def _schema(dtype: str, steps: int, latent: tuple[int, ...], terms: tuple[str, ...], whole: bool) -> pa.Schema:
    per_step, number, large = pa.list_(pa.float32(), steps), pa.float32(), list[pa.Field]()
    if whole:
        tensor = pa.fixed_shape_tensor(_ARROW_DTYPES[dtype], (steps, *latent))
        large = [pa.field(name, tensor, nullable=False) for name in _LATENTS]
        large += [pa.field("log_probs", per_step, nullable=False)]
    return pa.schema(
        [
            pa.field("trajectory_id", pa.string(), nullable=False),
            *(pa.field(name, per_step, nullable=False) for name in ("rewards", "shift", *map(term_column, terms))),
            *(pa.field(name, number, nullable=False) for name in ("final_reward", "error_l1", "error_l2")),
            *large,
        ]
    )


def _schema_of(record: Summary, whole: bool) -> pa.Schema:
    return _schema(record.meta.dtype, record.steps, record.latent, tuple(record.terms), whole)


def _may_lack(name: str) -> bool:
    """Whether a column has nulls where nothing was scored."""
    return name == "rewards" or name.startswith(term_column(""))


def _checked(record: Summary) -> tuple[dict[bytes, bytes], dict[str, np.ndarray]]:
    """Metadata of the message, and the small tensors as arrays."""
    arrays = validate(record)
    if record.meta.schema_version != SCHEMA_VERSION:
        raise SchemaError(
            f"group {record.meta.group_id!r}: can't write schema version {record.meta.schema_version}, "
            f"this is RestoRL with version {SCHEMA_VERSION}"
        )
    group = {
        "meta": vars(record.meta),
        "step_index": record.step_index.tolist(),
        "latent": list(record.latent),
        "gt_reward": record.gt_reward,
        "terms": list(record.terms),
    }
    text = json.dumps(group, allow_nan=False).encode()
    return {_VERSION_KEY: str(SCHEMA_VERSION).encode(), _RECORD_KEY: text}, arrays


def _small_columns(record: Summary, arrays: dict[str, np.ndarray]) -> dict[str, pa.Array]:
    per_step = _schema_of(record, False).field("shift").type
    unscored = None if arrays["scored"].all() else ~arrays["scored"].reshape(-1)
    columns = {"trajectory_id": pa.array(record.trajectory_ids, pa.string())}
    for name in ("rewards", "shift", *map(term_column, record.terms)):
        flat = pa.array(arrays[name].reshape(-1), _FLOAT32, mask=unscored if _may_lack(name) else None)
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, type=per_step)
    for name in ("final_reward", "error_l1", "error_l2"):
        columns[name] = pa.array(arrays[name], _FLOAT32)
    return columns


def _large_columns(record: Trajectories, arrays: dict[str, np.ndarray]) -> dict[str, pa.Array]:
    schema = _schema_of(record, True)
    columns: dict[str, pa.Array] = {}
    for name in _LATENTS:
        kind = schema.field(name).type
        storage = kind.storage_type
        tensor = getattr(record, name).contiguous()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.detach().view(torch.uint16)  # numpy knows no bfloat16
        buffers = [None, pa.py_buffer(host_array(tensor).reshape(-1))]  # validity, values: the tensor's own memory
        flat = pa.Array.from_buffers(storage.value_type, record.rows * storage.list_size, buffers)
        columns[name] = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, type=storage))
    flat = pa.array(arrays["log_probs"].reshape(-1), _FLOAT32)
    columns["log_probs"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("log_probs").type)
    return columns


def _write(record: Summary, columns: dict[str, pa.Array], metadata: dict[bytes, bytes]) -> pa.Buffer:
    """Size first, then one allocation: growing a buffer would copy the latents again."""
    schema = _schema_of(record, "states" in columns).with_metadata(metadata)
    batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    head = schema.serialize()
    buffer = pa.allocate_buffer(head.size + pa.ipc.get_record_batch_size(batch) + _END_OF_STREAM)
    with pa.ipc.new_stream(pa.FixedSizeBufferWriter(buffer), schema, options=_WRITE_OPTIONS) as writer:
        writer.write_batch(batch)
    return buffer
