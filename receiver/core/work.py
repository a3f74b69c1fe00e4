"""An event on its way out: deliveries, claims, attempts and what they found. Pure data, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from receiver.core.event import Event


class DeliveryState(StrEnum):
    """`pending → delivering → delivered`, back to `pending`, or `dead`."""

    PENDING = "pending"
    """Waits for `due_at`; set when recorded, after a failed attempt, by a handed-back claim and by replay."""
    DELIVERING = "delivering"
    """Claimed; `due_at` is the end of the lease, so a crashed worker's row is simply due again."""
    DELIVERED = "delivered"
    """Acknowledged by the destination; has no `due_at`."""
    DEAD = "dead"
    """A dead letter: the policy was exhausted or the destination answered 410; has no `due_at`."""


class OutcomeKind(StrEnum):
    """What one attempt found."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """The destination answered, and not with 2xx (3xx is not followed)."""
    GONE = "gone"
    """410: the destination does not want this any more."""
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    """No connection, no name, TLS trouble, or the connection broke."""
    BLOCKED = "blocked"
    """The address guard refused; nothing was sent."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What one attempt found: a value, never an exception."""

    kind: OutcomeKind
    status: int | None = None
    detail: str = ""
    response: bytes = b""
    """The first 16 KiB of the reply."""
    retry_after: float | None = None
    """Seconds the destination asked for."""


class Claimed(Struct, frozen=True, kw_only=True):
    """One delivery taken by a worker, with its event."""

    delivery_id: str
    destination: str
    event: Event
    attempts: int
    """Attempts made before this claim, over all rounds."""
    round_start: int
    """`attempts` when the present round began: the policy sees `attempts - round_start`."""
    claimed_by: str
    lease_until: int


class Settlement(Struct, frozen=True, kw_only=True):
    """The record of one attempt and its consequence; applied only if the claim is still held."""

    claim: Claimed
    started_at: int
    duration_ms: int
    outcome: Outcome
    state: DeliveryState
    due_at: int | None
    """When it is due again; None for `delivered` and `dead`."""


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


class Due(Struct, frozen=True, kw_only=True):
    """What waits for one destination."""

    destination: str
    depth: int
    oldest_due_at: int


class PickupsDue(Struct, frozen=True, kw_only=True):
    """What waits to be picked up from one source."""

    source: str
    depth: int
    oldest_due_at: int


class StoreStats(Struct, frozen=True, kw_only=True):
    """Depths and ages, read at scrape time so that replicas agree."""

    due: tuple[Due, ...]
    dead: Mapping[str, int]
    pickups: tuple[PickupsDue, ...] = ()
