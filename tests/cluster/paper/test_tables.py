from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.config.resume import changes
from cluster.paper.arms import ARMS, BASE, ITERATED, arm_of
from cluster.paper.scales import SCALES, scale_of
from cluster.paper.tables import MEAN, TABLES, TRAINING, printed, source, tables_of
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


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.words])
def test_an_arm_is_what_the_recipe_of_its_ablation_says(name: str) -> None:
    of_gpus = name in ("qalign_reward", "clip_iqa_reward")
    given = ("model=m", "data.root=d", "name=n")
    base = load_config(RunConfig, PAPER / "diffbir.yaml" if of_gpus else Path("configs/ours.yaml"), given)
    by_words = load_config(
        RunConfig, PAPER / "diffbir.yaml" if of_gpus else Path("configs/ours.yaml"), (*given, *ARMS[name].words)
    )
    file = Path("configs") / ("diff_sft.yaml" if name == "diff_sft" else f"ablations/{name}.yaml")
    by_file = load_config(RunConfig, file, given)
    # A network of another size takes another time to start, which is no part of the method.
    assert changes(base, by_words) and changes(by_words, by_file).keys() <= {"reward.start_timeout_s"}


@pytest.mark.parametrize("model", TABLES["1"].lines[::3], ids=lambda line: line.model)
@pytest.mark.parametrize("scale", SCALES)
def test_every_recipe_takes_the_words_of_every_scale_set_and_arm(scale: str, model: object) -> None:
    chosen = SCALES[scale]
    recipe = PAPER / f"{getattr(model, 'model', '')}.yaml"
    for arm in ARMS.values():
        own = chosen.in_place_of.get(arm.name, arm.words)
        config = load_config(RunConfig, recipe, (*TRAINING["sid"], *chosen.words, *own))
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
