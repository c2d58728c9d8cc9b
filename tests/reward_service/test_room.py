"""Memory that stays between the parts of the pictures."""

from __future__ import annotations

import pytest
import torch

from reward_service.scorers import room as module
from reward_service.scorers.room import Room, room


@pytest.fixture(autouse=True)
def none_yet(monkeypatch: pytest.MonkeyPatch) -> list[Room]:
    free: list[Room] = []
    monkeypatch.setattr(module, "_free", free)
    return free


LIKE = torch.zeros(1, dtype=torch.float64)


def test_the_next_part_has_the_memory_of_the_one_before() -> None:
    places = []
    for _ in range(3):
        with room() as one:
            a, b = one.take(LIKE, 3, 5), one.take(LIKE, 7, dtype=torch.float32)
            assert (a.shape, a.dtype, b.shape, b.dtype) == ((3, 5), torch.float64, (7,), torch.float32)
            a.fill_(1), b.fill_(2)
            assert a.sum() == 15 and b.sum() == 14  # they don't overlap
            places.append((a.data_ptr(), b.data_ptr()))
    assert places[1] == places[2]


def test_what_is_lent_is_there_again_after_its_block() -> None:
    for _ in range(2):
        with room() as one:
            kept = one.take(LIKE, 4).fill_(7)
            with one.lent():
                first = one.take(LIKE, 100).fill_(1).data_ptr()
            second = one.take(LIKE, 100).fill_(2).data_ptr()
            assert kept.tolist() == [7] * 4
    assert first == second


def test_two_at_once_have_different_rooms_and_one_that_fails_gives_its_own_back(none_yet: list[Room]) -> None:
    with room() as one, room() as other:
        assert one is not other
    assert len(none_yet) == 2
    with pytest.raises(ZeroDivisionError), room() as one:
        one.take(LIKE, 3)
        1 / 0  # noqa: B018
    assert len(none_yet) == 2


def test_a_part_too_large_to_be_kept_is_not(none_yet: list[Room], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    for size, kept in ((100, 832), (1000, 0), (50, 448)):
        with room() as one:
            assert len(one.take(LIKE, size)) == size
        assert len(none_yet[0]._memory) == kept
