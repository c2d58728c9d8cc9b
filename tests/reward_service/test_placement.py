"""Deadlines, places and devices, without Ray."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from reward_service.bounded import bounded
from reward_service.placement import room_for, shortage
from reward_service.scorers import SCORERS, make_scorer
from reward_service.settings import RewardSettings, reward_app_name, run_of_app
from tests.reward_service.fakes import Ordered

NODES = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0}]


@pytest.mark.parametrize(
    ("wanted", "room"),
    [({"CPU": 1.0}, 11), ({"CPU": 2.0}, 5), ({"CPU": 1.0, "GPU": 0.1}, 8), ({"GPU": 0.1}, 10), ({"reward": 1.0}, 0)],
)
def test_the_room_for_replicas_is_counted_node_by_node(wanted: dict[str, float], room: int) -> None:
    assert room_for(wanted, NODES) == room


def test_a_shortage_names_what_is_wanted_and_what_is_there() -> None:
    assert shortage(RewardSettings(replicas=11), NODES) is None
    assert shortage(RewardSettings(replicas=99, num_cpus=0), NODES) is None
    said = shortage(RewardSettings(replicas=2, num_gpus=1), NODES)
    assert said is not None and "2 replicas wants 1 CPU, 1 GPU" in said
    assert "room for 1 (its nodes: 8 CPU, 1 GPU; 3 CPU, 0 GPU)" in said


def test_a_call_without_a_deadline_gets_one_and_its_own_errors_pass() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="the question took longer than 0.2 s"):
        bounded(threading.Event().wait, 0.2, "the question")
    assert time.monotonic() - began < 2
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 5, "a division")
    assert bounded(lambda: 3, 5, "a number") == 3


def test_a_torch_scorer_computes_where_it_is_told_and_a_parameter_of_the_user_wins() -> None:
    assert make_scorer("lite0_levels", "meta").device == torch.device("meta")  # type: ignore[attr-defined]
    assert next(make_scorer("lite0_levels", "meta").network.parameters()).is_meta  # type: ignore[attr-defined]
    assert make_scorer("lite0_levels", "meta", device="cpu").device == torch.device("cpu")  # type: ignore[attr-defined]


def test_a_scorer_of_the_cpu_refuses_a_gpu_that_it_would_leave_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORERS, "ordered", "tests.reward_service.fakes:Ordered")
    with pytest.raises(ValueError, match="'ordered' computes on the CPU only: set reward.num_gpus=0"):
        make_scorer("ordered", "cuda")
    assert isinstance(make_scorer("ordered", "cpu"), Ordered)


def test_a_scorer_of_ones_own_that_takes_no_device_gets_a_warning_only() -> None:
    with pytest.warns(UserWarning, match="takes no `device`"):
        make_scorer("tests.reward_service.fakes:Ordered", "cuda")


def test_the_name_of_a_service_and_the_run_it_belongs_to_are_each_others_inverse() -> None:
    assert run_of_app(reward_app_name("demo-1a2b")) == "demo-1a2b"
