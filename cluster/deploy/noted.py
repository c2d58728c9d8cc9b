"""YAML with comments: plain dicts and lists, in which `Noted` says something to who edits the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

INDENT = "  "


@dataclass(frozen=True)
class Noted:
    """A value with a comment, which stands above its key or list item."""

    value: Any
    note: str


def bare(tree: Any) -> Any:
    """The tree without its notes, as `yaml.safe_load` of its text gives it."""
    if isinstance(tree, Noted):
        return bare(tree.value)
    if isinstance(tree, Mapping):
        return {key: bare(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [bare(value) for value in tree]
    return tree


def text_of(documents: list[Any], head: str = "") -> str:
    """YAML of the documents, one after the other, with `head` as a comment above the first.

    Args:
        documents: trees of dicts with text keys, lists, text, numbers, truth values and None.
    """
    parts = ["".join(f"{line}\n" for line in _lines(tree)) for tree in documents]
    return "".join(f"{line}\n" for line in _comment(head, 0)) + "---\n".join(parts)


def _lines(tree: Any, depth: int = 0) -> Iterator[str]:
    while isinstance(tree, Noted):
        tree = tree.value
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _entry(f"{_scalar(key)}:", value, depth)
    elif isinstance(tree, (list, tuple)) and tree:
        for value in tree:
            yield from _item(value, depth)
    else:
        yield INDENT * depth + _scalar(tree)


def _entry(key: str, value: Any, depth: int) -> Iterator[str]:
    """`key:` and what stands below or behind it."""
    while isinstance(value, Noted):
        yield from _comment(value.note, depth)
        value = value.value
    start = INDENT * depth + key
    if isinstance(value, str) and _is_block(value):
        yield f"{start} |"
        yield from (INDENT * (depth + 1) + line if line else "" for line in value.removesuffix("\n").split("\n"))
    elif isinstance(value, (Mapping, list, tuple)) and value:
        yield start
        yield from _lines(value, depth + 1)
    else:
        yield f"{start} {_scalar(value)}"


def _item(value: Any, depth: int) -> Iterator[str]:
    """`- ` and an item of a list, whose own lines are two deeper."""
    while isinstance(value, Noted):
        yield from _comment(value.note, depth)
        value = value.value
    if isinstance(value, str) and _is_block(value):
        yield from _entry("-", value, depth)
        return
    first = True
    for line in _lines(value, depth + 1):
        # A comment above the first key stands above the item: what follows the dash must not be one. It is as deep as
        # the dash, as a deeper one would still belong to a block of text before it.
        if first and line.lstrip().startswith("#"):
            line = INDENT * depth + line.lstrip()
        elif first:
            line, first = f"{INDENT * depth}- {line[len(INDENT) * (depth + 1) :]}", False
        yield line


def _comment(note: str, depth: int) -> Iterator[str]:
    for line in note.splitlines():
        yield f"{INDENT * depth}# {line}".rstrip()


def _is_block(text: str) -> bool:
    """Whether text is written as a block of lines: it ends with one, and YAML needs no hint to read it back."""
    return text.endswith("\n") and not text.endswith("\n\n") and text[0] not in " \n" and _plain(text)


def _plain(text: str) -> bool:
    return all(sign == "\n" or (sign.isprintable() and sign not in "\u2028\u2029\x85\ufeff") for sign in text)


def _scalar(value: Any) -> str:
    """On one line; an empty dict or list as well."""
    style = '"' if isinstance(value, str) and not (value.isprintable() and _plain(value)) else None
    written = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return written.removesuffix("\n").removesuffix("\n...").strip()
