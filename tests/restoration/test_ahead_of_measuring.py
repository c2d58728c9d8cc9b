"""Pictures that are decoded ahead arrive in order, with their errors, where they are asked for."""

from __future__ import annotations

import threading

import pytest
import torch

from restoration.datasets.ahead import Ahead


def test_what_is_expected_is_loaded_by_another_thread_once_and_other_pictures_when_asked_for() -> None:
    loaded: list[tuple[str, bool]] = []

    def load(image_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        loaded.append((image_id, threading.current_thread() is threading.main_thread()))
        if image_id == "bad":
            raise ValueError("bad is damaged")
        return torch.zeros(1), torch.ones(1)

    with Ahead(load) as ahead:
        ahead.expect(["a", "bad", "never"])
        assert ahead("b")[1] == 1
        ahead("a")
        with pytest.raises(ValueError, match="bad is damaged"):
            ahead("bad")
        ahead("a")
    assert ("b", True) in loaded and ("a", False) in loaded and ("a", True) in loaded and ("bad", False) in loaded
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]
