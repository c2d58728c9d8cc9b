"""One learner rank: groups of rollouts in, updated weights out. Knows no Ray; one process is one rank."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from learner import checkpoint
from learner.advantage import RewardTracks
from learner.batch import GlobalBatch, PairLoader, Work, assemble, make_work, plan_updates, share
from learner.engine import Engine, join
from learner.replay import Loader, PolicyMicro, Replay, SftMicro
from learner.settings import LearnerSettings
from learner.statistics import Statistics, batch_summary
from restoration.adapters import enable_checkpointing, make_trainable, trained_parameters
from restoration.average import WeightAverage
from restoration.base_models.interface import BaseModel
from restoration.weights import WeightsInfo, to_bytes
from trajectories.schema import Trajectories, decode

STATE_FILES = ("weights.safetensors", "optimiser.safetensors", "learner.json")
AVERAGE_FILE = "average.safetensors"  # with optimiser.ema


class LearnerRank:
    """A rank of the learner. All ranks must call the methods marked "collective", in the same order."""

    def __init__(
        self,
        settings: LearnerSettings,
        model: BaseModel,
        pairs: PairLoader,
        rank: int = 0,
        world: int = 1,
        address: str = "127.0.0.1",
        port: int = 29500,
        device: torch.device | str = "cpu",
    ) -> None:
        """Collective. Joins the ranks at address:port and adapts `model`, whose folder is the same on every rank."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings, self.rank, self.world = settings, rank, world
        self.device = torch.device(device)
        join(rank, world, address, port, self.device, settings.timeout_s)
        self.model = model.to(self.device)
        make_trainable(self.model, settings.adapt)
        # Networks with dropout would replay another policy than the one that acted.
        self.model.policy.eval()
        if settings.gradient_checkpointing:
            enable_checkpointing(self.model)
        self.schedule = self.model.schedule(settings.sampler)
        autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
        replay = Replay(self.model, self.schedule, settings.objective, settings.sampler.guidance_scale, autocast)
        self.engine = Engine(replay, trained_parameters(self.model), settings.optimiser)
        self.loader = Loader(self.model, pairs, self.device)
        self.tracks = RewardTracks(settings.advantage)
        self.average = WeightAverage(settings.optimiser.ema) if settings.optimiser.ema else None
        self.iteration = 0
        self.weights_version = 0

    def step(self, groups: Sequence[bytes | memoryview | Trajectories]) -> dict[str, float | None]:
        """Collective: learn from the whole batch `groups`, the same on every rank; returns the same metrics on all.

        Names that end in "_s" are timings; a value is None where it was not measured.

        Raises:
            BatchError: the groups can't be trained on; nothing has changed then.
            FloatingPointError: the loss or the gradient is not finite; load a checkpoint before going on.
        """
        started = time.perf_counter()
        decoded = [g if isinstance(g, Trajectories) else decode(g) for g in groups]
        before = self.tracks.state_dict()
        try:
            batch = assemble(decoded, self.tracks, self.schedule.fingerprint)
            metrics = self._learn(batch)
        except BaseException:
            self.tracks.load_state_dict(before)
            raise
        finally:
            self.loader.clear()
        self.iteration += 1
        self.weights_version += 1
        if self.average is not None:
            weights = self.engine.weights()
            if self.rank == 0:
                self.average.update(weights)
        metrics |= batch_summary(batch)
        metrics |= {
            "iteration": self.iteration,
            "weights_version": self.weights_version,
            "tracked_images": len(self.tracks),
            "learn_s": time.perf_counter() - started,
        }
        return metrics

    def _learn(self, batch: GlobalBatch) -> dict[str, float | None]:
        statistics = Statistics(self.device)
        norms: dict[str, float | None] = {"grad_norm_rl": None, "grad_norm_sft": None}
        works = [
            make_work(batch, chosen, self.settings.objective)
            for _ in range(self.settings.inner_epochs)
            for chosen in plan_updates(batch, self.settings.updates_per_batch)
        ]
        every = self.settings.norms_every
        measure = bool(every) and self.iteration % every == 0 and self.settings.optimiser.zero_stage < 3
        grad_norm, lr = 0.0, 0.0
        for update, work in enumerate(works):
            if not work.policy and not work.sft:
                continue
            makers = self._micro_batches(batch, work, (self.settings.seed, self.iteration, update))
            if measure and update == 0:
                norms = self._norms_apart(makers)
            loss = torch.zeros((), device=self.device)
            for i, make in enumerate(makers):
                micro = make()
                parts = self.engine.accumulate(micro, last=i == len(makers) - 1)
                loss += sum(parts[name].sum() for name in ("rl", "sft", "kl_loss") if name in parts)
                if micro.counted:
                    statistics.add(parts)
            dist.all_reduce(loss)  # a loss that is not finite on one rank stops them all, before the step
            self._require_finite("loss", float(loss))
            grad_norm, lr = self.engine.step(self.iteration)
            self._require_finite("gradient norm", grad_norm)
        result = statistics.reduce(len(works))
        result |= {"grad_norm": grad_norm, "lr": lr, "updates": float(len(works)), **norms}
        difficulty = torch.cat([w.difficulty for w in works])
        result["difficulty_mean"] = float(difficulty.mean())
        return result

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"learner iteration {self.iteration}: {what} is {value}; resume from the last checkpoint with a lower "
                "optimiser.lr, or look for NaN in the data"
            )

    def _micro_batches(
        self, batch: GlobalBatch, work: Work, seed: tuple[int, ...]
    ) -> list[Callable[[], PolicyMicro | SftMicro]]:
        """What makes this rank's micro-batches: as many, of the same kinds and in the same order, on every rank."""
        size = self.settings.micro_batch
        makers: list[Callable[[], PolicyMicro | SftMicro]] = []
        for part in share(work.policy, self.rank, self.world, size):
            items, filler = part or [work.policy[0]], not part
            makers.append(lambda items=items, filler=filler: self.loader.policy(batch, items, filler))  # type: ignore[misc]
        for chunk in share(work.sft, self.rank, self.world, size):
            rows, filler = chunk or [work.sft[0]], not chunk
            makers.append(lambda rows=rows, filler=filler: self.loader.sft(batch, rows, seed, filler))  # type: ignore[misc]
        return makers

    def _norms_apart(self, makers: Sequence[Callable[[], PolicyMicro | SftMicro]]) -> dict[str, float | None]:
        """Norms over all ranks of the RL (with KL) and the SFT gradient, by passes that leave the engine alone."""
        parameters = list(self.engine.trained.values())
        sums: dict[str, list[Tensor]] = {}
        for make in makers:
            micro = make()
            loss, _ = self.engine.evaluate(micro)
            name = "grad_norm_rl" if isinstance(micro, PolicyMicro) else "grad_norm_sft"
            total = sums.setdefault(name, [torch.zeros_like(p, dtype=torch.float32) for p in parameters])
            for t, g in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if g is not None:
                    t += g
        norms: dict[str, float | None] = {"grad_norm_rl": None, "grad_norm_sft": None}
        for name in sorted(sums):
            flat = torch.cat([t.flatten() for t in sums[name]])
            dist.all_reduce(flat)
            norms[name] = float(flat.norm())
        return norms

    def trainable_bytes(self, epoch: int, run_id: str = "", averaged: bool = False) -> bytes | None:
        """Collective: the trained tensors, or their average, as safetensors bytes on rank 0, None elsewhere."""
        if averaged and self.average is None:
            raise ValueError("there is no average of the weights: set optimiser.ema")
        weights = self.average.weights if averaged and self.average is not None else self.engine.weights()
        return to_bytes(weights, WeightsInfo(self.weights_version, epoch, run_id)) if self.rank == 0 else None

    def state_files(self) -> dict[str, bytes]:
        """Collective: the rank-independent state by file name (`STATE_FILES`, `AVERAGE_FILE`) on rank 0, else {}."""
        weights, optimiser = self.engine.weights(), self.engine.optimiser_state()
        if self.rank:
            return {}
        progress = {
            "iteration": self.iteration,
            "weights_version": self.weights_version,
            "tracks": self.tracks.state_dict(),
            "averaged_updates": self.average.updates if self.average is not None else 0,
            "torch_rng": torch.get_rng_state().tolist(),
        }
        contents = (safetensors.torch.save(weights), safetensors.torch.save(optimiser), json.dumps(progress).encode())
        files = dict(zip(STATE_FILES, contents, strict=True))
        if self.average is not None and self.average.weights:
            files[AVERAGE_FILE] = safetensors.torch.save(self.average.weights)
        return files

    def load_files(self, files: Mapping[str, bytes]) -> None:
        """Collective: continue from `state_files`; bit-identical with the same number of ranks.

        Raises:
            checkpoint.CheckpointError: a file is missing or doesn't fit this model and its adaptation.
        """
        try:
            weights, optimiser = (safetensors.torch.load(files[name]) for name in STATE_FILES[:2])
            progress: dict[str, Any] = json.loads(files[STATE_FILES[2]])
            self.engine.load(weights, optimiser)
            self.tracks.load_state_dict(progress["tracks"])
            self.iteration, self.weights_version = progress["iteration"], progress["weights_version"]
            torch.set_rng_state(torch.tensor(progress["torch_rng"], dtype=torch.uint8))
            if self.average is not None and self.rank == 0:
                saved = files.get(AVERAGE_FILE)
                if saved is None:  # saved without optimiser.ema: averaging begins here
                    self.average.load(weights, 0)
                else:
                    self.average.load(safetensors.torch.load(saved), progress["averaged_updates"])
        except (KeyError, ValueError, safetensors.SafetensorError) as error:
            raise checkpoint.CheckpointError(f"this checkpoint doesn't continue this run: {error}") from error

    def save(self, root: Path, keep: int = 3, extra: Mapping[str, bytes] | None = None) -> Path | None:
        """Collective: rank 0 writes a checkpoint, with the `extra` files, below `root` and returns its folder."""
        files = {**self.state_files(), **(extra or {})}
        return checkpoint.write(root, self.iteration, files, keep) if self.rank == 0 else None

    def load(self, folder: Path) -> dict[str, bytes]:
        """Collective: continue from a checkpoint that every rank can read; returns all its files."""
        files = checkpoint.read(folder)
        self.load_files(files)
        return files
