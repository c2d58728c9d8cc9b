from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from cluster.config.configure import ConfigError
from cluster.run.machine import Machine, this_machine, torch_trouble


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("cluster.run.machine.multiplies_bf16", lambda device: True)
    return tmp_path


def test_a_machine_without_device_files_has_no_gpu_and_torch_is_not_asked(
    dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    (dev / "nvidiactl").touch()
    assert this_machine(dev) == Machine()


def test_devices_count_and_a_driver_that_is_too_old_is_told(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (dev / name).touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert this_machine(dev) == Machine(2)

    def too_old() -> bool:
        warnings.warn("The NVIDIA driver is too old (found version 12040). Please update it", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    found = this_machine(dev)
    assert found.gpus == 2
    assert found.trouble.endswith("needs CUDA 13.0 (The NVIDIA driver is too old (found version 12040))")


def test_a_torch_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert torch_trouble().endswith("is built without CUDA")


def test_gpus_that_the_user_has_hidden_do_not_count(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dev / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine(dev) == Machine()


def test_a_processor_without_native_bfloat16_is_told_as_one(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.run.machine.multiplies_bf16", lambda device: device != "cpu")
    assert this_machine(dev) == Machine(bf16=False)
    (dev / "nvidia0").touch()
    monkeypatch.setattr("cluster.run.machine.torch_trouble", lambda: "")
    assert this_machine(dev) == Machine(1, "", bf16=False)


def test_a_variable_about_the_processor_that_says_nothing_is_a_mistake_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTORL_NATIVE_BF16", "maybe")
    with pytest.raises(ConfigError, match="RESTORL_NATIVE_BF16=maybe is neither 0 nor 1; leave it out"):
        this_machine(tmp_path)
    for told in (False, True):
        monkeypatch.setenv("RESTORL_NATIVE_BF16", str(int(told)))
        assert this_machine(tmp_path).bf16 is told
