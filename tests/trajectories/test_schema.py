from __future__ import annotations

import pickle
import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trajectories.records import assert_same, make_record
from trajectories import errors
from trajectories.errors import SchemaError
from trajectories.schema import (
    SCHEMA_VERSION,
    STORAGE_DTYPES,
    Summary,
    decode,
    decode_summary,
    encode,
    encode_both,
    encode_summary,
)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_a_record_of_any_dtype_comes_back_bit_for_bit_without_warnings(dtype: str) -> None:
    record = make_record(dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(decode(encode(record)), record)
        assert_same(decode_summary(encode_summary(record)), record.summary())


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 5),
    dtype=st.sampled_from(list(STORAGE_DTYPES)),
    seed=st.integers(0, 2**63 - 1),
    gt_reward=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30),
    epoch=st.integers(0, 2**40),
)
def test_a_record_of_any_shape_and_names_comes_back_bit_for_bit(
    shape: Any, dtype: str, seed: int, gt_reward: float | None, name: str, epoch: int
) -> None:
    record = make_record(name, epoch=epoch, dtype=dtype, shape=shape, seed=seed, gt_reward=gt_reward)
    payload, summary = encode_both(record)
    assert_same(decode(payload), record)
    assert_same(decode_summary(summary), record.summary())


def test_a_summary_is_a_few_kilobytes_whatever_the_size_of_the_latents() -> None:
    record = make_record(shape=(8, 50, 4, 32, 32))
    payload, summary = encode_both(record)
    assert summary.size < 8 << 10 < payload.size / 1000
    assert summary.to_pybytes() == encode_summary(record.summary()) and payload.to_pybytes() == encode(record)


def test_a_record_holds_each_latent_once() -> None:
    record = make_record(shape=(8, 4, 4, 32, 32))
    latents = record.states.nbytes + record.targets.nbytes
    assert latents < len(encode(record)) < 1.01 * latents


def test_views_and_gradients_are_encoded_as_their_values() -> None:
    record = make_record(shape=(4, 3, 2, 4, 4))
    halves = record.states.transpose(3, 4).requires_grad_()
    assert_same(decode(encode(replace(record, states=halves))), replace(record, states=halves.detach().contiguous()))


def test_latents_are_decoded_without_a_copy() -> None:
    buffer, _ = encode_both(make_record(shape=(2, 3, 4, 16, 16)))
    for tensor in (decode(buffer).states, decode(buffer).targets):
        assert buffer.address < tensor.data_ptr() < buffer.address + buffer.size


def test_a_decoded_record_keeps_its_bytes_alive() -> None:
    record = make_record()
    decoded = [decode(encode(record)) for _ in range(50)]
    assert all(torch.equal(one.states, record.states) for one in decoded)


def test_unscored_rewards_are_null_in_arrow_and_nan_in_torch() -> None:
    rewards = torch.tensor([[0.5, torch.nan, 1.0], [torch.nan, torch.nan, 0.0]])
    record = make_record(rewards=rewards, scored=~rewards.isnan())
    column = pa.ipc.open_stream(encode(record)).read_next_batch().column("rewards")
    assert column.to_pylist() == [[0.5, None, 1.0], [None, None, 0.0]]
    assert torch.equal(decode(encode(record)).rewards.isnan(), rewards.isnan())


def test_the_metadata_is_readable_with_arrow_alone() -> None:
    metadata = pa.ipc.open_stream(encode(make_record())).schema.metadata
    assert metadata[b"restorl.schema_version"] == str(SCHEMA_VERSION).encode()
    assert b'"weights_version": 7' in metadata[b"restorl.record"]


def with_metadata(payload: bytes, **changes: bytes | None) -> bytes:
    """The same batch with other schema metadata."""
    batch = pa.ipc.open_stream(payload).read_next_batch()
    metadata = {**batch.schema.metadata, **{f"restorl.{k}".encode(): v for k, v in changes.items()}}
    schema = batch.schema.with_metadata({k: v for k, v in metadata.items() if v is not None})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(("write", "read"), [(encode, decode), (encode_summary, decode_summary)])
