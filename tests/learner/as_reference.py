"""Records of the distributed learner as `learner.reference` takes them."""

from __future__ import annotations

import torch

from learner.batch import PairLoader, cut
from learner.reference import Group
from learner.settings import LearnerSettings
from restoration.base_models.interface import BaseModel
from trajectories.schema import Trajectories


def as_group(record: Trajectories, model: BaseModel, settings: LearnerSettings, pairs: PairLoader) -> Group:
    lq, gt = (cut(image, record.meta.crop, record.meta.flip)[None] for image in pairs(record.meta.image_id))
    steps = model.schedule(settings.sampler).steps
    return Group(
        name=record.meta.group_id,
        image_id=record.meta.image_id,
        lq=lq,
        gt=gt,
        steps=[steps[int(i)] for i in record.step_index],
        states=record.states.float(),
        targets=record.targets.float(),
        log_probs=record.log_probs,
        rewards=record.rewards.masked_fill(~record.scored, float("nan")),
        scores=record.final_reward,
        gt_reward=record.gt_reward,
        errors=torch.stack([record.error_l1, record.error_l2], 1),
    )
