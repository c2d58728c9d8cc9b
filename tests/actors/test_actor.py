"""What an actor does with pictures that can't be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.actor import draw_batch
from actors.work import WorkItem
from restoration.datasets.paired import PairedFolder
from restoration.images import write_image


@pytest.fixture
def pairs(tmp_path: Path) -> PairedFolder:
    """Pictures a, b, c of 32x32 and small of 16x16."""
    for kind in ("input", "target"):
        (tmp_path / kind).mkdir()
        for n, name in enumerate(("a", "b", "c", "small")):
            side = 16 if name == "small" else 32
            write_image(tmp_path / kind / f"{name}.png", np.full((side, side, 3), 40 * n, np.uint8))
    return PairedFolder(tmp_path / "input", tmp_path / "target")


def test_one_picture_that_cannot_be_read_costs_its_own_group_only(pairs: PairedFolder) -> None:
    (pairs.gt / "b.png").write_bytes((pairs.gt / "b.png").read_bytes()[:60])
    (pairs.lq / "c.png").unlink()
    batch, refused = draw_batch(pairs, WorkItem(7, ("b", "a", "c")), side=16, seed=0, multiple=8)
    assert batch is not None and list(batch.image_ids) == ["a"] and batch.places == (1,)
    assert [(q.what, q.reason) for q in refused] == [("00000007-000", "picture"), ("00000007-002", "picture")]
    assert "b.png" in refused[0].detail and "c.png" in refused[1].detail


def test_the_crop_of_a_picture_does_not_depend_on_its_company(pairs: PairedFolder) -> None:
    item = WorkItem(7, ("b", "a"))
    whole, _ = draw_batch(pairs, item, side=16, seed=0, multiple=8)
    (pairs.gt / "b.png").unlink()
    part, _ = draw_batch(PairedFolderWithout(pairs, "b"), item, side=16, seed=0, multiple=8)
    assert whole is not None and part is not None
    assert part.crops == [whole.crops[1]] and part.flips == [whole.flips[1]]


class PairedFolderWithout:
    def __init__(self, pairs: PairedFolder, gone: str) -> None:
        self.pairs, self.gone = pairs, gone

    def load(self, image_id: str):  # type: ignore[no-untyped-def]
        if image_id == self.gone:
            raise FileNotFoundError(f"{image_id} is gone")
        return self.pairs.load(image_id)


def test_a_picture_smaller_than_the_crop_is_refused_and_an_item_of_such_gives_no_batch(pairs: PairedFolder) -> None:
    batch, refused = draw_batch(pairs, WorkItem(0, ("small",)), side=32, seed=0, multiple=8)
    assert batch is None and "32 px does not fit" in refused[0].detail


def test_whole_pictures_of_unequal_size_are_an_error_of_the_recipe(pairs: PairedFolder) -> None:
    with pytest.raises(ValueError, match=r"rollout.images_per_batch=1"):
        draw_batch(pairs, WorkItem(0, ("a", "small")), side=0, seed=0, multiple=8)
