"""Everything that can go wrong between a rollout and the learner, as types a caller can act on.

All carry one message that says what happened, where, and what to do; all survive pickling (Ray re-raises them).
"""

from __future__ import annotations

CAUSES_OF_LOSS = "its server was restarted without persistence or emptied, or another server answers at its address"


class StoreError(RuntimeError):
    """The trajectory store can't do what was asked. Base of all errors of the store."""


class StoreUnreachable(StoreError):
    """No answer within the deadline, after retries: the server is down, slow, or the address is wrong."""


class StoreUnready(StoreUnreachable):
    """The server answers, but what should have passed within the deadline: it is busy, loading, or a replica."""


class StoreLost(StoreError):
    """The store has lost what it held of the run: restarted without persistence, emptied, or another one."""


class StoreAuthError(StoreError):
    """The server refused user name or password. Not retried."""


class StoreFull(StoreError):
    """The server refused a write for memory: its `maxmemory` is too small for `max_bytes`, or others use it too."""


class BackPressureTimeout(StoreError):
    """The stream stayed at its bound until the publisher's deadline: the learner is slower than the actors."""


class RecordTooLarge(StoreError):
    """One record is larger than the bound of the whole stream, so that it could never be published."""


class StaleEpoch(StoreError):
    """The caller belongs to an epoch of the run that is over (fencing); it must stop."""


class SchemaError(ValueError):
    """Bytes that are no readable record of this schema version, or a record that breaks the schema's rules."""
