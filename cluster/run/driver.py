"""The run on one page: roll out, score, learn, publish, evaluate, checkpoint."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGINT

from cluster.config.recipe import RunConfig
from cluster.run.admission import capacity
from cluster.run.interrupts import Asked
from cluster.run.state import Interrupted, RunState, RunSummary
from cluster.run.topology import Topology

MAX_EVALUATIONS = 2  # that wait; then the next step does, too


def train(config: RunConfig, folder: Path, resume: bool = False) -> RunSummary:
    """Run `config` in `folder`; `resume` continues from its last checkpoint.

    Raises:
        ConfigError, DataError, ClusterError, StoreError, RewardError, CheckpointError: what the user can put right.
        Fatal, BatchTimeout, Stalled: the run can't go on; it can be resumed once that is put right.
        Interrupted: Ctrl-C or SIGTERM, which every wait looks for; everything up to the last checkpoint is kept.
    """
    checked = Topology(config, folder, resume)  # before anything is written or started
    with RunState(config, folder, resume) as state:
        finished = _run(config, state, checked.of(state.run_id, state.interrupts))
        return finished.result()


def _run(config: RunConfig, state: RunState, topology: Topology) -> Future[RunSummary]:
    with topology as parts:
        state.begin(parts)
        learning = None
        with suppress(Asked):
            while not state.interrupted:
                state.turn()
                # Evaluations first, one part an actor, so that rollouts go on beside them.
                evaluating = parts.evaluating()  # looks at every call: once, however many slots are free
                for actor in parts.actors.free():
                    if actor not in evaluating and (part := state.heldout.evaluations.take()) is not None:
                        parts.evaluate(actor, part, state.heldout.base_rows)
                        evaluating.add(actor)

                # Hand out rollouts as long as none can become staler than allowed.
                if parts.version < config.iterations and (free := parts.actors.free()):
                    room = capacity(
                        config.source.groups_per_step,
                        config.source.max_staleness,
                        config.iterations - parts.version,
                        parts.stream.unsettled(parts.learning.epoch),
                        parts.learning.source.used_groups(),
                        parts.rolling(),
                    )
                    for actor in free:
                        if (room := room - len(state.work.peek().image_ids)) < 0:
                            break
                        parts.roll(actor, state.work.take())

                if learning is None:
                    learning = parts.learning.start_next(wait=state.heldout.backlog >= MAX_EVALUATIONS)

                ended, learned = parts.wait(learning)
                state.tend_actors()
                for ref in ended:
                    call = parts.actors.calls[ref]
                    task, result = state.interrupts.beside(partial(parts.actors.take, ref))
                    state.timeline.ended(call, result)
                    state.ended(task, result)
                if learned and learning is not None:
                    state.learned(learning)
                    learning = None
                # A step in flight counts as done only when it has been recorded.
                if state.heldout.advance() and learning is None and parts.version >= config.iterations:
                    return state.finish()
        folder, reached = state.folder, max(parts.version, parts.learning.durable, 0)  # a new learner has yet to load
        state.display.note(f"stopping after iteration {reached}; go on with: restorl train --resume {folder}")
        raise Interrupted(folder, reached, state.interrupts.requested or SIGINT)
