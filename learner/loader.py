"""Micro-batches on the rank's device, from the groups that it holds in host memory.

Nothing here waits for the device: what depends on the data is worked out on the host, copied from pinned memory, and
the copy is left to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learner.batch import BatchError, GlobalBatch, PolicyItem, SftItem
from learner.prepared import Held, PictureKey
from learner.replay import PolicyMicro, SftMicro, sft_draw
from restoration.base_models.interface import BaseModel, Condition
from restoration.precision import autocast
from restoration.transition import Schedule

_Shape = tuple[int, ...]


class Loader:
    """Builds micro-batches. Conditions and GT latents are computed at `open`: once for each picture (image, crop and
    mirroring) that the rank needs, in batches of one shape, and are kept on the device until `clear`.
    """

    def __init__(
        self,
        model: BaseModel,
        schedule: Schedule,
        device: torch.device,
        condition_batch: int = 8,
        frozen_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`frozen_dtype`: what the networks of conditions and latents are kept and computed in."""
        self.model, self.schedule, self.device = model, schedule, device
        self.condition_batch, self.frozen_dtype = condition_batch, frozen_dtype
        self.clear()

    def clear(self) -> None:
        """Forget the groups of the last iteration."""
        self._held: dict[int, Held] = {}
        self._fresh: dict[int, bool] = {}
        self._places: dict[PictureKey, tuple[_Shape, int]] = {}
        self._conditions: dict[_Shape, Condition] = {}
        self._latents: dict[_Shape, Tensor] = {}

    @torch.no_grad()
    def open(
        self, batch: GlobalBatch, held: Mapping[str, Held], with_latents: bool = True, version: int | None = None
    ) -> None:
        """Take what the rank holds of `batch` and compute its pictures' conditions and, if wanted, GT latents.

        Args:
            version: of the weights that replay; groups of it are marked `fresh`.

        Raises:
            BatchError: a picture whose latent has not the shape of its group's states.
        """
        self.clear()
        self._held = {i: held[g.meta.group_id] for i, g in enumerate(batch.groups) if g.meta.group_id in held}
        self._fresh = {i: batch.groups[i].meta.weights_version == version for i in self._held}
        by_shape: dict[_Shape, dict[PictureKey, Held]] = {}
        for one in self._held.values():
            by_shape.setdefault(tuple(one.lq.shape), {}).setdefault(one.picture, one)
        for shape, pictures in by_shape.items():
            keys, ones = [*pictures], [*pictures.values()]
            conditions, latents = [], []
            for first in range(0, len(ones), self.condition_batch):
                chunk = slice(first, first + self.condition_batch)
                with autocast(self.device, self.frozen_dtype):
                    conditions.append(
                        self.model.condition(
                            self._stacked([o.lq for o in ones[chunk]]), [key[0] for key in keys[chunk]]
                        )
                    )
                    if with_latents:
                        latents.append(self.model.encode(self._stacked([o.gt for o in ones[chunk]])).float())
            self._conditions[shape] = conditions[0] if len(conditions) == 1 else Condition.cat(conditions)
            if latents:
                self._latents[shape] = torch.cat(latents)
            self._places |= {key: (shape, row) for row, key in enumerate(keys)}
        self._require_shapes(batch)

    def _require_shapes(self, batch: GlobalBatch) -> None:
        for index, one in self._held.items():
            shape = self._places[one.picture][0]
            found, wanted = self._conditions[shape].latent.shape[1:], one.states.shape[2:]
            if found != wanted:
                name = batch.groups[index].meta.group_id
                raise BatchError(
                    f"group {name}: its states have shape {tuple(wanted)}, its picture's latent {tuple(found)}; it is "
                    "of another model or crop",
                    [name],
                )

    def policy(self, items: Sequence[PolicyItem], filler: bool = False) -> PolicyMicro:
        """`items` are of groups that are open and of one latent shape."""

        def stack(name: str) -> Tensor:
            return self._stacked([getattr(self._held[i.group], name)[i.row, i.position] for i in items]).float()

        indexes = tuple(self._step(i) for i in items)
        scale = 0.0 if filler else 1.0
        rows = [
            (
                i.advantage,
                scale * i.surrogate_weight,
                scale * i.kl_weight,
                self.schedule.steps[s].timestep,
                self.schedule.steps[s].std,
                float(self._fresh[i.group]),
            )
            for i, s in zip(items, indexes, strict=True)
        ]
        advantage, surrogate, kl, timestep, std, fresh = self._numbers(rows).unbind(1)
        return PolicyMicro(
            states=stack("states"),
            targets=stack("targets"),
            old_log_prob=stack("log_probs"),
            advantage=advantage,
            surrogate_weight=surrogate,
            kl_weight=kl,
            steps=indexes,
            condition=self._condition([i.group for i in items]),
            counted=not filler,
            timestep=timestep,
            std=std,
            fresh=fresh,
        )

    def sft(self, items: Sequence[SftItem], seed: tuple[int, ...], filler: bool = False) -> SftMicro:
        """`seed` and each item's index decide its timestep and noise, whatever the split."""
        shape, rows = self._rows([i.group for i in items])
        latents = self._latents[shape][rows]
        drawn = [sft_draw((*seed, i.index), self.model.train_timesteps, latents.shape[1:]) for i in items]
        return SftMicro(
            gt_latent=latents,
            noise=self._stacked([noise for _, noise in drawn]),
            timestep=self._numbers([t for t, _ in drawn], torch.int64),
            weight=self._numbers([0.0 if filler else i.weight for i in items]),
            condition=self._conditions[shape][rows],
            counted=not filler,
        )

    def _step(self, item: PolicyItem) -> int:
        return self._held[item.group].steps[item.position]

    def _condition(self, groups: list[int]) -> Condition:
        shape, rows = self._rows(groups)
        return self._conditions[shape][rows]

    def _rows(self, groups: list[int]) -> tuple[_Shape, Tensor]:
        places = [self._places[self._held[g].picture] for g in groups]
        return places[0][0], self._numbers([row for _, row in places], torch.int64)

    def _stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """Host tensors, stacked on the device in their own type."""
        if self.device.type != "cuda":
            return torch.stack(list(tensors)).to(self.device)
        shape = (len(tensors), *tensors[0].shape)
        host = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=True)
        return torch.stack(list(tensors), out=host).to(self.device, non_blocking=True)

    def _numbers(self, values: Sequence[object], dtype: torch.dtype = torch.float32) -> Tensor:
        host = torch.tensor(values, dtype=dtype)
        return (
            host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host.to(self.device)
        )
