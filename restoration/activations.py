"""How much memory a model's passes take beside the weights: an estimate, counted on the meta device.

The passes run on tensors without values, so that the count takes seconds whatever the sizes are. What is counted is
what PyTorch's eager operations hold at the worst moment. Attention counts as a fused kernel's: no matrix of scores.
Not counted: workspaces of convolutions and matrix products, fragmentation, the CUDA context (0.5 to 1 GiB together
with it is usual), and casts of weights under autocast (`footprint` has them).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from restoration.adapters import AdaptSettings, enable_checkpointing, make_trainable
from restoration.base_models.interface import BaseModel, Condition
from restoration.base_models.latent import LatentModel
from restoration.precision import networks_of, set_frozen_dtype


class LiveBytes(TorchDispatchMode):
    """Inside it, every storage that an operation makes counts until it is freed; `peak` is the worst moment's sum."""

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        """`given`: tensors whose memory doesn't count, nor that of their views."""
        super().__init__()
        self.live = self.peak = 0
        self._given = [tensor.untyped_storage() for tensor in given]  # kept, so that no other takes their ids
        self._known = {id(storage) for storage in self._given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._known:
                self._hold(storage)
        return made

    def _hold(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _Attention(torch.autograd.Function):
    """Holds what a fused attention holds: its inputs, its output and a number a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


@contextmanager
def counted(model: BaseModel, *given: Tensor) -> Iterator[LiveBytes]:
    """Counts what its block holds beside the model's weights and what is `given`."""
    weights = [t for network in networks_of(model) for t in (*network.parameters(), *network.buffers())]
    stock = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
        return _Attention.apply(query, key, value) if query.is_meta else stock(query, key, value, *others, **named)

    # Replaced and not caught by a TorchFunctionMode, which is suspended while backward recomputes.
    functional.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        with LiveBytes([*weights, *_stored(model), *given]) as found:
            yield found
    finally:
        functional.scaled_dot_product_attention = stock


def acting(
    skeleton: LatentModel,
    images: int,
    rollouts: int,
    height: int,
    width: int,
    *,
    guidance_scale: float = 1.0,
    decoded: int = 1,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype] = (torch.float32,) * 3,
) -> dict[str, int]:
    """Bytes of an actor's passes at their worst moments, of which one counts at a time.

    Args:
        skeleton: as of `describe`; it is left as it is.
        images, rollouts: whose chains are denoised together, `images * rollouts` rows.
        height, width: of a picture.
        decoded: pictures decoded at a time.
        dtypes: in which condition, denoiser and decoder compute.

    Returns:
        "condition", "denoise" and "decode"; and "held": the condition and its copies for every row.
    """
    found: dict[str, int] = {}
    rows = images * rollouts
    models = {dtype: _of(skeleton, dtype) for dtype in set(dtypes)}  # a copy of thousands of modules takes its time
    conditioner, denoiser, decoder = (models[dtype] for dtype in dtypes)
    with torch.no_grad():
        lq = torch.empty(images, 3, height, width, device="meta")
        with counted(conditioner, lq) as live:
            condition = conditioner.condition(lq)
        found["condition"] = live.peak
        condition = condition.repeat_interleave(rollouts)
        found["held"] = sum(t.nbytes for t in _tensors(condition))
        x_t, times = _noisy(condition, rows)
        with counted(denoiser, x_t, times, *_tensors(condition)) as live:
            denoiser.denoise(x_t, times, condition, guidance_scale)
        found["denoise"] = live.peak
        some = condition[:decoded]
        with counted(decoder, *_tensors(some)) as live:
            decoder.decode(some.latent, some)
        found["decode"] = live.peak
    return found


def training(
    skeleton: LatentModel,
    adapt: AdaptSettings,
    rows: int,
    height: int,
    width: int,
    *,
    guidance_scale: float = 1.0,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that forward and backward of a micro-batch of `rows` hold at their worst moment, without gradients.

    Args:
        skeleton: as of `describe`; it is left as it is.
        checkpointing: activations are recomputed in the backward pass.
        dtype: in which the policy computes.
    """
    model = _of(skeleton, dtype)
    with torch.no_grad():
        condition = model.condition(torch.empty(rows, 3, height, width, device="meta"))
    with torch.device("meta"):
        parameters = make_trainable(model, adapt, keep_reference=False)
    set_frozen_dtype(model, dtype, keep=())
    if checkpointing:
        enable_checkpointing(model)
    x_t, times = _noisy(condition, rows)
    with counted(model, x_t, times, *_tensors(condition)) as live:
        loss = model.denoise(x_t, times, condition, guidance_scale).square().mean()
        forward = live.peak
        loss.backward()  # type: ignore[no-untyped-call]
    return max(forward, live.peak - sum(p.grad.nbytes for p in parameters if p.grad is not None))


def _of(skeleton: LatentModel, dtype: torch.dtype) -> LatentModel:
    model = copy.deepcopy(skeleton)
    set_frozen_dtype(model, dtype, keep=())
    return model


def _noisy(condition: Condition, rows: int) -> tuple[Tensor, Tensor]:
    return torch.empty(condition.latent.shape, device="meta"), torch.empty(rows, device="meta")


def _stored(model: BaseModel) -> list[Tensor]:
    return list(getattr(model, "embeddings", {}).values())


def _tensors(condition: Condition) -> list[Tensor]:
    return [
        t for t in (condition.clean, condition.latent, condition.text, condition.negative_text) if t is not None
    ] + [*condition.others.values()]
