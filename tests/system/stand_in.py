"""Rollout actors without a model, so that a dozen of them fit on two cores: they publish records of random latents."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch

from actors.actor import ActorSpec
from actors.work import WorkItem, WorkReport
from restoration.evaluate import Row
from restoration.weights import WeightsMessage
from reward_service.settings import RewardApp
from trajectories.schema import RecordMeta, Trajectories

STEPS, LATENT = 2, (4, 16, 16)  # as the tiny model of the system tests has them with sampler.steps=3 and crops of 32


class StandIn:
    """What the driver asks of a `RolloutActor`, in a tenth of a second a call."""

    def __init__(self, spec: ActorSpec, fingerprint: str, reward_version: str) -> None:
        self.spec, self.fingerprint, self.reward_version = spec, fingerprint, reward_version
        self.stream = spec.stream()

    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def roll(self, item: WorkItem, weights: WeightsMessage, rewards: Mapping[str, RewardApp]) -> WorkReport:
        assert len(ray.get(weights.ref)) > 0
        time.sleep(0.1)
        for group_id, image_id in zip(item.group_ids, item.image_ids, strict=True):
            meta = RecordMeta(
                run_id=self.spec.run_id,
                epoch=weights.epoch,
                weights_version=weights.version,
                reward_version=self.reward_version,
                scheduler_fingerprint=self.fingerprint,
                dtype="float32",
                actor="stand-in",
                group_id=group_id,
                image_id=image_id,
                crop=(0, 0, 32, 32),
                flip=False,
                seed=item.index,
            )
            self.stream.publish(record(meta, self.spec.rollout.rollouts_per_image), timeout_s=60)
        return WorkReport(item.index, weights.version, len(item.image_ids))

    def evaluate(
        self,
        image_ids: Sequence[str],
        weights: WeightsMessage | None,
        known: Sequence[Row],
        keep: Sequence[str],
        rewards: Mapping[str, RewardApp],
    ) -> tuple[list[Row], dict[str, np.ndarray]]:
        time.sleep(0.1)
        names = ("psnr", "ssim", "reward", "input_psnr", "input_ssim", "input_reward", "gt_reward")
        pixels = np.zeros((32, 32, 3), np.uint8)
        return [Row(i, dict.fromkeys(names, 1.0)) for i in image_ids], dict.fromkeys(keep, pixels)


def record(meta: RecordMeta, rollouts: int) -> Trajectories:
    draw = torch.Generator().manual_seed(meta.seed)
    shape = (rollouts, STEPS)
    rewards = torch.randn(shape, generator=draw)
    return Trajectories(
        meta=meta,
        trajectory_ids=[f"{meta.group_id}/{k}" for k in range(rollouts)],
        latent=LATENT,
        states=torch.randn(*shape, *LATENT, generator=draw),
        targets=torch.randn(*shape, *LATENT, generator=draw),
        step_index=torch.arange(STEPS, dtype=torch.int32),
        log_probs=torch.full(shape, -1.0),
        rewards=rewards,
        scored=torch.ones(shape, dtype=torch.bool),
        final_reward=rewards[:, -1].clone(),
        gt_reward=None,
        error_l1=torch.rand(rollouts, generator=draw),
        error_l2=torch.rand(rollouts, generator=draw),
        shift=torch.zeros(shape),
    )


def remote_stand_in(fingerprint: str, reward_version: str) -> Any:
    """In place of `actors.actor.remote_actor`."""

    def make(options: dict[str, Any]) -> Any:
        actor: Any = ray.remote(StandIn).options(max_restarts=-1, max_concurrency=2, num_cpus=0.01)

        class Bound:
            @staticmethod
            def remote(spec: ActorSpec) -> Any:
                return actor.remote(spec, fingerprint, reward_version)

        return Bound

    return make
