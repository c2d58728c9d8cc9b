"""One learner rank: groups of rollouts in, updated weights out. Knows no Ray; one process is one rank."""

from __future__ import annotations

import io
import json
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from learner import checkpoint
from learner.advantage import RewardTracks
from learner.batch import BatchError, GlobalBatch, PairLoader, PolicyItem, Refused, SftItem, Work, assemble
from learner.engine import Engine, allow_compile, send_bytes
from learner.loader import Loader
from learner.prepared import Fetch, Part, Preparation, parts_of, works_of
from learner.rendezvous import join
from learner.replay import PolicyMicro, Replay, SftMicro
from learner.settings import LearnerSettings
from learner.snapshot import AVERAGE_FILE, STATE_FILES, Snapshot
from learner.statistics import Statistics, batch_summary
from restoration.adapters import enable_checkpointing, frozen_type, make_trainable, trained_parameters
from restoration.average import WeightAverage
from restoration.base_models.interface import BaseModel
from restoration.checkpoints import CheckpointError
from restoration.precision import enable_tf32, resolve, set_frozen_dtype
from restoration.weights import WeightsInfo, to_bytes
from trajectories.schema import Summary, Trajectories, decode

__all__ = ["AVERAGE_FILE", "STATE_FILES", "LearnerRank", "Snapshot"]


