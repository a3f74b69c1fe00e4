"""Bulk operations: one action on all rows that match a selection, in batches, by any live process. Pure data, no I/O."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from receiver.core.work import DeliveryState


class BulkKind(StrEnum):
    """What is done to each row."""

    REPLAY = "replay"
    """Deliveries that have ended begin another round."""
    BACKFILL = "backfill"
    """Events get the delivery to a destination that today's settings would have made."""
    RENORMALIZE = "renormalize"
    """Today's code reads the kept callbacks of events again."""


class BulkState(StrEnum):
    """`planned → running → done`; `running → stopped` and back by a person."""

    PLANNED = "planned"
    """Counted by a dry run; nothing was done yet."""
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which rows an operation selects, among those that existed when it was counted. In names `*` stands for anything."""

    destination: str | None = None
    """The destination of the deliveries; for a backfill, the destination that receives the missing events."""
    state: DeliveryState | None = None
    source: str | None = None
    type: str | None = None
    since: int | None = None
    until: int | None = None


class BulkOperation(Struct, frozen=True, kw_only=True):
    """One operation, as the store has it."""

    id: str
    kind: BulkKind
    selection: Selection
    rate: int | None
    """Rows a second, at most; None is no limit."""
    state: BulkState = BulkState.PLANNED
    place: str = ""
    """The last row that was looked at, as JSON; empty at the beginning."""
    total: int = 0
    """Rows that fitted when they were counted; `COUNTED` stands for that many or more."""
    done: int = 0
    """Rows that the operation has processed."""
    changed: int = 0
    """Processed rows that the operation changed; the others had changed by themselves since the count."""
    requested_by: str
    created_at: int
    """When it was counted. Rows that came, or ended, later are not touched."""
    updated_at: int
    due_at: int | None = None
    """When the next batch may be taken; None unless it is running."""


class Batch(Struct, frozen=True, kw_only=True):
    """What one transaction does of an operation."""

    place: str
    """Where the next batch begins."""
    finished: bool
    """No row is left."""
    replays: tuple[str, ...] = ()
    """Ids of deliveries to replay."""
    additions: tuple[tuple[str, str], ...] = ()
    """Pairs of event and destination that each get a new delivery."""
    changed: int = 0
    """Rows that were changed outside this transaction. Changing them again is harmless."""
    rows: int
    """Rows that this batch goes through."""
    wait: int
    """Milliseconds until the next batch may be taken."""


COUNTED = 100_000
"""Rows that a count goes through, at most."""
