from __future__ import annotations

import pytest

from cluster.run.checks.roles import as_here, number_types
from cluster.run.machine import Machine
from tests.cluster.run.checks.cases import alone, config_of, the_problem


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
        (["reward.terms=[{}, {scorer: piqe, app: shared}]"], "reward.terms[1].app", "stands alone is on a cluster"),
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


OLD = Machine(bf16=False)


def test_bfloat16_by_name_on_a_processor_without_it_is_told_with_the_ratio_and_left_as_it_is() -> None:
    slow = ("rollout.decode_dtype=bfloat16", "evaluation.dtype=bfloat16")
    (warning,) = alone(*slow, machine=OLD).warnings
    assert warning.startswith("rollout.decode_dtype, evaluation.dtype=bfloat16: this processor doesn't multiply it")
    assert "about ten times" in warning and warning.endswith("set them to auto")
    assert not alone(*slow, machine=Machine()).warnings
    assert not alone("rollout.decode_dtype=auto", "evaluation.dtype=auto", machine=OLD).warnings
    elsewhere = alone(*slow, "cluster.address=10.0.0.1:6379", machine=OLD)  # its processors aren't this one
    assert not any("natively" in warning for warning in elsewhere.warnings)
    gpu = alone(*slow, "actors.num_gpus=1", machine=Machine(1, bf16=False))
    assert not any("natively" in warning for warning in gpu.warnings)


def test_auto_is_told_as_what_it_means_on_this_processor() -> None:
    fast = (
        "rollout.denoise_dtype=auto",
        "learner.dtype=auto",
        "adapt.frozen_dtype=auto",
        "rollout.condition_dtype=auto",
    )
    for machine, meaning in ((OLD, "float32"), (Machine(), "bfloat16")):
        types = number_types(config_of(*fast), machine)
        assert {str(types[key.split("=")[0]]) for key in fast} == {f"{meaning} (auto)"}
        here = as_here(config_of(*fast), machine)
        assert (here.rollout.denoise_dtype, here.learner.dtype, here.adapt.frozen_dtype) == (meaning,) * 3
        assert here.rollout.decode_dtype == "float32" and not alone(*fast, machine=machine).problems
    assert any("rounds" in w or "round otherwise" in w for w in alone(*fast, machine=Machine()).warnings)
    assert not alone(*fast, machine=OLD).warnings
    on_gpus = number_types(config_of(*fast, "actors.num_gpus=1", "ranks.num_gpus=1"), Machine(2, bf16=False))
    assert on_gpus["learner.dtype"].means == "bfloat16"


def test_types_that_only_meet_on_another_processor_are_refused_here() -> None:
    fast = ("rollout.denoise_dtype=auto", "learner.dtype=auto", "rollout.condition_dtype=bfloat16")
    key, said = the_problem(alone(*fast, "adapt.frozen_dtype=bfloat16", machine=OLD))
    assert key == "adapt.frozen_dtype" and "rollout.denoise_dtype, learner.dtype float32: products of two types" in said
    assert not alone(*fast, "adapt.frozen_dtype=bfloat16", machine=Machine()).problems
    key, said = the_problem(alone("rollout.condition_dtype=auto", machine=Machine()))
    assert key == "rollout.condition_dtype" and "bfloat16 (auto)" in said
    assert not alone("rollout.condition_dtype=auto", machine=OLD).problems


def test_auto_on_actors_and_ranks_of_different_devices_is_told() -> None:
    fast = ("rollout.denoise_dtype=auto", "learner.dtype=auto", "rollout.decode_dtype=auto")
    found = alone(*fast, "actors.num_gpus=1", machine=Machine(1)).warnings
    assert any(w.startswith("learner.dtype=auto: actors and ranks compute on different devices") for w in found)
