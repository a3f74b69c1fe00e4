"""The store's port over a database that speaks SQL: writes go through the writer, reads through a second connection.

What differs between databases (connecting, locking, naming troubles) is behind `Backend`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from receiver.core.clock import wall_clock
from receiver.core.errors import StoreUnavailable
from receiver.core.event import Event, Recorded, Recording, Rejection, new_id
from receiver.core.retention import Erased, Erasure, Prune, Pruned, Subject, Tombstone, Traces
from receiver.core.work import (
    Attempt,
    Claimed,
    ClaimedPickup,
    Delivery,
    Pickup,
    PickupAttempt,
    PickupSettled,
    PickupSettlement,
    Settlement,
    StoreStats,
)
from receiver.storage.store import pickups, queries, retention, sql, statements
from receiver.storage.store.base import Deferral, DeliveryFilter, EventFilter, PickupFilter
from receiver.storage.store.sql import Session
from receiver.storage.store.writer import Backend, Handler, Writer
from receiver.system.threads import OwnThread

T = TypeVar("T")

HANDLERS: Mapping[str, Handler] = {
    "migrate": lambda session, wanted: [statements.migrate(session, one) for one in wanted],
    "check": lambda session, wanted: [statements.check(session, one) for one in wanted],
    "check_complete": lambda session, wanted: [statements.check_complete(session, one) for one in wanted],
    "settle": sql.settle,
    "settle_pickup": pickups.settle,
    "release": sql.release,
    "release_pickups": pickups.release,
    "replay": sql.replay,
    "add_pickup": pickups.add,
    "record": sql.record,
    "defer": pickups.defer,
    "claim": sql.claim,
    "claim_pickups": pickups.claim,
    "reject": sql.reject,
    "ping": sql.ping,
    "prune": retention.prune,
    "erase": retention.erase,
}
"""Every operation that writes. Within one transaction they run in this order, so a claim sees what was recorded."""
URGENT = ("record", "defer")
"""What a provider waits for."""


class GroupedStore:
    """The whole port but the database itself.

    `connect` makes a backend, for the writer (True) or for reading only (False); `known` are the migrations of this
    program for the database, name to text.
    """

    def __init__(self, connect: Callable[[bool], Backend], known: Mapping[str, str]) -> None:
        self._connect = connect
        self._known = known
        self._writer: Writer | None = None
        self._reader = connect(False)
        self._reading: OwnThread | None = None
        self._number = int.from_bytes(os.urandom(2))
        """The row that its pings change: processes share none, but by a chance that does no harm."""

    _checking = "check"
    """How the schema is checked at the start."""
    _close_seconds: float | None = None
    """How long closing waits for what is under way on a connection; None where no wait is long."""

    async def open(self) -> None:
        """Connect and check the schema. Raises `ConfigError` when it is newer than this program, `StoreUnavailable`."""
        if self._writer is None:
            self._writer = Writer(self._connect(True), HANDLERS, URGENT)
            try:
                await self._write(self._checking, self._migrations())
            except BaseException:
                await self.close()
                raise

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the migrations applied. Safe to run at any time.

        The store need not be open; it is left as it was.
        """
        was_open = self._writer is not None
        if self._writer is None:
            self._writer = Writer(self._connect(True), HANDLERS, URGENT)
        try:
            return cast("list[str]", await self._write("migrate", self._migrations()))
        finally:
            if not was_open:
                await self.close()

    def _migrations(self) -> statements.Migrate:
        return statements.Migrate(self._known, wall_clock())

    async def close(self) -> None:
        """Finish what is queued, then disconnect."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            reading, self._reading = self._reading, None
            if self._close_seconds is None:  # not both at once: the last one out tidies up
                await writer.close()
                await self._close_reading(reading)
            else:
                await asyncio.gather(writer.close(self._close_seconds), self._close_reading(reading))

    async def _close_reading(self, reading: OwnThread | None) -> None:
        if reading is not None and not await reading.end(self._reader.close, self._close_seconds):
            self._reader.abandon()
            self._reader = self._connect(False)

    async def ping(self) -> None:
        """Prove that it can be written. Raises `StoreUnavailable`."""
        await self._write("ping", self._number)

    async def record(self, recording: Recording) -> Recorded:
        """Write callback, event and deliveries, all or none."""
        asked = sql.NewRecording(recording, _delivery_ids(recording))
        return cast("Recorded", await self._write("record", asked))

    async def defer(self, deferral: Deferral) -> Recorded:
        """Write callback and pickup, all or none."""
        return cast("Recorded", await self._write("defer", deferral))

    async def add_pickup(self, pickup: Pickup) -> tuple[Pickup, bool]:
        """Write a pickup, unless one of its key stands; return the one that stands, and whether it is new."""
        return cast("tuple[Pickup, bool]", await self._write("add_pickup", pickup))

    async def claim_pickups(
        self, source: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[ClaimedPickup]:
        """Take up to `limit` pickups of `source` that are due (`due_at <= now`), oldest first, until `lease_until`."""
        asked = pickups.ClaimPickups(
            source=source, token=_token(worker), limit=limit, now=now, lease_until=lease_until
        )
        return cast("list[ClaimedPickup]", await self._write("claim_pickups", asked))

    async def settle_pickup(self, settlement: PickupSettlement) -> PickupSettled:
        """Record the attempt and its consequence if the claim is still held, and with it what is told and the recording."""
        ids = _delivery_ids(settlement.recording) if settlement.recording else ()
        told = tuple(sql.NewRecording(one, _delivery_ids(one)) for one in settlement.told)
        asked = pickups.NewSettlement(settlement, ids, told)
        return cast("PickupSettled", await self._write("settle_pickup", asked))

    async def release_pickups(self, claims: Sequence[ClaimedPickup], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""
        asked = pickups.ReleasePickups(tuple(claims), now)
        return cast("int", await self._write("release_pickups", asked))

    async def claim(
        self, destination: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[Claimed]:
        """Take up to `limit` deliveries that are due (`due_at <= now`), oldest first, until `lease_until`."""
        asked = sql.Claim(
            destination=destination, token=_token(worker), limit=limit, now=now, lease_until=lease_until
        )
        return cast("list[Claimed]", await self._write("claim", asked))

    async def settle(self, settlement: Settlement) -> bool:
        """Record the attempt and its consequence if the claim is still held; False when it is not."""
        return cast("bool", await self._write("settle", settlement))

    async def release(self, claims: Sequence[Claimed], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""
        return cast("int", await self._write("release", sql.Release(tuple(claims), now)))

    async def replay(self, delivery_ids: Sequence[str], *, now: int) -> list[str]:
        """Begin another round for each delivery that has ended; return the ids that were replayed."""
        return cast("list[str]", await self._write("replay", sql.Replay(tuple(delivery_ids), now)))

    async def reject(self, rejections: Sequence[Rejection], *, keep: int) -> None:
        """Keep these rejections, and only the newest `keep` of each source."""
        await self._write("reject", sql.Reject(tuple(rejections), keep))

    async def next_due(self, destination: str) -> int | None:
        """Return when the next delivery of `destination` is due (leases included), or None."""
        return await self._read(queries.next_due, destination)

    async def event(self, event_id: str) -> Event:
        """Return one event. Raises `NotFound`."""
        return await self._read(queries.event, event_id)

    async def body(self, event_id: str) -> bytes | None:
        """Return the kept body of the callback behind an event, None when it is kept as a blob."""
        return await self._read(queries.body, event_id)

    async def events(self, wanted: EventFilter) -> list[Event]:
        """List events, newest first."""
        return await self._read(queries.events, wanted)

    async def delivery(self, delivery_id: str) -> Delivery:
        """Return one delivery. Raises `NotFound`."""
        return await self._read(queries.delivery, delivery_id)

    async def deliveries(self, wanted: DeliveryFilter) -> list[Delivery]:
        """List deliveries, newest first."""
        return await self._read(queries.deliveries, wanted)

    async def attempts(self, delivery_id: str) -> list[Attempt]:
        """Return the attempts of a delivery, first to last."""
        return await self._read(queries.attempts, delivery_id)

    async def next_due_pickup(self, source: str) -> int | None:
        """Return when the next pickup of `source` is due (leases included), or None."""
        return await self._read(queries.next_due_pickup, source)

    async def pickup(self, pickup_id: str) -> Pickup:
        """Return one pickup. Raises `NotFound`."""
        return await self._read(queries.pickup, pickup_id)

    async def pickups(self, wanted: PickupFilter) -> list[Pickup]:
        """List pickups, newest first."""
        return await self._read(queries.pickups, wanted)

    async def pickup_attempts(self, pickup_id: str) -> list[PickupAttempt]:
        """Return the attempts of a pickup, first to last."""
        return await self._read(queries.pickup_attempts, pickup_id)

    async def rejections(self, source: str | None, *, limit: int) -> list[Rejection]:
        """List rejections, newest first."""
        return await self._read(queries.rejections, source, limit)

    async def stats(self, now: int) -> StoreStats:
        """Count what is due by `now` (depth, oldest), and what is dead."""
        return await self._read(queries.stats, now)

    async def prune(self, asked: Prune) -> Pruned:
        """Do one batch of one walk."""
        return cast("Pruned", await self._write("prune", asked))

    async def known_blobs(self, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that an event links to."""
        return await self._read(retention.known_blobs, keys)

    async def traces(self, subject: Subject, *, limit: int) -> Traces:
        """Return what there is of a subject."""
        return await self._read(retention.traces, subject, limit)

    async def erase(self, asked: Erasure) -> Erased:
        """Do one batch of an erasure."""
        return cast("Erased", await self._write("erase", asked))

    async def tombstones(self, digest: str | None = None, *, limit: int = 100) -> list[Tombstone]:
        """Return tombstones, newest first; those of one digest, or all."""
        return await self._read(retention.tombstones, digest, limit)

    async def _write(self, kind: str, wanted: object) -> Any:
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        return await self._writer.submit(kind, wanted)

    async def _read(self, function: Callable[..., T], *args: object) -> T:
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        if self._reading is None:
            self._reading = OwnThread("store-reader")
        reader = self._reader  # the thread may be left to itself, and there is another by the time it goes on
        return await self._reading.call(lambda: _read_now(reader, function, args))


def _read_now(reader: Backend, function: Callable[..., T], args: tuple[object, ...]) -> T:
    for last in (False, True):
        try:
            session: Session = reader.begin()
            return function(session, *args)
        except Exception as error:
            again = reader.again(error)
            told = reader.trouble(error)[0]
            if last or not again:
                raise told from error
    raise AssertionError


def _token(worker: str) -> str:
    """Name one claim: a worker that gets what it had let expire again must not settle it by the old claim."""
    return f"{worker}:{os.urandom(6).hex()}"


def _delivery_ids(recording: Recording) -> tuple[str, ...]:
    """Make ids here and not in the writer's thread: drawing random bytes lets go of the interpreter's lock."""
    at = recording.event.recorded_at
    return tuple(new_id("dlv", at) for _ in recording.destinations)
