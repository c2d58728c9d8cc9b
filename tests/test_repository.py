"""What a clone brings besides code: licence, citation, changes, hooks, and pages that speak of what is there."""

from __future__ import annotations

import hashlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from reward_service.scorers import Scorer
from tests.test_architecture import ROOMS, imports_of, modules_of_the_house

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # sha256 of the text as published
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_licence_is_the_whole_one_that_the_project_declares() -> None:
    text = read("LICENSE")
    ours = "Copyright 2026 The RestoRL authors"
    assert text.count(ours) == 1
    published = text.replace(ours, "Copyright [yyyy] [name of copyright owner]")
    assert hashlib.sha256(published.encode()).hexdigest() == APACHE_2
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]


def test_citation_and_changes_name_the_version_of_the_project() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert all(citation[key] for key in ("message", "title", "authors"))  # without which the format refuses it
    (paper,) = citation["references"]
    assert paper["url"].endswith("2511.01645") and len(paper["authors"]) == 9
    versions = re.findall(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert PROJECT["version"] in versions
    headings = set(re.findall(r"^### (.+)$", read("CHANGELOG.md"), flags=re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_hooks_run_what_make_lint_runs_from_the_environment_that_is_there() -> None:
    makefile = read("Makefile")
    assert "lint: style types\n" in makefile
    recipes = re.findall(r"^(?:style|types):.*\n((?:\t.+\n)+)", makefile, flags=re.MULTILINE)
    lines = [line.strip().removeprefix("nice -n 19 ") for recipe in recipes for line in recipe.splitlines()]
    linted = [line.replace("$(BIN)", ".venv/bin") for line in lines]
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"  # others are downloaded
    assert [hook["entry"] for hook in repository["hooks"]] == linted
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and hook["pass_filenames"] is False
        assert (ROOT / shlex.split(hook["entry"])[0]).exists()


def test_the_picture_of_the_house_has_an_arrow_for_every_import_between_rooms_and_no_other() -> None:
    drawn = {(a, b) for a, b in re.findall(r"^ +(\w+) --> (\w+)$", read("CONTRIBUTING.md"), flags=re.MULTILINE)}
    built = {
        (module.split(".")[0], found.target.split(".")[0])
        for module, path in modules_of_the_house().items()
        for found in imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    }
    assert drawn == {(a, b) for a, b in built if b in ROOMS and a != b}


def test_the_scorer_of_the_page_is_one_and_scores_each_image_by_itself() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", read("CONTRIBUTING.md"), flags=re.DOTALL)
    made: dict[str, Any] = {}
    exec(code, made)
    scorer = made["Contrast"]()
    assert isinstance(scorer, Scorer)
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    images[1] = 90
    scores = scorer.score(images)
    assert scores.dtype == np.float32 and scores.shape == (3,) and scores[1] == 0 < scores[0]
    np.testing.assert_array_equal(scores, np.concatenate([scorer.score(images[i : i + 1]) for i in range(3)]))
    with pytest.raises(ValueError, match="uint8"):
        scorer.score(images / 255)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_and_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    named = set(
        re.findall(r"(?<![\w/.$*-])((?:tests|configs|learner|cluster|restoration)/[a-z0-9_/]+\.(?:py|yaml))\b", text)
    )
    absent = [link for link in links if link and not (page.parent / link).exists()]
    absent += [name for name in named if not (ROOT / name).exists()]
    assert absent == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_of_make_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+)(?: [\w-]+)*:(?!=)", read("Makefile"), flags=re.MULTILINE))
    targets |= {
        t for line in re.findall(r"^\.PHONY: (.+)$", read("Makefile"), flags=re.MULTILINE) for t in line.split()
    }
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert named <= targets
