"""The tree of keys a configuration model accepts, and how a mistake in it is explained.

Sections are pydantic models or stdlib dataclasses, nested, in unions or in lists. `cluster.config.configure` uses this.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

Key = tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One mistake: the dotted key (or the file), what is wrong, what to do, and where it was written."""

    key: str
    what: str
    action: str
    where: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        told = "; ".join(filter(None, (self.what, self.action)))
        return f"{self.key}{place}: {told}" if self.key else told


def valid_keys(model: type, prefix: Key = ()) -> list[str]:
    """All dotted names of a model, sections and values; `[]` stands for the items of a list."""
    names = []
    for name, annotation in fields_of(model).items():
        key = (*prefix, name)
        names.append(".".join(key))
        for section, path in sections_in(annotation):
            names += valid_keys(section, (*key, *path))
    return list(dict.fromkeys(names))


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        issubclass(annotation, pydantic.BaseModel) or dataclasses.is_dataclass(annotation)
    )


@functools.cache  # resolving annotations is half of the time that a recipe takes to load
def fields_of(section: type) -> Mapping[str, Any]:
    """Name -> annotation of a model's or dataclass's fields."""
    if issubclass(section, pydantic.BaseModel):
        return {f.alias or name: f.annotation for name, f in section.model_fields.items()}
    hints = typing.get_type_hints(section, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(section) if f.init}  # type: ignore[arg-type]


def sections_in(annotation: Any) -> Iterator[tuple[type, Key]]:
    """Models and dataclasses within an annotation, with the path to them (`[]` for list items)."""
    origin = typing.get_origin(annotation)
    if is_section(annotation):
        yield annotation, ()
    elif origin is typing.Annotated:
        yield from sections_in(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for choice in typing.get_args(annotation):
            yield from sections_in(choice)
    elif origin in (list, tuple, Sequence):
        for item in typing.get_args(annotation):
            yield from ((section, ("[]", *path)) for section, path in sections_in(item))


def _takes_any_key(annotation: Any) -> bool:
    """Whether keys below a field of this annotation are free (a dict, or anything)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return any(_takes_any_key(a) for a in typing.get_args(annotation))
    return annotation is Any or (typing.get_origin(annotation) or annotation) in (dict, Mapping)


def _below(sections: Sequence[type], name: Any) -> tuple[list[type], list[type], list[Any]]:
    """Sections that field `name` of any of `sections` may hold, those its list items may hold, its annotations."""
    annotations = [fields_of(s)[name] for s in sections if name in fields_of(s)]
    found = [f for a in annotations for f in sections_in(a)]
    return [s for s, path in found if not path], [s for s, path in found if path == ("[]",)], annotations


def unknown_keys(model: type, data: Any, origins: Mapping[Key, str]) -> list[Problem]:
    """A problem for each key of the nested mapping `data` that the model doesn't have."""
    return list(_unknown([model], data, (), model, origins))


def _unknown(sections: list[type], data: Any, prefix: Key, root: type, origins: Mapping[Key, str]) -> Iterator[Problem]:
    """`data` may be any of `sections` (a union has several)."""
    if not isinstance(data, Mapping):
        return
    for name, value in data.items():
        key = (*prefix, str(name))
        own, items, annotations = _below(sections, name)
        if not annotations:
            yield Problem(".".join(key), "unknown key", nearest(root, key), origins.get(key, ""))
        elif own:
            yield from _unknown(own, value, key, root, origins)
        elif items and isinstance(value, list):
            for i, item in enumerate(value):
                yield from _unknown(items, item, (*key, str(i)), root, origins)


def key_problems(model: type, key: Key, where: str) -> list[Problem]:
    """What is wrong with one dotted key: unknown, or below a plain value."""
    sections: list[type] = [model]
    for i, name in enumerate(key):
        own, _, annotations = _below(sections, name)
        if not annotations:
            return [Problem(".".join(key), "unknown key", nearest(model, key), where)]
        if not own and i < len(key) - 1:
            if any(_takes_any_key(a) for a in annotations):
                return []
            value = ".".join(key[: i + 1])
            return [Problem(".".join(key), f"{value} is a value and has no keys", f"set {value}=... itself", where)]
        sections = own
    return []


def nearest(root: type, key: Key) -> str:
    """Advice for an unknown key."""
    names = valid_keys(root)
    siblings = [n for n in names if n.split(".")[:-1] == list(key[:-1])]
    # A misspelt last part is likelier than a wrong section: the same section first, then the same name in another
    # section, then anything that looks alike.
    lasts = {n.split(".")[-1]: n for n in siblings}
    near = [lasts[n] for n in difflib.get_close_matches(key[-1], lasts, 1, 0.6)]
    near = near or [n for n in names if n.split(".")[-1] == key[-1]][:1]
    near = near or difflib.get_close_matches(".".join(key), names, 1, 0.75)
    if near:
        return f"did you mean {near[0]}?"
    return "valid are " + ", ".join(siblings or [n for n in names if "." not in n])


def explain(model: type, error: Mapping[str, Any], origins: Mapping[Key, str]) -> Problem:
    """A line of pydantic's `ValidationError.errors()` as a problem."""
    key, section, annotation = _locate(model, error["loc"])
    kind, message, given = error["type"], str(error["msg"]), error.get("input")
    if kind == "missing":
        what, action = "is missing", "add it to the file or give it as key=value"
    elif kind in ("value_error", "assertion_error"):
        raised = str(error.get("ctx", {}).get("error", message))
        key = _field_named_in(section, key, raised)
        what, action = _split_action(raised)
    else:
        told = f"{message[0].lower()}{message[1:]}"
        what = told if isinstance(given, (Mapping, list)) else f"{given!r}: {told}"
        action = f"give {type_name(annotation)}" if annotation is not None else "correct it"
    where = next((origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins), "")
    return Problem(".".join(key) or "recipe", what, action, where)


def _locate(model: type, loc: Sequence[Any]) -> tuple[Key, type | None, Any]:
    """Pydantic's location without its tags of unions: (key, the section it ends in or None, the annotation)."""
    key: Key = ()
    sections: list[type] = [model]
    items: list[type] = []
    annotation: Any = None
    for part in loc:
        if isinstance(part, int):
            key, sections, items = (*key, str(part)), items, []
            continue
        own, own_items, annotations = _below(sections, part)
        if annotations:
            key, annotation, sections, items = (*key, str(part)), annotations[0], own, own_items
        else:
            sections = [s for s in sections if s.__name__ == part] or sections
    return key, (sections[0] if sections else None), annotation


def _field_named_in(section: type | None, key: Key, message: str) -> Key:
    """A validator's message names its field first ("sampler.eta=2: ..."): point the key at it."""
    match = re.match(r"[A-Za-z_]\w*(\.\w+)*", message)
    if section is None or match is None:
        return key
    named = match.group().split(".")
    fields = fields_of(section)
    if named[0] in fields:
        return (*key, *named)
    return (*key, named[-1]) if len(named) > 1 and named[-1] in fields else key


def _split_action(message: str) -> tuple[str, str]:
    """A validator's own "what; what to do" (or "what: what to do") cut in two."""
    for separator in ("; ", ": "):
        what, found, action = message.rpartition(separator)
        if found:
            return what, action
    return message, "correct it"


def type_name(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, arguments))
    if is_section(annotation):
        return "a section with " + ", ".join(fields_of(annotation))
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    listed = {list: "a list", tuple: "a list", dict: "`key: value` lines", type(None): "null"}
    return words.get(annotation) or listed.get(origin or annotation) or str(annotation)
