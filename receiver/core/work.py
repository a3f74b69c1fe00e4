"""Work that is due: deliveries of events, pickups of results, and operations on many rows; their claims, attempts and outcomes.
Pure data, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct, field

from receiver.core.event import Answered, CallbackRow, Event, EventDraft, Recorded, Recording


class DeliveryState(StrEnum):
    """`pending → delivering → delivered`, back to `pending`, or `dead`."""

    PENDING = "pending"
    """Waits for `due_at`; set when recorded, after a failed attempt, by a handed-back claim and by replay."""
    DELIVERING = "delivering"
    """Claimed; `due_at` is the end of the lease, so a crashed worker's row is simply due again."""
    DELIVERED = "delivered"
    """Acknowledged by the destination; has no `due_at`."""
    DEAD = "dead"
    """A dead letter: the policy was exhausted, or the event is too large for the destination; has no `due_at`."""


class HeldBy(StrEnum):
    """Why a pending delivery is not sent, although nothing of its own keeps it back."""

    DISABLED = "disabled"
    PAUSED = "paused"
    FAILING = "failing"
    """The destination failed too often in a row, and is probed."""
    RETRY_AFTER = "retry_after"
    """The destination asked for this wait."""
    ORDER = "order"
    """An earlier delivery of its job, or with its ref, has not ended."""
    RATE = "rate"
    """The destination's rate is used up for the moment."""


class OutcomeKind(StrEnum):
    """The result of one attempt."""

    DELIVERED = "delivered"
    COLLECTED = "collected"
    NOT_YET = "not_yet"
    """The provider has not finished; no failure."""
    REFUSED = "refused"
    """The other side answered, and not with what was hoped for: a destination not with 2xx (3xx is not followed), a
    provider with a status that is neither a result nor "not yet"."""
    GONE = "gone"
    """The destination answered 410: it does not want this any more. Or there is no result and there will be none."""
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    """No connection, no name, TLS trouble, or the connection broke."""
    BLOCKED = "blocked"
    """The address guard or the list of result hosts refused; nothing was sent."""
    UNUSABLE = "unusable"
    """Bytes came and are no result: empty, cut off, a web page, another type."""
    TOO_LARGE = "too_large"
    """The event is over what the destination takes: it stays so, and no other attempt is made."""
    NOT_STORED = "not_stored"
    """The result came, and the blob store could not take it."""


class Outcome(Struct, frozen=True, kw_only=True):
    """The result of one attempt: a value, never an exception."""

    kind: OutcomeKind
    status: int | None = None
    detail: str = ""
    """For a person; never holds a secret or a whole URL."""
    response: bytes = b""
    """The first 16 KiB of a destination's reply."""
    retry_after: float | None = None
    """Seconds that the other side's `Retry-After` names."""


class Claimed(Struct, frozen=True, kw_only=True):
    """One delivery taken by a worker, with its event."""

    id: str
    """The delivery's id."""
    destination: str
    event: Event
    attempts: int
    """Attempts made before this claim, over all rounds."""
    round_start: int
    """`attempts` when the present round began: the policy sees `attempts - round_start`."""
    claimed_by: str
    lease_until: int
    probe: bool = False
    """The one attempt that tells whether a destination that failed works again."""


class Settlement(Struct, frozen=True, kw_only=True):
    """The record of one attempt and its consequence; applied only if the claim is still held."""

    claim: Claimed
    started_at: int
    seconds: float
    """How long the attempt took."""
    outcome: Outcome
    state: DeliveryState
    due_at: int | None
    """When it is due again; None for `delivered` and `dead`."""
    spent: bool = True
    """Whether the attempt counts against the policy. It is recorded and numbered in any case."""


class Delivery(Struct, frozen=True, kw_only=True):
    """One event owed to one destination, as the store shows it."""

    id: str
    event_id: str
    event_type: str
    destination: str
    state: DeliveryState
    attempts: int
    round_start: int
    due_at: int | None
    claimed_by: str | None
    created_at: int
    updated_at: int
    last_outcome: str | None
    job_id: str | None = None
    ref: str | None = None
    held_by: HeldBy | None = None
    """What holds it back; `receiver.engine.holds` finds it out."""


class Progress(Struct, frozen=True, kw_only=True):
    """How far one delivery is, as a list of events shows it."""

    id: str
    event_id: str
    destination: str
    state: DeliveryState
    attempts: int


class Attempt(Struct, frozen=True, kw_only=True):
    """One recorded try of a delivery, numbered from 1, never renumbered."""

    delivery_id: str
    number: int
    started_at: int
    duration_ms: int
    outcome: OutcomeKind
    status: int | None
    detail: str
    response: bytes


class TakenOver(Struct, frozen=True, kw_only=True):
    """What processes that have ended had claimed, and is due again."""

    destinations: tuple[str, ...] = ()
    """The destination of each delivery."""
    sources: tuple[str, ...] = ()
    """The source of each pickup."""


class Due(Struct, frozen=True, kw_only=True):
    """What is due to one destination, or at one source."""

    name: str
    """The destination's or the source's."""
    depth: int
    oldest_due_at: int


