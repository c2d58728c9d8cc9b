from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
import yaml

from cluster.config.configure import ConfigError, load_config, parse_override, save_config, split_at_commas
from cluster.config.tree import valid_keys


@dataclass(frozen=True)
class Sampler:
    steps: int = 6
    eta: float = 1.0
    spacing: Literal["leading", "trailing"] = "trailing"

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(f"sampler.eta={self.eta}: a policy needs noise in its steps; choose 0 < eta <= 1")


@dataclass(frozen=True)
class Rollout:
    sampler: Sampler = field(default_factory=Sampler)
    per_image: int = 4
    crop: tuple[int, int] = (128, 128)


@dataclass(frozen=True)
class Embedded:
    kind: Literal["embedded"] = "embedded"
    memory_mb: int = 256


@dataclass(frozen=True)
class External:
    url: str
    kind: Literal["external"] = "external"


class Learner(pydantic.BaseModel):
    lr: float = 1e-4
    batch: int = 16
    clip: float | None = None
    recipe: Literal["ours", "diff_sft"] = "ours"


class Toy(pydantic.BaseModel):
    name: str
    data: Path = Path("data")
    rollout: Rollout = Rollout()
    learner: Learner = Learner()
    store: Embedded | External = Embedded()
    scorers: list[Sampler] = []
    params: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def batch_holds_whole_groups(self) -> Toy:
        if self.learner.batch % self.rollout.per_image:
            raise ValueError(
                f"learner.batch={self.learner.batch} holds no whole number of groups of "
                f"rollout.per_image={self.rollout.per_image}; make it a multiple"
            )
        return self


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def lines_of(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Toy, write(folder, text), overrides)
    return str(caught.value).splitlines()


def test_a_recipe_of_a_few_lines_takes_the_rest_from_its_parents(tmp_path: Path) -> None:
    write(tmp_path, "name: base\nlearner: {lr: 1e-3, batch: 8}\nrollout: {sampler: {steps: 3}}\n", "base.yaml")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "extends: ../base.yaml\nrollout:\n  sampler: {eta: 0.5}\n", "middle.yaml")
    config = load_config(Toy, write(tmp_path, "extends: sub/middle.yaml\nlearner: {batch: 12}\nname: child\n"))
    assert (config.name, config.learner.lr, config.learner.batch) == ("child", 1e-3, 12)
    assert config.rollout.sampler == Sampler(steps=3, eta=0.5)


def test_overrides_win_over_the_file_and_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nlearner: {batch: 8}\n")
    given = ["learner.batch=4", "learner.lr=1e-5", "rollout.sampler.eta=.5", "learner.clip=null", "rollout.crop=[8, 9]"]
    config = load_config(Toy, path, [*given, "store={kind: external, url: 'redis://x:1'}", "params.a.b=[1, two]"])
    assert (config.learner.batch, config.learner.lr, config.learner.clip) == (4, 1e-5, None)
    assert config.rollout == Rollout(Sampler(eta=0.5), 4, (8, 9))
    assert config.store == External("redis://x:1")
    assert config.params == {"a": {"b": [1, "two"]}}
    assert parse_override("x=1e-4") == (("x",), 1e-4)


@pytest.mark.parametrize(
    ("text", "override", "line"),
    [
        ("learner: {batchsize: 8}", "", "learner.batchsize (recipe.yaml:2): unknown key; did you mean learner.batch?"),
        (
            "rollout:\n  sampler:\n    step: 4",
            "",
            "rollout.sampler.step (recipe.yaml:4): unknown key; did you mean rollout.sampler.steps?",
        ),
        ("eta: 0.5", "", "eta (recipe.yaml:2): unknown key; did you mean rollout.sampler.eta?"),
        ("leaner: {lr: 1}", "", "leaner (recipe.yaml:2): unknown key; did you mean learner?"),
        (
            "scorers: [{}, {stepz: 2}]",
            "",
            "scorers.1.stepz (recipe.yaml:2): unknown key; did you mean scorers.[].steps?",
        ),
        (
            "",
            "rollout.smapler.eta=1",
            "rollout.smapler.eta (command line): unknown key; did you mean rollout.sampler.eta?",
        ),
        (
            "",
            "learner.lr.x=1",
            "learner.lr.x (command line): learner.lr is a value and has no keys; set learner.lr=... itself",
        ),
        ("", "rollout={smpler: {}}", "rollout.smpler: unknown key; did you mean rollout.sampler?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(
    tmp_path: Path, text: str, override: str, line: str
) -> None:
    assert lines_of(tmp_path, f"name: a\n{text}\n", *filter(None, [override])) == [line]


def test_a_key_with_nothing_alike_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, "name: a\nlearner: {qqqq: 1}\n")
    assert line.endswith("valid are learner.lr, learner.batch, learner.clip, learner.recipe")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("learner: {batch: many}", "learner.batch (recipe.yaml:2): 'many': input should be a valid integer"),
        ("learner: {recipe: theirs}", "learner.recipe (recipe.yaml:2): 'theirs': input should be 'ours' or 'diff_sft'"),
        ("rollout: {sampler: {steps: [1]}}", "rollout.sampler.steps (recipe.yaml:2): input should be a valid integer"),
        ("rollout: 3", "rollout (recipe.yaml:2): 3: "),
        ("scorers: [{steps: x}]", "scorers.0.steps (recipe.yaml:2): 'x': "),
    ],
)
def test_a_value_of_the_wrong_type_is_one_line_with_its_key(tmp_path: Path, text: str, line: str) -> None:
    (found,) = lines_of(tmp_path, f"name: a\n{text}\n")
    assert found.startswith(line) and "; give " in found


