from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.config.configure import ConfigError, load_config
from cluster.config.recipe import RunConfig
from cluster.run.flow import Size, flow
from cluster.run.machine import Machine
from cluster.run.preflight import Checked, before_start, embeddings, fits_cluster, of_config, of_model, packs
from restoration.base_models.interface import SamplerSettings
from restoration.datasets.paired import PairedFolder, discover
from restoration.transition import Schedule, ddim_schedule, flow_schedule, one_step_schedule, scaled_linear_alphas
from tests.trajectories.records import make_record
from trajectories.schema import encode

CONFIGS = Path(__file__).parents[3] / "configs"
LOL = [(400, 600)] * 485


@dataclass(frozen=True)
class Facts:
    """A base model, as far as the checks see it."""

    kind: str = "diffbir"
    size_multiple: int = 64
    side_limit: int | None = None
    vae_factor: int = 8
    latent_channels: int = 4
    guidance: bool = True
    missing_embeddings: tuple[str, ...] = ()

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        if self.kind in ("tsdsr", "pisa"):
            made = one_step_schedule(0, 1, -1, sampler.sigma)
        elif self.kind in ("controlnet_sd3", "controlnet_flux"):
            made = flow_schedule([1 - i / sampler.steps for i in range(sampler.steps + 1)], sampler.noise_level)
        else:
            alphas, spacing = scaled_linear_alphas(), sampler.spacing
            made = ddim_schedule(alphas, sampler.steps, sampler.eta, "epsilon", spacing, sampler.steps_offset)  # type: ignore[arg-type]
        if not made.decisions:
            raise ValueError(f"sampler.steps={len(made)}: no step is left to be trained; choose at least 2 steps")
        return made


def config_of(*overrides: str) -> RunConfig:
    return load_config(RunConfig, CONFIGS / "ours.yaml", ["model=models/x", *overrides])


def with_model(*overrides: str, facts: Facts | None = None, train: Sequence[Size] = LOL) -> Checked:
    return Checked.of(of_model(config_of(*overrides), facts or Facts(), train, train))


def alone(*overrides: str, machine: Machine | None = None) -> Checked:
    return Checked.of(of_config(config_of(*overrides), machine or Machine()))


def the_problem(found: Checked) -> tuple[str, str]:
    (problem,) = found.problems
    return problem.key, str(problem)


def test_the_default_recipe_on_pictures_that_fit_has_no_problem_and_no_warning() -> None:
    assert with_model() == Checked((), ())
    assert alone() == Checked((), ())


# -- model and pictures ------------------------------------------------------------------------------------------


def test_a_chain_without_a_decision_is_refused() -> None:
    key, said = the_problem(with_model("sampler.steps=1"))
    assert key == "sampler.steps" and said.endswith("; choose at least 2 steps")
    assert not with_model("sampler.steps=1", facts=Facts("tsdsr")).problems


@pytest.mark.parametrize(
    ("overrides", "train", "facts", "said"),
    [
        (
            ["rollout.crop=512"],
            LOL,
            {},
            "don't fit into 485 of 485 training pictures, the smallest of 600x400; 384 is the",
        ),
        (["rollout.crop=512"], LOL, {}, "384 is the largest crop that fits, and 0 takes whole pictures (576x384)"),
        (["rollout.crop=400"], LOL, {}, "400: diffbir works on multiples of 64 pixels; choose 384"),
        (["rollout.crop=200"], LOL, {}, "choose 192 or 256"),
        (["rollout.crop=-64"], LOL, {}, "give a multiple of 64, or 0"),
        (
            ["rollout.crop=0"],
            [(400, 600), (400, 560)],
            {},
            "of 2 sizes from 512x384 to 576x384, and rollout.images_per",
        ),
        (
            ["rollout.crop=256"],
            [(256, 256), (255, 300)],
            {},
            "into 1 of 2 training pictures, the smallest of 300x255; 192",
        ),
        (["rollout.crop=128"], [(60, 300)], {}, "300x60 pixels, the model takes multiples of 64; leave out"),
        (["rollout.crop=384"], LOL, {"side_limit": 256}, "384: diffbir knows sides up to 256, here are 384; 256 is"),
        (["rollout.crop=0"], LOL, {"side_limit": 512}, "knows sides up to 512, here are 576; 384 is the largest"),
    ],
)
def test_a_crop_that_cannot_be_taken_is_refused_with_those_that_can(
    overrides: list[str], train: list[Size], facts: dict[str, Any], said: str
) -> None:
    assert said in the_problem(with_model(*overrides, train=train, facts=Facts(**facts)))[1]


@pytest.mark.parametrize(
    ("overrides", "train"),
    [
        (["rollout.crop=384"], LOL),
        (["rollout.crop=0"], LOL),
        (["rollout.crop=0"], [(400, 600), (410, 610)]),  # both 576x384 once cut to multiples
        (["rollout.crop=0", "rollout.images_per_batch=1"], [(400, 600), (400, 560)]),
    ],
)
def test_a_crop_that_fits_is_taken(overrides: list[str], train: list[Size]) -> None:
    assert not with_model(*overrides, train=train).problems


