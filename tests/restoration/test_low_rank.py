"""Updates of a few layers, against peft's LoRA as an independent oracle."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from restoration.base_models.networks.low_rank import Release, active, attach, load_updates, parameters_of, updates_of
from restoration.checkpoints import CheckpointError

NAMED = Release(alpha=8)
NAMELESS = Release(prefix="transformer.", name="only")


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.mix = nn.Sequential(nn.Linear(6, 5, bias=False), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mix(self.norm(self.stem(x)).movedim(1, -1))
        return out


def layers() -> Layers:
    torch.manual_seed(0)
    return Layers()


def state(rank: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "stem.lora_A.one.weight": torch.randn(rank, 3, 3, 3),
        "stem.lora_B.one.weight": torch.randn(6, rank, 1, 1),
        "stem.lora_A.two.weight": torch.randn(rank + 1, 3, 3, 3),
        "stem.lora_B.two.weight": torch.randn(6, rank + 1, 1, 1),
        "mix.0.lora_A.two.weight": torch.randn(rank + 1, 6),
        "mix.0.lora_B.two.weight": torch.randn(5, rank + 1),
    }


def updated() -> Layers:
    network = layers()
    load_updates(network, state(), NAMED, "file")
    return network


X = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("prefix", ["unet.", "base_model.model.", "module."])
def test_what_a_wrapper_puts_before_every_key_of_an_update_is_taken_off(prefix: str) -> None:
    network = layers()
    load_updates(network, {prefix + k: v for k, v in state().items()}, NAMED, "file")
    own = updated().state_dict()
    assert all(torch.equal(v, own[k]) for k, v in network.state_dict().items())
    with pytest.raises(CheckpointError, match=r"file does not fit.*teacher\.mix"):
        load_updates(layers(), {"teacher." + k: v for k, v in state().items()}, NAMED, "file")


@pytest.mark.parametrize("names", [("one",), ("two",), ("one", "two")])
def test_active_updates_give_what_peft_gives(names: tuple[str, ...]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    oracle = layers()
    for name, rank, targets in (("one", 2, ["stem"]), ("two", 3, ["stem", "mix.0"])):
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=8, target_modules=targets), oracle, name)
    assert not oracle.load_state_dict(state(), strict=False).unexpected_keys
    for module in oracle.modules():
        if hasattr(module, "lora_A"):
            module.set_adapter(list(names))  # type: ignore[operator]
    with active(names):
        ours = updated()(X)
    assert torch.allclose(ours, oracle(X), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, layers()(X), atol=1e-2)


def test_without_active_updates_the_layers_are_the_plain_ones() -> None:
    network = updated()
    with active(()):
        assert torch.equal(network(X), layers()(X))


def test_outside_of_a_choice_all_updates_act_also_after_an_exception() -> None:
    network = updated()
    with active(("one", "two")):
        every = network(X)
    with pytest.raises(RuntimeError, match="in between"), active(("one",)):
        raise RuntimeError("in between")
    assert torch.equal(network(X), every)


def test_a_choice_is_that_of_its_thread() -> None:
    network, seen = updated(), []
    every = network(X)
    with active(()):
        other = threading.Thread(target=lambda: seen.append(network(X)))
        other.start()
        other.join()
    assert torch.equal(seen[0], every)


def test_a_file_without_names_has_its_prefix_and_scale_1() -> None:
    nameless = {
        "transformer.mix.0.lora_A.weight": torch.ones(2, 6),
        "transformer.mix.0.lora_B.weight": torch.ones(5, 2),
    }
    network, plain = layers(), layers()
    load_updates(network, nameless, NAMELESS, "file")
    with torch.no_grad():
        plain.mix[0].weight += 2  # type: ignore[operator]
    assert torch.allclose(network(X), plain(X), atol=1e-5)
    assert updates_of(network) == {"only"}


def test_the_plain_weights_keep_their_names_and_no_name_is_one_of_peft() -> None:
    plain, names = layers().state_dict(), updated().state_dict()
    assert all(torch.equal(names[k], v) for k, v in plain.items())
    assert not any("lora" in k for k in names)
    assert parameters_of(updated(), ["two"]) == tuple(k for k in names if ".two." in k)


def test_an_unknown_update_has_no_parameters() -> None:
    with pytest.raises(ValueError, match="three"):
        parameters_of(updated(), ["three"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"absent.lora_A.one.weight": (2, 3), "absent.lora_B.one.weight": (3, 2)}, r"2 unexpected: absent\.lora_A"),
        ({"norm.lora_A.one.weight": (2, 6)}, r"1 unexpected: norm\.lora_A"),
        ({"stem.bias": (6,)}, r"1 unexpected: stem\.bias"),
        ({"mix.0.lora_A.weight": (2, 6)}, r"1 unexpected: mix\.0\.lora_A\.weight"),
        ({"mix.0.lora_A.one.weight": (2, 6)}, r"1 missing: mix\.0\.lora_B\.one\.weight"),
        ({"mix.0.lora_A.two.weight": (3, 7)}, r"1 of another shape: mix\.0\.lora_A\.two"),
        ({"mix.0.lora_B.two.weight": (5,)}, r"mix\.0\.lora_B\.two\.weight \(5,\) instead of \(5, 3\)"),
        ({"stem.lora_B.one.weight": (6, 3, 1, 1)}, r"stem\.lora_B\.one\.weight \(6, 3, 1, 1\) instead of \(6, 2"),
    ],
)
def test_keys_that_do_not_fit_are_named_and_change_nothing(change: dict[str, tuple[int, ...]], message: str) -> None:
    network = layers()
    shapes = {k: tuple(v.shape) for k, v in state().items()} | change
    with pytest.raises(CheckpointError, match=message):
        attach(network, shapes, NAMED, "file")
    assert updates_of(network) == set() and network.state_dict().keys() == layers().state_dict().keys()


def test_the_same_update_is_not_attached_twice() -> None:
    with pytest.raises(CheckpointError, match="6 unexpected"):
        load_updates(updated(), state(), NAMED, "file")