def test_a_dataclass_that_refuses_its_values_is_told_with_its_dotted_key(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, "name: a\n", "rollout.sampler.eta=0")
    assert line == (
        "rollout.sampler.eta (command line): sampler.eta=0.0: a policy needs noise in its steps; choose 0 < eta <= 1"
    )


def test_a_cross_field_error_names_its_first_key(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, "name: a\nlearner: {batch: 6}\n")
    assert line.startswith("learner.batch (recipe.yaml:2): learner.batch=6 holds no whole number of groups of")
    assert line.endswith("; make it a multiple")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    assert len(lines_of(tmp_path, "learner: {batch: x, lr: y}\n")) == 3  # name is missing too
    assert len(lines_of(tmp_path, "name: a\nfoo: 1\nbar: 2\n", "baz", "learner.xx=1")) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nlearner: {lr: 1\nstore: 2\n", "recipe.yaml:3: not YAML"),
        ("name: 2026-13-01\n", "recipe.yaml: not YAML: month must be in 1..12"),
        ("name: a\nname: b\n", "name (recipe.yaml:2): written twice, first at recipe.yaml:1"),
        ("- a\n", "holds a list"),
        ("extends: gone.yaml\nname: a\n", "gone.yaml: no such file (extended by recipe.yaml)"),
        ("extends: recipe.yaml\nname: a\n", "extends itself"),
        ("extends: 3\nname: a\n", "3 is no file name"),
    ],
)
def test_a_broken_file_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    (line,) = lines_of(tmp_path, text)
    assert said in line


def test_a_missing_file_and_a_malformed_override_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; give the path"):
        load_config(Toy, tmp_path / "none.yaml")
    for text in ("learner", "=3", "learner..lr=3", "learner.lr={", "learner.lr=2026-13-01"):
        with pytest.raises(ConfigError, match="write key=value|no YAML value"):
            parse_override(text)


def test_a_saved_configuration_loads_to_an_equal_one(tmp_path: Path) -> None:
    overrides = ["learner.lr=1e-05", "learner.clip=.inf", "scorers=[{eta: 0.25}]", "data=/x/y", "rollout.crop=[1, 2]"]
    config = load_config(Toy, write(tmp_path, "name: 'no'\n"), overrides)
    save_config(config, tmp_path / "run" / "config.yaml")
    assert load_config(Toy, tmp_path / "run" / "config.yaml") == config
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["rollout"]["sampler"]["steps"] == 6
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_valid_keys_lists_dataclasses_and_lists_below_models() -> None:
    keys = valid_keys(Toy)
    assert {"rollout.sampler.eta", "store.url", "store.memory_mb", "scorers.[].steps", "learner.lr"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert dataclasses.is_dataclass(Sampler)


def test_a_dataclass_can_be_the_whole_recipe_and_an_error_can_be_one_sentence(tmp_path: Path) -> None:
    assert load_config(Rollout, write(tmp_path, "sampler: {steps: 2}\n")) == Rollout(Sampler(steps=2))
    with pytest.raises(ConfigError, match=r"did you mean per_image\?"):
        load_config(Rollout, write(tmp_path, "per_imag: 2\n"))
    with pytest.raises(ConfigError, match=r"^sampler.eta \(command line\): sampler.eta=3.0: a policy"):
        load_config(Rollout, write(tmp_path, "{}"), ["sampler.eta=3"])
    assert str(ConfigError.of("it is full; empty it")) == "it is full; empty it"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("piqe", ["piqe"]),
        ("deqa,weights=a,batch=2", ["deqa", "weights=a", "batch=2"]),
        ("pyiqa:niqe,crop_border=4", ["pyiqa:niqe", "crop_border=4"]),
        ("https://host:1/a,ca=b.pem", ["https://host:1/a", "ca=b.pem"]),
        ("x,levels=[good, bad],level_weights=[1,0]", ["x", "levels=[good, bad]", "level_weights=[1,0]"]),
        ("x,size={a: [1, {b: 2, c: 3}], d: 4},y=1", ["x", "size={a: [1, {b: 2, c: 3}], d: 4}", "y=1"]),
        ("x,question='How good, or bad?',y=1", ["x", "question='How good, or bad?'", "y=1"]),
        ('x,question="a, [b",y=1', ["x", 'question="a, [b"', "y=1"]),
        ("x,folder=anna's,y=1", ["x", "folder=anna's", "y=1"]),
    ],
)
def test_settings_are_split_at_commas_outside_of_brackets_and_quotations(text: str, parts: list[str]) -> None:
    assert split_at_commas(text) == parts
