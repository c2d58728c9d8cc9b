from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.config.resume import changes
from cluster.paper.arms import ARMS, BASE, ITERATED, arm_of
from cluster.paper.scales import SCALES, scale_of
from cluster.paper.tables import MEAN, MODELS, TABLES, TRAINING, printed, source, tables_of
from restoration.datasets.registry import SETS

PAPER = Path("configs/paper")
DAMAGED = {"with Rec.", "Norm. from track", "with Q-align", "with CLIP-IQA"}  # on LOL-synthetic, in the transcription


@pytest.mark.parametrize("number", TABLES)
def test_every_place_of_a_table_has_the_papers_figure_but_for_the_damaged_rows(number: str) -> None:
    table = TABLES[number]
    titles = [part.title for part in table.parts] + ([MEAN] if table.mean else [])
    places = {(line.title, title, metric.name) for line in table.lines for title in titles for metric in table.metrics}
    damaged = {place for place in places if number == "6" and place[1] == "LOL-synthetic" and place[0] in DAMAGED}
    assert set(printed(table)) == places - damaged
    assert len(damaged) == (16 if number == "6" else 0)


def test_figures_are_those_that_the_paper_prints() -> None:
    assert printed(TABLES["1"])["DiffBIR+Our RL", "LOL-real", "psnr"] == 22.11
    assert printed(TABLES["2"])["PASD+Our RL", "SMID", "fid"] == 78.95
    assert printed(TABLES["4"])["PASD+Ours", "RealBlur-R", "ssim"] == 0.876
    assert printed(TABLES["5"])["DiffBIR", "DPDD outdoor dual", "psnr"] == 20.67
    assert printed(TABLES["6"])["with Iter. RL", "LOL-synthetic", "lpips"] == 0.0695
    assert "2511.01645" in source()


def test_the_papers_mean_over_the_deraining_sets_is_unweighted() -> None:
    table = TABLES["3"]
    figures = printed(table)
    for line in table.lines:
        for metric in table.metrics:
            mean = sum(figures[line.title, part.title, metric.name] for part in table.parts) / len(table.parts)
            # The paper's last digit is its own rounding, of figures with more digits.
            assert mean == pytest.approx(figures[line.title, MEAN, metric.name], abs=1.1 * 10**-metric.digits)


def test_rows_and_columns_are_those_of_the_registry_and_of_the_recipes() -> None:
    for table in TABLES.values():
        assert max(Counter(line.title for line in table.lines).values()) == 1
        for part in table.parts:
            assert part.split in SETS[part.set].splits and "train" in SETS[part.trained_on].splits
            assert SETS[part.set].protocol is not None
        for line in table.lines:
            assert (PAPER / f"{line.model}.yaml").is_file() and line.arm in ARMS
    assert TRAINING.keys() <= SETS.keys()


@cache
def loaded(recipe: Path, *words: str) -> RunConfig:
    return load_config(RunConfig, recipe, ("model=m", "data.root=d", "name=n", *words))


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.words])
def test_an_arm_is_what_the_recipe_of_its_ablation_says(name: str) -> None:
    of_gpus = name in ("qalign_reward", "clip_iqa_reward")
    recipe = PAPER / "diffbir.yaml" if of_gpus else Path("configs/ours.yaml")
    base, by_words = loaded(recipe), loaded(recipe, *ARMS[name].words)
    by_file = loaded(Path("configs") / ("diff_sft.yaml" if name == "diff_sft" else f"ablations/{name}.yaml"))
    # A network of another size takes another time to start, which is no part of the method.
    assert changes(base, by_words) and changes(by_words, by_file).keys() <= {"reward.start_timeout_s"}


@pytest.mark.parametrize("model", MODELS)
def test_every_recipe_takes_the_words_of_the_smallest_scale(model: str) -> None:
    config = loaded(PAPER / f"{model}.yaml", *TRAINING["sid"], *SCALES["tiny"].words)
    assert config.iterations == 2 and config.rollout.crop == 64 and config.actors.num_gpus == 0


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_goes_with_every_scale(scale: str) -> None:
    chosen = SCALES[scale]
    for arm in ("ours", "rec_reward", "qalign_reward", "clip_iqa_reward"):  # others are switches alone
        own = chosen.in_place_of.get(arm, ARMS[arm].words)
        config = loaded(PAPER / "diffbir.yaml", *chosen.words, *own)
        assert config.iterations == {"full": 500, "quick": 50, "tiny": 2}[scale]
        assert (config.actors.num_gpus == 0) == chosen.single


def test_what_is_unknown_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="no table '7'; choose one of 1, 2, 3, 4, 5, 6, or all"):
        tables_of("7")
    with pytest.raises(ValueError, match="no arm 'mine'; choose one of base, diff_sft, ours"):
        arm_of("mine")
    with pytest.raises(ValueError, match="--scale huge: choose one of full, quick, tiny"):
        scale_of("huge")
    assert len(tables_of("all")) == 6
    assert ARMS[BASE].trains is False and ARMS[ITERATED].after == "ours"
