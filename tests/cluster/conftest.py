"""What tests of several wings of the room share."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import ImageDraw


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that are drawn."""
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, what: str, *more: Any, **others: Any) -> None:
        texts.append(what)
        draw(self, at, what, *more, **others)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts
