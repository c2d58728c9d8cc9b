"""Parts of the pages of the house, as HTML: sections, tables, pictures within the page, the before/after slider."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TEMPLATE = Path(__file__).with_name("template.html")


def section(title: str, content: str, note: str = "") -> str:
    """Nothing where there is no content; all three are HTML already."""
    if not content:
        return ""
    aside = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{aside}{content}</section>"


def plot(png: bytes | None, description: str) -> str:
    return f'<img class="plot" alt="{html.escape(description)}" src="{data_url(png)}">' if png else ""


def picture(png: bytes) -> str:
    """A picture on the whole width."""
    return f'<figure><img alt="" src="{data_url(png)}"></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first of a row is its name. Nothing where there are no rows."""
    body = "".join(f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows)
    above = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><thead><tr>{above}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def facts_table(facts: Iterable[tuple[str, str]]) -> str:
    """Names and texts, which are escaped here."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts)
    return f'<table class="facts">{rows}</table>' if rows else ""


def slider(name: str, pictures: Mapping[str, bytes], left: str, right: str) -> str:
    """Pictures over each other with a line to drag, and buttons that choose what is shown at each side.

    Args:
        name: of the picture; it and the labels are escaped here.
        pictures: label -> a PNG; all of one size.
        left, right: the labels it begins with.
    """
    choices = {"left": left, "right": right}
    classes = {label: f' class="{side}"' for side, label in choices.items()}  # shown where no script runs, too
    images = "".join(
        f'<img{classes.get(label, "")} alt="{html.escape(f"{name}, {label}")}" data-side="{html.escape(label)}"'
        f' src="{data_url(png)}">'
        for label, png in pictures.items()
    )
    buttons = [
        f'<span class="{side}">'
        + "".join(
            f'<button type="button"{" class=on" * (one == chosen)}>{html.escape(one)}</button>' for one in pictures
        )
        + "</span>"
        for side, chosen in choices.items()
    ]
    begins = f'data-left="{html.escape(left)}" data-right="{html.escape(right)}"'
    return (
        f'<figure><div class="compare" {begins}>{images}<i></i>'
        '<input type="range" min="0" max="100" value="50" aria-label="part of the left image shown"></div>'
        f'<div class="sides">{"".join(buttons)}</div><figcaption>{html.escape(name)}</figcaption></figure>'
    )


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