def test_another_schema_version_is_refused_naming_both_versions(write: Any, read: Any) -> None:
    with pytest.raises(SchemaError, match=f"schema version 1, this RestoRL reads version {SCHEMA_VERSION}: drop it"):
        read(with_metadata(write(make_record()), schema_version=b"1"))
    record = make_record()
    with pytest.raises(SchemaError, match="can't write schema version 1"):
        write(replace(record, meta=replace(record.meta, schema_version=1)))


def test_a_record_is_no_summary_and_a_summary_no_record() -> None:
    with pytest.raises(SchemaError, match="Arrow fields of the summary"):
        decode_summary(encode(make_record()))
    with pytest.raises(SchemaError, match="Arrow fields of the record"):
        decode(encode_summary(make_record()))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80\x04\x95garbage",
        pickle.dumps({"states": 1}),
        np.random.default_rng(0).bytes(5000),
        with_metadata(encode(make_record()), schema_version=None),
        with_metadata(encode(make_record()), record=b"{"),
        with_metadata(encode(make_record()), record=b"[" * 100_000),
        with_metadata(encode(make_record()), record=b'{"meta": {}}'),
        with_metadata(encode(make_record(shape=(2, 3, 2, 4, 4))), record=None),
    ],
)
def test_bytes_that_are_no_record_raise_a_schema_error(payload: bytes) -> None:
    for read in (decode, decode_summary):
        with pytest.raises(SchemaError):
            read(payload)


@pytest.mark.parametrize(("write", "read"), [(encode, decode), (encode_summary, decode_summary)])
def test_a_truncated_record_raises_a_schema_error_wherever_it_is_cut(write: Any, read: Any) -> None:
    payload = write(make_record())
    end_of_stream = 8  # the marker behind the batch carries nothing
    for length in range(0, len(payload) - end_of_stream, 7):
        with pytest.raises(SchemaError):
            read(payload[:length])


@pytest.mark.parametrize(("write", "read"), [(encode, decode), (encode_summary, decode_summary)])
def test_flipped_bits_give_a_schema_error_or_a_record_but_never_another_failure(write: Any, read: Any) -> None:
    payload, random = write(make_record(shape=(1, 1, 1, 1, 1))), np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(payload)
        for place in random.integers(0, len(payload), random.integers(1, 4)):
            damaged[place] ^= 1 << random.integers(0, 8)
        try:
            assert isinstance(read(bytes(damaged)), Summary)
        except SchemaError:
            refused += 1
    assert refused > 150


def test_a_record_whose_metadata_disagrees_with_its_columns_is_refused() -> None:
    small, large = encode(make_record(shape=(2, 3, 2, 4, 4))), encode(make_record(shape=(2, 3, 2, 8, 8)))
    metadata = pa.ipc.open_stream(large).schema.metadata[b"restorl.record"]
    with pytest.raises(SchemaError, match="disagree"):
        decode(with_metadata(small, record=metadata))


