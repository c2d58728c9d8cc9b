"""The Dockerfile, which can't be built here, by what stands in it."""

from __future__ import annotations

import re

from cluster.deploy.pods import USER
from tests.cluster.deploy.cases import ROOT

COMPILERS = r"\b(gcc|g\+\+|clang|build-essential|nvcc|cuda-toolkit|ninja|git)\b"


def stages() -> list[list[tuple[str, str]]]:
    """Instruction and argument of each stage."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.split(None, 1) for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    found: list[list[tuple[str, str]]] = []
    for instruction, argument in lines:
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, argument))
    return found


def test_it_installs_by_the_command_of_the_page_from_the_lock_file() -> None:
    first, _ = stages()
    assert ("RUN", "make setup") in first
    assert re.search(r"^\$\(STAMP\): requirements\.lock", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ".venv" in ignored and not {"requirements.lock", "Makefile", "pyproject.toml", "README.md"} & set(ignored)


def test_what_is_left_to_run_has_no_tools_to_build_and_a_user_without_rights() -> None:
    _, last = stages()
    assert [argument for instruction, argument in last if instruction == "USER"] == [str(USER)]
    assert last[[i for i, _ in last].index("USER") :][-1][0] == "CMD"  # nothing is installed after it
    assert not re.search(COMPILERS, " ".join(argument for _, argument in last if argument))
    assert not any("make" in argument for instruction, argument in last if instruction == "RUN")


def test_both_stages_have_one_python_and_one_folder() -> None:
    first, last = stages()
    assert first[0][1].split()[0] == last[0][1] == "python:3.11-slim"
    folder = dict(first)["WORKDIR"]
    assert f"--from=installed {folder} {folder}" in dict(last)["COPY"]  # programs of an environment name its folder
    assert f"PATH={folder}/.venv/bin:$PATH" in dict(last)["ENV"]