def test_guidance_without_a_negative_text_and_a_model_without_its_embedding_are_refused() -> None:
    key, said = the_problem(with_model("sampler.guidance_scale=4", facts=Facts(guidance=False)))
    assert key == "sampler.guidance_scale" and "holds none; set sampler.guidance_scale=1, or convert" in said
    assert not with_model("sampler.guidance_scale=4").problems
    key, said = the_problem(with_model(facts=Facts("seesr", missing_embeddings=("image",))))
    assert key == "data.embeddings" and "no embedding image, which seesr looks at" in said


def test_pictures_with_embeddings_of_their_own_need_a_file_each(tmp_path: Path) -> None:
    config = config_of(f"data.embeddings={tmp_path}")
    (tmp_path / "a.safetensors").touch()
    (problem,) = embeddings(config, ["a", "sub/b"])
    assert "has no file for 1 of 2 pictures (sub/b)" in str(problem)
    assert not list(embeddings(config, ["a"]))
    (tmp_path / "cafe\u0301.safetensors").touch()  # as macOS writes it
    assert not list(embeddings(config, ["caf\u00e9"]))
    (problem,) = embeddings(config_of("data.embeddings=/nowhere"), ["a"])
    assert "/nowhere is no folder" in str(problem)


def test_all_problems_are_told_at_once() -> None:
    found = with_model("sampler.steps=1", "sampler.guidance_scale=2", "rollout.crop=500", facts=Facts(guidance=False))
    assert [p.key for p in found.problems] == ["sampler.steps", "sampler.guidance_scale", "rollout.crop"]


@pytest.fixture
def pairs(tmp_path: Path) -> PairedFolder:
    for kind in ("input", "target"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(tmp_path / "train" / kind / "a.png")
    return discover(tmp_path, "train")


def test_before_start_reads_the_model_folder_and_the_pictures_and_raises_all_it_finds(pairs: PairedFolder) -> None:
    config = config_of("model=models/demo", "rollout.crop=36", "sampler.steps=1", "sampler.guidance_scale=2")
    with pytest.raises(ConfigError) as caught:
        before_start(config, pairs, pairs, Machine())
    assert [p.key for p in caught.value.problems] == ["sampler.steps", "sampler.guidance_scale", "rollout.crop"]
    assert "choose 32 or 40" in str(caught.value)
    good = config_of("model=models/demo", "rollout.crop=40", "actors.count=3")
    (warning,) = before_start(good, pairs, pairs, Machine())
    assert warning.startswith("actors.count=3")


def test_a_folder_that_is_no_model_is_told_beside_the_other_problems(pairs: PairedFolder) -> None:
    with pytest.raises(ConfigError) as caught:
        before_start(config_of("model=/nowhere", "reward.scorer=nima"), pairs, pairs, Machine())
    assert [p.key for p in caught.value.problems] == ["reward.scorer", "model"]
    assert "/nowhere is not a folder; give the folder that holds restorl_model.json" in str(caught.value)


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


# -- store -------------------------------------------------------------------------------------------------------

BIG = ("rollout.crop=512", "sampler.steps=50", "rollout.rollouts_per_image=8")
SQUARE = [(512, 512)]


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


# -- roles -------------------------------------------------------------------------------------------------------


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
        (["cluster.num_cpus=2"], "cluster.num_cpus", "2, and the roles ask for 3 (actors 1, ranks 1, reward 1)"),
        (["learner.updates_per_batch=9"], "learner.updates_per_batch", "9 updates of source.groups_per_step=8"),
        (
            ["adapt.frozen_dtype=bfloat16", "rollout.condition_dtype=bfloat16"],
            "adapt.frozen_dtype",
            "rollout.denoise_dtype, learner.dtype float32: products",
        ),
        (["rollout.condition_dtype=bfloat16"], "rollout.condition_dtype", "in adapt.frozen_dtype=float32: its replay"),
        (["evaluation.protocol=matlab"], "evaluation.protocol", "lowlight_rgb"),
        (["reward.scorer=nima"], "reward.scorer", "no scorer named 'nima'; choose brisque, lite0_levels, piqe"),
    ],
)
def test_roles_and_names_that_cannot_be_are_refused(overrides: list[str], key: str, said: str) -> None:
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


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["adapt.mode=full", "adapt.rank=4"], "adapt.rank=4"),
        (["objective.recipe=diff_sft", "objective.rl_coef=2"], "objective.rl_coef=2.0"),
        (["advantage.stats=batch", "advantage.track_length=8"], "advantage.track_length=8"),
        (["rollout.reward_at=final", "rollout.reward_stride=2"], "rollout.reward_stride=2"),
        (["cluster.address=auto", "cluster.num_gpus=1"], "cluster.num_gpus=1"),
        (["store.password_env=X"], "store.password_env=X"),
        (["optimiser.zero_stage=3", "ranks.count=2"], "learner.norms_every=10"),
        (["optimiser.zero_stage=2"], "optimiser.zero_stage=2"),
        (["optimiser.bucket_mb=50"], "optimiser.bucket_mb=50.0"),
        (["objective.recipe=diff_sft", "learner.old_log_probs=recompute"], "learner.old_log_probs=recompute"),
    ],
)
def test_a_key_that_has_no_effect_is_told(overrides: list[str], key: str) -> None:
    warnings = alone(*overrides).warnings
    assert any(w.startswith(f"{key}: ") or w.startswith(f"{key} with") for w in warnings), warnings


