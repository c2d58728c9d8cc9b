"""The method of a learner step, written out plainly with torch alone: the whole batch at once, one process."""

from __future__ import annotations

import torch
from torch.distributions import Normal

from learner.learner import LearnerSettings
from learner.replay import _draw
from restoration.adapters import make_trainable, reference, trained_parameters
from restoration.transition import predict_x0, transition_mean
from tests.learner.fakes import SIZE, FakeModel, fake_pairs
from trajectories.schema import Trajectories


class Oracle:
    """`step` as `LearnerRank.step`, for stats="batch", per step, all images."""

    def __init__(self, settings: LearnerSettings) -> None:
        self.s, self.model, self.iteration = settings, FakeModel(), 0
        parameters = make_trainable(self.model, settings.adapt)
        self.optimiser = torch.optim.AdamW(parameters, lr=settings.optimiser.lr, weight_decay=0.0)

    def step(self, groups: list[Trajectories]) -> tuple[float, dict[str, torch.Tensor]]:
        groups = sorted(groups, key=lambda g: g.meta.group_id)
        errors = torch.cat([g.error_l2 for g in groups]).double()
        w = errors / errors.max()
        rewards = torch.cat([g.rewards for g in groups]).double()
        advantage = (rewards - rewards.mean(0)) / (rewards.var(0, correction=0) + self.s.advantage.eps).sqrt()
        loss, row = torch.zeros(()), 0
        for g in groups:
            lq, gt = (image[:, 4 : 4 + SIZE, :SIZE][None] for image in fake_pairs(g.meta.image_id))
            condition, latent = self.model.condition(lq), self.model.encode(gt)
            for k in range(len(g.trajectory_ids)):
                j = torch.zeros(())
                for position, index in enumerate(g.step_index.tolist()):
                    step = self.model.schedule(self.s.sampler).steps[index]
                    x, target = g.states[k, position][None], g.targets[k, position][None]

                    def mean(step=step, x=x, condition=condition):  # type: ignore[no-untyped-def]
                        output = self.model.denoise(x, step.timestep, condition, 1.0)
                        return transition_mean(step, x, predict_x0(step, output, x))

                    now = mean()
                    ratio = (Normal(now, step.std).log_prob(target).mean() - g.log_probs[k, position]).exp()
                    a = advantage[row, position].float()
                    bound = 1 + self.s.objective.clip * (1 if a >= 0 else -1)
                    j = j + torch.minimum(ratio * a, bound * a) / len(g.step_index)
                    with torch.no_grad(), reference(self.model):
                        before = mean()
                    kl = ((now - before) ** 2).mean() / (2 * step.std**2)
                    loss = loss + self.s.objective.kl_beta * kl / (len(errors) * len(g.step_index))
                t, noise = _draw((self.s.seed, self.iteration, 0, row), 1000, latent.shape[1:])
                l_diff = self.model.sft_loss(latent, condition, torch.tensor([t]), noise[None])[0]
                loss = loss + ((1 - w[row]).float() * l_diff - w[row].float() * j) / len(errors)
                row += 1
        self.optimiser.zero_grad()
        loss.backward()
        parameters = trained_parameters(self.model)
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), self.s.optimiser.grad_clip)
        self.optimiser.step()
        self.iteration += 1
        return float(loss.detach()), {name: p.detach().clone() for name, p in parameters.items()}
