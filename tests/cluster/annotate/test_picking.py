"""What is picked to be rated, and the questions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from cluster.annotate.picking import ExportSettings, Output, choose, pairs_of, steps_of, tasks_of


def pool(sources: int = 10, seed: int = 0) -> list[Output]:
    """Outputs of two checkpoints, two steps, two seeds; photograph 0 is the hardest; later steps score higher."""
    rng = np.random.default_rng(seed)
    return [
        Output(
            f"o{s:02d}{checkpoint}{step}{noise}", f"photo{s}", checkpoint, step, 4, noise,
            float(rng.normal(step, 1)), 1 - s / sources,
        )
        for s in range(sources) for checkpoint in ("base", "20") for step in (2, 4) for noise in (0, 1)
    ]  # fmt: skip


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_outputs_are_spread_over_scores_steps_and_checkpoints() -> None:
    outputs = pool(40)
    chosen = choose(outputs, 80, 5, rng())
    assert len({o.name for o in chosen}) == 80
    for share in (Counter(o.checkpoint for o in chosen), Counter(o.step for o in chosen)):
        assert max(share.values()) - min(share.values()) <= 12
    ranked = sorted(outputs, key=lambda o: o.score or 0)
    bin_of = {o.name: place * 5 // len(outputs) for place, o in enumerate(ranked)}
    assert min(Counter(bin_of[o.name] for o in chosen).values()) == 16


def test_of_each_stratum_the_hardest_come_first() -> None:
    outputs = pool(40)
    chosen = choose(outputs, 60, 5, rng())
    assert np.mean([o.difficulty for o in chosen]) > np.mean([o.difficulty for o in outputs]) + 0.15
    ranked = sorted(outputs, key=lambda o: o.score or 0)
    stratum = {o.name: (p * 5 // len(outputs), o.step, o.checkpoint) for p, o in enumerate(ranked)}
    taken = {o.name for o in chosen}
    for key in set(stratum.values()):
        of = [o for o in outputs if stratum[o.name] == key]
        inside, outside = ([o.difficulty for o in of if (o.name in taken) == side] for side in (True, False))
        assert not inside or not outside or min(inside) >= max(outside)


def test_an_output_without_a_score_has_a_place_of_its_own() -> None:
    outputs = [*pool(4), Output("none", "photo1", "base", 4, 4, 0, None, 0.5)]
    assert "none" in {o.name for o in choose(outputs, 20, 5, rng())}
    assert len(choose(outputs, 1000, 5, rng())) == len(outputs)
    assert len(choose([Output("none", "p", "base", 4, 4, 0, None, 0.5)], 3, 5, rng())) == 1


def test_pairs_are_of_one_photograph_and_connect_all_its_outputs() -> None:
    chosen = choose(pool(), 40, 5, rng())
    of = {o.name: o for o in chosen}
    pairs = pairs_of(chosen)
    assert all(of[a].source == of[b].source for a, b in pairs)
    counts = Counter(o.source for o in chosen)
    assert Counter(of[a].source for a, _ in pairs) == {s: n - 1 for s, n in counts.items() if n > 1}
    gaps = [abs((of[a].score or 0) - (of[b].score or 0)) for a, b in pairs]
    apart = [abs((a.score or 0) - (b.score or 0)) for a in chosen for b in chosen if a.source == b.source and a != b]
    assert np.mean(gaps) < np.mean(apart)


def asked(**settings: Any) -> tuple[Any, ...]:
    chosen = choose(pool(), 40, 5, rng())
    references = {f"photo{s}": (f"in{s}", f"gt{s}") for s in range(10)}
    return tasks_of(chosen, references, [f"photo{s}" for s in range(10)], ExportSettings(**settings), rng())


def test_some_questions_come_twice_far_apart_and_pairs_with_sides_changed() -> None:
    tasks = asked(repeats=0.1)
    place = {task.name: i for i, task in enumerate(tasks)}
    again = [task for task in tasks if task.role == "repeat"]
    first = {task.of: tasks[place[task.of]] for task in again}
    plain = sum(task.role == "plain" for task in tasks)
    assert len(again) == round(0.1 * plain) and {t.kind for t in again} == {"rate", "pair"}
    for task in again:
        assert first[task.of].role == "plain" and task.pictures == first[task.of].pictures[::-1]
        assert place[task.name] - place[task.of] > len(tasks) / 3
    assert [task.name for task in tasks] == [f"t{i:04d}" for i in range(1, len(tasks) + 1)]


def test_traps_are_the_plainest_photographs_and_of_both_kinds() -> None:
    tasks = asked(traps=0.1)
    traps = [task for task in tasks if task.role == "trap"]
    plain = sum(task.role == "plain" for task in tasks)
    names = {task.of for task in traps}
    assert names == {f"trap{i + 1}" for i in range(round(0.1 * plain))}
    for name in names:
        of = [task for task in traps if task.of == name]
        place = int(name.removeprefix("trap")) - 1
        assert {p for task in of for p in task.pictures} == {f"in{place}", f"gt{place}"}
        assert [task.kind for task in of] in (["pair"], ["rate", "rate"])
    assert {task.kind for task in traps} == {"rate", "pair"}


def test_a_few_questions_still_have_a_repeat_and_two_traps_and_none_where_none_are_wanted() -> None:
    chosen = pool(1)[:3]
    references = {f"photo{s}": (f"in{s}", f"gt{s}") for s in range(3)}
    roles = [t.role for t in tasks_of(chosen, references, list(references), ExportSettings(), rng())]
    assert roles.count("repeat") == 1 and roles.count("trap") == 3  # of two traps, one is rated twice
    none = ExportSettings(repeats=0.0, traps=0.0)
    assert {t.role for t in tasks_of(chosen, references, list(references), none, rng())} == {"plain"}


def test_one_kind_of_question_can_be_asked_alone() -> None:
    for kind in ("rate", "pair"):
        assert {task.kind for task in asked(kinds=(kind,))} == {kind}
    alone = [Output("o", "photo0", "base", 1, 1, 0, 1.0, 1.0)]
    with pytest.raises(ValueError, match="no photograph has two outputs to compare"):
        tasks_of(alone, {}, [], ExportSettings(kinds=("pair",)), rng())


def test_the_same_seed_asks_the_same() -> None:
    assert asked() == asked()
    sides = {task.pictures[0] < task.pictures[1] for task in asked() if task.kind == "pair"}
    assert sides == {True, False}  # the better one isn't always at the left


@pytest.mark.parametrize(
    ("count", "wanted", "steps"), [(6, 2, [3, 6]), (6, 1, [6]), (2, 5, [1, 2]), (1, 1, [1]), (10, 3, [3, 7, 10])]
)
def test_steps_are_evenly_spread_and_end_in_the_result(count: int, wanted: int, steps: list[int]) -> None:
    assert steps_of(count, wanted) == steps


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": 0}, "images=0: at least 1"),
        ({"repeats": 0.6}, "repeats=0.6: a share from 0 to 0.5"),
        ({"traps": float("nan")}, "traps=nan"),
        ({"kinds": ()}, r"kinds=\[\]: choose of rate, pair"),
        ({"kinds": ("guess",)}, "kinds="),
        ({"split": "test"}, "split=test: choose train or heldout"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExportSettings(**settings)
