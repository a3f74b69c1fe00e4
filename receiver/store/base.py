"""The store's port (floor 3): callbacks, events, deliveries and attempts, in one database.

Every method is one transaction. Concurrent calls are grouped into one commit; each caller returns after the commit
that covers it. Trouble of the database is `StoreUnavailable`, whatever the driver calls it. Time is a parameter
(epoch milliseconds); the database's clock is never asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from receiver.delivery import Attempt, Claimed, Delivery, DeliveryState, Settlement, StoreStats
from receiver.model import Event, Recorded, Recording, Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events to list, newest first; `after` is the last id of the page before."""

    source: str | None = None
    type: str | None = None
    job_id: str | None = None
    ref: str | None = None
    since: int | None = None
    after: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter:
    """Which deliveries to list, newest first; `after` is the last id of the page before."""

    destination: str | None = None
    state: DeliveryState | None = None
    event_id: str | None = None
    since: int | None = None
    """Created at or after this time."""
    after: str | None = None
    limit: int = 50


class Store(Protocol):
    """Where everything is recorded."""

    async def open(self) -> None:
        """Connect and check the schema. Raises `ConfigError` when it is newer than this program, `StoreUnavailable`."""

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the migrations applied. Safe to run at any time."""

    async def close(self) -> None:
        """Finish what is queued, then disconnect."""

    async def ping(self) -> None:
        """Prove that it can be written. Raises `StoreUnavailable`."""

    async def record(self, recording: Recording) -> Recorded:
        """Write callback, event and deliveries, all or none.

        A callback whose (source, idempotency key) or (source, second key) is known is a `DUPLICATE` and writes
        nothing. A `PROGRESS` event whose (source, job) already has a `FINAL` one is `LATE`: recorded, with no
        deliveries. Deliveries are born `pending`, due at the event's `recorded_at`.
        """

    async def claim(
        self, destination: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[Claimed]:
        """Take up to `limit` deliveries that are due (`due_at <= now`), oldest first, until `lease_until`."""

    async def settle(self, settlement: Settlement) -> bool:
        """Record the attempt and its consequence if the claim is still held; False when it is not (nothing written)."""

    async def release(self, claims: Sequence[Claimed], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""

    async def next_due(self, destination: str) -> int | None:
        """Return when the next delivery of `destination` is due (leases included), or None."""

    async def event(self, event_id: str) -> Event:
        """Return one event. Raises `NotFound`."""

    async def body(self, event_id: str) -> bytes | None:
        """Return the kept body of the callback behind an event, secrets removed; None when it is kept as a blob.

        Raises `NotFound`.
        """

    async def events(self, wanted: EventFilter) -> list[Event]:
        """List events, newest first."""

    async def delivery(self, delivery_id: str) -> Delivery:
        """Return one delivery. Raises `NotFound`."""

    async def deliveries(self, wanted: DeliveryFilter) -> list[Delivery]:
        """List deliveries, newest first."""

    async def attempts(self, delivery_id: str) -> list[Attempt]:
        """Return the attempts of a delivery, first to last."""

    async def replay(self, delivery_ids: Sequence[str], *, now: int) -> list[str]:
        """Begin another round for each delivery that has ended: due now, attempts kept, `round_start = attempts`.

        Returns the ids that were replayed; unknown ids and deliveries still under way are left out.
        """

    async def reject(self, rejections: Sequence[Rejection], *, keep: int) -> None:
        """Keep these rejections, and only the newest `keep` of each source."""

    async def rejections(self, source: str | None, *, limit: int) -> list[Rejection]:
        """List rejections, newest first."""

    async def stats(self, now: int) -> StoreStats:
        """Count what is due by `now` (depth, oldest) and what is dead, per destination. Costs with what waits,
        never with what was delivered.
        """