class LearnerRank:
    """A rank of the learner. All ranks must call the methods marked "collective", in the same order.

    `prepare` may run in one other thread beside them. `Snapshot.files` may run in any.
    """

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
        listener: socket.socket | None = None,
    ) -> None:
        """Collective. Joins the ranks at address:port and adapts `model`, whose folder is the same on every rank.

        `model` is on the CPU, as loaded; it moves to `device` in the types it is trained in. `listener` is rank 0's own
        of address:port, if it has one (`rendezvous.join`).
        """
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings, self.rank, self.world = settings, rank, world
        self.device = torch.device(device)
        if settings.compile != "none":
            allow_compile()
        join(rank, world, address, port, self.device, settings.timeout_s, listener)
        if settings.tf32 and self.device.type == "cuda":
            enable_tf32()
        self.model = model
        make_trainable(model, settings.adapt, keep_reference=settings.objective.needs_reference)
        trained = trained_parameters(model)
        compute = resolve(settings.dtype, self.device)
        frozen = frozen_type(settings.adapt, self.device, compute)
        if frozen != torch.float32:
            set_frozen_dtype(model, frozen, keep=trained)
        # Networks with dropout would replay another policy than the one that acted.
        model.policy.eval()
        if settings.gradient_checkpointing:
            enable_checkpointing(model)
        if settings.compile != "none":
            model.policy.compile(backend=settings.compile)  # in place: names and hooks stay
        self.schedule = model.schedule(settings.sampler)
        autocast = compute if compute != torch.float32 else None
        replay = Replay(model, self.schedule, settings.objective, settings.sampler.guidance_scale, autocast)
        self.engine = Engine(replay, trained, settings.optimiser, self.device)
        self.model = model.to(self.device)
        self.loader = Loader(self.model, self.schedule, self.device, settings.condition_batch, frozen)
        self.preparation = Preparation(
            settings, self.schedule, model.size_multiple, pairs, rank, world, self.device, model.per_image
        )
        self.tracks = RewardTracks(settings.advantage)
        self.average = WeightAverage(settings.optimiser.ema) if settings.optimiser.ema else None
        self.iteration = 0
        self.weights_version = 0
        self._gathered: dict[str, Tensor] | None = None  # the weights in host memory, on rank 0; {} elsewhere

    def prepare(self, summaries: Sequence[Summary], fetch: Fetch) -> list[Refused]:
        """Bring this rank's share of the groups and its pictures into host memory and check all that data can do wrong.

        Not collective, and may run in a thread beside `step`: it touches neither the model nor the tracks. The same
        list of groups, less those that are refused here on any rank, can then be given to `step`; what is held is not
        fetched again when a list is prepared anew without some of its groups or with others in their place.

        Args:
            fetch: group ids -> their records in the same order, or what is wrong with one; called with a few at a time.

        Raises:
            BatchError: a group twice.
            Whatever `fetch` raises: then nothing is known of the groups.
        """
        return self.preparation.prepare(summaries, fetch)

    def step(self, groups: Sequence[Summary | bytes | memoryview]) -> dict[str, float | None]:
        """Collective: learn from the whole batch `groups`, the same on every rank; returns the same metrics on all.

        `groups` are summaries of groups that were prepared, or whole records, which are prepared here if they were not.
        Names that end in "_s" are timings; a value is None where it was not measured.

        Raises:
            BatchError: the groups can't be trained on, on one rank at least; every rank raises it then, and nothing has
                changed. Its `groups` are to blame, if single ones are.
            FloatingPointError: the loss or the gradient is not finite; load a checkpoint before going on.
        """
        started = time.perf_counter()
        records = [decode(g) if isinstance(g, bytes | memoryview) else g for g in groups]
        try:
            with self.tracks.transaction():
                batch, works = self._opened(records)
                opened = time.perf_counter()
                metrics = self._learn(batch, works)
        finally:
            self.loader.clear()
        self.preparation.drop(r.meta.group_id for r in records)
        self.iteration += 1
        self.weights_version += 1
        self._gathered = None
        if self.average is not None:
            weights = self._weights()
            if self.rank == 0:
                self.average.update(weights)
        metrics |= batch_summary(batch)
        metrics |= {
            "iteration": self.iteration,
            "weights_version": self.weights_version,
            "tracked_images": len(self.tracks),
            "open_s": opened - started,
            "learn_s": time.perf_counter() - started,
        }
        return metrics

    def _opened(self, records: Sequence[Summary]) -> tuple[GlobalBatch, list[Work]]:
        """The batch and its work, conditions computed; a refusal by one rank is raised by all of them."""
        refusal: BatchError | None = None
        try:
            held = self._held(records)
            batch = assemble(records, self.tracks, self.schedule.fingerprint)
            works = works_of(batch, self.settings)
            self.loader.open(batch, held, self.settings.objective.needs_sft, self.weights_version)
        except BatchError as error:
            refusal = error
        except CheckpointError as error:  # pictures whose embeddings don't go into one batch
            refusal = BatchError(str(error))
        self._agree(refusal)
        return batch, works

    def _held(self, records: Sequence[Summary]) -> Any:
        ids = [r.meta.group_id for r in records]
        given = {r.meta.group_id: r for r in records if isinstance(r, Trajectories)}
        try:
            return self.preparation.take(ids)
        except BatchError:
            if len(given) < len(set(ids)):
                raise
        refused = self.preparation.prepare(records, lambda names: [given[name] for name in names])
        if refused:
            first = refused[0]
            raise BatchError(f"group {first.group_id} ({first.reason}): {first.detail}", [r.group_id for r in refused])
        return self.preparation.take(ids)

    def _agree(self, refusal: BatchError | None) -> None:
        """Collective: raise the refusal of the first rank that has one, on every rank."""
        if self.world == 1:
            if refusal is not None:
                raise refusal
            return
        first = torch.tensor([self.world if refusal is None else self.rank], device=self.device)
        dist.all_reduce(first, op=dist.ReduceOp.MIN)
        source = int(first)
        if source == self.world:
            return
        text = "" if refusal is None else json.dumps([str(refusal), *refusal.groups])
        message, *blamed = json.loads(send_bytes(text.encode(), self.device, source))
        raise BatchError(message, blamed) from refusal

    def _learn(self, batch: GlobalBatch, works: Sequence[Work]) -> dict[str, float | None]:
        statistics = Statistics(self.device)
        norms: dict[str, float | None] = {"grad_norm_rl": None, "grad_norm_sft": None}
        every = self.settings.norms_every
        measure = bool(every) and self.iteration % every == 0 and self.engine.keeps_gradients
        # Inner epochs repeat the works, and so the micro-batches.
        distinct = works[: len(works) // self.settings.inner_epochs]
        plans = [parts_of(work, self.rank, self.world, self.settings.micro_batch) for work in distinct]
        old = self._old_log_probs(plans) if self.settings.old_log_probs == "recompute" else {}
        grad_norm, lr = 0.0, 0.0
        for update in range(len(works)):
            plan = plans[update % len(plans)]
            if not plan:
                continue
            decisions = sum(isinstance(part.items[0], PolicyItem) for part in plan)  # they come first
            measured: list[Tensor] = []
            loss = torch.zeros((), device=self.device)
            for i, part in enumerate(plan):
                micro = self._micro(part, update)
                if isinstance(micro, PolicyMicro) and old:
                    micro = replace(micro, old_log_prob=old[update % len(plans), i])
                parts = self.engine.accumulate(micro, last=i == len(plan) - 1)
                loss += sum(parts[name].sum() for name in ("rl", "sft", "kl_loss") if name in parts)
                deviation = parts.pop("deviation", None)
                if micro.counted:
                    statistics.add(parts)
                    if deviation is not None and update == 0:
                        statistics.add_first(deviation)
                if measure and update == 0 and i + 1 == decisions < len(plan):
                    measured.append(self.engine.keep_gradient())
            dist.all_reduce(loss)  # a loss that is not finite on one rank stops them all, before the step
            before = self.engine.gradient_norm()
            if measured:
                measured.append(self.engine.norm_since())
            # The only wait for the device in an update, but for what ZeRO's own step does.
            found = torch.stack([loss, *([] if before is None else [before]), *measured]).tolist()
            self._require_finite("loss", found[0])
            if before is not None:
                self._require_finite("gradient norm", found[1])
            after, lr = self.engine.step(self.iteration)
            grad_norm = found[1] if after is None else after
            self._require_finite("gradient norm", grad_norm)
            if measured:
                norms = {"grad_norm_rl": found[-2], "grad_norm_sft": found[-1]}
            elif measure and update == 0:  # all of the gradient is of one kind
                norms["grad_norm_rl" if decisions else "grad_norm_sft"] = grad_norm
        result = statistics.reduce(len(works))
        if not any(g.meta.weights_version == self.weights_version for g in batch.groups):
            result["ratio_first"] = None
        result |= {"grad_norm": grad_norm, "lr": lr, "updates": float(len(works)), **norms}
        difficulty = torch.cat([w.difficulty for w in works])
        result["difficulty_mean"] = float(difficulty.mean())
        return result

    def _micro(self, part: Part, update: int) -> PolicyMicro | SftMicro:
        decisions = [item for item in part.items if isinstance(item, PolicyItem)]
        if decisions:
            return self.loader.policy(decisions, part.filler)
        samples = [item for item in part.items if isinstance(item, SftItem)]
        return self.loader.sft(samples, (self.settings.seed, self.iteration, update), part.filler)

    def _old_log_probs(self, plans: Sequence[Sequence[Part]]) -> dict[tuple[int, int], Tensor]:
        """Log-probs of all decisions before the first update, by (update, micro-batch), in the replay's own batches."""
        found = {}
        for update, plan in enumerate(plans):
            for i, part in enumerate(plan):
                micro = self._micro(part, update) if isinstance(part.items[0], PolicyItem) else None
                if micro is not None:
                    found[update, i] = self.engine.log_prob(micro)
        return found

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"learner iteration {self.iteration}: {what} is {value}; resume from the last checkpoint with a lower "
                "optimiser.lr, or look for NaN in the data"
            )

    def _weights(self) -> dict[str, Tensor]:
        """Collective: the weights in host memory on rank 0, gathered once an iteration; {} elsewhere."""
        if self._gathered is None:
            self._gathered = self.engine.weights(keep=self.rank == 0)
        return self._gathered

    def trainable_bytes(self, epoch: int, run_id: str = "", averaged: bool = False) -> bytes | None:
        """Collective: the trained tensors, or their average, as safetensors bytes on rank 0, None elsewhere."""
        if averaged and self.average is None:
            raise ValueError("there is no average of the weights: set optimiser.ema")
        weights = self.average.weights if averaged and self.average is not None else self._weights()
        return to_bytes(weights, WeightsInfo(self.weights_version, epoch, run_id)) if self.rank == 0 else None

    def snapshot(self) -> Snapshot | None:
        """Collective: the state of this instant in host memory on rank 0, None elsewhere, where nothing is copied.

        Costs a copy of AdamW's moments, and of the weights if they were not published or averaged since the step.
        """
        weights, optimiser = self._weights(), self.engine.optimiser_state(keep=self.rank == 0)
        if self.rank:
            return None
        return Snapshot(
            iteration=self.iteration,
            weights_version=self.weights_version,
            weights=weights,
            optimiser=optimiser,
            average={} if self.average is None else dict(self.average.weights),
            averaged_updates=0 if self.average is None else self.average.updates,
            tracks=self.tracks.columns(),
            torch_rng=torch.get_rng_state(),
        )

    def state_files(self) -> dict[str, bytes]:
        """Collective: `Snapshot.files` of now, serialised, on rank 0, {} elsewhere."""
        snapshot = self.snapshot()
        return {} if snapshot is None else {name: _serialised(content) for name, content in snapshot.files().items()}

    def load_files(self, files: Mapping[str, bytes]) -> None:
        """Collective: continue from rank 0's `state_files`; bit-identical with the same number of ranks.

        Raises:
            checkpoint.CheckpointError: a file is missing or doesn't fit this model and its adaptation.
        """
        self._load(lambda: dict(files))

    def _load(self, read: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
        """Collective. Only rank 0 calls `read`, and gets what is not the learner's own back; a failure there is raised
        on every rank, before anything has changed.
        """
        files: dict[str, bytes] = {}
        weights = optimiser = averaged = None
        header, tracks = b"{}", b""
        if self.rank == 0:
            try:
                files = read()
                progress, tracks = self._progress(files)
                # Out of the dictionary, so that the bytes go as the tensors come.
                weights, optimiser = (safetensors.torch.load(files.pop(name)) for name in STATE_FILES[:2])
                self.engine.check(weights, optimiser)
                saved = files.pop(AVERAGE_FILE, None)
                if self.average is not None and saved is not None:
                    averaged = safetensors.torch.load(saved)
                header = json.dumps(progress).encode()
            except checkpoint.CheckpointError as error:
                header = json.dumps({"error": str(error)}).encode()
            except (KeyError, ValueError, safetensors.SafetensorError) as error:
                header = json.dumps({"error": f"this checkpoint doesn't continue this run: {error}"}).encode()
        found: dict[str, Any] = json.loads(send_bytes(header, self.device))
        if "error" in found:
            raise checkpoint.CheckpointError(found["error"])
        self.tracks.load_columns(safetensors.torch.load(send_bytes(tracks, self.device)))
        self.engine.load(weights, optimiser)
        self.iteration, self.weights_version = found["iteration"], found["weights_version"]
        torch.set_rng_state(torch.tensor(found["torch_rng"], dtype=torch.uint8))
        self._gathered = None
        if self.average is not None and weights is not None:
            # Saved without optimiser.ema, averaging begins here.
            self.average.load(*((weights, 0) if averaged is None else (averaged, found["averaged_updates"])))
        return {name: content for name, content in files.items() if name not in STATE_FILES}

    def _progress(self, files: Mapping[str, bytes]) -> tuple[dict[str, Any], bytes]:
        """Counters and tracks (safetensors) of a checkpoint, checked.

        Raises:
            KeyError, ValueError: something is missing, or not what it should be.
        """
        progress: dict[str, Any] = json.loads(files[STATE_FILES[2]])
        tracks = RewardTracks(self.settings.advantage)
        if STATE_FILES[3] in files:
            tracks.load_columns(safetensors.torch.load(files[STATE_FILES[3]]))
        else:  # a checkpoint that keeps them in learner.json
            tracks.load_state_dict(progress["tracks"])
        names = ("iteration", "weights_version", "torch_rng")
        counters = {name: progress[name] for name in names}
        return counters | {"averaged_updates": progress.get("averaged_updates", 0)}, safetensors.torch.save(
            tracks.columns()
        )

    def save(self, root: Path, keep: int = 3, extra: Mapping[str, bytes] | None = None) -> Path | None:
        """Collective: rank 0 writes a checkpoint, with the `extra` files, below `root` and returns its folder."""
        snapshot = self.snapshot()
        if snapshot is None:
            return None
        return checkpoint.write(root, self.iteration, {**snapshot.files(), **(extra or {})}, keep)

    def load(self, folder: Path) -> dict[str, bytes]:
        """Collective: continue from a checkpoint, which only rank 0 reads; returns the `extra` files, {} elsewhere.

        Raises:
            checkpoint.CheckpointError: on every rank; it is damaged, or of another model.
        """
        return self._load(lambda: checkpoint.read(folder))


def _serialised(content: checkpoint.Content) -> bytes:
    if not callable(content):
        return bytes(content)
    sink = io.BytesIO()
    content(sink)
    return sink.getvalue()
