"""The DeepSpeed learner against the reference, one rank against two, and before against after a checkpoint."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.reference import Method, Reference
from restoration.adapters import make_trainable, trainable_state, trained_parameters
from restoration.weights import from_bytes
from tests.learner.as_reference import as_group
from tests.learner.fakes import FakeModel, fake_pairs
from tests.learner.rank_process import ONE_RANK_ONLY, VARIANTS, batches

ROOT = Path(__file__).parents[2]
TWO = ["zero0", "zero1", "zero2", "zero3", "full2", "track", "offload1", "offload2", "offload3", "recompute3"]
OTHER = ("bf16", "frozen", "auto", "frozen3", "recompute", "recompute3")  # not what the reference computes


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a single rank ("one") and two ranks ("two0", "two1") made of the same batches, each in its own process.

    PATH holds no compiler and no ninja, and a fresh folder is where extensions would be built.
    """
    folder = tmp_path_factory.mktemp("ranks")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD", "MASTER", "LOCAL_RANK"))}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": str(folder),
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    one, two = free_port(), free_port()
    ranks = {"one": (0, 1, one), "two0": (0, 2, two), "two1": (1, 2, two)}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tests.learner.rank_process", *map(str, arguments), str(folder / name)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, arguments in ranks.items()
    }
    found: dict[str, Any] = {"folder": folder}
    try:
        for name, process in running.items():
            output = process.communicate(timeout=900)[0]
            assert process.returncode == 0, f"{name} failed:\n{output[-4000:]}"
            found[name] = torch.load(folder / name, weights_only=True)
    finally:
        for process in running.values():
            process.kill()
    return found


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        difference = float((a[name] - b[name]).abs().max())
        assert difference <= atol, f"{name} differs by {difference:.2g}"


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith("_s")}


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in OTHER])
def test_every_rank_zero_stage_and_switch_equals_the_reference_step_for_step(
    results: dict[str, Any], variant: str
) -> None:
    settings = VARIANTS[variant]
    reference = Reference(FakeModel(), Method(settings))
    for i, records in enumerate(batches(variant)):
        metrics = reference.step([as_group(r, reference.model, settings, fake_pairs) for r in records])
        for who in ("one",) if variant in ONE_RANK_ONLY else ("one", "two0"):
            found = results[who][variant]
            for name in ("loss", "loss_rl", "loss_sft", "loss_kl", "grad_norm"):
                assert found["metrics"][i][name] == pytest.approx(metrics[name], abs=1e-5, rel=1e-5), (who, name)
            assert_close(found["weights"][i], trainable_state(reference.model))
    assert_close(results["one"][variant]["average"], reference.average)
    assert bool(reference.average) == bool(settings.optimiser.ema)


