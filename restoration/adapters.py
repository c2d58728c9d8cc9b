"""Which parameters of a base model are trained: a LoRA beside its policy, or the part that SFT trained itself.

The reference policy of the KL term is the base model with the adapter switched off, or, in full training, a
frozen copy of the trained parameters only (method.md 7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from restoration.base_models.interface import BaseModel
from restoration.precision import resolve, trainable

_STATE = "_restorl_adapted"
_ADAPTER = "default"


class AdapterError(ValueError):
    """Nothing to train, adapting twice, or weights that don't fit."""


@dataclass(frozen=True)
class AdaptSettings:
    """What is trained.

    Attributes:
        mode: "lora" adds low-rank matrices to the modules of `targets`; "full" trains the model's `trainable_names`.
        rank, alpha: of the LoRA; its update is scaled by alpha / rank.
        targets: regular expression over module names in the policy, None for the model's own `lora_targets`.
        seed: of the LoRA's initial values, so that every rank and actor starts from the same ones.
        frozen_dtype: of the weights that RL leaves as they are (those of the policy, VAE, cleaner and text), on actors
            and learner ranks; what is trained stays float32. "bfloat16" halves their room, needs bfloat16 for the
            products of rollout and learner, and rounds conditions too; "auto" is bfloat16 wherever the products are
            and the device multiplies it in hardware, else float32. See `frozen_type`.
    """

    mode: Literal["lora", "full"] = "lora"
    rank: int = 8
    alpha: float = 8.0
    targets: str | None = None
    seed: int = 0
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.frozen_dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"adapt.frozen_dtype={self.frozen_dtype!r}: choose auto, float32 or bfloat16")
        if self.mode not in ("lora", "full"):
            raise ValueError(f"adapt.mode={self.mode!r}: choose lora or full")
        if self.rank < 1:
            raise ValueError(f"adapt.rank={self.rank}: at least 1")
        if self.alpha <= 0:
            raise ValueError(f"adapt.alpha={self.alpha}: above 0")
        if self.targets is not None:
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ValueError(f"adapt.targets={self.targets!r} is no regular expression: {error}") from error


@dataclass
class _Adapted:
    settings: AdaptSettings
    parameters: dict[str, nn.Parameter]
    slots: list[tuple[nn.Module, str, str]]  # every place a trained parameter sits in: module, attribute, its name
    frozen: dict[str, nn.Parameter] = field(default_factory=dict)


def make_trainable(model: BaseModel, settings: AdaptSettings, keep_reference: bool = True) -> list[nn.Parameter]:
    """Freeze the policy but for what `settings` trains; returns those parameters in the policy's order.

    A fresh LoRA changes nothing: its second matrix is 0.

    Args:
        keep_reference: full training keeps the frozen copy that `reference` needs.

    Raises:
        AdapterError: the model was adapted before, or nothing matches.
    """
    policy = model.policy
    if hasattr(policy, _STATE):
        raise AdapterError(f"{model.name} is adapted already; load it again to adapt it otherwise")
    policy.requires_grad_(False)
    if settings.mode == "lora":
        _inject_lora(model, settings)
    else:
        for parameter in trainable(model).values():
            parameter.requires_grad_(True)
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if not parameters:
        raise AdapterError(
            f"{model.name}: no parameter's name in the policy begins with any of {model.trainable_names}"
        )
    names = {id(p): name for name, p in parameters.items()}
    slots = [
        (module, attribute, names[id(p)])
        for module in policy.modules()
        for attribute, p in module._parameters.items()
        if p is not None and id(p) in names
    ]
    frozen = {}
    if settings.mode == "full" and keep_reference:
        frozen = {name: nn.Parameter(p.detach().clone(), requires_grad=False) for name, p in parameters.items()}
    # A plain attribute: a registered copy would show up in state_dict and be sharded by ZeRO.
    object.__setattr__(policy, _STATE, _Adapted(settings, parameters, slots, frozen))
    return list(parameters.values())


def frozen_type(settings: AdaptSettings, device: torch.device | str, compute: torch.dtype) -> torch.dtype:
    """What `settings.frozen_dtype` means where products are taken in `compute`, for `precision.set_frozen_dtype`.

    Raises:
        ValueError: bfloat16 weights for float32 products, which would only look exact.
    """
    if compute == torch.float32:
        if settings.frozen_dtype == "bfloat16":
            raise ValueError(
                "adapt.frozen_dtype=bfloat16 with products in float32: the networks' other operands are float32; set "
                "rollout.denoise_dtype=bfloat16 and learner.dtype=bfloat16, or frozen_dtype float32 or auto"
            )
        return torch.float32
    return resolve(settings.frozen_dtype, device)


def enable_checkpointing(model: BaseModel) -> None:
    """Recompute activations in the backward pass, in every network of the policy that can (diffusers' do)."""
    for module in model.policy.children():
        enable = getattr(module, "enable_gradient_checkpointing", None)
        if callable(enable):
            enable()


def trained_parameters(model: BaseModel) -> dict[str, nn.Parameter]:
    """The trained parameters by their names in the policy."""
    return dict(_adapted(model).parameters)


