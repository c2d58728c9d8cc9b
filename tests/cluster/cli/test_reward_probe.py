"""`restorl reward probe`: scores of known pictures beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.cli import app as cli
from reward_service.probe import FILE
from reward_service.scorers.lite0_levels import DEFAULT_FOLDER


def probe(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["reward", "probe", *arguments])


def test_it_stores_the_scores_and_replaces_others_by_force_only(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEFAULT_FOLDER, tmp_path / "lite0"))
    scorer = f"lite0_levels,weights={folder},chunk=2"
    result = probe(scorer)
    assert result.exit_code == 0 and str(folder / FILE) in result.output, result.output
    content = json.loads((folder / FILE).read_text())
    ((key, stored),) = content.items()
    assert f"{stored['scores'][0]:.4f}" in result.output
    stored["scores"][1] += 1
    (folder / FILE).write_text(json.dumps(content))
    refused = probe(scorer)
    assert refused.exit_code == 2 and "--force replaces them" in refused.output
    assert json.loads((folder / FILE).read_text())[key] == stored
    assert probe(scorer, "--force").exit_code == 0
    assert json.loads((folder / FILE).read_text())[key]["scores"][1] == stored["scores"][1] - 1


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        ("nima", "no scorer named 'nima'"),
        ("deqa", "scorer deqa needs `weights`"),
        ("piqe,device=gpu", "device=gpu: no device"),
        ("tests.reward_service.fakes:Mine", "name no file or folder of weights"),
        ("tests.reward_service.fakes:Mine,give", "give"),
    ],
)
def test_what_cannot_be_probed_is_told_in_words(scorer: str, told: str) -> None:
    result = probe(scorer)
    assert result.exit_code == 2 and told in result.output
