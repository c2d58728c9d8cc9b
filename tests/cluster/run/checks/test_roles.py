from __future__ import annotations

import pytest

from cluster.run.machine import Machine
from tests.cluster.run.checks.cases import alone, the_problem


def test_the_example_of_a_cluster_with_8_actors_tells_that_4_are_idle_and_what_feeds_them() -> None:
    (warning,) = alone("actors.count=8").warnings
    assert "actors.count=8: at most 4 rollout batches are out at a time" in warning
    assert "4 actors have nothing to do" in warning
    assert "rollout.images_per_batch=1, source.groups_per_step=32 or actors.count=2" in warning
    for way in ("rollout.images_per_batch=1", "source.groups_per_step=32", "actors.count=2"):
        assert not alone("actors.count=8", way).warnings


def test_actors_without_a_second_item_are_told_apart_from_idle_ones() -> None:
    (warning,) = alone("actors.count=3").warnings
    assert "some wait for scores without another" in warning and "nothing to do" not in warning
    assert not alone("actors.count=2").warnings


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["ranks.num_gpus=0.5", "ranks.count=2"], "ranks.num_gpus", "which NCCL refuses; set ranks.num_gpus=1"),
        (["ranks.num_gpus=2"], "ranks.num_gpus", "one rank computes on one GPU"),
        (["actors.num_gpus=2", "ranks.num_gpus=1"], "actors.num_gpus", "one actor computes on one GPU"),
        (["actors.num_gpus=1.5", "ranks.num_gpus=1"], "actors.num_gpus", "a part of one GPU (below 1), or whole"),
        (["cluster.num_cpus=2"], "cluster.num_cpus", "2, and the roles ask for 3 (actors 1, reward 1, ranks 1)"),
        (["learner.updates_per_batch=9"], "learner.updates_per_batch", "9 updates of source.groups_per_step=8"),
        (
            ["adapt.frozen_dtype=bfloat16", "rollout.condition_dtype=bfloat16"],
            "adapt.frozen_dtype",
            "rollout.denoise_dtype, learner.dtype float32: products",
        ),
        (["rollout.condition_dtype=bfloat16"], "rollout.condition_dtype", "in adapt.frozen_dtype=float32: its replay"),
    ],
)
def test_roles_that_cannot_be_are_refused(overrides: list[str], key: str, said: str) -> None:
    found = the_problem(alone(*overrides, machine=Machine(8)))
    assert found[0] == key and said in found[1]


def test_one_rank_on_a_part_of_a_gpu_and_a_scorer_on_several_are_allowed() -> None:
    assert not alone("actors.num_gpus=0.5", "ranks.num_gpus=0.5", "reward.num_gpus=2", machine=Machine(8)).problems


def test_a_gpu_that_no_role_uses_is_told_with_the_settings_that_use_it() -> None:
    (warning,) = alone(machine=Machine(2)).warnings
    assert "2 GPUs and every role computes on the CPU" in warning
    assert "actors.num_gpus=1 ranks.num_gpus=1" in warning


def test_a_gpu_that_the_installed_torch_cannot_use_is_refused_where_roles_ask_for_it() -> None:
    old = Machine(1, "torch 2.11 needs CUDA 13.0 (The NVIDIA driver on your system is too old)")
    key, said = the_problem(alone("ranks.num_gpus=1", "actors.num_gpus=1", machine=old))
    assert key == "actors.num_gpus" and "too old); install a newer driver" in said
    (warning,) = alone(machine=old).warnings
    assert "can't be used" in warning and "too old" in warning


def test_roles_left_on_the_cpu_beside_others_on_gpus_are_told() -> None:
    reduced = ("rollout.denoise_dtype=bfloat16", "learner.dtype=bfloat16", "rollout.decode_dtype=bfloat16")
    found = alone("actors.num_gpus=1", *reduced, "learner.micro_batch=32", machine=Machine(1))
    warnings = found.warnings
    assert len(warnings) == 1 and warnings[0].startswith("ranks.num_gpus=0: the learner computes on the CPU")


def test_float32_on_a_gpu_and_bfloat16_with_other_batch_shapes_than_the_replays_are_told() -> None:
    gpus = ("actors.num_gpus=1", "ranks.num_gpus=1")
    (warning,) = alone(*gpus, machine=Machine(2)).warnings
    assert warning.startswith("rollout.denoise_dtype, rollout.decode_dtype, learner.dtype: float32 on a GPU")
    reduced = ("rollout.denoise_dtype=bfloat16", "rollout.decode_dtype=bfloat16", "learner.dtype=bfloat16")
    (warning,) = alone(*gpus, *reduced, machine=Machine(2)).warnings
    assert (
        "rollouts of 32 rows" in warning and "learner.micro_batch=8" in warning and "old_log_probs=recompute" in warning
    )
    assert not alone(*gpus, *reduced, "learner.old_log_probs=recompute", machine=Machine(2)).warnings
    assert not alone(*gpus, *reduced, "learner.micro_batch=32", machine=Machine(2)).warnings
    assert not alone(*gpus, *reduced, "objective.clip=0.01", machine=Machine(2)).warnings