def test_a_setting_of_another_kind_of_chain_is_told() -> None:
    (warning,) = with_model("sampler.noise_level=0.5").warnings
    assert warning.startswith("sampler.noise_level=0.5: has no effect on diffbir")
    (warning,) = with_model("sampler.eta=0.5", facts=Facts("controlnet_sd3")).warnings
    assert warning.startswith("sampler.eta=0.5: has no effect on controlnet_sd3")
    assert not with_model("sampler.eta=0.5").warnings


# -- cluster -----------------------------------------------------------------------------------------------------

ONE = {"CPU": 8.0, "GPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0}
TWO = ONE | {"CPU": 16.0, "node:10.0.0.2": 1.0}


@pytest.mark.parametrize(
    ("overrides", "resources", "nodes", "key", "said"),
    [
        (["actors.count=7"], ONE, [], "actors.num_cpus", "ask for 9 CPU, and the cluster has 8 (actors 7 x (1 CPU)"),
        (["actors.num_gpus=1", "actors.count=4", "ranks.num_gpus=1"], ONE, [], "actors.num_gpus", "ask for 5 GPU"),
        (["reward.resources={big: 1}"], ONE, [], "reward.resources", "the roles ask for 1 big, and the cluster has 0"),
        (
            ["ranks.num_cpus=6"],
            ONE,
            [{"CPU": 4.0}, {"CPU": 4.0}],
            "ranks",
            "asks for 6 CPU, and the largest node has 4",
        ),
        ([], TWO, [], "store.url", "the cluster has 2 machines, and the embedded store listens on loopback"),
    ],
)
def test_roles_that_the_cluster_cannot_hold_are_refused_before_anything_is_deployed(
    overrides: list[str], resources: dict[str, float], nodes: list[Mapping[str, float]], key: str, said: str
) -> None:
    url = [] if key == "store.url" else ["store.url=redis://x:1"]
    with pytest.raises(ConfigError) as caught:
        fits_cluster(config_of(*overrides, *url), resources, nodes)
    (problem,) = caught.value.problems
    assert problem.key == key and said in str(problem)


def test_roles_that_fit_are_let_through_and_a_cluster_that_grows_only_warns() -> None:
    assert fits_cluster(config_of("actors.num_gpus=1", "actors.count=2"), ONE, [ONE]) == []
    (warning,) = fits_cluster(config_of("actors.count=7", "actors.num_gpus=0.1"), ONE, [ONE], grows=True)
    assert "ask for 9 CPU" in warning and "autoscaler" in warning


@pytest.mark.parametrize(
    ("shares", "gpus", "fit"),
    [
        ([0.75, 0.25, 1], 2, True),
        ([0.6, 0.6, 0.8], 2, False),
        ([0.5] * 4 + [0.25] * 4, 3, True),
        ([0.7, 0.3, 0.7, 0.3, 2], 4, True),
        ([], 0, True),
    ],
)
def test_shares_of_gpus_fit_only_into_whole_ones(shares: list[float], gpus: int, fit: bool) -> None:
    assert packs(shares, gpus) is fit


def test_shares_that_leave_a_rest_in_each_gpu_are_refused() -> None:
    config = config_of("actors.count=2", "actors.num_gpus=0.6", "ranks.num_gpus=0.8")
    with pytest.raises(ConfigError, match="num_gpus: a process uses one GPU.*such as 0.75 and 0.25"):
        fits_cluster(config, ONE | {"GPU": 2.0})


def test_what_other_runs_hold_and_gpus_that_nobody_asked_for_are_told() -> None:
    busy, idle = fits_cluster(config_of(), ONE, [ONE], free={"CPU": 2.0})
    assert busy.startswith("3 CPU are asked for, 2 of the cluster's 8 are free now")
    assert "the cluster has 4 GPUs and every role computes on CPUs" in idle


def test_pinned_roles_may_share_an_embedded_store_on_several_machines() -> None:
    pinned = ("actors.resources={here: 1}", "ranks.resources={here: 1}", "actors.num_gpus=1")
    (warning,) = fits_cluster(config_of(*pinned), TWO | {"here": 2.0})
    assert "must be pinned to the driver's machine" in warning
