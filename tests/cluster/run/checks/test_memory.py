from __future__ import annotations

import re

import pytest

from cluster.run.flow import flow
from tests.cluster.run.checks.cases import Facts, config_of, the_problem, with_model
from tests.trajectories.records import make_record
from trajectories.schema import encode

BIG = ("rollout.crop=512", "sampler.steps=50", "rollout.rollouts_per_image=8")
SQUARE = [(512, 512)]


def test_pictures_that_an_evaluation_decodes_at_once_are_held_against_a_gpu_of_80_gb() -> None:
    hd, much = [(1080, 1920)] * 20, "evaluation.pixels=40000000"
    (warning,) = with_model("actors.num_gpus=1", much, train=hd).warnings
    assert warning.startswith("evaluation.pixels=40000000: the decoder holds about 96 GiB for 16 pictures of 1920x1088")
    limit = int(re.search(r"set evaluation.pixels=(\d+)", warning)[1])  # type: ignore[index]
    assert not with_model("actors.num_gpus=1", f"evaluation.pixels={limit}", train=hd).warnings
    assert not with_model("actors.num_gpus=1", "evaluation.batch=8", much, train=hd).warnings
    assert not with_model("actors.num_gpus=1", train=hd).warnings and not with_model(much, train=hd).warnings


def test_one_picture_too_large_for_a_gpu_is_told_unless_it_is_cut_into_tiles() -> None:
    vast = [(8000, 8000)] * 2
    assert "evaluation.tile=1024" in with_model("actors.num_gpus=1", train=vast).warnings[0]
    assert not with_model("actors.num_gpus=1", "evaluation.tile=1024", train=vast).warnings


def test_a_group_of_50_steps_at_512_pixels_has_two_thirds_of_74_mib() -> None:
    moved = flow(config_of(*BIG), (512, 512), 8, 4, 49)
    assert moved.latent == (4, 64, 64)
    assert moved.group_bytes / 2**20 == pytest.approx(49.0, abs=0.1)
    assert moved.held_groups == 24 and moved.groups == 16 and moved.items == 4


def test_a_store_that_cannot_hold_what_waits_for_a_step_is_refused_with_what_it_needs() -> None:
    key, said = the_problem(with_model(*BIG, train=SQUARE))
    assert key == "store.max_bytes"
    assert "a group has 49.01 MiB (8 rollouts x 49 decisions x 2 latents [4, 64, 64] of float32)" in said
    assert "(source.max_staleness=1 + 1 + checkpoint_every=1) x source.groups_per_step=8 = 24" in said
    assert "10 fit into 512 MiB" in said
    needed = int(said.split("set store.max_bytes=")[1].split()[0])
    assert not with_model(*BIG, f"store.max_bytes={needed}", train=SQUARE).problems
    assert with_model(*BIG, f"store.max_bytes={needed - 2**20}", train=SQUARE).problems


def test_a_group_larger_than_the_whole_stream_or_than_a_record_is_refused() -> None:
    assert "not one fits into 40 MiB" in the_problem(with_model(*BIG, f"store.max_bytes={40 << 20}", train=SQUARE))[1]
    sd3 = Facts("controlnet_sd3", latent_channels=16)
    key, said = the_problem(
        with_model("rollout.crop=1024", "sampler.steps=40", "store.max_bytes=1e12", facts=sd3, train=[(1024, 1024)])
    )
    assert key == "rollout" and "a record of the store takes 512 MiB; choose rollout.storage_dtype=bfloat16" in said


def test_the_bytes_of_a_group_are_those_of_its_record() -> None:
    config = config_of("rollout.crop=256", "rollout.rollouts_per_image=3", "rollout.storage_dtype=bfloat16")
    moved = flow(config, (256, 256), 8, 4, 5)
    record = make_record(dtype="bfloat16", shape=(3, 5, 4, 32, 32))
    assert len(encode(record)) == pytest.approx(moved.group_bytes, rel=0.02)


def test_a_limit_of_the_embedded_store_that_the_ledger_of_the_run_outgrows_is_told_with_what_it_needs() -> None:
    limit = f"store.embedded_maxmemory={2 << 30}"
    long = ("iterations=1000000", "source.groups_per_step=8", "rollout.images_per_batch=8")
    (said,) = [w for w in with_model(*long, limit, train=SQUARE).warnings if "embedded_maxmemory" in w]
    assert "for the ledger of 1000000 iterations, about 2.235 GiB" in said
    least = said.split("set store.embedded_maxmemory=")[1].split()[0]
    for others in ((f"store.embedded_maxmemory={least}",), (), (limit, "iterations=1000")):
        assert not [w for w in with_model(*long, *others, train=SQUARE).warnings if "embedded_maxmemory" in w]