@pytest.mark.parametrize("variant", TWO)
def test_two_ranks_give_the_loss_and_the_weights_of_one(results: dict[str, Any], variant: str) -> None:
    one, two = results["one"][variant], results["two0"][variant]
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        assert a.keys() == b.keys()
        for name, value in untimed(a).items():
            assert (b[name] is None) if value is None else b[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for a, b in zip(one["weights"], two["weights"], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("variant", TWO)
def test_both_ranks_hold_the_same_weights_and_report_the_same(results: dict[str, Any], variant: str) -> None:
    first, second = results["two0"][variant], results["two1"][variant]
    assert_close(first["weights"][-1], second["weights"][-1], atol=0)
    assert untimed(first["metrics"][-1]) == untimed(second["metrics"][-1])


@pytest.mark.parametrize("variant", ["zero1", "zero2", "zero3", "offload1", "offload2", "offload3"])
def test_every_zero_stage_gives_the_update_of_stage_0(results: dict[str, Any], variant: str) -> None:
    for who in ("one",) if variant in ONE_RANK_ONLY else ("one", "two0"):
        for a, b in zip(results[who]["zero0"]["weights"], results[who][variant]["weights"], strict=True):
            assert_close(a, b)
        for a, b in zip(results[who]["zero0"]["metrics"], results[who][variant]["metrics"], strict=True):
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("variant", ["micro1", "micro64"])
def test_the_size_of_micro_batches_does_not_matter(results: dict[str, Any], variant: str) -> None:
    for a, b in zip(results["one"]["zero0"]["weights"], results["one"][variant]["weights"], strict=True):
        assert_close(a, b)
    for a, b in zip(results["one"]["zero0"]["metrics"], results["one"][variant]["metrics"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)


@pytest.mark.parametrize("who", ["one", "two0"])
def test_the_first_replay_has_ratio_1(results: dict[str, Any], who: str) -> None:
    for variant in TWO[:4]:
        first = results[who][variant]["metrics"][0]
        assert first["ratio_min"] == pytest.approx(1, abs=1e-6) and first["ratio_max"] == pytest.approx(1, abs=1e-6)
        assert first["kl"] == pytest.approx(0, abs=1e-10)


def test_bf16_computes_in_bf16_and_learns_nearly_the_same(results: dict[str, Any]) -> None:
    full, half = results["one"]["zero0"], results["one"]["bf16"]
    for a, b in zip(full["metrics"], half["metrics"], strict=True):
        assert a["loss"] != b["loss"] == pytest.approx(a["loss"], rel=0.02, abs=2e-3)
    assert half["metrics"][0]["ratio_max"] == pytest.approx(1, abs=1e-4)
    model = FakeModel()
    make_trainable(model, VARIANTS["bf16"].adapt)
    start = trained_parameters(model)
    moves = [torch.cat([(run["weights"][-1][n] - p).flatten() for n, p in start.items()]) for run in (full, half)]
    assert float(torch.cosine_similarity(*moves, dim=0)) > 0.6  # after three steps of Adam


@pytest.mark.parametrize("variant", ["frozen", "frozen3"])
def test_frozen_weights_in_bf16_learn_nearly_the_same_and_replay_with_ratio_1(
    results: dict[str, Any], variant: str
) -> None:
    half, frozen = results["one"]["bf16"], results["one"][variant]
    assert frozen["optimises"]["frozen"] == ["torch.bfloat16"] and frozen["optimises"]["trained"] == ["torch.float32"]
    assert half["optimises"]["frozen"] == ["torch.float32"]
    for a, b in zip(half["metrics"], frozen["metrics"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02, abs=2e-3)
    for name in ("grad_norm", "loss_rl", "loss_sft"):
        assert frozen["metrics"][0][name] == pytest.approx(half["metrics"][0][name], rel=5e-3, abs=1e-5)
    assert frozen["metrics"][0]["ratio_first"] <= 1e-4
    start = trained_start(variant)
    moves = [torch.cat([(run["weights"][-1][n] - p).flatten() for n, p in start.items()]) for run in (half, frozen)]
    assert float(torch.cosine_similarity(*moves, dim=0)) > 0.6  # after three steps of Adam


def trained_start(variant: str) -> dict[str, torch.Tensor]:
    model = FakeModel()
    make_trainable(model, VARIANTS[variant].adapt)
    return {name: p.detach() for name, p in trained_parameters(model).items()}


def test_auto_is_bfloat16_where_that_is_multiplied_natively(results: dict[str, Any]) -> None:
    auto, named = (results["one"][variant] for variant in ("auto", "frozen"))
    for ours, theirs in zip(auto["weights"], named["weights"], strict=True):
        assert all(torch.equal(ours[name], weights) for name, weights in theirs.items())
    assert [m["loss_rl"] for m in auto["metrics"]] == [m["loss_rl"] for m in named["metrics"]]


@pytest.mark.parametrize("who", ["one", "two0"])
def test_the_optimiser_is_offloaded_and_buffers_are_as_small_as_asked(results: dict[str, Any], who: str) -> None:
    for stage in (1, 2, 3) if who == "one" else (2, 3):
        told = results[who][f"offload{stage}"]["optimises"]
        assert (told["stage"], told["offload"], told["forced"]) == (stage, "cpu", False)
    assert results[who]["offload2"]["optimises"]["bucket"] == 1024  # elements; 0.001 MiB are 262
    assert results[who]["zero2"]["optimises"]["bucket"] == 1024  # there are no more than 1,000 to send
    assert results[who]["zero2"]["optimises"]["offload"] is None


@pytest.mark.parametrize("who", ["one", "two0", "two1"])
def test_under_zero_3_no_rank_has_the_whole_policy_on_its_device_even_at_the_start(
    results: dict[str, Any], who: str
) -> None:
    assert results[who]["zero3"]["sharded"] == [True]
    assert results[who]["zero2"]["sharded"] == [False]


def test_the_policy_is_compiled_by_the_backend_that_is_named(results: dict[str, Any]) -> None:
    assert results["one"]["torch_compile"]["optimises"]["frames"] > 0


def test_old_log_probs_of_the_learner_s_own_make_the_first_replay_exact_whatever_was_recorded(
    results: dict[str, Any],
) -> None:
    found = results["one"]["faults"]
    assert found["rollout"]["ratio_first"] == pytest.approx(0.002, rel=0.01)
    assert found["rollout"]["ratio_first"] > VARIANTS["zero0"].objective.clip
    assert found["recompute"]["ratio_first"] == 0
    assert found["recompute"]["loss"] == pytest.approx(results["one"]["zero0"]["metrics"][0]["loss"], abs=1e-6)


def test_groups_of_older_weights_do_not_count_as_a_first_ratio(results: dict[str, Any]) -> None:
    stale = results["one"]["faults"]["stale"]
    assert stale["ratio_first"] is None and stale["ratio_max"] > 1.001


@pytest.mark.parametrize("who", ["one", "two0"])
def test_recomputed_old_log_probs_have_ratio_1_for_stale_groups_too(results: dict[str, Any], who: str) -> None:
    for metrics in results[who]["recompute3"]["metrics"]:  # the later batches were rolled out with the first weights
        assert metrics["ratio_max"] == pytest.approx(1, abs=1e-6) == metrics["ratio_min"]
    assert results[who]["zero3"]["metrics"][1]["ratio_max"] > 1 + 1e-5


def test_later_updates_of_a_batch_are_off_policy(results: dict[str, Any]) -> None:
    metrics = results["one"]["track"]["metrics"][0]
    assert metrics["updates"] == 4 and abs(metrics["ratio_max"] - 1) > 1e-5


def test_the_gradient_was_clipped_and_reported_unclipped(results: dict[str, Any]) -> None:
    assert results["one"]["zero0"]["metrics"][0]["grad_norm"] > VARIANTS["zero0"].optimiser.grad_clip


def test_rl_and_sft_gradient_norms_are_measured_apart(results: dict[str, Any]) -> None:
    settings = VARIANTS["zero0"]
    apart = {}
    for name, coefficients in (("rl", {"sft_coef": 0.0}), ("sft", {"rl_coef": 0.0, "kl_beta": 0.0})):
        method = Method(replace(settings, objective=replace(settings.objective, **coefficients)))
        reference = Reference(FakeModel(), method)
        records = [as_group(r, reference.model, settings, fake_pairs) for r in batches("zero0")[0]]
        apart[name] = reference.step(records)["grad_norm"]
    for who in ("one", "two0", "two1"):
        first, second = results[who]["zero0"]["metrics"][:2]
        assert first["grad_norm_rl"] == pytest.approx(apart["rl"], rel=1e-4)
        assert first["grad_norm_sft"] == pytest.approx(apart["sft"], rel=1e-4)
        assert second["grad_norm_rl"] is second["grad_norm_sft"] is None
        assert results[who]["zero2"]["metrics"][0]["grad_norm_rl"] is None


@pytest.mark.parametrize("who", ["one", "two0", "two1"])
@pytest.mark.parametrize("variant", TWO)
def test_a_learner_loaded_from_a_checkpoint_continues_bit_by_bit(
    results: dict[str, Any], who: str, variant: str
) -> None:
    run = results[who][variant]
    assert_close(run["resumed_weights"], run["weights"][-1], atol=0)
    assert untimed(run["resumed_metrics"]) == untimed(run["metrics"][-1])
    assert run["resumed_files_after"] == run["files_after"] != run["files"]


def test_checkpoints_do_not_depend_on_ranks_or_zero_stage(results: dict[str, Any]) -> None:
    from safetensors.torch import load

    for name in ("weights.safetensors", "optimiser.safetensors"):
        expected = load(results["one"]["zero0"]["files"][name])
        for who in ("one", "two0"):
            for variant in ("zero0", "zero1", "zero2", "zero3"):
                assert_close(load(results[who][variant]["files"][name]), expected)


@pytest.mark.parametrize("who", ["one", "two0"])
def test_the_average_of_the_weights_lies_behind_them_and_survives_a_checkpoint(
    results: dict[str, Any], who: str
) -> None:
    run = results[who]["zero3"]
    assert_close(run["resumed_average"], run["average"], atol=0)
    assert any(not torch.equal(value, run["weights"][-1][name]) for name, value in run["average"].items())
    for name, value in run["average"].items():
        over = torch.stack([weights[name] for weights in run["weights"]])
        assert ((value >= over.amin(0) - 1e-6) & (value <= over.amax(0) + 1e-6)).all(), name


def test_a_checkpoint_without_an_average_begins_one_at_its_weights(results: dict[str, Any]) -> None:
    found = results["one"]["faults"]
    assert_close(from_bytes(found["late_average"])[0], found["late_weights"], atol=0)


@pytest.mark.parametrize("variant", TWO)
def test_rank_0_publishes_the_trained_weights(results: dict[str, Any], variant: str) -> None:
    run = results["two0"][variant]
    state, info = from_bytes(run["published"])
    assert_close(state, run["weights"][-1], atol=0)
    assert (info.version, info.epoch) == (3, 4)
    assert results["two1"][variant]["published"] is None


def test_deepspeed_compiles_nothing_without_compiler_or_ninja(results: dict[str, Any]) -> None:
    for who in ("one", "two0", "two1"):
        assert results[who]["compiled"] is False and results[who]["extensions"] == []
    assert not (results["folder"] / "extensions").exists()


def test_a_loss_that_is_not_finite_stops_before_the_step(results: dict[str, Any]) -> None:
    assert "loss is nan" in results["one"]["faults"]["not_finite"]
    assert results["one"]["faults"]["weights_kept"]


def test_a_refused_batch_leaves_the_learner_as_it_was(results: dict[str, Any]) -> None:
    found = results["one"]["faults"]
    assert (
        "twice" in found["twice"]
        and "ground truth holds NaN" in found["picture"]
        and found["tracks_kept"]
        and found["goes_on"] == 1
    )


@pytest.mark.parametrize("variant", ["zero2", "zero3"])
def test_average_publication_and_checkpoint_share_one_copy_of_the_weights_and_only_rank_0_makes_it(
    results: dict[str, Any], variant: str
) -> None:
    first, second = (results[who]["duties"][variant] for who in ("two0", "two1"))
    tensors = first["tensors"]
    assert first["weights"] == tensors and first["all"] == tensors * 3  # the moments are two more
    assert second["weights"] == second["all"] == 0
    assert first["snapshot"] and not second["snapshot"]


@pytest.mark.parametrize("variant", ["zero2", "zero3"])
def test_a_snapshot_stays_what_it_was_while_the_learner_goes_on(results: dict[str, Any], variant: str) -> None:
    assert results["two0"]["duties"][variant]["kept"]


@pytest.mark.parametrize("variant", ["zero2", "zero3"])
def test_only_rank_0_reads_a_checkpoint_and_every_rank_continues_from_it(results: dict[str, Any], variant: str) -> None:
    first, second = (results[who]["duties"][variant] for who in ("two0", "two1"))
    assert (first["reads"], second["reads"]) == (1, 0)
    assert first["files"] == ["extra.json"] and second["files"] == []
    assert first["version"] == second["version"] == 1


def test_a_checkpoint_that_rank_0_cannot_read_is_refused_by_every_rank(results: dict[str, Any]) -> None:
    for who in ("two0", "two1"):
        assert "nowhere is no complete checkpoint" in results[who]["duties"]["nowhere"]


def test_what_one_rank_cannot_train_on_no_rank_waits_for_and_the_next_list_is_learned_from(
    results: dict[str, Any],
) -> None:
    first, second = (results[who]["duties"]["refused"] for who in ("two0", "two1"))
    assert first["refused"] == [] and set(second["refused"]) == {"picture"}
    for found in (first, second):
        assert "rank 1 holds no batch" in found["message"] and found["blamed"] == [] and found["kept"]
        assert found["again"] == 0 and found["iteration"] == 2
