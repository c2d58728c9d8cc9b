"""diffusers and peft, of which one U-Net or LoRA else loads most of transformers, torch's compiler and 100 networks.

Every process of a run (driver, actors, ranks) pays for that, and on a laptop they all start at once. Nothing is taken
away, it is only loaded later: packages of networks run their `__init__` when asked for a name that is no submodule of
theirs, and classes that they need for `isinstance` and the like are stand-ins that load the class they stand for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# Packages whose __init__ imports everything of their kind.
ON_DEMAND = {f"diffusers.models.{kind}" for kind in ("autoencoders", "controlnets", "transformers", "unets")}
ON_DEMAND |= {"diffusers.hooks", "peft", "peft.tuners"}

# Modules that import these names for isinstance and the like.
STAND_INS = {
    "diffusers.loaders.lora_base": ("transformers:PreTrainedModel", "peft.tuners.tuners_utils:BaseTunerLayer"),
    "diffusers.loaders.single_file_utils": ("transformers:AutoImageProcessor",),
    "diffusers.models.lora": ("transformers:CLIPTextModel", "transformers:CLIPTextModelWithProjection"),
}

# Modules that take these classes from `transformers` itself, whatever is loaded for one of its names.
BORROWED = {
    "peft.tuners.lora.arrow": ("transformers.modeling_utils:PreTrainedModel",),
    "peft.tuners.tuners_utils": ("transformers.modeling_utils:PreTrainedModel",),
    "peft.utils.constants": ("transformers.models.bloom.modeling_bloom:BloomPreTrainedModel",),
    "peft.utils.other": ("transformers.modeling_utils:PreTrainedModel",),
    "peft.utils.quantization_utils": ("transformers.modeling_utils:PreTrainedModel",),
}

# Modules that do with less where another one can't be imported: a mark for the compiler, which looks into blocks as
# well, a name in an annotation, and tensor parallelism of language models.
WITHOUT = {
    "diffusers.utils.torch_utils": "torch._dynamo",
    "diffusers.quantizers.pipe_quant_config": "transformers.utils.quantization_config",
    "peft.import_utils": "transformers.distributed.tensor_parallel",
}

SHARDED_WEIGHTS = "peft.tuners.tuners_utils"  # asks of every weight whether it is a torch.distributed.tensor.DTensor
SCHEDULER = "diffusers.schedulers.scheduling_"  # modules that import scipy for one sort of noise levels

COMPILER_LATER = {"diffusers.hooks.group_offloading"}  # decorates functions with torch.compiler.disable


def install() -> None:
    """For this process; again is free. What has been imported already stays as it is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        run: Callable[[importlib.abc.Loader, ModuleType], None]
        if fullname in ON_DEMAND:
            run = _on_demand
        elif fullname == SHARDED_WEIGHTS:
            run = _with_sharded_weights_later
        elif fullname in STAND_INS:
            run = functools.partial(_with_stand_ins, STAND_INS[fullname])
        elif fullname in BORROWED:
            run = functools.partial(_with_borrowed, BORROWED[fullname])
        elif fullname in WITHOUT:
            run = functools.partial(_without, WITHOUT[fullname])
        elif fullname in COMPILER_LATER:
            run = _compiler_later
        elif fullname.startswith(SCHEDULER):
            run = _scipy_later
        else:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, run)
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader whose `exec_module` is called in some way of ours."""

    def __init__(self, loader: importlib.abc.Loader, run: Callable[[importlib.abc.Loader, ModuleType], None]) -> None:
        self._loader, self._run = loader, run

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._run(self._loader, module)

    def __getattr__(self, name: str) -> Any:  # get_source and others, for tracebacks and inspect
        return getattr(self._loader, name)


def _on_demand(loader: importlib.abc.Loader, module: ModuleType) -> None:
    def ask(name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        if module.__dict__.pop("__getattr__", None) is not None:
            loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = ask
    if "." not in module.__name__:
        module.__dict__["__version__"] = importlib.metadata.version(module.__name__)


def _with_stand_ins(names: Sequence[str], loader: importlib.abc.Loader, module: ModuleType) -> None:
    with _not_available({name.partition(":")[0].partition(".")[0] for name in names}) as there:
        loader.exec_module(module)
    for name in names:
        if name.partition(":")[0].partition(".")[0] in there:
            setattr(module, name.partition(":")[2], _stand_in(name))


def _with_borrowed(names: Sequence[str], loader: importlib.abc.Loader, module: ModuleType) -> None:
    transformers = importlib.import_module("transformers")
    lent = {name.partition(":")[2]: name for name in names if name.partition(":")[0] not in sys.modules}
    before = {attribute: transformers.__dict__.get(attribute) for attribute in lent}
    for attribute, name in lent.items():
        setattr(transformers, attribute, _stand_in(name))
    try:
        loader.exec_module(module)
    finally:
        for attribute, value in before.items():
            if value is None:
                delattr(transformers, attribute)
            else:
                setattr(transformers, attribute, value)


def _with_sharded_weights_later(loader: importlib.abc.Loader, module: ModuleType) -> None:
    import torch.distributed

    importlib.import_module("peft.utils")  # first, as with all of peft: else it and peft.mapping need each other
    name = "torch.distributed.tensor"
    if not hasattr(torch.distributed, "tensor"):
        later = ModuleType(name)  # until the real one is imported, which puts itself here
        later.__dict__["DTensor"] = _stand_in(f"{name}:DTensor")
        later.__dict__["__getattr__"] = lambda asked: getattr(importlib.import_module(name), asked)
        setattr(torch.distributed, "tensor", later)  # noqa: B010
    _with_borrowed(BORROWED[SHARDED_WEIGHTS], loader, module)


def _stand_in(name: str) -> _StandIn:
    module, _, attribute = name.partition(":")
    return _StandIn(attribute, (), {"_stands_for": (module, attribute)})


def _scipy_later(loader: importlib.abc.Loader, module: ModuleType) -> None:
    with _not_available({"scipy"}) as there:
        loader.exec_module(module)
    if there:
        setattr(module, "scipy", _LaterScipy("scipy"))  # noqa: B010  a module has no such attribute, for mypy


class _LaterScipy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        importlib.import_module("scipy.stats")
        return getattr(sys.modules["scipy"], name)


@contextmanager
def _not_available(packages: set[str]) -> Iterator[set[str]]:
    """diffusers imports optional packages where they are there: in here these seem not to be. Gives those that are."""
    utils: Any = importlib.import_module("diffusers.utils.import_utils")
    before = {package: getattr(utils, f"_{package}_available") for package in packages}
    for package in packages:
        setattr(utils, f"_{package}_available", False)
    try:
        yield {package for package, there in before.items() if there}
    finally:
        for package, there in before.items():
            setattr(utils, f"_{package}_available", there)


class _StandIn(type):
    """A class that is another one, imported when it is needed."""

    _stands_for: tuple[str, str]

    def _real(cls) -> Any:
        module, name = cls._stands_for
        return getattr(importlib.import_module(module), name)

    def __instancecheck__(cls, instance: object) -> bool:
        # An instance exists only where its module was imported.
        return cls._stands_for[0] in sys.modules and isinstance(instance, cls._real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return cls._stands_for[0] in sys.modules and issubclass(subclass, cls._real())

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_") and cls._stands_for[0] not in sys.modules:  # asked for at import, of older versions
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(cls._real(), name)


def _without(absent: str, loader: importlib.abc.Loader, module: ModuleType) -> None:
    if absent in sys.modules:
        loader.exec_module(module)
        return
    sys.modules[absent] = None  # type: ignore[assignment]
    try:
        loader.exec_module(module)
    finally:
        del sys.modules[absent]


def _compiler_later(loader: importlib.abc.Loader, module: ModuleType) -> None:
    with _disable_at_call():
        loader.exec_module(module)


@contextmanager
def _disable_at_call() -> Iterator[None]:
    """torch.compiler.disable, which loads the compiler, takes effect when what it decorates is called first."""
    import torch.compiler

    disable = torch.compiler.disable

    def decorate(fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        if fn is None:
            return functools.partial(decorate, **kwargs)

        @functools.wraps(fn)
        def call(*inner: Any, **named: Any) -> Any:
            return disable(fn, *args, **kwargs)(*inner, **named)

        return call

    torch.compiler.disable = decorate
    try:
        yield
    finally:
        torch.compiler.disable = disable
