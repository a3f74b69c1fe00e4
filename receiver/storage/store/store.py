"""The store: callbacks, events, deliveries and pickups, in one database.

Every method is one transaction. Writes go through the writer, which groups concurrent calls into one commit; each caller
returns after the commit that covers it. Reads go through a second connection. Trouble of the database is
`StoreUnavailable`, whatever the driver calls it. Time is a parameter (epoch milliseconds).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar, TypeVarTuple, Unpack

from receiver.core.clock import wall_clock
from receiver.core.errors import StoreUnavailable
from receiver.core.event import Event, EventFilter, Recorded, Recording, Rejection
from receiver.core.retention import Erased, Erasure, Prune, Pruned, Subject, Tombstone, Traces
from receiver.core.work import (
    Attempt,
    Claimed,
    ClaimedPickup,
    Deferral,
    Delivery,
    DeliveryFilter,
    Pickup,
    PickupAttempt,
    PickupFilter,
    PickupSettled,
    PickupSettlement,
    Settlement,
    StoreStats,
)
from receiver.storage.store import events, pickups, queue, retention
from receiver.storage.store.pickups import PICKUPS
from receiver.storage.store.queue import DELIVERIES, ClaimRequest
from receiver.storage.store.statements import Session, check, each, migrate
from receiver.storage.store.writer import WAITS, Backend, Operation, Waits, Writer
from receiver.system.threads import OwnThread

Q = TypeVar("Q")
R = TypeVar("R")
Parts = TypeVarTuple("Parts")
Notified = Callable[[Iterable[str], Iterable[str]], None]
"""Called with destinations and sources for which another process recorded something."""


@each
def _ping(session: Session, number: int) -> None:
    session.run("ping", {"id": number})  # the commit that follows is the proof


OPERATIONS: Sequence[Operation] = (
    migrate,
    check,
    DELIVERIES.settle,
    pickups.settle,
    DELIVERIES.release,
    PICKUPS.release,
    queue.replay,
    queue.add,
    pickups.add,
    events.record,
    pickups.defer,
    DELIVERIES.claim,
    PICKUPS.claim,
    events.reject,
    _ping,
    retention.prune,
    retention.erase,
)
"""Every operation that writes. Within one transaction they run in this order, so a claim sees what was recorded."""
URGENT = (events.record, pickups.defer)
"""What a provider waits for."""


class Store:
    """Where everything is recorded. Methods raise `StoreUnavailable` when the database cannot be used."""

    shared = False
    """Whether processes of many machines use the database. A person migrates it, as older programs may be running on it."""
    close_seconds: float | None = None
    """How long closing waits for what is under way on a connection; None where no wait is long."""

    def __init__(self, migrations: Mapping[str, str], waits: Waits = WAITS) -> None:
        """`migrations` are those of this program for this database, name to text."""
        self._migrations = migrations
        self._waits = waits
        self._writer: Writer | None = None
        self._reader = self._backend(writes=False)
        self._reading: OwnThread | None = None
        self._notified: Notified | None = None
        self._ping_number = int.from_bytes(os.urandom(2))
        """The row that its pings change: processes share none, but by a chance that does no harm."""

    def _backend(self, *, writes: bool) -> Backend:
        """Return a connection that writes, or one that only reads: what a kind of store has to define."""
        raise NotImplementedError

    # ------------------------------------------------------------ its life

    @property
    def skew_ms(self) -> int | None:
        """Milliseconds by which the database's clock is ahead of ours, as last measured; None where it has no clock."""
        return None

    def listen(self, notified: Notified) -> None:
        """Have `notified(destinations, sources)` called in the event loop when another process recorded something for them.

        Call it before `open`. A notification is a hint: some may be missed, so workers poll as well.
        """
        self._notified = notified

    async def open(self) -> None:
        """Connect and check the schema. Raises `ConfigError` when it is not for this program, `StoreUnavailable`."""
        if self._writer is not None:
            return
        self._start_writer()
        try:
            await self._write(check, (self._migrations, self.shared))
        except BaseException:
            await self.close()
            raise

    def _start_writer(self) -> None:
        self._writer = Writer(self._backend(writes=True), OPERATIONS, URGENT, self._waits)

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the migrations applied. Safe to run at any time.

        The store need not be open; it is left as it was.
        """
        was_open = self._writer is not None
        if not was_open:
            self._start_writer()
        try:
            return await self._write(migrate, (self._migrations, wall_clock()))
        finally:
            if not was_open:
                await self.close()

    async def prepare(self) -> None:
        """Open the store; a database of this machine alone is made and migrated first. Raises as `open` does."""
        if not self.shared:
            await self.migrate()
        await self.open()

    async def close(self) -> None:
        """Finish what is queued, then disconnect."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        reading, self._reading = self._reading, None
        if self.close_seconds is None:  # not both at once: the last connection that closes tidies up
            await writer.close()
            await self._close_reader(reading)
        else:
            await asyncio.gather(writer.close(self.close_seconds), self._close_reader(reading))

    async def _close_reader(self, reading: OwnThread | None) -> None:
        if reading is not None and not await reading.end(self._reader.close, self.close_seconds):
            self._reader.abandon()
            self._reader = self._backend(writes=False)

    async def ping(self) -> None:
        """Prove that it can be written."""
        await self._write(_ping, (self._ping_number,))

    # ------------------------------------------------------------ callbacks

    async def record(self, recording: Recording) -> Recorded:
        """Write callback, event and deliveries, all or none.

        A callback whose (source, idempotency key) or (source, second key) is known is a `DUPLICATE` and writes
        nothing. A `PROGRESS` event whose (source, job) already has a `FINAL` one, or a deferred one, is `LATE`: recorded,
        with no deliveries. Deliveries are born `pending`, due at the event's `recorded_at`.

        With `answered`, the pickup (source, `answered.key`) that is not `collected` yet learns of it: by a final answer it
        is `collected` with this event (the recorded one or the first of a duplicate), else it gets the job id it lacks.
        """
        return await self._write(events.record, recording)

    async def defer(self, deferral: Deferral) -> Recorded:
        """Write callback and pickup, all or none.

        A callback that is known is a `DUPLICATE` and writes nothing. When a pickup with this key exists already and is
        not `gone`, no other is made: the callback gets that one's event, and unless it is `collected` it takes over target,
        draft, a missing job id and a later deadline, and is `pending`, due at once: an attempt under way knows nothing of
        them, so its claim ends. `answered` does as in `record`.
        """
        return await self._write(pickups.defer, deferral)

    async def reject(self, rejections: Sequence[Rejection], *, keep: int) -> None:
        """Keep these rejections, and only the newest `keep` of each source."""
        await self._write(events.reject, (tuple(rejections), keep))

    # ------------------------------------------------------------ deliveries

    async def claim(
        self, destination: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[Claimed]:
        """Take up to `limit` deliveries that are due (`due_at <= now`), oldest first, until `lease_until`."""
        request = ClaimRequest(destination, queue.token(worker), limit, now, lease_until)
        return await self._write(DELIVERIES.claim, request)

    async def settle(self, settlement: Settlement) -> bool:
        """Record the attempt and its consequence if the claim is still held; False when it is not (nothing written)."""
        return await self._write(DELIVERIES.settle, settlement)

    async def release(self, claims: Sequence[Claimed], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""
        return await self._write(DELIVERIES.release, (tuple(claims), now))

    async def next_due(self, destination: str) -> int | None:
        """Return when the next delivery of `destination` is due (leases included), or None."""
        return await self._read(DELIVERIES.next_due, destination)

    async def replay(self, delivery_ids: Sequence[str], *, now: int) -> list[str]:
        """Begin another round for each delivery that has ended: due now, attempts kept, `round_start = attempts`.

        Returns the ids that were replayed; unknown ids and deliveries still under way are left out.
        """
        return await self._write(queue.replay, (tuple(delivery_ids), now))

    async def add_deliveries(self, wanted: Sequence[tuple[str, str]], *, now: int) -> list[str]:
        """Make a delivery, due now, for each pair of event and destination that has none; return the new ids.

        An event that is not there (any more) gets none.
        """
        return await self._write(queue.add, (tuple(wanted), now))

    # ------------------------------------------------------------ pickups

    async def add_pickup(self, pickup: Pickup) -> tuple[Pickup, bool]:
        """Write a pickup, unless one with its (source, key) exists and is not `gone`.

        Returns the new or the existing one, and whether it is new.
        """
        return await self._write(pickups.add, pickup)

    async def claim_pickups(
        self, source: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[ClaimedPickup]:
        """Take up to `limit` pickups of `source` that are due (`due_at <= now`), oldest first, until `lease_until`."""
        request = ClaimRequest(source, queue.token(worker), limit, now, lease_until)
        return await self._write(PICKUPS.claim, request)

    async def settle_pickup(self, settlement: PickupSettlement) -> PickupSettled:
        """Record the attempt, its consequence, its progress events and its recording, if the claim is still held.

        Progress is written as by `record`, and before the recording: a known callback is a `DUPLICATE`, progress after
        its job's end is `LATE`.

        The recording's event has the pickup's `event_id`. It is a `DUPLICATE`, and the pickup ends `collected` with the
        first event's id, when another event was recorded (or is awaited) under the callback's keys and is no `….failed`
        one; a failed one is no duplicate of a result. For a recording that is itself a `….failed` one, the pickup's key
        counts as well, and a failure recorded since the pickup was made is a duplicate: then the pickup ends `gone`
        with that one's id. The callback row is written unless one leads to this event.
        """
        return await self._write(pickups.settle, settlement)

    async def release_pickups(self, claims: Sequence[ClaimedPickup], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""
        return await self._write(PICKUPS.release, (tuple(claims), now))

    async def next_due_pickup(self, source: str) -> int | None:
        """Return when the next pickup of `source` is due (leases included), or None."""
        return await self._read(PICKUPS.next_due, source)

    # ------------------------------------------------------------ reading

    async def event(self, event_id: str) -> Event:
        """Return one event. Raises `NotFound`."""
        return await self._read(events.event, event_id)

    async def body(self, event_id: str) -> bytes | None:
        """Return the kept body of the callback behind an event, secrets removed; None when it is kept as a blob.

        Raises `NotFound`.
        """
        return await self._read(events.body, event_id)

    async def has_scope(self, source: str, scope: str) -> bool:
        """Return whether a callback of `source` was recorded whose identity is in `scope`."""
        return await self._read(events.has_scope, source, scope)

    async def events(self, filter: EventFilter) -> list[Event]:
        """List events, those recorded last first."""
        return await self._read(events.events, filter)

    async def delivery(self, delivery_id: str) -> Delivery:
        """Return one delivery. Raises `NotFound`."""
        return await self._read(queue.delivery, delivery_id)

    async def deliveries(self, filter: DeliveryFilter) -> list[Delivery]:
        """List deliveries, newest first."""
        return await self._read(queue.deliveries, filter)

    async def deliveries_of(self, event_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Return event and destination of each delivery of these events."""
        return await self._read(queue.of_events, event_ids)

    async def attempts(self, delivery_id: str) -> list[Attempt]:
        """Return the attempts of a delivery, first to last."""
        return await self._read(queue.attempts, delivery_id)

    async def pickup(self, pickup_id: str) -> Pickup:
        """Return one pickup. Raises `NotFound`."""
        return await self._read(pickups.pickup, pickup_id)

    async def pickups(self, filter: PickupFilter) -> list[Pickup]:
        """List pickups, newest first."""
        return await self._read(pickups.pickups, filter)

    async def pickup_attempts(self, pickup_id: str) -> list[PickupAttempt]:
        """Return the attempts of a pickup, first to last."""
        return await self._read(pickups.attempts, pickup_id)

    async def rejections(self, source: str | None, *, limit: int) -> list[Rejection]:
        """List rejections, newest first."""
        return await self._read(events.rejections, source, limit)

    async def stats(self, now: int) -> StoreStats:
        """Count what is due by `now` (depth, oldest) and what is dead, per destination. Costs with what waits,
        never with what was delivered.
        """
        return await self._read(_stats, now)

    # ------------------------------------------------------------ retention

    async def prune(self, request: Prune) -> Pruned:
        """Do one batch of one walk: look at some rows, remove those that are old enough and have ended.

        What is under way is never touched, whatever its age: deliveries `pending` or `delivering`, pickups `pending` or
        `collecting`, their events and callbacks. Harmless to repeat, and beside others that do the same.
        """
        return await self._write(retention.prune, (request,))

    async def known_blobs(self, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that an event links to."""
        return await self._read(retention.known_blobs, keys)

    async def traces(self, subject: Subject, *, limit: int) -> Traces:
        """Return what there is of a subject; with more than `limit` events or pickups, the newest of them."""
        return await self._read(retention.traces, subject, limit)

    async def erase(self, request: Erasure) -> Erased:
        """Remove up to `limit` events and pickups of a subject, under way or not, and all that hangs on them.

        Of their callbacks only the keys stay, for `KEYS_SECONDS`: what the provider sends again is a `DUPLICATE`. A tombstone
        adds up what was removed; none is left where there was nothing.

        What is `journaled` may be recorded by another process until its keys are written: look again after that.
        """
        return await self._write(retention.erase, (request,))

    async def tombstones(self, digest: str | None = None, *, limit: int = 100) -> list[Tombstone]:
        """Return tombstones, newest first; those of one digest, or all."""
        return await self._read(retention.tombstones, digest, limit)

    # ------------------------------------------------------------ transactions

    async def _write(self, operation: Callable[[Session, Sequence[Q]], Sequence[R]], request: Q) -> R:
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        return await self._writer.submit(operation, request)

    async def _read(self, function: Callable[[Session, Unpack[Parts]], R], *args: *Parts) -> R:
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        if self._reading is None:
            self._reading = OwnThread("store-reader")
        # The thread may be abandoned, and another reader made, before the call begins.
        return await self._reading.call(partial(_read_now, self._reader, function, args))


def _read_now(reader: Backend, function: Callable[[Session, Unpack[Parts]], R], args: tuple[*Parts]) -> R:
    tried = False
    while True:
        try:
            return function(reader.begin(), *args)
        except Exception as error:
            trouble = reader.trouble(error)
            if tried or not trouble.again:
                raise trouble.error from error
            tried = True


def _stats(session: Session, now: int) -> StoreStats:
    return StoreStats(
        due=DELIVERIES.due(session, now), dead=queue.dead(session), pickups=PICKUPS.due(session, now)
    )
