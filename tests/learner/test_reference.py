"""The reference's own rollout against that of the actors; its step is held to the learner's in test_learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.rollout import PairBatch, RolloutSettings, complete, rollout
from actors.terms import RewardTerms, Term
from learner.advantage import AdvantageSettings
from learner.reference import Method, Reference
from learner.settings import LearnerSettings
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.images import to_uint8
from restoration.metrics.full_reference import full_reference
from tests.actors.test_rollout import metas
from tests.learner.fakes import FakeModel

SIDE, ROLLOUTS = 16, 3


def contrast(images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    return images.astype(np.float32).std((1, 2, 3))


SCORE = {"contrast": contrast, **{name: full_reference(name).score for name in ("psnr", "reconstruction")}}
NOT_FINITE = {"reward": lambda images, truths: np.full(len(images), np.nan, np.float32)}


def test_a_score_that_is_not_finite_stops_it() -> None:
    lq, gt = torch.rand(2, 1, 3, SIDE, SIDE)
    reference = Reference(FakeModel(), Method(rollouts=2))
    with pytest.raises(FloatingPointError, match="reward"):
        reference.rollout(["g"], ["i"], lq, gt, NOT_FINITE, torch.Generator())


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"action_target": "sampled", "reward_stride": 2},
        {"reward_at": "final"},
        {"terms": RewardTerms((Term("reconstruction"),))},
        {"terms": RewardTerms((Term("contrast"), Term("psnr", 0.5)))},
        {"terms": RewardTerms((Term("contrast"), Term("psnr", 0.5)), "gdpo"), "reward_stride": 2},
    ],
    ids=lambda s: "-".join(s) or "ours",
)
def test_its_rollouts_are_those_of_the_actors(switches: dict[str, object]) -> None:
    switches = dict(switches)
    terms = switches.pop("terms", RewardTerms((Term("contrast"),)))
    assert isinstance(terms, RewardTerms)
    sampler = SamplerSettings(steps=5, eta=0.8, colour_fix="adain")
    settings = RolloutSettings(2, ROLLOUTS, crop=0, decode_batch=2, **switches)  # type: ignore[arg-type]
    lq, gt = torch.rand(2, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    ids, names = ["image0", "image1"], ["g0", "g1"]
    batch = PairBatch(ids, [(0, 0, SIDE, SIDE)] * 2, [False] * 2, lq, gt)
    rolled = rollout(FakeModel(), batch, sampler, settings, torch.Generator().manual_seed(1))
    truths, first = to_uint8(gt).repeat(ROLLOUTS, axis=0), SCORE[terms.trained[0].name]
    scores = {t.name: {i: SCORE[t.name](b, truths) for i, b in rolled.blocks.items()} for t in terms.trained}
    gt_scores = first(to_uint8(gt), to_uint8(gt))
    method = Method(
        LearnerSettings(sampler=sampler, advantage=AdvantageSettings(clamp_to_gt=True)),
        rollouts=ROLLOUTS,
        enhanced=settings.action_target == "enhanced",
        weights={term.name: term.weight for term in terms.trained},
        gdpo=terms.combine == "gdpo",
        final_only=settings.reward_at == "final",
        stride=settings.reward_stride,
        decode_batch=2,
    )
    groups = Reference(FakeModel(), method).rollout(names, ids, lq, gt, SCORE, torch.Generator().manual_seed(1))
    for ours, record in zip(groups, complete(rolled, scores, gt_scores, metas(), terms), strict=True):
        assert (ours.name, ours.image_id) == (record.meta.group_id, record.meta.image_id)
        assert [step.index for step in ours.steps] == record.step_index.tolist()
        assert torch.equal(ours.rewards.isnan(), ~record.scored)
        assert ours.gt_reward == pytest.approx(record.gt_reward)
        pairs = (
            (ours.states, record.states),
            (ours.targets, record.targets),
            (ours.log_probs, record.log_probs),
            (ours.rewards.nan_to_num(), record.rewards.nan_to_num()),
            (ours.scores, record.final_reward),
            (ours.errors, torch.stack([record.error_l1, record.error_l2], 1)),
        )
        for reference, system in pairs:
            assert torch.allclose(reference, system, rtol=1e-5, atol=1e-5)


class Watched(FakeModel):
    """Keeps the images whose conditions its decoder was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        assert condition is not None and len(condition.clean) == len(latents)
        self.given.append(condition.clean)
        return super().decode(latents, condition)


def test_the_decoder_is_given_each_chain_s_own_condition_here_and_by_the_actors() -> None:
    sampler, model, own = SamplerSettings(steps=3), Watched(), Watched()
    lq, gt = torch.rand(2, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    batch = PairBatch(["a", "b"], [(0, 0, SIDE, SIDE)] * 2, [False] * 2, lq, gt)
    rollout(model, batch, sampler, RolloutSettings(2, ROLLOUTS, crop=0, decode_batch=4), torch.Generator())
    method = Method(LearnerSettings(sampler=sampler), rollouts=ROLLOUTS, decode_batch=4)
    Reference(own, method).rollout(["g", "h"], ["a", "b"], lq, gt, {"reward": SCORE["contrast"]}, torch.Generator())
    for watched in (model, own):
        assert [len(images) for images in watched.given] == [4, 2] * 2  # two scored steps
        assert torch.equal(torch.cat(watched.given), lq.repeat_interleave(ROLLOUTS, 0).repeat(2, 1, 1, 1))
