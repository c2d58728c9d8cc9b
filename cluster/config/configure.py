"""Recipes: one YAML file into one typed model, with `extends`, dotted overrides and errors a user can act on.

Generic over the pydantic model: `cluster.config.recipe` holds the models, this file knows none of them. Sections may be
pydantic models or frozen stdlib dataclasses (the rooms use those, so that they don't depend on pydantic).
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from cluster.config.tree import Key, Problem, explain, key_problems, unknown_keys
from cluster.files import write_text

M = TypeVar("M")
EXTENDS = "extends"
COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """A recipe that can't be used. `str()` has one line per problem."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))

    @classmethod
    def of(cls, message: str) -> ConfigError:
        """One problem in a sentence of its own, "what; what to do"."""
        what, _, action = message.partition("; ")
        return cls([Problem("", what, action)])


def load_config(
    model: type[M],
    path: Path | str,
    overrides: Sequence[str] = (),
    translate: Callable[[dict[str, Any]], None] | None = None,
) -> M:
    """Read a recipe.

    Args:
        model: the pydantic model, or stdlib dataclass, of the whole file.
        path: a YAML file; its `extends: other.yaml` names a parent (or a list of them, later ones win) relative to
            the file itself, which it overrides key by key.
        overrides: `a.b=value`, the value in YAML.
        translate: changes what an earlier version wrote to the file, in place.

    Raises:
        ConfigError: anything wrong with the file, the keys or the values.
    """
    origins: dict[Key, str] = {}
    data = _read(Path(path), origins, ())
    if translate is not None:
        translate(data)
    problems = unknown_keys(model, data, origins)
    for text in overrides:
        try:
            key, value = parse_override(text)
            problems += key_problems(model, key, COMMAND_LINE)
            _set(data, key, value)
            origins[key] = COMMAND_LINE
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return build_config(model, data, origins)


def value_of(key: str, path: Path | str, overrides: Sequence[str] = ()) -> Any:
    """What a recipe and its overrides give the top-level `key`, or None; nothing else is looked at.

    Raises:
        ConfigError: a file that can't be read.
    """
    value = _read(Path(path), {}, ()).get(key)
    for text in overrides:
        name, equals, _ = text.partition("=")
        if equals and name.strip() == key:
            value = parse_override(text)[1]
    return value


def build_config(model: type[M], data: Mapping[str, Any], origins: Mapping[Key, str] | None = None) -> M:
    """The model of plain `data`; raises ConfigError with one problem for each wrong key or value."""
    origins = origins or {}
    problems = unknown_keys(model, data, origins)
    if problems:
        raise ConfigError(problems)
    try:
        return pydantic.TypeAdapter(model).validate_python(data)
    except pydantic.ValidationError as error:
        found = [explain(model, dict(e), origins) for e in error.errors(include_url=False)]
        raise ConfigError(list(dict.fromkeys(found))) from None


def save_config(config: Any, path: Path | str) -> None:
    """Write every key with its resolved value, so that `load_config` reads an equal model back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))


def plain(value: Any) -> Any:
    """Models, dataclasses, tuples, paths and enums as what YAML and JSON know."""
    if isinstance(value, pydantic.BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, Path):
        return str(value)
    return plain(value.value) if isinstance(value, enum.Enum) else value


def parse_override(text: str) -> tuple[Key, Any]:
    """`"a.b=1e-4"` -> (("a", "b"), 1e-4)."""
    name, equals, value = text.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise ConfigError([Problem(repr(text), "is no override", "write key=value, such as sampler.steps=4")])
    try:
        return key, yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError):  # the latter of a date that is none
        action = "quote it for YAML, such as 'name=\"a: b\"'"
        raise ConfigError([Problem(".".join(key), f"{value!r} is no YAML value", action, COMMAND_LINE)]) from None


def split_at_commas(text: str) -> list[str]:
    """`"a,b=[1, 2]"` -> ["a", "b=[1, 2]"]: commas in brackets and quotations separate nothing."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and parts[-1][-1:] in set("=[{,: "):  # else it is an apostrophe
            quote = sign
        elif sign == "," and not depth:
            parts.append("")
            continue
        else:
            depth += (sign in "[{") - (sign in "]}")
        parts[-1] += sign
    return parts


# -- reading -----------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML where 1e-4 is a number (PyYAML's YAML 1.1 wants 1.0e-4)."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _read(path: Path, origins: dict[Key, str], children: tuple[Path, ...]) -> dict[str, Any]:
    """The file merged over its parents; fills `origins` with the file and line of each key."""
    if path.resolve() in children:
        raise ConfigError([Problem(str(path), "extends itself", f"take {EXTENDS} out of one of the files")])
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        by = f" (extended by {children[-1].name})" if children else ""
        raise ConfigError([Problem(str(path), f"no such file{by}", "give the path of a YAML recipe")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), f"can't be read ({error})", "give a UTF-8 YAML file")]) from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        here: dict[Key, str] = {}
        if node is not None:
            _note_lines(node, path, (), here)
        data = {} if node is None else loader.construct_document(node)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that is none
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([Problem(line, f"not YAML: {what}", "correct that line (indentation, colons)")]) from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise ConfigError([Problem(str(path), f"holds a {type(data).__name__}", "write `key: value` lines")])
    parents = data.pop(EXTENDS, None) or []
    if not isinstance(parents, (str, list)) or not all(isinstance(p, str) for p in parents):
        raise ConfigError([Problem(EXTENDS, f"{parents!r} is no file name", "name a YAML file", str(path))])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        _merge(merged, _read(path.parent / parent, origins, (*children, path.resolve())))
    origins.update(here)
    _merge(merged, data)
    return merged


def _note_lines(node: yaml.Node, path: Path, key: Key, origins: dict[Key, str]) -> None:
    """Record where each key stands; a key written twice is refused (YAML would keep the last silently)."""
    if not isinstance(node, yaml.MappingNode):
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                _note_lines(item, path, (*key, str(i)), origins)
        return
    for name_node, value_node in node.value:
        child = (*key, str(name_node.value))
        line = f"{path.name}:{name_node.start_mark.line + 1}"
        if child in origins:
            raise ConfigError([Problem(".".join(child), f"written twice, first at {origins[child]}", "keep one", line)])
        origins[child] = line
        _note_lines(value_node, path, child, origins)


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _set(data: dict[str, Any], key: Key, value: Any) -> None:
    for name in key[:-1]:
        if not isinstance(data.get(name), dict):
            data[name] = {}
        data = data[name]
    data[key[-1]] = value
