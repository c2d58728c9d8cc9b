"""The run on one page: roll out, score, learn, publish, evaluate, checkpoint."""

from __future__ import annotations

from pathlib import Path

import ray

from cluster.admission import Admission
from cluster.config import RunConfig
from cluster.run_state import Interrupted, RunSummary, RunState
from cluster.topology import Topology

SLOTS_PER_ACTOR = 2  # one item denoises while another waits for its scores


def train(config: RunConfig, folder: Path, resume: bool = False) -> RunSummary:
    """Run `config` in `folder`; `resume` continues from its last checkpoint.

    Raises:
        ConfigError, StoreError, RewardError, ClusterError, CheckpointError: what the user can put right.
        Interrupted: Ctrl-C; everything up to the last checkpoint is kept and `--resume` goes on from there.
    """
    with RunState(config, folder, resume) as state, Topology(config, state) as parts:
        admission = Admission(config.source.groups_per_step, config.source.max_staleness)
        admission.restore(parts.learner.version, parts.waiting_groups())
        state.begin(parts)
        state.evaluate_if_due(parts)
        learning = None
        while parts.learner.version < config.iterations and not state.interrupted:
            parts.keep_store_alive()

            # Hand out work as long as no rollout can become staler than allowed.
            for actor in parts.free_actors(SLOTS_PER_ACTOR):
                item = state.work.peek()
                if not admission.admit(item.index, len(item.image_ids)):
                    break
                parts.roll(actor, state.work.take(), parts.learner.weights)

            if learning is None:
                learning = parts.learner.start_step()

            for ready in parts.wait(learning):
                if ready is learning:
                    step, learning = parts.learner.finish_step(ready), None
                    if step is None:  # the learner died and is back at its last checkpoint
                        state.rewind(parts.learner.version)
                        admission.restore(parts.learner.version, parts.waiting_groups())
                        continue
                    admission.dropped(sum(step.dropped.values()))
                    admission.advanced(parts.learner.version)
                    state.learned(step)
                    if state.checkpoint_due:
                        parts.learner.checkpoint()
                    state.evaluate_if_due(parts)
                else:
                    item, report = parts.finish_roll(ready)
                    if report is None:  # the actor died: the same item again
                        admission.lost(item.index)
                        state.work.put_back(item)
                    else:
                        admission.finished(item.index, report.published)
                        state.rolled(report)
        if state.interrupted:
            raise Interrupted(folder, parts.learner.version)
        return state.finish(parts)
