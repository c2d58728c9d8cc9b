"""A denoising step asks nothing of the device and copies nothing to it; pictures are collected and copied once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from restoration.acceleration import accelerate
from restoration.base_models import describe, load
from restoration.images import to_uint8
from restoration.transfer import PixelCopies, to_device
from tests.restoration.released_models import EACH

WAITS = {
    torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy,
    Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.new_tensor, Tensor.nonzero, torch.nonzero, torch.unique,
}  # fmt: skip


class NoWaiting(TorchFunctionMode):
    """Refuses what makes the host wait for the device: values read from it, and values copied to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITS, func
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, Tensor) and i.dtype == torch.bool for i in index), "a mask as index"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_a_step_of_every_model_never_waits(name: str, model_folder: Callable[[str], Path]) -> None:
    facts = describe(model_folder(name))
    model, side = facts.skeleton, facts.size_multiple * 2
    condition = model.condition(torch.empty(2, 3, side, side, device="meta"))
    x_t = torch.empty(condition.latent.shape, device="meta")
    with NoWaiting():
        model.denoise(x_t, 500.0, condition, 1.0)
        model.denoise(x_t, 7, condition, 2.0 if facts.guidance else 1.0)


def test_the_watch_finds_what_waits() -> None:
    for wait in (lambda x: x.item(), lambda x: torch.tensor(1.0), lambda x: bool(x), lambda x: x[x > 0]):
        with NoWaiting(), pytest.raises(AssertionError):
            wait(torch.ones(()))  # type: ignore[no-untyped-call]


def test_collected_pictures_are_those_of_to_uint8_and_later_changes_of_the_source_do_not_reach_them() -> None:
    images = [torch.rand(2, 3, 4, 5) * 1.2 - 0.1 for _ in range(3)]
    expected, copies = [to_uint8(image) for image in images], PixelCopies()
    for image in images:
        copies.add(image)
        image.zero_()
    assert all(np.array_equal(a, b) for a, b in zip(copies.finish(), expected, strict=True))
    assert PixelCopies().finish() == []
    copies.add(torch.full((1, 3, 2, 2), torch.inf))
    with pytest.raises(ValueError, match="not finite"):
        copies.finish()


def test_a_tensor_goes_where_it_should() -> None:
    x = torch.rand(3)
    assert to_device(x, "cpu") is x and to_device(x, "meta").is_meta


def test_on_cuda_networks_of_convolutions_become_channels_last_and_compute_the_same(
    model_folder: Callable[[str], Path],
) -> None:
    model, plain = load(model_folder("stablesr")), load(model_folder("stablesr"))
    assert accelerate(plain, "cpu") == []
    done = accelerate(model, "cuda")  # the weights stay where they are: only their layout changes
    assert done == ["UNet2DConditionModel in channels_last", "StructureEncoder in channels_last"]
    weight = model.policy.unet.conv_in.weight  # type: ignore[union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]
    lq = torch.rand(1, 3, 2 * model.size_multiple, 2 * model.size_multiple)
    with torch.no_grad():
        outputs = [m.denoise(m.condition(lq).latent, 500.0, m.condition(lq), 1.0) for m in (model, plain)]
    assert torch.allclose(*outputs, atol=1e-4)


def test_compiling_without_a_compiler_is_refused_by_its_setting(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(RuntimeError, match=r"rollout\.compile=true: .* no C\+\+ compiler"):
        accelerate(load(model_folder("diffbir")), "cpu", compile=True)
