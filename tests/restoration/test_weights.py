import pytest
import torch

from restoration.weights import (
    StaleEpoch,
    WeightsError,
    WeightsInfo,
    WeightsMessage,
    from_bytes,
    read_info,
    require_epoch,
    to_bytes,
)

STATE = {"a.lora_A": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5], dtype=torch.bfloat16)}
INFO = WeightsInfo(version=7, epoch=3, run_id="run")


def test_tensors_and_their_origin_survive_the_bytes() -> None:
    data = to_bytes(STATE, INFO)
    for form in (data, memoryview(data)):
        state, info = from_bytes(form)
        assert info == INFO == read_info(form) and state.keys() == STATE.keys()
        assert all(torch.equal(state[n], STATE[n]) and state[n].dtype == STATE[n].dtype for n in STATE)


def test_an_older_epoch_is_refused() -> None:
    with pytest.raises(StaleEpoch, match="epoch 3, the run is in epoch 4"):
        from_bytes(to_bytes(STATE, INFO), minimum_epoch=4)
    with pytest.raises(StaleEpoch):
        require_epoch(WeightsMessage(9, 2, None), 3)
    assert from_bytes(to_bytes(STATE, INFO), minimum_epoch=3)[1] == INFO


def test_bytes_that_are_no_published_weights_are_refused() -> None:
    data = to_bytes(STATE, INFO)
    from safetensors.torch import save

    for bad in (b"", b"nonsense", data[:40], data[:-3], save(STATE), b"\xff" * 8 + data[8:]):
        with pytest.raises(WeightsError):
            from_bytes(bad)
