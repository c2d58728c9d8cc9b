from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.run.checks.pictures import embeddings
from cluster.run.flow import Size
from tests.cluster.run.checks.cases import LOL, Facts, config_of, the_problem, with_model


@pytest.mark.parametrize(
    ("overrides", "train", "facts", "said"),
    [
        (
            ["rollout.crop=512"],
            LOL,
            {},
            "don't fit into 485 of 485 training pictures, the smallest of 600x400; 384 is the",
        ),
        (["rollout.crop=512"], LOL, {}, "384 is the largest crop that fits, and 0 takes whole pictures (576x384)"),
        (["rollout.crop=400"], LOL, {}, "400: diffbir works on multiples of 64 pixels; choose 384"),
        (["rollout.crop=200"], LOL, {}, "choose 192 or 256"),
        (["rollout.crop=-64"], LOL, {}, "give a multiple of 64, or 0"),
        (
            ["rollout.crop=0"],
            [(400, 600), (400, 560)],
            {},
            "of 2 sizes from 512x384 to 576x384, and rollout.images_per",
        ),
        (
            ["rollout.crop=256"],
            [(256, 256), (255, 300)],
            {},
            "into 1 of 2 training pictures, the smallest of 300x255; 192",
        ),
        (["rollout.crop=128"], [(60, 300)], {}, "300x60 pixels, the model takes multiples of 64; leave out"),
        (["rollout.crop=384"], LOL, {"side_limit": 256}, "384: diffbir knows sides up to 256, here are 384; 256 is"),
        (["rollout.crop=0"], LOL, {"side_limit": 512}, "knows sides up to 512, here are 576; 384 is the largest"),
    ],
)
def test_a_crop_that_cannot_be_taken_is_refused_with_those_that_can(
    overrides: list[str], train: list[Size], facts: dict[str, Any], said: str
) -> None:
    assert said in the_problem(with_model(*overrides, train=train, facts=Facts(**facts)))[1]


@pytest.mark.parametrize(
    ("overrides", "train"),
    [
        (["rollout.crop=384"], LOL),
        (["rollout.crop=0"], LOL),
        (["rollout.crop=0"], [(400, 600), (410, 610)]),  # both 576x384 once cut to multiples
        (["rollout.crop=0", "rollout.images_per_batch=1"], [(400, 600), (400, 560)]),
    ],
)
def test_a_crop_that_fits_is_taken(overrides: list[str], train: list[Size]) -> None:
    assert not with_model(*overrides, train=train).problems


def test_pictures_with_embeddings_of_their_own_need_a_file_each(tmp_path: Path) -> None:
    config = config_of(f"data.embeddings={tmp_path}")
    (tmp_path / "a.safetensors").touch()
    (problem,) = embeddings(config, ["a", "sub/b"])
    assert "has no file for 1 of 2 pictures (sub/b)" in str(problem)
    assert not list(embeddings(config, ["a"]))
    (tmp_path / "cafe\u0301.safetensors").touch()  # as macOS writes it
    assert not list(embeddings(config, ["caf\u00e9"]))
    (problem,) = embeddings(config_of("data.embeddings=/nowhere"), ["a"])
    assert "/nowhere is no folder" in str(problem)
