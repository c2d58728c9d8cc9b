from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.run.starting import Starting


def test_a_log_has_a_line_for_each_part_that_is_up_and_says_what_is_awaited() -> None:
    out = io.StringIO()
    with Starting(("Ray", "learner"), Console(file=out)) as shown:
        shown.done("Ray")
        shown.done("learner")
    first, second = out.getvalue().splitlines()
    assert first.startswith("Ray: up after 0 s") and first.endswith("waiting for learner")
    assert second == "learner: up after 0 s"


def test_a_terminal_has_a_line_that_ends_with_the_start() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True)
    with pytest.raises(KeyboardInterrupt), Starting(("Ray",), console):
        raise KeyboardInterrupt
    assert "waiting for Ray" in out.getvalue() and not console._live_stack
