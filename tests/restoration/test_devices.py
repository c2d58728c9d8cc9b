"""Devices by their names."""

from __future__ import annotations

import pytest
import torch

from restoration.devices import check_device


def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device("cpu")
    check_device(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    check_device("cuda:1")


@pytest.mark.parametrize(
    ("name", "there", "told"),
    [
        ("gpu", 1, "device=gpu: no device; give cpu, cuda"),
        ("cuda:x", 1, "device=cuda:x: no device"),
        (None, 1, "device=None: no device"),
        ("cuda", 0, "device=cuda: torch finds no GPUs here; give cpu"),
        ("cuda:1", 1, "device=cuda:1: torch finds 1 GPU here"),
    ],
)
def test_another_is_refused_by_name(name: object, there: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ValueError, match=told):
        check_device(name)