@contextmanager
def reference(model: BaseModel) -> Iterator[None]:
    """Inside, the policy is the SFT policy, exactly; after it, also by an exception, the trained one again.

    Graphs built before or inside keep their own parameters, so it may be entered between a forward and its backward.

    Raises:
        AdapterError: full training without a reference, or under ZeRO-3.
    """
    state = _adapted(model)
    if state.settings.mode == "lora":
        layers = _lora_layers(model.policy)
        # The flag, not enable_adapters(): that one also toggles requires_grad, which DeepSpeed's hooks rely on.
        before = [layer._disable_adapters for layer in layers]
        try:
            for layer in layers:
                layer._disable_adapters = True  # type: ignore[assignment]
            yield
        finally:
            for layer, value in zip(layers, before, strict=True):
                layer._disable_adapters = value
        return
    if not state.frozen:
        raise AdapterError(f"{model.name} was made trainable without a reference: use keep_reference=True")
    if any(hasattr(p, "ds_id") for p in state.parameters.values()):
        raise AdapterError("full training under ZeRO-3 keeps no reference policy: use kl_beta 0, LoRA or ZeRO-2")
    for name, parameter in state.parameters.items():
        copy = state.frozen[name]
        if copy.device != parameter.device:
            state.frozen[name] = nn.Parameter(copy.to(parameter.device), requires_grad=False)
    try:
        for module, attribute, name in state.slots:
            module._parameters[attribute] = state.frozen[name]
        yield
    finally:
        for module, attribute, name in state.slots:
            module._parameters[attribute] = state.parameters[name]


def trainable_state(model: BaseModel) -> dict[str, Tensor]:
    """The trained tensors by name, copied, on their device. (Under ZeRO-3 ask the learner, which gathers them.)"""
    return {name: p.detach().clone() for name, p in _adapted(model).parameters.items()}


def load_trainable(model: BaseModel, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the trained parameters; all of them and nothing else.

    Raises:
        AdapterError: names or shapes differ, or a value is not finite; the model is then unchanged.
    """
    parameters = _adapted(model).parameters
    missing, unknown = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or unknown:
        raise AdapterError(
            f"{model.name}: weights don't fit the trained part: {len(missing)} missing {missing[:3]}, {len(unknown)} "
            f"unknown {unknown[:3]}; adapt the model with the settings (mode, rank, targets) the weights were made with"
        )
    for name, value in state.items():
        if value.shape != parameters[name].shape:
            raise AdapterError(f"{name}: weights have shape {tuple(value.shape)}, not {tuple(parameters[name].shape)}")
        if not torch.isfinite(value).all():
            raise AdapterError(f"{name}: weights hold NaN or infinite values; the learner that made them diverged")
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def save_lora(model: BaseModel, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the LoRA as a peft adapter folder, which `PeftModel.from_pretrained(policy, folder)` loads.

    Raises:
        AdapterError: the model is not trained by LoRA.
    """
    adapted = _adapted(model)
    if adapted.settings.mode != "lora":
        raise AdapterError(f"{model.name} is trained in full: save the whole model instead")
    folder.mkdir(parents=True, exist_ok=True)
    _lora_config(model, adapted.settings).save_pretrained(str(folder))
    tensors = {
        "base_model.model." + name.replace(f".{_ADAPTER}", ""): value.detach().cpu().contiguous().clone()
        for name, value in (trainable_state(model) if state is None else state).items()
    }
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def merge(model: BaseModel) -> None:
    """Fold the LoRA into the weights and drop it; the model is then plain again, frozen, and may be saved."""
    policy = model.policy
    if _adapted(model).settings.mode == "lora":
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, layer in [(n, m) for n, m in policy.named_modules() if isinstance(m, BaseTunerLayer)]:
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(policy.get_submodule(parent), attribute, layer.get_base_layer())
        if hasattr(policy, "peft_config"):
            del policy.peft_config
    object.__delattr__(policy, _STATE)
    policy.requires_grad_(False)


def _adapted(model: BaseModel) -> _Adapted:
    state = getattr(model.policy, _STATE, None)
    if state is None:
        raise AdapterError(f"{model.name} is not adapted: call make_trainable first")
    assert isinstance(state, _Adapted)
    return state


def _lora_config(model: BaseModel, settings: AdaptSettings):  # type: ignore[no-untyped-def]
    # Here: peft costs a second to import, and `restorl restore` of a merged model needs none of it.
    from peft.tuners.lora import LoraConfig

    targets = settings.targets or model.lora_targets
    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets)  # type: ignore[arg-type]


def _inject_lora(model: BaseModel, settings: AdaptSettings) -> None:
    config = _lora_config(model, settings)  # before peft.mapping, which needs what this imports
    from peft.mapping import inject_adapter_in_model

    targets = settings.targets or model.lora_targets
    if not any(re.fullmatch(targets, name) for name, _ in model.policy.named_modules()):
        raise AdapterError(f"{model.name}: no module of the policy matches the LoRA targets {targets!r}")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, model.policy, _ADAPTER)


def _lora_layers(policy: nn.Module):  # type: ignore[no-untyped-def]
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
