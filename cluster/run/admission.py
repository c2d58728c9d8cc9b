"""How many rollouts may be in flight: a pure counter that bounds staleness."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Admission:
    """Bounds staleness by counting groups (after AReaL's staleness manager).

    A group admitted now can be trained at the earliest after everything accepted or running before it.
    With batches of B groups and at most η versions of staleness,

        capacity = (η + version + 1) B - (accepted + running)

    groups may still be admitted. `accepted` counts groups published since version 0, consumed or waiting;
    a group that was dropped is taken back, so that it is replaced.

    After recovery from a checkpoint of version v, call `restore(v, waiting)`: the groups behind version v
    are v B, plus those which wait in the stream; what is being rolled out goes on.
    """

    batch_groups: int
    max_staleness: int
    version: int = 0
    accepted: int = 0
    running: dict[int, int] = field(default_factory=dict)  # work index -> groups

    @property
    def capacity(self) -> int:
        return (self.max_staleness + self.version + 1) * self.batch_groups - self.accepted - sum(self.running.values())

    def admit(self, index: int, groups: int) -> bool:
        """Reserve room for a work item; False when it would break the bound."""
        if groups > self.capacity:
            return False
        self.running[index] = groups
        return True

    def finished(self, index: int, published: int) -> None:
        self.running.pop(index)
        self.accepted += published

    def lost(self, index: int) -> None:
        """The actor died; its item is to be admitted again."""
        self.running.pop(index, None)

    def dropped(self, groups: int) -> None:
        """Published groups that the learner refused (too old, unreadable)."""
        self.accepted -= groups

    def advanced(self, version: int) -> None:
        self.version = version

    def restore(self, version: int, waiting: int) -> None:
        self.version, self.accepted = version, version * self.batch_groups + waiting
