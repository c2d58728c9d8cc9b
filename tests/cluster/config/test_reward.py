"""The reward of a recipe: one scorer, or terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config.configure import ConfigError, load_config, save_config
from cluster.config.recipe import RunConfig
from cluster.config.reward import RunReward
from cluster.run.checks.resources import demands
from cluster.run.preflight import names

OURS = Path(__file__).parents[3] / "configs" / "ours.yaml"


def config(*overrides: str) -> RunConfig:
    return load_config(RunConfig, OURS, ["model=models/demo", *overrides])


def test_without_terms_the_scorer_is_the_reward() -> None:
    reward = config("reward.scorer=piqe", "reward.params={a: 1}").reward
    (term,) = reward.resolved.terms
    assert (term.name, term.weight, term.served, reward.resolved.plain) == ("piqe", 1.0, True, True)
    assert reward.services["piqe"].params == {"a": 1} and not isinstance(reward.services["piqe"], RunReward)


def test_a_term_takes_from_the_section_what_it_does_not_say_and_params_only_with_the_scorer() -> None:
    terms = "[{}, {scorer: piqe, weight: 0.5, deadline_s: 9, name: p}, {scorer: psnr, params: {protocol: derain_y}}]"
    reward = config(
        "reward.scorer=clip_iqa", "reward.params={model: x}", "reward.retries=7", f"reward.terms={terms}"
    ).reward
    first, second, third = reward.resolved.terms
    assert [t.name for t in reward.resolved.terms] == ["clip_iqa", "p", "psnr"]
    one, two = reward.services["clip_iqa"], reward.services["p"]
    assert (one.params, one.retries, one.deadline_s) == ({"model": "x"}, 7, 120.0)
    assert (two.scorer, two.params, two.retries, two.deadline_s) == ("piqe", {}, 7, 9.0)
    assert list(reward.services) == ["clip_iqa", "p"] and not third.served and third.params == {"protocol": "derain_y"}
    assert reward.resolved.main == "clip_iqa" and reward.key("p") == "reward.terms[1]"


def test_a_recipe_with_terms_is_saved_and_read_back(tmp_path: Path) -> None:
    made = config("reward.terms=[{}, {scorer: ssim, weight: 2}]", "reward.combine=gdpo")
    save_config(made, tmp_path / "config.yaml")
    assert load_config(RunConfig, tmp_path / "config.yaml") == made


def test_each_service_asks_for_its_own_place() -> None:
    terms = "reward.terms=[{num_gpus: 1, replicas: 2}, {scorer: piqe, num_cpus: 3}, {scorer: psnr}]"
    found = {d.key: (d.count, dict(d.each)) for d in demands(config(terms, "reward.num_cpus=0.5"))}
    assert found["reward.terms[0]"] == (2, {"CPU": 0.5, "GPU": 1}) and found["reward.terms[1]"] == (1, {"CPU": 3})
    assert len(found) == 4


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ("[{scorer: psnr, wieght: 1}]", r"terms\[0\]: unknown key 'wieght'"),
        ("[{weight: -1}]", r"terms\[0\].weight=-1"),
        ("[{weight: .nan}]", r"terms\[0\].weight=nan"),
        ("[{weight: 0}]", "none has a weight above 0"),
        ("[{}, {}]", "two are called 'lite0_levels'; give one a `name`"),
        ("[{scorer: ''}]", r"terms\[0\].scorer=''"),
        ("[{max_batch: 0}]", r"terms\[0\].*max_batch=0"),
        ("[{deadline_s: soon}]", r"terms\[0\].deadline_s"),
        ("[{}, {scorer: lpips, weight: 0}]", r"terms\[1\].weight=0: evaluations have lpips or not"),
        ("[{}, {scorer: niqe, name: reward}]", r"terms\[1\]: 'reward' is the name of another figure"),
        ("[{name: psnr}]", "is the name of another figure"),
        ("[{name: gt_x}]", "is the name of another figure"),
        ("[{}, {scorer: niqe, name: piqe}]", "evaluation.scorers has piqe, which is the name of another scorer"),
        ("[{scorer: psnr, replicas: 2}]", r"terms\[0\].replicas: psnr is computed by the actors"),
        ("[{params: 3}]", r"terms\[0\].params=3"),
        (f"[{{name: {'n' * 33}}}]", "at most 32 characters"),
        ("[3]", "terms"),
    ],
)
def test_a_mistake_in_a_term_is_told_with_its_place(terms: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(f"reward.terms={terms}")


@pytest.mark.parametrize(
    ("term", "key"),
    [
        ("{scorer: nimaa}", "reward.terms[1].scorer"),
        ("{scorer: lpips}", "reward.terms[1].params"),
        ("{scorer: psnr, params: {protocol: mine}}", "reward.terms[1].params"),
    ],
)
def test_a_term_that_can_not_be_made_is_told_before_anything_starts(term: str, key: str) -> None:
    found: list[Any] = [p for p in names(config(f"reward.terms=[{{}}, {term}]")) if not isinstance(p, str)]
    assert [p.key for p in found] == [key]
