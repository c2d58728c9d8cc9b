"""DeQA-Score's losses beyond what its golden file shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reward_service.scorers.mplug_owl2.prompt import LEVEL_IDS
from reward_service.training.level_losses import (
    LEVEL_PREFIX,
    LevelLoss,
    fidelity,
    level_at,
    pair_loss,
    preference,
    read,
)

WORDS = 32000
PICTURE = 4  # tokens more than labels


def answers(levels: tuple[int, ...] = (1, 3), pad: int = 0) -> Tensor:
    rows = [[-100] * 3 + [*LEVEL_PREFIX, LEVEL_IDS[level], 2] + [-100] * pad for level in levels]
    return torch.tensor(rows)


def logits_for(labels: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), labels.shape[1] + PICTURE, WORDS, generator=generator)


PROBS = torch.tensor([[0.1, 0.6, 0.2, 0.1, 0.0], [0.0, 0.1, 0.2, 0.4, 0.3]])


def test_the_loss_is_the_cross_entropy_of_the_other_words_and_the_divergence_at_the_level() -> None:
    labels = answers()
    logits = logits_for(labels)
    log_words = logits.log_softmax(-1)
    nll = [-log_words[r, t + PICTURE - 1, labels[r, t]] for r in range(2) for t in range(3, 11) if t != 9]
    at_level = log_words[:, 9 + PICTURE - 1][:, list(LEVEL_IDS)]
    entropy = torch.special.xlogy(PROBS, PROBS).sum(1)
    divergence = (entropy - (PROBS * at_level).sum(1)).mean()
    found = read(logits, labels, PROBS)
    torch.testing.assert_close(found.loss, torch.stack(nll).mean() + divergence)
    hard = read(logits, labels, PROBS, LevelLoss(soft_kl=0.0))
    nll += [-log_words[r, 9 + PICTURE - 1, labels[r, 9]] for r in range(2)]
    torch.testing.assert_close(hard.loss, torch.stack(nll).mean())


def test_filling_at_the_end_changes_nothing() -> None:
    logits = logits_for(answers(pad=3))
    short, long = read(logits[:, :-3], answers(), PROBS), read(logits, answers(pad=3), PROBS)
    for a, b in zip(short, long, strict=True):
        torch.testing.assert_close(a, b)


def test_an_open_score_counts_what_lies_outside_the_levels() -> None:
    labels = answers()
    logits = logits_for(labels)
    closed, opened = read(logits, labels, PROBS), read(logits, labels, PROBS, LevelLoss(closed=False))
    words = logits[:, 9 + PICTURE - 1].softmax(-1)[:, list(LEVEL_IDS)]
    torch.testing.assert_close(opened.score, words @ torch.tensor([5.0, 4, 3, 2, 1]))
    assert (opened.score < closed.score).all() and ((closed.score > 1) & (closed.score < 5)).all()


def test_confident_logits_keep_the_divergence_finite() -> None:
    labels = answers()
    logits = torch.full((2, labels.shape[1] + PICTURE, WORDS), -200.0)
    logits[..., 7] = 200
    logits.requires_grad_()
    loss = read(logits, labels, PROBS).loss
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_fidelity_is_least_where_the_preferences_are_equal() -> None:
    p = torch.linspace(0, 1, 11)
    assert fidelity(p, p).abs() < 1e-3
    true = torch.full((1,), 0.7)
    losses = [float(fidelity(torch.tensor([q]), true)) for q in (0.3, 0.5, 0.7, 0.9)]
    assert min(losses) == losses[2] < losses[1] < losses[0] and losses[3] > losses[2]
    assert float(preference(torch.tensor(3.0), torch.tensor(2.0), 2.0)) == pytest.approx(0.7602, abs=1e-4)


def test_ranking_pushes_the_better_picture_up_and_deviations_get_no_gradient() -> None:
    labels = answers()
    tensors = [logits_for(labels, seed).requires_grad_() for seed in (1, 2)]
    a, b = (read(t, labels, PROBS) for t in tensors)
    opinions = (torch.tensor([4.5, 4.5]), torch.tensor([1.5, 1.5]))
    weights = LevelLoss(next_token=0.0, unit_deviation=False)
    spread = (torch.full((2,), 0.5),) * 2
    total, rank = pair_loss(a, b, opinions, spread, weights)
    assert torch.equal(total, rank)
    up, down = torch.autograd.grad(total, [a.score, b.score], retain_graph=True)
    assert (up < 0).all() and (down > 0).all()
    assert torch.autograd.grad(total, a.deviation, retain_graph=True, allow_unused=True) == (None,)
    more, _ = pair_loss(a, b, opinions, spread, LevelLoss(next_token=0.0, unit_deviation=False, in_level=2.0))
    torch.testing.assert_close(more, total + 2 * (a.outside + b.outside))


def test_an_answer_without_a_level_is_named_by_its_row() -> None:
    labels = answers()
    assert level_at(labels).tolist() == [9, 9]
    for row, column, value in ((1, 9, 5), (1, 4, 5)):
        wrong = labels.clone()
        wrong[row, column] = value
        with pytest.raises(ValueError, match=r"labels\[1\]: no level word behind"):
            level_at(wrong)
    with pytest.raises(ValueError, match=r"labels\[0\]"):
        level_at(labels[:, :9])
    with pytest.raises(ValueError, match="11 labels, but 10 positions"):
        read(torch.zeros(2, 10, WORDS), labels, PROBS)


@pytest.mark.parametrize(("rows", "words", "more"), [(1, 40, 0), (2, 97, 3), (5, 64, 9)])
def test_gradients_are_those_of_the_formula_written_out_at_any_size(rows: int, words: int, more: int) -> None:
    """Fidelity of the preferences, and of both pictures cross-entropy and divergence at the level."""
    prefix, levels = (7, 8), (20, 11, 12, 33, 14)
    generator = torch.Generator().manual_seed(rows)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    picked = torch.randint(0, 5, (rows,), generator=generator).tolist()
    labels = torch.tensor([[-100, -100, *prefix, levels[level], 2] for level in picked])
    given = [(6 * drawn(rows, 6 + more, words)).requires_grad_() for _ in "ab"]
    probs = [drawn(rows, 5).softmax(1) for _ in "ab"]
    opinions = (1 + 4 * drawn(rows), 1 + 4 * drawn(rows))
    deviations = (0.2 + drawn(rows), 0.2 + drawn(rows))

    def written_out(a: Tensor, b: Tensor) -> Tensor:
        losses, scores = [], []
        for logits, soft in ((a, probs[0]), (b, probs[1])):
            nll, divergence, means = [], [], []
            for row in range(rows):
                log_words = [logits[row, more + t - 1] - logits[row, more + t - 1].logsumexp(0) for t in range(1, 6)]
                nll += [-log_words[t - 1][labels[row, t]] for t in (2, 3, 5)]
                at = log_words[3][list(levels)]
                divergence.append((soft[row] * (soft[row].log() - at)).sum())
                share = at.exp() / at.exp().sum()
                means.append(sum(share[i] * (5 - i) for i in range(5)))
            losses.append(torch.stack(nll).mean() + torch.stack(divergence).mean())
            scores.append(torch.stack(means))  # type: ignore[arg-type]

        def phi(x: Tensor) -> Tensor:
            return 0.5 * (1 + torch.erf(x / 2**0.5))

        said = phi((scores[0] - scores[1]) / 2**0.5)
        true = phi((opinions[0] - opinions[1]) / (deviations[0] ** 2 + deviations[1] ** 2 + 1e-8).sqrt())
        rank = 1 - (said * true + 1e-8).sqrt() - ((1 - said) * (1 - true) + 1e-8).sqrt()
        return rank.mean() + 0.05 * (losses[0] + losses[1])

    a, b = (read(x, labels, p, LevelLoss(), prefix, levels) for x, p in zip(given, probs, strict=True))
    total, _ = pair_loss(a, b, opinions, deviations)
    expected = written_out(*given)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(loss, given) for loss in (total, expected))
    for x, y in zip(ours, theirs, strict=True):
        assert y.abs().max() > 1e-4
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("settings", [{"rank": -1.0}, {"soft_kl": float("nan")}, {"in_level": float("inf")}])
def test_weights_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a finite number of at least 0"):
        LevelLoss(**settings)
