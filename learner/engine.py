"""The part of the learner that knows DeepSpeed: gradients that add up, full state in and out.

DeepSpeed averages gradients over ranks; the learner's losses already hold the division by the whole batch and must be
summed. So each micro-batch's loss is multiplied by the number of ranks and not divided by accumulation steps, and the
accumulation boundary is set by hand, since batches may have any number of micro-batches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.settings import OptimiserSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")


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


def allow_compile() -> None:
    """Let torch.compile compile in this process, which `without_compiler` would keep it from."""
    os.environ["TORCHDYNAMO_DISABLE"] = "0"
    import torch._dynamo.config

    torch._dynamo.config.disable = False


class Engine:
    """A DeepSpeed engine around a module whose `forward` returns (share of the loss, parts)."""

    def __init__(
        self,
        module: nn.Module,
        trained: dict[str, nn.Parameter],
        settings: OptimiserSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        """Moves `module` to `device`, under ZeRO-3 parameter by parameter, so that no rank ever has all of it there.

        `trained` names the parameters that are optimised; the process group must have been joined.
        """
        deepspeed = without_compiler()
        self.settings, self.trained = settings, trained
        self.world = dist.get_world_size()
        self.device = torch.device(device)
        if settings.zero_stage == 3:
            deepspeed.zero.Init(module=module, config_dict_or_path=self._config(), dtype=torch.float32)
        else:
            module.to(self.device)
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
        self._kept: Tensor | None = None  # see keep_gradient

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
            elements = self._bucket_elements()
            config["zero_optimization"] = {
                "stage": self.settings.zero_stage,
                "overlap_comm": False,
                "reduce_bucket_size": elements,
                "allgather_bucket_size": elements,
            }
            if self.settings.offload == "cpu":
                pinned = self.device.type == "cuda"
                config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        return config

    def _bucket_elements(self) -> int:
        """Elements of a communication buffer: no more than there are to send."""
        wanted = min(self.settings.bucket_mb * 2**20 / 4, sum(_shape(p).numel() for p in self.trained.values()))
        return math.ceil(wanted / 1024) * 1024  # whole kilobytes, as DeepSpeed aligns them

    def accumulate(self, micro: object, last: bool) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; `last` of the update also reduces over ranks. Returns the parts."""
        self._engine.set_gradient_accumulation_boundary(last)
        loss, parts = self._engine(micro)
        self._engine.backward(loss * self.world, scale_wrt_gas=False)
        return dict(parts)

    def gradient_norm(self) -> Tensor | None:
        """After the last micro-batch of an update, before its step: the norm over all ranks, unclipped, on the device.

        None under ZeRO, which takes it while it steps.
        """
        if self.settings.zero_stage:
            return None
        norms = [p.grad.norm() for p in self.trained.values() if p.grad is not None]
        return torch.stack(norms).norm() if norms else torch.zeros((), device=self.device)

    def step(self, iteration: int) -> tuple[float | None, float]:
        """Take the optimiser step of `iteration` (0-based); returns (gradient norm before clipping, learning rate).

        The norm is None without ZeRO: `gradient_norm` gives it before the step.
        """
        lr = self.settings.lr * min(1.0, (iteration + 1) / self.settings.warmup if self.settings.warmup else 1.0)
        for group in self._base.param_groups:
            group["lr"] = lr
        self._engine.step()
        if not self.settings.zero_stage:
            return None, lr
        norm = self._engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm), lr

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients lie in full on every rank, as `keep_gradient` needs: without ZeRO."""
        return self.settings.zero_stage == 0

    def keep_gradient(self) -> Tensor:
        """Collective, between micro-batches: the norm over all ranks of what is accumulated so far, on the device.

        Keeps a copy, the size of all gradients, until `norm_since`.
        """
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained.values()]
        self._kept = torch.cat([g.detach().float().flatten() for g in flat])
        dist.all_reduce(self._kept)
        self._kept /= self.world  # `accumulate` multiplied each loss by it
        return self._kept.norm()

    def norm_since(self) -> Tensor:
        """After the update's last micro-batch: the norm of what was accumulated since `keep_gradient`; forgets it."""
        assert self._kept is not None, "keep_gradient() comes first"
        kept = self._kept.split([p.numel() for p in self.trained.values()])
        pairs = zip(self.trained.values(), kept, strict=True)
        norms = [(k if p.grad is None else p.grad.flatten() - k).norm() for p, k in pairs]
        self._kept = None
        return torch.stack(norms).norm()

    @torch.no_grad()
    def log_prob(self, micro: object) -> Tensor:
        """Log-probs [M] of a policy micro-batch under the weights in effect. As many calls on every rank."""
        log_prob: Tensor = self._engine.module(micro, only_log_prob=True)[1]["log_prob"]
        return log_prob

    def weights(self, keep: bool = True) -> dict[str, Tensor]:
        """Collective: the trained tensors in full, float32, in host memory; nothing on ranks that don't `keep` them.

        One tensor at a time is gathered, and only under ZeRO-3: below it every rank holds them whole.
        """
        found = {}
        for name, parameter in self.trained.items():
            value = parameter.detach()
            if self.settings.zero_stage == 3:
                from deepspeed.utils import safe_get_full_fp32_param

                value = safe_get_full_fp32_param(parameter)
            if keep:
                found[name] = to_host(value)
        return found

    def optimiser_state(self, keep: bool = True) -> dict[str, Tensor]:
        """Collective: AdamW's moments in full by "<moment>/<parameter>", and "step"; {} on ranks that don't `keep`.

        Independent of ranks and ZeRO stage; one tensor at a time is gathered.
        """
        steps = [s["step"] for s in self._base.state.values() if "step" in s]
        state = {}
        for moment in _MOMENTS:
            for name, parameter in self.trained.items():
                if steps and self.settings.zero_stage:
                    from deepspeed.utils import safe_get_full_optimizer_state

                    value = safe_get_full_optimizer_state(parameter, moment)
                else:
                    value = self._base.state[parameter][moment] if steps else None
                if keep:
                    state[f"{moment}/{name}"] = torch.zeros(_shape(parameter)) if value is None else to_host(value)
        return state | {"step": torch.tensor(float(steps[0]) if steps else 0.0)} if keep else {}

    def load(self, weights: Mapping[str, Tensor] | None, optimiser: Mapping[str, Tensor] | None) -> None:
        """Collective: put full weights and AdamW's state back, as `check` found them fit on rank 0.

        Only rank 0 needs to have them; one tensor at a time is sent to the others.
        """
        step = torch.zeros(()) if optimiser is None else optimiser["step"].float()
        step = self._sent(step, torch.Size(())).cpu()
        for flat in self._optimised():
            moments = {m: torch.zeros_like(flat, dtype=torch.float32) for m in _MOMENTS}
            self._base.state[flat] = {"step": step.clone(), **moments}
        if self.settings.zero_stage in (1, 2):
            # The per-parameter views into the moments are otherwise made at the first step.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.trained.items():
            self._put(parameter, self._sent(None if weights is None else weights[name], _shape(parameter)))
            for moment in _MOMENTS:
                value = None if optimiser is None else optimiser[f"{moment}/{name}"]
                self._put_moment(parameter, moment, self._sent(value, _shape(parameter)))

    def check(self, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Refuse a state that `load` can't put back.

        Raises:
            ValueError: names or shapes that differ from the trained parameters.
        """
        self._check(weights, "")
        for moment in _MOMENTS:
            of_moment = {k: v for k, v in optimiser.items() if k.startswith(f"{moment}/")}
            self._check({k.removeprefix(f"{moment}/"): v for k, v in of_moment.items()}, moment)
        if "step" not in optimiser:
            raise ValueError("learner state: the optimiser's step count is missing")

    def _sent(self, value: Tensor | None, shape: torch.Size) -> Tensor:
        """Rank 0's `value`, float32 on the device of every rank."""
        if self.world == 1:
            assert value is not None
            return value.to(self.device, torch.float32)
        if dist.get_rank() == 0 and value is not None:
            sent = value.to(self.device, torch.float32).reshape(shape).contiguous()
        else:
            sent = torch.empty(shape, device=self.device)
        dist.broadcast(sent, src=0)
        return sent

    @torch.no_grad()
    def _put(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self.settings.zero_stage == 3:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
        else:
            parameter.copy_(value)
        if self.settings.zero_stage:
            from deepspeed.utils import safe_set_full_fp32_param

            safe_set_full_fp32_param(parameter, value)

    def _put_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
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

    def _check(self, tensors: Mapping[str, Tensor], what: str) -> None:
        what = f"{what} " if what else ""
        if tensors.keys() != self.trained.keys():
            odd = sorted(tensors.keys() ^ self.trained.keys())
            raise ValueError(f"learner state: {what}tensors don't fit the trained parameters, e.g. {odd[:3]}")
        for name, value in tensors.items():
            wanted = _shape(self.trained[name])
            if value.shape != wanted:
                raise ValueError(f"learner state: {what}{name} has shape {tuple(value.shape)}, not {tuple(wanted)}")


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, float32; the only way by which the learner's state leaves a device."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def send_bytes(data: bytes, device: torch.device, source: int = 0) -> bytes:
    """Collective: `data` of the rank `source` on every rank."""
    if dist.get_world_size() == 1:
        return data
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, src=source)
    content = torch.empty(int(size), dtype=torch.uint8, device=device)
    if dist.get_rank() == source and data:
        content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(content, src=source)
    return bytes(content.cpu().numpy())


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The full shape, also of a parameter that ZeRO-3 has sharded."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
