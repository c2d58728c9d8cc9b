from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.deploy.noted import Noted, bare, text_of

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.just("a\n b: #c\n\nd\n"),
)
NOTES = st.sampled_from(["one line", "two\nlines: [", ""])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
        st.builds(Noted, inner, NOTES),
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TREES, min_size=1, max_size=2))
@example([[Noted("a\n", "one line"), [Noted(None, "above an item in an item, behind a block")]]])
def test_yaml_reads_back_what_was_written_whatever_stands_in_it(trees: list[Any]) -> None:
    assert list(yaml.safe_load_all(text_of(trees, "a head"))) == [bare(tree) for tree in trees]


def test_a_note_stands_above_its_key_or_item_and_text_of_several_lines_is_a_block() -> None:
    tree = {"a": Noted([Noted({"b": Noted(1, "of b"), "c": "x\ny\n"}, "of the item")], "of a\nsecond"), "d": {}}
    assert text_of([tree], "head").splitlines() == [
        "# head",
        "# of a",
        "# second",
        "a:",
        "  # of the item",
        "  # of b",
        "  - b: 1",
        "    c: |",
        "      x",
        "      y",
        "d: {}",
    ]


@pytest.mark.parametrize("text", ["yes", "1", "null", "- a", "a: b", "# a", "", " a", "a\nb", "\n", "\ta\n", "é"])
def test_text_stays_text(text: str) -> None:
    written = text_of([{"key": text, "list": [text]}])
    assert yaml.safe_load(written) == {"key": text, "list": [text]}
