"""What a page tells to type can be typed: commands, options, keys of recipes, programs, as they stand in the pages."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.cli.app import app
from cluster.config.configure import parse_override
from cluster.config.recipe import RunConfig
from cluster.config.tree import key_problems
from restoration.base_models import KINDS, class_of
from restoration.pretrain.sft import SftRecipe
from reward_service.settings import RewardSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = "restorl "
ANYWHERE = {"--help", "--debug"}
NO_KEYS = ("md", "py", "json", "jsonl", "html", "yaml", "jobs")  # what follows a dot in the name of a file or module
COMMANDS: Any = typer.main.get_command(app)


def code(page: Path) -> Iterator[str]:
    """What stands as code, a line each; one that ends with a backslash goes on in the next."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    fenced, prose = False, []
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            prose.append(line)
    yield from re.findall(r"`([^`]+)`", " ".join(prose))


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `restorl`, without comments and without the signs of what may be left out."""
    for line in code(page):
        line = line.replace("$RESTORL ", PROGRAM)
        if PROGRAM not in line or line.startswith("#"):
            continue
        behind = line[line.index(PROGRAM) + len(PROGRAM) :].replace("\\|", "|")
        words = shlex.split(behind, comments=True)
        yield [w for word in words if (w := word if "=" in word else word.strip("[]")) not in ("...", "|", "\\")]


def found_in(page: Path, words: list[str]) -> list[str]:
    """What is wrong with a command."""
    command = COMMANDS
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return [] if words[0].isupper() or words[0].startswith("--") else [f"no command {' '.join(words)}"]
        command, words = command.commands[words[0]], words[1:]
    known = ANYWHERE.union(*(set(p.opts) | set(p.secondary_opts) for p in command.params))
    wrong = [f"{command.name} has no {w}" for w in words if w.startswith("-") and w.split("=")[0] not in known]
    given = [w for w in words if re.match(r"[a-z_]\w*(\.\w+)*=", w) and not w.startswith("key=")]
    keys = [parse_override(w)[0] for w in given]
    if command.name in ("train", "check"):
        wrong += [str(p) for key in keys for p in key_problems(RunConfig, key, page.name)]
    elif command.name == "pretrain":
        wrong += [str(p) for key in keys for p in key_problems(SftRecipe, key, page.name)]
    elif command.name == "serve":
        names = {f.name for f in fields(RewardSettings)}
        wrong += [f"reward has no {key[0]}" for key in keys if key[0] not in names]
    elif command.name == "convert" and words and words[0] in KINDS:
        taken = inspect.signature(class_of(words[0]).from_released).parameters
        wrong += [f"{words[0]} takes no {key[0]}" for key in keys if key[0] not in taken]
    recipes = [w for w in words if w.startswith("configs/") and "X" not in w]
    return wrong + [f"no recipe {w}" for w in recipes if not (ROOT / w).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_with_its_options_and_keys(page: Path) -> None:
    assert [what for words in commands(page) for what in found_in(page, words)] == []


def test_a_mistake_in_a_command_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `restorl restor x` or\n\n    restorl train configs/none.yaml \\\n        rollout.crp=3 --dry\n\n"
        "```\nrestorl reward serve deqa num_gpu=1   # --no\nrestorl convert pasd OUT chekpoint=x\n```\n"
        "`restorl score\n--csv x`\n"
    )
    wrong = [what for words in commands(page) for what in found_in(page, words)]
    assert [re.split(r"[;(]", w)[0].strip() for w in wrong] == [
        "train has no --dry",
        "rollout.crp",
        "no recipe configs/none.yaml",
        "reward has no num_gpu",
        "pasd takes no chekpoint",
        "no command restor x",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_of_a_recipe_that_a_page_names_exists(page: Path) -> None:
    sections = "|".join(name for name, field in RunConfig.model_fields.items() if is_dataclass(field.annotation))
    named = {
        tuple(key.split("."))
        for line in code(page)
        if "unknown key" not in line  # as a refusal is shown
        for key in re.findall(rf"(?<![\w./-])((?:{sections})(?:\.[a-z_0-9]+)+)(?![\w*/:])", line)
    }
    keys = [key for key in sorted(named) if key[-1] not in NO_KEYS and key[1] not in NO_KEYS]
    known = [k for k in keys if not key_problems(RunConfig, k, "") or not key_problems(SftRecipe, k, "")]
    assert keys == known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_program_of_the_house_that_a_page_names_exists(page: Path) -> None:
    modules = {m for line in code(page) for m in re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", line)}
    files = {m: ROOT.joinpath(*m.split(".")) for m in modules}
    assert [m for m, f in files.items() if not f.with_suffix(".py").exists() and not (f / "__main__.py").exists()] == []