class StoreStats(Struct, frozen=True, kw_only=True):
    """Depths and ages, read at scrape time so that replicas agree."""

    due: tuple[Due, ...]
    dead: Mapping[str, int]
    pickups: tuple[Due, ...] = ()


class PickupState(StrEnum):
    """`pending → collecting → collected`, back to `pending`, or `gone`."""

    PENDING = "pending"
    """Waits for `due_at`."""
    COLLECTING = "collecting"
    """Claimed; `due_at` is the end of the lease, so a crashed worker's row is simply due again."""
    COLLECTED = "collected"
    """Ended well: `event_id` is its event; has no `due_at`."""
    GONE = "gone"
    """Ended without a result: `event_id` is the event that says so; has no `due_at`."""


class PickupKind(StrEnum):
    """Why there is a pickup."""

    RESULT = "result"
    """A result lies at the provider, or will."""
    EXPECTED = "expected"
    """A callback is expected; due when it is overdue."""


class Pickup(Struct, frozen=True, kw_only=True):
    """A durable intention to bring one result home from a provider."""

    id: str
    source: str
    kind: PickupKind
    key: str
    """The result's identity within its source; unique among pickups that are not `gone`."""
    job_id: str | None = None
    ref: str | None = None
    target: str | None = None
    """The URL to begin with, where one is known. It may carry a signature: treat it as a secret."""
    event_id: str
    """The id of the event that will end it, known from the first moment."""
    draft: EventDraft | None = None
    """The event as far as a callback has it; None without a callback."""
    format: Mapping[str, Any] = field(default_factory=dict)
    """What was requested of the provider (`encoding`, `sample_rate`, …): decides raw formats."""
    deadline_at: int
    """When to give up, in epoch milliseconds."""
    state: PickupState = PickupState.PENDING
    attempts: int = 0
    failures: int = 0
    """Failed attempts since the last that was none; decides the wait."""
    due_at: int | None
    claimed_by: str | None = None
    created_at: int
    updated_at: int
    last_outcome: str | None = None
    last_detail: str | None = None

    @property
    def host(self) -> str | None:
        """The host of `target`, all of it that may be shown."""
        try:
            return urlsplit(self.target).hostname if self.target else None
        except ValueError:
            return None


class ClaimedPickup(Struct, frozen=True, kw_only=True):
    """One pickup taken by a worker."""

    pickup: Pickup
    """As it was before it was claimed."""
    claimed_by: str
    lease_until: int

    @property
    def id(self) -> str:
        """The id of the row that is claimed."""
        return self.pickup.id

    @property
    def attempts(self) -> int:
        """Attempts made before this claim."""
        return self.pickup.attempts


class PickupSettlement(Struct, frozen=True, kw_only=True):
    """The record of one attempt and its consequence; applied only if the claim is still held."""

    claim: ClaimedPickup
    started_at: int
    seconds: float
    """How long the attempt took."""
    outcome: Outcome
    state: PickupState
    due_at: int | None
    failures: int
    recording: Recording | None = None
    """The event that ends it, for `collected` and `gone`: written in the same transaction."""
    progress: tuple[Recording, ...] = ()
    """Events about a job that goes on (progress, an overdue callback): written in the same transaction, before its end."""


class PickupSettled(Struct, frozen=True, kw_only=True):
    """What settling a pickup did."""

    held: bool
    """False: another worker holds the claim by now, and nothing was written."""
    recorded: Recorded | None = None
    """For a settlement with a recording: recorded, or the duplicate of an event that came another way."""
    progress: tuple[Recorded, ...] = ()
    """What became of each of the settlement's progress events."""


class PickupAttempt(Struct, frozen=True, kw_only=True):
    """One recorded try of a pickup, numbered from 1, never renumbered."""

    pickup_id: str
    number: int
    started_at: int
    duration_ms: int
    outcome: OutcomeKind
    status: int | None
    detail: str


class DeliveryFilter(Struct, frozen=True, kw_only=True):
    """Which deliveries to list, those made last first; `after` is the last id of the page before."""

    destination: str | None = None
    state: DeliveryState | None = None
    event_id: str | None = None
    since: int | None = None
    """Created at or after this time."""
    until: int | None = None
    """Created before this time."""
    source: str | None = None
    """Only of this source's events."""
    types: tuple[str, ...] | None = None
    """Of an event of one of these types; None for all."""
    ended_before: int | None = None
    """Only those that ended before this time, and have not begun anew since."""
    oldest_first: bool = False
    after: str | None = None
    limit: int = 50


class PickupFilter(Struct, frozen=True, kw_only=True):
    """Which pickups to list, newest first; `after` is the last id of the page before."""

    source: str | None = None
    state: PickupState | None = None
    job_id: str | None = None
    ref: str | None = None
    event_id: str | None = None
    after: str | None = None
    limit: int = 50


class Deferral(Struct, frozen=True, kw_only=True):
    """A proved callback whose event has to wait for its result: callback and pickup, and no event yet."""

    callback: CallbackRow
    pickup: Pickup
    """Its `event_id` was made for the same millisecond as the callback's id."""
    answered: Answered | None = None


# ---------------------------------------------------------------- bulk operations: one action on all rows that match a selection, in batches, by any live process


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