def broken(**fields: Any) -> dict[str, Any]:
    return fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (broken(states=torch.zeros(2, 3, 2, 4, 5)), r"states is .* wanted .*\[2, 3, 2, 4, 4\]"),
        (broken(states=torch.zeros(3, 3, 2, 4, 4)), "states is .* wanted .*K=2"),
        (broken(states=torch.zeros(2, 0, 2, 4, 4)), "states is"),
        (broken(latent=(2, 4, 5)), r"states is .* wanted .*\[2, 3, 2, 4, 5\]"),
        (broken(latent=(2, 4)), "latent must be"),
        (broken(latent=(2, 4, 0)), "latent must be"),
        (broken(latent=(2, 4, 4.0)), "latent must be"),
        (broken(step_index=torch.zeros(0, dtype=torch.int32)), "step_index has shape"),
        (broken(targets=torch.zeros(2, 3, 2, 4, 4).half()), "targets is torch.float16"),
        (broken(step_index=torch.arange(3)), "step_index is torch.int64"),
        (broken(step_index=torch.tensor([-1, 0, 1], dtype=torch.int32)), "step_index must be >= 0"),
        (broken(log_probs=torch.full((2, 3), torch.nan)), "log_probs holds NaN"),
        (broken(shift=torch.full((2, 3), torch.inf)), "shift holds NaN or infinity"),
        (broken(final_reward=torch.tensor([0.0, torch.nan])), "final_reward holds NaN"),
        (broken(rewards=torch.full((2, 3), torch.nan), scored=torch.ones(2, 3, dtype=torch.bool)), "rewards must be"),
        (broken(rewards=torch.full((2, 3), torch.inf), scored=torch.zeros(2, 3, dtype=torch.bool)), "rewards must be"),
        (broken(gt_reward=float("nan")), "gt_reward"),
        (broken(trajectory_ids=["a", "a"]), "all different"),
        (broken(trajectory_ids=[]), "at least one"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused_naming_group_and_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=f"group 'g0': .*{message}"):
        encode(make_record(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (broken(shift=torch.full((2, 3), torch.inf)), "shift holds NaN or infinity"),
        (broken(rewards=torch.zeros(2, 3), scored=torch.zeros(2, 3, dtype=torch.bool)), "rewards must be"),
        (broken(error_l1=torch.zeros(3)), "error_l1 is"),
        (broken(latent=(0, 4, 4)), "latent must be"),
    ],
)
def test_a_summary_that_breaks_a_rule_is_refused_too(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=f"group 'g0': .*{message}"):
        encode_summary(make_record(**fields).summary())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("group_id", "a\tb"), ("group_id", ""), ("image_id", "x" * 500), ("dtype", "float64"), ("epoch", -1)),
        *(("weights_version", 1.5), ("crop", (0, 0, 8)), ("flip", 1), ("seed", "1")),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused_naming_the_field(field: str, value: Any) -> None:
    record = make_record()
    with pytest.raises(SchemaError, match=f"meta.{field}"):
        encode(replace(record, meta=replace(record.meta, **{field: value})))


def test_errors_survive_pickling_as_ray_needs() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 8
    for kind in kinds:
        again = deepcopy(kind("what, where, what to do"))
        assert (type(again), str(again)) == (kind, "what, where, what to do")


def with_terms(**terms: Any) -> Any:
    record = make_record(shape=(2, 3, 1, 2, 2))
    given = {name: torch.where(record.scored, record.rewards * factor, torch.nan) for name, factor in terms.items()}
    return replace(record, terms=given)


def test_the_terms_of_a_reward_come_back_by_name_in_their_order_also_in_a_summary() -> None:
    record = with_terms(psnr=20.0, deqa=2.0)
    assert_same(decode(encode(record)), record)
    assert_same(decode_summary(encode_summary(record)), record.summary())
    assert list(decode(encode(record)).terms) == ["psnr", "deqa"]


def test_a_term_that_is_missing_where_the_reward_is_not_is_refused_on_both_sides() -> None:
    record = with_terms(psnr=20.0)
    for value in (torch.nan, torch.inf):
        holed = record.terms["psnr"].clone()
        holed[0, -1] = value
        with pytest.raises(SchemaError, match="term:psnr must be finite where scored"):
            encode(replace(record, terms={"psnr": holed}))
    for name, terms in (("shape", {"psnr": record.terms["psnr"][:, :1]}), ("name", {"": record.terms["psnr"]})):
        with pytest.raises(SchemaError, match="term"):
            encode(replace(record, terms=terms)), name
    table = pa.ipc.open_stream(encode(record)).read_all()
    column = table.schema.get_field_index("term:psnr")
    without = table.remove_column(column)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, without.schema) as writer:
        writer.write_table(without)
    with pytest.raises(SchemaError, match="disagree with its metadata"):
        decode(sink.getvalue().to_pybytes())
