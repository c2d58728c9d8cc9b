"""From votes to labels."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from reward_service.annotation.cleaning import Cleaned, clean, failed_traps
from reward_service.annotation.label_table import write_labels
from reward_service.annotation.manifest import OUTPUT
from reward_service.annotation.screening import Rules
from reward_service.annotation.votes import Vote
from reward_service.training.labels import LEVELS, soft_labels
from tests.reward_service.annotation.people import GOOD, GUESSER, Person, answers, make_export, quality_of

EXPORT = make_export()


@pytest.fixture(scope="module")
def cleaned() -> Cleaned:
    return clean(EXPORT, answers(EXPORT, (*GOOD, GUESSER), missing=0.1))


def test_ratings_become_qualities_in_the_order_of_the_truth_without_whom_is_at_random(cleaned: Cleaned) -> None:
    assert set(cleaned.left_out) == {"guess"} and cleaned.raters == tuple(person.name for person in GOOD)
    truth = [quality_of(EXPORT, one.picture) for one in cleaned.rated]
    assert spearmanr(truth, [one.quality for one in cleaned.rated]).statistic > 0.95
    assert np.abs(np.array(truth) - [one.quality for one in cleaned.rated]).mean() < 0.4


def test_soft_labels_have_the_quality_as_their_mean(cleaned: Cleaned) -> None:
    for one in cleaned.rated:
        assert sum(one.levels) == pytest.approx(1, abs=1e-6) and min(one.levels) >= 0
        assert np.dot(one.levels, [5, 4, 3, 2, 1]) == pytest.approx(one.quality, abs=0.1 + 1e-6)
        assert 1 <= one.quality <= 5


def test_preferences_follow_the_truth_and_traps_are_no_pairs_to_learn_from(cleaned: Cleaned) -> None:
    clear = [p for p in cleaned.compared if abs(quality_of(EXPORT, p.first) - quality_of(EXPORT, p.second)) > 0.4]
    right = [(p.preference > 0.5) == (quality_of(EXPORT, p.first) > quality_of(EXPORT, p.second)) for p in clear]
    assert len(clear) > 5 and np.mean(right) > 0.9
    assert {EXPORT.pictures[name].role for p in cleaned.compared for name in (p.first, p.second)} == {OUTPUT}
    assert all(p.votes >= 1 and 0 <= p.first_better <= 1 for p in cleaned.compared)


def test_agreement_is_better_without_whom_is_at_random(cleaned: Cleaned) -> None:
    lenient = Rules(least_agreement=-1, most_traps_failed=1)
    everybody = clean(EXPORT, answers(EXPORT, (*GOOD, GUESSER), missing=0.1), lenient)
    assert not everybody.left_out
    assert cleaned.agreement.alpha > everybody.agreement.alpha + 0.05
    assert cleaned.agreement.alpha_in_pairs > everybody.agreement.alpha_in_pairs
    assert 0 < cleaned.agreement.single < cleaned.agreement.mean < 1


def test_a_trap_is_failed_where_the_truth_is_not_above_the_input() -> None:
    pair = next(t for t in EXPORT.tasks if t.role == "trap" and t.kind == "pair")  # truth at the left
    votes = [
        *(Vote("anna", "trap0truth", 5), Vote("anna", "trap0input", 2), Vote("anna", pair.name, "left")),
        *(Vote("ben", "trap0truth", 2), Vote("ben", "trap0input", 5), Vote("ben", pair.name, "right")),
        *(Vote("cy", "trap0truth", 3), Vote("cy", "trap0input", 3), Vote("cy", pair.name, "tie")),
        Vote("dora", "trap0truth", 3),
    ]
    assert failed_traps(EXPORT, votes) == {"anna": [0, 0], "ben": [1, 1], "cy": [0.5, 0.5]}


def test_who_prefers_the_degraded_input_is_left_out_by_traps() -> None:
    class Upside(Person):
        def level(self, quality: float, rng: np.random.Generator) -> int:
            return 6 - super().level(quality, rng)

        def side(self, left: float, right: float, rng: np.random.Generator) -> str:
            return super().side(right, left, rng)

    found = clean(EXPORT, answers(EXPORT, (*GOOD, Upside("upside"))))
    assert "traps" in found.left_out["upside"] and len(found.left_out) == 1


def test_ratings_alone_and_comparisons_alone_are_enough() -> None:
    votes = answers(EXPORT, GOOD)
    ratings = clean(EXPORT, [v for v in votes if isinstance(v.answer, int)])
    assert ratings.rated and not ratings.compared and math.isnan(ratings.agreement.alpha_in_pairs)
    pairs = clean(EXPORT, [v for v in votes if not isinstance(v.answer, int)])
    assert pairs.compared and not pairs.rated and pairs.opinions is None and math.isnan(pairs.agreement.alpha)


def test_what_can_not_be_cleaned_is_told_in_words() -> None:
    with pytest.raises(ValueError, match="has no vote yet; rate first"):
        clean(EXPORT, [])
    with pytest.raises(ValueError, match="votes are of anna: whether one annotator alone is right, nobody can tell"):
        clean(EXPORT, answers(EXPORT, GOOD[:1]))
    same = [Vote(who, t.name, 3) for who in ("anna", "ben") for t in EXPORT.tasks if t.kind == "rate"]
    with pytest.raises(ValueError, match="ratings are 3: they tell no picture from another"):
        clean(EXPORT, same)
    with pytest.raises(ValueError, match="anna and guess don't agree"):
        clean(EXPORT, answers(EXPORT, (GOOD[0], GUESSER)), Rules(most_traps_failed=1))
    with pytest.raises(ValueError, match="only anna is left, and one annotator alone is not enough:\n  ben "):
        clean(EXPORT, [*answers(EXPORT, GOOD[:1]), *(Vote("ben", v.task, 4) for v in same if v.annotator == "ben")])


def test_what_a_user_should_know_is_noted() -> None:
    votes = answers(EXPORT, GOOD)
    few = [v for v in votes if v.annotator in ("anna", "ben") or v.task == "rs0o0"]
    notes = "\n".join(clean(EXPORT, few).notes)
    assert "cy counts, though nobody can say how far the others agree" in notes
    half = [v for v in votes if (v.annotator in ("anna", "ben")) == (v.task[:3] in ("rs0", "rs1", "rs2"))]
    found = clean(EXPORT, [v for v in half if EXPORT.task_of[v.task].role == "plain" and v.task.startswith("r")])
    notes = "\n".join(found.notes)
    assert "the annotators fall into 2 groups that share no picture" in notes and "tasks have no vote" in notes


def test_the_tables_hold_what_a_training_needs(cleaned: Cleaned, tmp_path: Path) -> None:
    files = write_labels(tmp_path / "labels", tmp_path / "export", EXPORT, cleaned, {"way": "density"})
    assert [file.name for file in files] == ["labels.csv", "pairs.csv", "labels.json"]
    with files[0].open(newline="") as file:
        rows = {row["picture"]: row for row in csv.DictReader(file)}
    one = cleaned.rated[0]
    row = rows[one.picture]
    assert float(row["quality"]) == pytest.approx(one.quality, abs=1e-4) and int(row["votes"]) == one.votes
    assert [float(row[word]) for word in ("excellent", "bad")] == pytest.approx(
        [one.levels[0], one.levels[4]], abs=1e-5
    )
    assert row["photograph"].endswith("clean") and row["file"].startswith("images/")
    with files[1].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(cleaned.compared)
    about = json.loads(files[2].read_text())
    assert about["export"] == EXPORT.export and about["folder"] == "../export"
    assert about["hashes"]["labels.csv"] == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert about["annotators"]["guess"]["left_out"] and about["agreement"]["alpha"] == cleaned.agreement.alpha


def test_a_soft_label_of_each_deviation_is_what_that_deviation_alone_gives() -> None:
    quality, spread = torch.tensor([1.2, 2.5, 3.0, 4.1]), torch.tensor([0.1, 0.5, 0.8, 1.1])
    for way in ("density", "mass"):
        together = soft_labels(quality, spread, way)  # type: ignore[arg-type]
        alone = [soft_labels(q[None], float(s), way)[0] for q, s in zip(quality, spread, strict=True)]  # type: ignore[arg-type]
        torch.testing.assert_close(together, torch.stack(alone))
        assert ((together @ LEVELS) - quality).abs().max() <= 0.1 + 1e-6
    assert soft_labels(quality, spread)[0].tolist() == pytest.approx([0, 0, 0, 0.2, 0.8])
    wide = [soft_labels(torch.tensor([2.5]), 0.6, way)[0].tolist() for way in ("density", "mass")]  # type: ignore[arg-type]
    assert wide[1] != pytest.approx(wide[0], abs=1e-3)


def test_soft_labels_by_mass_are_written_out() -> None:
    mu, s = 2.6, 0.7
    p = [0.5 * (math.erf((i + 0.5 - mu) / s / 2**0.5) - math.erf((i - 0.5 - mu) / s / 2**0.5)) for i in (5, 4, 3, 2, 1)]
    total, first = sum(p), sum(v * i for v, i in zip(p, (5, 4, 3, 2, 1), strict=True))
    alpha = (mu - 3) / (first - 3 * total)
    expected = [max(0.0, alpha * v + (1 - alpha * total) / 5) for v in p]
    assert min(expected) > 0
    assert soft_labels(torch.tensor([mu]), s, "mass")[0].tolist() == pytest.approx(expected, abs=1e-5)
