"""The part of the learner that knows DeepSpeed: start, gradients that add up, full state in and out.

DeepSpeed averages gradients over ranks; the learner's losses already hold the division by the whole batch and must be
summed. So each micro-batch's loss is multiplied by the number of ranks and not divided by accumulation steps, and the
accumulation boundary is set by hand, since batches may have any number of micro-batches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.settings import OptimiserSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")


def join(rank: int, world: int, address: str, port: int, device: torch.device, timeout_s: float) -> None:
    """Join the process group of the learner ranks (gloo on CPU, nccl on GPU); again in the same process is free."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    deepspeed = without_compiler()
    if dist.is_initialized():
        return
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(device.index or 0),
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
    )


def without_compiler() -> Any:
    """DeepSpeed, told not to compile its shared-memory communication extension, which needs a compiler and ninja.

    The switch is a private dictionary of DeepSpeed's; a test guards that it still has effect.
    """
    # DeepSpeed decorates a function with torch.compile on import of its optimisers, which loads all of inductor (4 s).
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class Engine:
    """A DeepSpeed engine around a module whose `forward` returns (share of the loss, parts)."""

    def __init__(self, module: nn.Module, trained: dict[str, nn.Parameter], settings: OptimiserSettings) -> None:
        """`trained` names the parameters that are optimised; the process group must have been joined."""
        deepspeed = without_compiler()
        self.settings, self.trained = settings, trained
        self.world = dist.get_world_size()
        self.device = next(iter(trained.values())).device
        base = torch.optim.AdamW(
            list(trained.values()),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=base, config=self._config())
        zero = self._engine.optimizer
        self._base: torch.optim.Optimizer = zero.optimizer if settings.zero_stage else zero
        self._replicated_norm: float | None = None

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.settings.grad_clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        if self.settings.zero_stage:
            config["zero_optimization"] = {"stage": self.settings.zero_stage, "overlap_comm": False}
        return config

    def accumulate(self, micro: object, last: bool) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; `last` of the update also reduces over ranks. Returns the parts."""
        self._engine.set_gradient_accumulation_boundary(last)
        loss, parts = self._engine(micro)
        self._engine.backward(loss * self.world, scale_wrt_gas=False)
        if last and not self.settings.zero_stage:
            norms = [p.grad.norm() for p in self.trained.values() if p.grad is not None]
            self._replicated_norm = float(torch.stack(norms).norm()) if norms else 0.0
        return dict(parts)

    def step(self, iteration: int) -> tuple[float, float]:
        """Take the optimiser step of `iteration` (0-based); returns (gradient norm before clipping, learning rate)."""
        lr = self.settings.lr * min(1.0, (iteration + 1) / self.settings.warmup if self.settings.warmup else 1.0)
        for group in self._base.param_groups:
            group["lr"] = lr
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if self.settings.zero_stage else self._replicated_norm
        return math.nan if norm is None else float(norm), lr

    def evaluate(self, micro: object) -> tuple[Tensor, dict[str, Tensor]]:
        """The module's forward with a graph, outside DeepSpeed's bookkeeping (not for ZeRO-3)."""
        result: tuple[Tensor, dict[str, Tensor]] = self._engine.module(micro)
        return result

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors in full, float32 on the CPU. Every rank must call it."""
        if not self.settings.zero_stage:
            return {n: p.detach().float().cpu().clone() for n, p in self.trained.items()}
        from deepspeed.utils import safe_get_full_fp32_param

        return {n: safe_get_full_fp32_param(p).detach().float().cpu().clone() for n, p in self.trained.items()}

    def optimiser_state(self) -> dict[str, Tensor]:
        """AdamW's moments in full by "<moment>/<parameter>", and "step"; independent of ranks and ZeRO stage.

        Every rank must call it.
        """
        steps = [s["step"] for s in self._base.state.values() if "step" in s]
        state = {"step": torch.tensor(float(steps[0]) if steps else 0.0)}
        for moment in _MOMENTS:
            for name, parameter in self.trained.items():
                if not steps:
                    value = torch.zeros(_shape(parameter))
                elif self.settings.zero_stage:
                    from deepspeed.utils import safe_get_full_optimizer_state

                    value = safe_get_full_optimizer_state(parameter, moment)
                else:
                    value = self._base.state[parameter][moment]
                state[f"{moment}/{name}"] = value.detach().float().cpu().clone()
        return state

    def load(self, weights: dict[str, Tensor], optimiser: dict[str, Tensor] | None) -> None:
        """Put full weights and, if given, AdamW's state back. Every rank must call it with the same values.

        Raises:
            ValueError: names or shapes that differ from the trained parameters.
        """
        self._check(weights, "")
        self._load_weights(weights)
        if optimiser is None:
            return
        for moment in _MOMENTS:
            of_moment = {k: v for k, v in optimiser.items() if k.startswith(f"{moment}/")}
            self._check({k.removeprefix(f"{moment}/"): v for k, v in of_moment.items()}, moment)
        for flat in self._optimised():
            moments = {m: torch.zeros_like(flat, dtype=torch.float32) for m in _MOMENTS}
            self._base.state[flat] = {"step": optimiser["step"].clone(), **moments}
        if self.settings.zero_stage in (1, 2):
            # The per-parameter views into the moments are otherwise made at the first step.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for moment in _MOMENTS:
            for name, parameter in self.trained.items():
                value = optimiser[f"{moment}/{name}"].to(self.device)
                if self.settings.zero_stage:
                    from deepspeed.utils import safe_set_full_optimizer_state

                    safe_set_full_optimizer_state(parameter, value, moment)
                else:
                    self._base.state[parameter][moment].copy_(value)

    def _optimised(self) -> list[Tensor]:
        """What AdamW keeps its state for: parameters, or under ZeRO this rank's flat shards of them."""
        if self.settings.zero_stage == 3:  # which hands its shards to AdamW only while it steps
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self._base.param_groups for flat in group["params"]]

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad(), self._gathered():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name].to(self.device))
        if self.settings.zero_stage:
            from deepspeed.utils import safe_set_full_fp32_param

            for name, parameter in self.trained.items():
                safe_set_full_fp32_param(parameter, weights[name].to(self.device, torch.float32))

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        if self.settings.zero_stage == 3:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(self.trained.values()), modifier_rank=0):
                yield
        else:
            yield

    def _check(self, tensors: dict[str, Tensor], what: str) -> None:
        what = f"{what} " if what else ""
        if tensors.keys() != self.trained.keys():
            odd = sorted(tensors.keys() ^ self.trained.keys())
            raise ValueError(f"learner state: {what}tensors don't fit the trained parameters, e.g. {odd[:3]}")
        for name, value in tensors.items():
            wanted = _shape(self.trained[name])
            if value.shape != wanted:
                raise ValueError(f"learner state: {what}{name} has shape {tuple(value.shape)}, not {tuple(wanted)}")


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The full shape, also of a parameter that ZeRO-3 has sharded."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
