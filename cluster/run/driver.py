"""The run on one page: roll out, score, learn, publish, evaluate, checkpoint."""

from __future__ import annotations

from pathlib import Path

from cluster.config.recipe import RunConfig
from cluster.run.admission import Admission
from cluster.run.state import Interrupted, RunState, RunSummary
from cluster.run.topology import Topology

SLOTS_PER_ACTOR = 2  # one item denoises while another waits for its scores


def train(config: RunConfig, folder: Path, resume: bool = False) -> RunSummary:
    """Run `config` in `folder`; `resume` continues from its last checkpoint.

    Raises:
        ConfigError, DataError, ClusterError, StoreError, RewardError, CheckpointError: what the user can put right.
        RolloutsFail, BatchTimeout, Stalled: the run makes no progress; it can be resumed.
        Interrupted: Ctrl-C; everything up to the last checkpoint is kept.
    """
    with RunState(config, folder, resume) as state, Topology(config, folder, state.run_id, resume) as parts:
        state.begin(parts)
        admission = Admission(config.source.groups_per_step, config.source.max_staleness)
        admission.restore(parts.version, parts.waiting_groups())
        learning = None
        # A step in flight counts as done only when it has been recorded: its version is there before its checkpoint.
        while (learning is not None or parts.version < config.iterations) and not state.interrupted:
            # Hand out work as long as no rollout can become staler than allowed.
            for actor in parts.free_actors(SLOTS_PER_ACTOR):
                item = state.work.peek()
                if not admission.admit(item.index, len(item.image_ids)):
                    break
                parts.roll(actor, state.work.take())

            if learning is None:
                learning = parts.start_step()

            rolled, learned = parts.wait(learning)
            for ref in rolled:
                item, report = parts.finish_roll(ref)
                if report is None:  # the actor died: the same item again
                    admission.lost(item.index)
                    state.work.put_back(item)
                else:
                    admission.finished(item.index, report.published)
                    state.rolled(report)
            if not learned:
                continue
            step, learning = parts.finish_step(learning), None
            if step is None:  # a rank died: the learner is back at its last checkpoint
                state.rewind(parts.version)
                admission.restore(parts.version, parts.waiting_groups())
                continue
            admission.dropped(sum(step.dropped.values()))
            admission.advanced(step.version)
            state.learned(step)
            state.evaluate_if_due()
        if state.interrupted:
            raise Interrupted(folder, parts.version)
        return state.finish()
