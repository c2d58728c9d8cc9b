"""`restorl reward check`: from a recipe to its files, and a run that looks for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import app as cli
from cluster.config.recipe import RunConfig
from cluster.run.checks.reward_trust import reward_trust
from cluster.trust import stored
from cluster.trust.rewards import rewards_of
from restoration.datasets.paired import discover
from tests.cluster.trust import judges

MODEL = Path("models/demo").resolve()
WITH_PSNR = {"scorer": "piqe", "terms": [{}, {"scorer": "psnr", "weight": 0.3}]}
FEW = ("--pictures", "2", "--groups", "1", "--rollouts", "3")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for the demo model and three small pictures; the working directory is elsewhere."""
    for one in judges.specimens(3):
        for kind, image in (("input", one.lq), ("target", one.gt)):
            for split in ("train", "test"):
                (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(tmp_path / "data" / split / kind / f"{one.image_id}.png")
    content = {
        "name": "small",
        "model": str(MODEL),
        "data": {"root": str(tmp_path / "data")},
        "sampler": {"steps": 2, "eta": 1.0},
        "rollout": {"crop": 40},
        "reward": {"scorer": "piqe"},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "small.yaml"


def check(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["reward", "check", *map(str, arguments)])


def warnings_of(recipe: Path, **changes: Any) -> list[str]:
    config = RunConfig(**(yaml.safe_load(recipe.read_text()) | changes))
    return list(reward_trust(config, discover(config.data.root, "test").image_ids))


def test_a_check_writes_what_it_found_and_a_run_of_the_same_finds_it(recipe: Path, tmp_path: Path) -> None:
    assert "restorl reward check CONFIG" in warnings_of(recipe)[0]
    result = check(recipe, "reward.terms=[{}, {scorer: psnr, weight: 0.3}]", *FEW, "--out", "mine", "--strict")
    assert result.exit_code in (0, 1), result.output
    found = json.loads((tmp_path / "mine" / "check.json").read_text())
    whole, alone = found["rewards"]
    assert (whole["name"], alone["name"]) == ("piqe + 0.3 x psnr", "piqe") and alone["version"] == "piqe-2"
    assert result.exit_code == int(whole["word"] != "trust")
    assert whole["sentence"] in result.output and found["pictures"] == ["p0", "p1"]
    assert whole["measures"]["scores"]["ground truth"]["value"] > 30  # a PSNR of 100 dB, weighed
    assert [len(w["groups"]) for w in whole["measures"]["within"].values()] == [1]
    page = (tmp_path / "mine" / "report.html").read_text()
    assert whole["sentence"].split(":")[0] in page and "reward check" in page and "$" not in re.sub(r"<.*?>", "", page)
    assert page.count("data:image/png;base64,") == 9

    (untried,) = warnings_of(recipe)  # without PSNR it is another reward
    assert "nobody has tried" in untried
    told = warnings_of(recipe, reward=WITH_PSNR)
    assert told == ([f"reward: {whole['sentence']}; see {_usual(found['key'])}"] if whole["word"] == "no" else [])


def test_without_a_page_and_without_strict_it_ends_well_whatever_is_found(recipe: Path) -> None:
    result = check(recipe, *FEW, "--no-html", "--groups", "0")
    assert result.exit_code == 0, result.output
    (file,) = stored.CHECKS.glob("small-*/*")
    assert file.name == "check.json" and "nothing is known of it" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("reward.scorer=nima",), "no scorer named 'nima'"),
        (("rollout.crop=400",), "does not fit into an image of 48x48"),
        (("data.heldout=absent",), "absent"),
        (("model=/nowhere",), "/nowhere"),
        (("reward.scorer=niqe",), "rollout.crop=40: niqe takes pictures of at least 96 pixels"),
        (("--device", "gpu"), "device=gpu: no device"),
    ],
)
def test_what_cannot_be_tried_is_told_in_words(recipe: Path, arguments: tuple[str, ...], told: str) -> None:
    result = check(recipe, *arguments, *FEW)
    assert result.exit_code == 2 and told in result.output and not isinstance(result.exception, TypeError)


def _usual(key: str) -> Path:
    return stored.folder_of("small", key) / stored.FILE


def _result(word: str, sentence: str) -> dict[str, Any]:
    return {"rewards": [{"word": word, "sentence": sentence}], "key": "k" * 12}


def test_a_run_is_told_what_speaks_against_its_reward_and_nothing_else(recipe: Path) -> None:
    config = RunConfig(**yaml.safe_load(recipe.read_text()))
    key = stored.key_of(config, discover(config.data.root, "test").image_ids)
    file = stored.write(stored.folder_of("x y", key), _result("no", "it cannot be trusted") | {"key": key})
    assert warnings_of(recipe) == [f"reward: it cannot be trusted; see {file}"]
    stored.write(stored.folder_of("x y", key), _result("care", "with care") | {"key": key})
    assert warnings_of(recipe) == []
    assert warnings_of(recipe, reward={"scorer": "reconstruction"}) == []


def test_another_reward_model_chain_or_data_is_another_key(recipe: Path, tmp_path: Path) -> None:
    def key(ids: tuple[str, ...] = ("a", "b"), **changes: Any) -> str:
        return stored.key_of(RunConfig(**(yaml.safe_load(recipe.read_text()) | changes)), ids)

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "restorl_model.json").write_text("{}")
    keys = [
        key(),
        key(ids=("a", "c")),
        key(reward={"scorer": "niqe"}),
        key(reward={"scorer": "piqe", "params": {"device": "cuda"}}),
        key(sampler={"steps": 3}),
        key(model=str(tmp_path / "model")),
        key(rollout={"crop": 48}),
        key(reward=WITH_PSNR),
        key(reward=WITH_PSNR | {"combine": "gdpo"}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(reward={"scorer": "piqe", "replicas": 3}) == key(ids=("b", "a")) == key()
    assert key(iterations=3, optimiser={"lr": 1e-3}) == key()


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 9, "key": "kkkkkkkkkkkk", "rewards": []}'])
def test_a_damaged_result_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = stored.write(stored.folder_of("a", "k" * 12), _result("no", "x"))
    assert stored.find("k" * 12) == stored.Found(file, "no", "x")
    file.write_text(content)
    assert stored.find("k" * 12) is None


def test_the_rewards_of_a_recipe_are_the_one_it_trains_on_and_its_judge() -> None:
    one = judges.specimens(1)[0]
    images, gts = one.rollouts[1], one.gt[None].repeat(len(one.rollouts[1]), 0)

    def scores(**reward: Any) -> list[tuple[str, bool, float]]:
        config = RunConfig(model=Path("m"), reward={"scorer": "piqe"} | reward)  # type: ignore[arg-type]
        return [(r.name, r.referenced, float(r.score(images, gts)[0])) for r in rewards_of(config, "cpu")]

    ((name, referenced, piqe),) = scores()
    assert (name, referenced) == ("piqe", False)
    terms = [{}, {"scorer": "psnr", "weight": 0.5}, {"scorer": "niqe", "weight": 0}]
    (whole, judge) = scores(terms=terms)
    assert whole[:2] == ("piqe + 0.5 x psnr", True) and judge == ("piqe", False, piqe)
    assert 5 < whole[2] - piqe < 25
    assert [part[:2] for part in scores(terms=terms, combine="gdpo")] == [("piqe", False), ("psnr", True)]
    ((_, _, away),) = scores(scorer="reconstruction")
    assert -40 < away < 0
