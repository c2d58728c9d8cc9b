"""The import rules of the house: the rooms' table, and what the pure cores must do without.

Every import statement counts, wherever it stands (also within a function, under TYPE_CHECKING, or relative), and so
does a module named in a string given to import_module or __import__.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("restoration", "trajectories", "reward_service", "actors", "learner", "cluster")


@dataclass(frozen=True)
class Rule:
    """Modules that match `where` import none of `never`, unless the importing module matches `except_in`.

    `never` are module names; one stands for everything below it. `unless` are names below them that are allowed.
    """

    name: str
    where: tuple[str, ...]
    never: tuple[str, ...]
    unless: tuple[str, ...] = ()
    except_in: tuple[str, ...] = ()


def others(*room_and_friends: str) -> tuple[str, ...]:
    return tuple(room for room in ROOMS if room not in room_and_friends)


RULES = (
    Rule(
        "restoration is a plain library and knows no other room",
        ("restoration.*",),
        (*others("restoration"), "ray", "redis", "deepspeed", "pyarrow"),
    ),
    Rule(
        "trajectories knows no other room, no Ray and no DeepSpeed",
        ("trajectories.*",),
        (*others("trajectories"), "ray", "deepspeed"),
    ),
    Rule(
        "reward_service knows restoration only",
        ("reward_service.*",),
        (*others("reward_service", "restoration"), "redis", "deepspeed", "pyarrow"),
    ),
    Rule(
        "of the reward service only the Serve application and the client know Ray",
        ("reward_service.*",),
        ("ray",),
        except_in=(
            *("reward_service.service", "reward_service.application", "reward_service.replica"),
            *("reward_service.standing", "reward_service.rescaling", "reward_service.ownership"),
            *("reward_service.listening", "reward_service.client"),
        ),
    ),
    Rule(
        "actors know restoration, trajectories and the reward client",
        ("actors.*",),
        (*others("actors", "restoration", "trajectories"), "deepspeed", "redis"),
        unless=("reward_service.client", "reward_service.errors", "reward_service.settings"),
    ),
    Rule(
        "learner knows restoration and trajectories",
        ("learner.*",),
        (*others("learner", "restoration", "trajectories"), "redis"),
    ),
    Rule(
        "the rollout is pure: no Ray, no server",
        ("actors.rollout", "actors.rollout.*"),
        ("ray", "redis", "reward_service"),
    ),
    Rule(
        "the mathematics of the learner is pure torch",
        ("learner.advantage", "learner.difficulty", "learner.objective", "learner.reference"),
        ("ray", "deepspeed", "redis"),
    ),
    Rule(
        "the policies of a run are pure: failures, admission, the order of work, what is left of it",
        ("cluster.run.failures", "cluster.run.admission", "cluster.run.work_queue", "cluster.run.pace"),
        ("ray", "redis", "deepspeed", *others("cluster", "actors")),
    ),
    Rule(
        "what can be known before a start needs nothing that starts",
        (
            "cluster.run.preflight",
            "cluster.run.checks.*",
            "cluster.run.flow",
            "cluster.run.memory_plan",
            "cluster.run.reward_memory",
        ),
        ("ray", "redis", "deepspeed"),
    ),
    Rule(
        "the cost model is arithmetic and knows no other room",
        (
            *("cluster.plan.model", "cluster.plan.search", "cluster.plan.gpus"),
            *("cluster.plan.estimate", "cluster.plan.measured"),
        ),
        ("ray", "redis", "deepspeed", *others("cluster"), "cluster.run", "cluster.config", "cluster.cli"),
    ),
    Rule(
        "a plan needs nothing that starts",
        ("cluster.plan.*",),
        ("ray", "redis", "deepspeed", "cluster.cli"),
    ),
    Rule(
        "the paper's tables need neither the command line nor what starts",
        ("cluster.paper.*",),
        ("ray", "redis", "deepspeed", "cluster.cli"),
    ),
    Rule(
        "nothing but the command line needs the command line",
        ("cluster.config.*", "cluster.report.*", "cluster.run.*"),
        ("cluster.cli",),
    ),
    Rule(
        "the files of a deployment are made without what they start",
        ("cluster.deploy.*",),
        ("ray", "redis", "deepspeed", "cluster.cli"),
        except_in=("cluster.deploy.waiting",),
    ),
    Rule(
        "scorers, their training and its labels need neither a cluster nor a table format",
        (
            "reward_service.scorers",
            "reward_service.scorers.*",
            "reward_service.training.*",
            "reward_service.annotation.*",
        ),
        ("ray", "redis", "deepspeed", "pyarrow", "pydantic"),
    ),
    Rule(
        "what votes amount to is arithmetic: numpy and scipy",
        (
            *(
                "reward_service.annotation.votes",
                "reward_service.annotation.opinion",
                "reward_service.annotation.strengths",
            ),
            *("reward_service.annotation.agreement", "reward_service.annotation.screening"),
        ),
        ("torch", "restoration", "cv2", "PIL", "matplotlib"),
    ),
    Rule(
        "which outputs are worth rating is decided without making one",
        ("cluster.annotate.picking",),
        ("torch", "ray", *others("cluster", "reward_service"), "cluster.run", "cluster.config", "cluster.cli"),
    ),
    Rule(
        "only cluster reads configurations and has a command line",
        tuple(f"{room}.*" for room in others("cluster")),
        ("pydantic", "typer", "yaml"),
    ),
    Rule(
        "pyiqa, an extra, is imported by its own scorer only",
        tuple(f"{room}.*" for room in ROOMS),
        ("pyiqa",),
        except_in=("reward_service.scorers.pyiqa*",),
    ),
    Rule(
        "nothing is unpickled (released checkpoints go through restoration.unpickling, which runs nothing)",
        tuple(f"{room}.*" for room in ROOMS),
        ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    ),
    Rule(
        "no room needs the tests or the benchmarks",
        tuple(f"{room}.*" for room in ROOMS),
        ("tests", "benchmarks"),
    ),
)


@dataclass(frozen=True)
class Import:
    """`importer` imports `target` (a dotted name; for `from a import b` it is a.b)."""

    importer: str
    target: str
    line: int


def imports_of(importer: str, source: str, is_package: bool = False) -> Iterator[Import]:
    """Every import in `source`, the text of the module `importer`."""
    package = importer.split(".") if is_package else importer.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = [*base, *([node.module] if node.module else [])]
            yield from (Import(importer, ".".join([*prefix, alias.name]), node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            named = node.args[0]
            if name in ("import_module", "__import__") and isinstance(named, ast.Constant):
                yield Import(importer, str(named.value), node.lineno)


def violations(rule: Rule, imports: list[Import]) -> list[str]:
    """One line for each import that breaks the rule."""
    return [
        f"{i.importer}:{i.line} imports {i.target}"
        for i in imports
        if _matches(i.importer, rule.where)
        and not _matches(i.importer, rule.except_in)
        and _is_below(i.target, rule.never)
        and not _is_below(i.target, rule.unless)
    ]


def _matches(module: str, patterns: tuple[str, ...]) -> bool:
    # "room.*" means the room's __init__ too.
    return any(fnmatchcase(module, p) or (p.endswith(".*") and module == p[:-2]) for p in patterns)


def _is_below(target: str, modules: tuple[str, ...]) -> bool:
    return any(target == m or target.startswith(m + ".") for m in modules)


def modules_of_the_house() -> dict[str, Path]:
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@pytest.fixture(scope="module")
def house() -> list[Import]:
    found: list[Import] = []
    for module, path in modules_of_the_house().items():
        found += imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_house_keeps_the_rule(rule: Rule, house: list[Import]) -> None:
    assert violations(rule, house) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_rule_finds_a_violation_and_speaks_of_modules_that_can_exist(rule: Rule) -> None:
    for pattern in rule.where:
        importer = pattern.replace(".*", ".planted")
        for target in rule.never:
            source = f"def f():\n    from {target} import anything\n"
            assert violations(rule, list(imports_of(importer, source))) == [f"{importer}:2 imports {target}.anything"]
        assert violations(rule, list(imports_of(importer, "import numpy\nimport json"))) == []
        assert pattern.split(".")[0] in ROOMS


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("import ray.serve as s, json", ["ray.serve", "json"]),
        ("from learner import batch", ["learner.batch"]),
        ("if TYPE_CHECKING:\n    from learner.batch import to_bytes", ["learner.batch.to_bytes"]),
        ("class A:\n    def f(self):\n        import redis", ["redis"]),
        ("from . import sibling", ["actors.deep.sibling"]),
        ("from ..rollout import roll", ["actors.rollout.roll"]),
        ("from ...learner import batch", ["learner.batch"]),
        ("import importlib\nimportlib.import_module('pyiqa')", ["importlib", "pyiqa"]),
        ("__import__('pickle')", ["pickle"]),
        ("try:\n    import ray\nexcept ImportError:\n    ray = None", ["ray"]),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source: str, targets: list[str]) -> None:
    assert [i.target for i in imports_of("actors.deep.module", source)] == targets


def test_a_packages_own_relative_imports_start_at_the_package() -> None:
    found = imports_of("actors.deep", "from . import sibling\nfrom .. import rollout", is_package=True)
    assert [i.target for i in found] == ["actors.deep.sibling", "actors.rollout"]


def test_names_that_only_look_alike_are_no_violation_and_allowed_parts_stay_allowed() -> None:
    rule = Rule(
        "", ("actors.*",), ("reward_service", "ray"), unless=("reward_service.client",), except_in=("actors.x",)
    )
    fine = "import raya\nfrom reward_service.client import RewardClient\nfrom reward_service import client"
    assert violations(rule, list(imports_of("actors.actor", fine))) == []
    assert violations(rule, list(imports_of("actors.x", "import ray"))) == []
    bad = "from reward_service.service import deploy\nfrom reward_service import *"
    assert len(violations(rule, list(imports_of("actors.actor", bad)))) == 2


def test_every_room_is_there_and_read() -> None:
    modules = modules_of_the_house()
    assert all(room in modules for room in ROOMS)
    assert {"restoration.transition", "cluster.cli.app", "learner.objective", "actors.rollout"} <= modules.keys()
