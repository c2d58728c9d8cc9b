"""How many groups may be rolled out now: staleness bounded by the state of the store, with nothing to keep in step."""

from __future__ import annotations

from collections.abc import Collection


def capacity(
    batch_groups: int,
    max_staleness: int,
    steps_left: int,
    unsettled: Collection[str],
    used: Collection[str],
    running: Collection[str],
) -> int:
    """Groups that may still be handed out (after AReaL's staleness manager).

    A group handed out now can be trained on at the earliest after everything that waits or is being rolled out. With
    batches of B groups and weights of version v, at most η versions of staleness leave room for (η + 1) B groups that
    no finished step has used:

        capacity = min(η + 1, steps left) B - |(unsettled without used) ∪ running|

    All arguments are group ids, so that a group which is published twice, or whose report was lost, counts once, and
    one that was dropped makes room at once.

    Args:
        steps_left: of the run, so that nothing is rolled out that no step will use.
        unsettled: published and neither consumed nor dropped, as the store has them.
        used: those that steps up to version v have used and whose checkpoint isn't durable yet.
        running: of items that actors work on.
    """
    outstanding = (set(unsettled) - set(used)) | set(running)
    return min(max_staleness + 1, steps_left) * batch_groups - len(outstanding)
