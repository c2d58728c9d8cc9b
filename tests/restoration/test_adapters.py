import pytest
import torch

from restoration.adapters import (
    AdapterError,
    AdaptSettings,
    frozen_type,
    load_trainable,
    make_trainable,
    merge,
    reference,
    save_lora,
    trainable_state,
)
from restoration.average import WeightAverage
from restoration.base_models.interface import BaseModel
from restoration.precision import resolve
from tests.learner.fakes import FakeModel

BOTH = [AdaptSettings("lora", rank=2), AdaptSettings("full")]


def run(model: FakeModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    lq = torch.rand(2, 3, 16, 16, generator=generator)
    x = torch.randn(2, 3, 4, 4, generator=generator)
    return model.denoise(x, 500.0, model.condition(lq), 1.0)


def nudged(settings: AdaptSettings) -> FakeModel:
    model = FakeModel()
    parameters = make_trainable(model, settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def test_the_fake_model_satisfies_the_protocol() -> None:
    assert isinstance(FakeModel(), BaseModel)


@pytest.mark.parametrize("settings", BOTH)
def test_a_fresh_adaptation_changes_nothing(settings: AdaptSettings) -> None:
    plain, adapted = FakeModel(), FakeModel()
    make_trainable(adapted, settings)
    plain.policy.requires_grad_(False)  # torch may pick another convolution for weights that need a gradient
    assert torch.allclose(run(plain), run(adapted), rtol=0, atol=1e-6)


def test_lora_starts_from_its_seed_whatever_the_global_generator_holds() -> None:
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        model = FakeModel()
        make_trainable(model, AdaptSettings("lora", rank=2, seed=7))
        states.append(trainable_state(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("settings", BOTH)
def test_only_what_is_adapted_requires_a_gradient(settings: AdaptSettings) -> None:
    model = FakeModel()
    make_trainable(model, settings)
    trained = [name for name, p in model.policy.named_parameters() if p.requires_grad]
    assert trained == list(trainable_state(model))
    assert all(name.startswith("body.") for name in trained)
    assert all(("lora" in name) == (settings.mode == "lora") for name in trained)


@pytest.mark.parametrize("settings", BOTH)
def test_the_reference_is_exactly_the_model_before_training_and_is_undone(settings: AdaptSettings) -> None:
    frozen, model = FakeModel(), nudged(settings)
    frozen.policy.requires_grad_(False)
    before, trained = run(frozen), run(model)
    assert not torch.allclose(trained, before, atol=1e-3)
    with reference(model):
        assert torch.equal(run(model), before)
        with torch.no_grad():
            assert torch.equal(run(model), before)
    assert torch.equal(run(model), trained)
    with pytest.raises(RuntimeError, match="in between"), reference(model):
        raise RuntimeError("in between")
    assert torch.equal(run(model), trained)


@pytest.mark.parametrize("settings", BOTH)
def test_entering_the_reference_between_forward_and_backward_leaves_the_gradient_alone(settings: AdaptSettings) -> None:
    model = nudged(settings)
    parameters = [p for p in model.policy.parameters() if p.requires_grad]
    expected = torch.autograd.grad(run(model).square().sum(), parameters)
    output = run(model)
    with torch.no_grad(), reference(model):
        run(model)
    output.square().sum().backward()
    for p, gradient in zip(parameters, expected, strict=True):
        assert p.grad is not None and torch.equal(p.grad, gradient)


@pytest.mark.parametrize("settings", BOTH)
def test_trained_weights_travel_to_another_copy(settings: AdaptSettings) -> None:
    learner, actor = nudged(settings), FakeModel()
    make_trainable(actor, settings)
    load_trainable(actor, trainable_state(learner))
    assert torch.equal(run(actor), run(learner))


def test_loading_is_strict_and_changes_nothing_when_it_fails() -> None:
    model = nudged(BOTH[0])
    state = trainable_state(model)
    name = next(iter(state))
    before = run(model)
    with pytest.raises(AdapterError, match="1 missing"):
        load_trainable(model, {k: v for k, v in state.items() if k != name})
    with pytest.raises(AdapterError, match="1 unknown"):
        load_trainable(model, state | {"more": torch.zeros(1)})
    with pytest.raises(AdapterError, match="shape"):
        load_trainable(model, state | {name: torch.zeros(1)})
    with pytest.raises(AdapterError, match="NaN"):
        load_trainable(model, state | {name: state[name] * float("nan")})
    assert torch.equal(run(model), before)


def test_peft_loads_the_saved_lora(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from peft import PeftModel

    trained, fresh = nudged(BOTH[0]), FakeModel()
    save_lora(trained, tmp_path)
    PeftModel.from_pretrained(fresh.policy, str(tmp_path))
    assert torch.allclose(run(fresh), run(trained), atol=1e-6)


def test_merging_gives_a_plain_model_with_the_trained_outputs() -> None:
    model = nudged(BOTH[0])
    trained = run(model)
    merge(model)
    assert [n for n, _ in model.policy.named_parameters()] == [n for n, _ in FakeModel().policy.named_parameters()]
    assert torch.allclose(run(model), trained, atol=1e-5)
    make_trainable(model, BOTH[0])


def test_adapting_twice_or_nothing_is_refused() -> None:
    model = nudged(BOTH[0])
    with pytest.raises(AdapterError, match="already"):
        make_trainable(model, BOTH[0])
    with pytest.raises(AdapterError, match="no module"):
        make_trainable(FakeModel(), AdaptSettings("lora", targets="nowhere"))
    with pytest.raises(AdapterError, match="make_trainable"):
        trainable_state(FakeModel())
    with pytest.raises(ValueError, match="adapt.rank=0"):
        AdaptSettings(rank=0)


def test_frozen_weights_are_bfloat16_only_where_products_are() -> None:
    half, auto = AdaptSettings(frozen_dtype="bfloat16"), AdaptSettings(frozen_dtype="auto")
    assert frozen_type(AdaptSettings(), "cpu", torch.bfloat16) == torch.float32
    assert frozen_type(half, "cpu", torch.bfloat16) == torch.bfloat16
    assert frozen_type(auto, "cpu", torch.bfloat16) == resolve("auto", "cpu")
    assert frozen_type(auto, "cpu", torch.float32) == torch.float32
    with pytest.raises(ValueError, match=r"learner.dtype=bfloat16"):
        frozen_type(half, "cpu", torch.float32)
    with pytest.raises(ValueError, match=r"adapt.frozen_dtype='int8'"):
        AdaptSettings(frozen_dtype="int8")  # type: ignore[arg-type]


def test_without_a_reference_full_training_keeps_no_copy_and_says_so_when_asked_for_one() -> None:
    kept, plain = FakeModel(), FakeModel()
    make_trainable(kept, AdaptSettings("full"))
    make_trainable(plain, AdaptSettings("full"), keep_reference=False)
    with reference(kept):
        pass
    with pytest.raises(AdapterError, match="without a reference"), reference(plain):
        pass


def test_an_average_that_was_taken_stays_what_it_was_at_the_next_update() -> None:
    average = WeightAverage(0.5)
    average.update({"w": torch.zeros(2)})
    taken = dict(average.weights)
    average.update({"w": torch.ones(2)})
    assert taken["w"].tolist() == [0, 0] and average.weights["w"].tolist() == pytest.approx([0.75, 0.75])
