"""The store's port: callbacks, events, deliveries and attempts, in one database.

Every method is one transaction. Concurrent calls are grouped into one commit; each caller returns after the commit
that covers it. Trouble of the database is `StoreUnavailable`, whatever the driver calls it. Time is a parameter
(epoch milliseconds); the database's clock is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from receiver.core.event import Answered, CallbackRow, Event, Recorded, Recording, Rejection
from receiver.core.retention import Erased, Erasure, Prune, Pruned, Subject, Tombstone, Traces
from receiver.core.work import (
    Attempt,
    Claimed,
    ClaimedPickup,
    Delivery,
    DeliveryState,
    Pickup,
    PickupAttempt,
    PickupSettled,
    PickupSettlement,
    PickupState,
    Settlement,
    StoreStats,
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PickupFilter:
    """Which pickups to list, newest first; `after` is the last id of the page before."""

    source: str | None = None
    state: PickupState | None = None
    job_id: str | None = None
    ref: str | None = None
    after: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """A proved callback whose event has to wait for its result: callback and pickup, and no event yet."""

    callback: CallbackRow
    pickup: Pickup
    """Its `event_id` was made for the same millisecond as the callback's id."""
    answered: Answered | None = None


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
        nothing. A `PROGRESS` event whose (source, job) already has a `FINAL` one, or a deferred one, is `LATE`: recorded,
        with no deliveries. Deliveries are born `pending`, due at the event's `recorded_at`.

        With `answered`, the pickup (source, `answered.key`) that is not `collected` yet learns of it: by a final answer it
        is `collected` with this event (the recorded one or the first of a duplicate), else it gets the job id it lacks.
        """

    async def defer(self, deferral: Deferral) -> Recorded:
        """Write callback and pickup, all or none.

        A callback that is known is a `DUPLICATE` and writes nothing. When a pickup with this key is there already and
        not `gone`, no other is made: the callback gets that one's event, and unless it is `collected` it takes over target,
        draft, a missing job id and a later deadline, and is `pending`, due at once: an attempt under way knows nothing of
        them, so its claim ends. `answered` does as in `record`.
        """

    async def add_pickup(self, pickup: Pickup) -> tuple[Pickup, bool]:
        """Write a pickup, unless one with its (source, key) is there and not `gone`; return the one that stands, and
        whether it is new.
        """

    async def claim_pickups(
        self, source: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[ClaimedPickup]:
        """Take up to `limit` pickups of `source` that are due (`due_at <= now`), oldest first, until `lease_until`."""

    async def settle_pickup(self, settlement: PickupSettlement) -> PickupSettled:
        """Record the attempt and its consequence if the claim is still held, and with it what is told and the recording.

        What is `told` is written as by `record`, and before the recording: a known callback is a `DUPLICATE`, progress after
        its job's end is `LATE`.

        The recording's event has the pickup's `event_id`. It is a `DUPLICATE`, and the pickup ends `collected` with the
        first event's id, when another event was recorded (or is awaited) under the callback's keys and is no `….failed`
        one; a failed one is no duplicate of a result. For a recording that is itself a `….failed` one, the pickup's key
        counts as well, and a failure that was told since the pickup was made is a duplicate: then the pickup ends `gone`
        with that one's id. The callback row is written unless one leads to this event.
        """

    async def release_pickups(self, claims: Sequence[ClaimedPickup], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""

    async def next_due_pickup(self, source: str) -> int | None:
        """Return when the next pickup of `source` is due (leases included), or None."""

    async def pickup(self, pickup_id: str) -> Pickup:
        """Return one pickup. Raises `NotFound`."""

    async def pickups(self, wanted: PickupFilter) -> list[Pickup]:
        """List pickups, newest first."""

    async def pickup_attempts(self, pickup_id: str) -> list[PickupAttempt]:
        """Return the attempts of a pickup, first to last."""

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

    async def prune(self, asked: Prune) -> Pruned:
        """Do one batch of one walk: look at some rows, remove those that are old enough and have ended.

        What is under way is never touched, whatever its age: deliveries `pending` or `delivering`, pickups `pending` or
        `collecting`, their events and callbacks. Harmless to repeat, and beside others that do the same.
        """

    async def known_blobs(self, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that an event links to."""

    async def traces(self, subject: Subject, *, limit: int) -> Traces:
        """Return what there is of a subject; with more than `limit` events or pickups, the newest of them."""

    async def erase(self, asked: Erasure) -> Erased:
        """Remove up to `limit` events and pickups of a subject, under way or not, and all that hangs on them.

        Of their callbacks only the keys stay, for `KEYS_SECONDS`: what the provider sends again is a `DUPLICATE`. A tombstone
        adds up what was removed; none is left where there was nothing.

        What is `journaled` may be recorded by another process until its keys are written: look again after that.
        """

    async def tombstones(self, digest: str | None = None, *, limit: int = 100) -> list[Tombstone]:
        """Return tombstones, newest first; those of one digest, or all."""


@runtime_checkable
class Clocked(Protocol):
    """A store whose database has a clock of its own; for all others the process's is the only one."""

    @property
    def skew_ms(self) -> int:
        """Milliseconds by which the database's clock is ahead of ours, as a transaction last measured; small ones are 0."""


@runtime_checkable
class Announcing(Protocol):
    """A store of many processes that tells this one what another recorded."""

    def listen(self, heard: Callable[[Iterable[str], Iterable[str]], None]) -> None:
        """Have `heard(destinations, sources)` called in the event loop. A hint: some may be missed, so lanes go on looking."""
