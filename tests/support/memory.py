"""The store in plain dictionaries (floor 3): the model that the others are compared with, and a fast one for tests."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from receiver.core.errors import NotFound, StoreUnavailable
from receiver.core.event import (
    CallbackRow,
    Event,
    Recorded,
    Recording,
    RecordStatus,
    Rejection,
    Stage,
    new_id,
)
from receiver.core.work import (
    Attempt,
    Claimed,
    Delivery,
    DeliveryState,
    Due,
    Pickup,
    PickupSettled,
    PickupSettlement,
    PickupState,
    Settlement,
    StoreStats,
)
from receiver.storage.store.base import Deferral, DeliveryFilter, EventFilter
from receiver.storage.store.pickups import already_told, led_to
from receiver.storage.store.retention import ERASED
from tests.support.memory_retention import MemoryRetention

Kept = TypeVar("Kept", Event, Delivery)
_ENDED = (DeliveryState.DELIVERED, DeliveryState.DEAD)


class MemoryStore(MemoryRetention):
    """Everything is lost when the process ends. No method awaits, so each is a transaction by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: dict[str, tuple[CallbackRow, str]] = {}
        self._events: dict[str, Event] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._attempts: dict[str, list[Attempt]] = {}
        self._rejections: list[tuple[int, int, Rejection]] = []
        self._arrivals = itertools.count()

    # ------------------------------------------------------------ the road in

    async def record(self, recording: Recording) -> Recorded:
        """Write callback, event and deliveries, all or none."""
        await self.ping()
        event = recording.event
        recorded = self._record(recording)
        if recording.answered:
            self._answer(event.source, recording.answered, recorded.event_id, event.recorded_at)
        return recorded

    def _record(self, recording: Recording) -> Recorded:
        event = recording.event
        first = self._first(recording.callback)
        if first is not None:
            return Recorded(status=RecordStatus.DUPLICATE, event_id=first)
        self._insist_new(event)
        late = event.stage is Stage.PROGRESS and self._has_ended(event)
        self._callbacks[recording.callback.id] = (recording.callback, event.id)
        self._write(event, () if late else recording.destinations)
        return Recorded(status=RecordStatus.LATE if late else RecordStatus.RECORDED, event_id=event.id)

    def _insist_new(self, event: Event) -> None:
        if event.id in self._events:
            msg = "store: the database refused a row: its id is already there"
            raise StoreUnavailable(msg)

    def _write(self, event: Event, destinations: Iterable[str]) -> None:
        self._events[event.id] = event
        for destination in destinations:
            self._owe(event, destination)

    async def defer(self, deferral: Deferral) -> Recorded:
        """Write callback and pickup, all or none."""
        await self.ping()
        callback, pickup, now = deferral.callback, deferral.pickup, deferral.pickup.created_at
        standing = self._standing(pickup.source, pickup.key)
        first = self._first(callback)
        if first is None:
            target = standing or pickup
            made = led_to(callback, target.event_id)
            if standing is None:
                self._add(pickup)
            else:
                self._hasten(standing, pickup)
            self._callbacks[made.id] = (made, target.event_id)
            recorded = Recorded(status=RecordStatus.RECORDED, event_id=target.event_id, pickup_id=target.id)
        else:
            same = standing.id if standing and standing.event_id == first else None
            recorded = Recorded(status=RecordStatus.DUPLICATE, event_id=first, pickup_id=same)
        if deferral.answered:
            self._answer(callback.source, deferral.answered, recorded.event_id, now)
        return recorded

    async def settle_pickup(self, settlement: PickupSettlement) -> PickupSettled:
        """Record the attempt and its consequence if the claim is still held, and with it what is told and the recording."""
        await self.ping()
        if not self._holds_pickup(settlement.claim):
            return PickupSettled(held=False)
        new = [one for one in settlement.told if self._first(one.callback) is None]
        for one in filter(None, (*new, settlement.recording)):
            self._insist_new(one.event)
        self._settle(settlement)
        told = tuple(self._record(one) for one in settlement.told)
        if settlement.recording is None:
            return PickupSettled(held=True, told=told)
        recorded = self._end(settlement.claim.pickup, settlement.recording)
        return PickupSettled(held=True, told=told, recorded=recorded)

    def _end(self, pickup: Pickup, recording: Recording) -> Recorded:
        event, callback = recording.event, recording.callback
        looked_for = [callback]
        if event.type.endswith(".failed"):
            looked_for = [replace(callback, idempotency_key=pickup.key, second_key=pickup.key), callback]
        for keys in looked_for:
            first = self._first(keys)
            told = self._events.get(first) if first else None
            again = keys is callback and first is not None and already_told(first, event)
            failed = told is not None and told.type.endswith(".failed")
            if first not in (None, event.id) and (again or (not failed if told else self._is_lasting(first))):
                self._yield(pickup.id, first, PickupState.GONE if failed else PickupState.COLLECTED)
                return Recorded(status=RecordStatus.DUPLICATE, event_id=first)
        first = self._first(callback)
        if first not in (None, event.id):
            callback = replace(callback, idempotency_key=f"pickup:{pickup.id}", second_key=None)
        if first != event.id:
            self._callbacks[callback.id] = (callback, event.id)
        self._write(event, recording.destinations)
        return Recorded(status=RecordStatus.RECORDED, event_id=event.id)

    def _is_lasting(self, event_id: str | None) -> bool:
        """Tell whether an event that is not there is awaited, or was erased."""
        return any(one.event_id == event_id for one, _ in self._waiting_pickups()) or any(
            row.method == ERASED and led == event_id for row, led in self._callbacks.values()
        )

    def _first(self, callback: CallbackRow) -> str | None:
        """Return the event of the first callback that is the same as this one, by either key."""
        same = [
            (row.id, event_id)
            for row, event_id in self._callbacks.values()
            if row.source == callback.source
            and (
                row.idempotency_key == callback.idempotency_key
                or (row.second_key is not None and row.second_key == callback.second_key)
            )
        ]
        return min(same)[1] if same else None

    def _has_ended(self, event: Event) -> bool:
        job = (event.source, event.job_id)
        if event.job_id is None:
            return False
        ended = any(
            (other.source, other.job_id) == job and other.stage is Stage.FINAL
            for other in self._events.values()
        )
        return ended or any(
            (one.source, one.job_id) == job and one.draft is not None for one in self._pickups.values()
        )

    def _owe(self, event: Event, destination: str) -> None:
        at = event.recorded_at
        delivery = Delivery(
            id=new_id("dlv", at),
            event_id=event.id,
            event_type=event.type,
            destination=destination,
            state=DeliveryState.PENDING,
            attempts=0,
            round_start=0,
            due_at=at,
            claimed_by=None,
            created_at=at,
            updated_at=at,
            last_outcome=None,
        )
        self._deliveries[delivery.id] = delivery
        self._attempts[delivery.id] = []

    async def reject(self, rejections: Sequence[Rejection], *, keep: int) -> None:
        """Keep these rejections, and only the newest `keep` of each source."""
        await self.ping()
        self._rejections += [(one.at, next(self._arrivals), one) for one in rejections]
        self._rejections.sort(key=lambda row: row[:2], reverse=True)
        for source in {one.source for one in rejections}:
            dropped = [row for row in self._rejections if row[2].source == source][keep:]
            self._rejections = [row for row in self._rejections if row not in dropped]

    async def rejections(self, source: str | None, *, limit: int) -> list[Rejection]:
        """List rejections, newest first."""
        await self.ping()
        return [row[2] for row in self._rejections if source in (None, row[2].source)][:limit]

    # ------------------------------------------------------------ the road out

    async def claim(
        self, destination: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[Claimed]:
        """Take up to `limit` deliveries that are due (`due_at <= now`), oldest first, until `lease_until`."""
        await self.ping()
        token = f"{worker}:{os.urandom(6).hex()}"
        due = sorted((at, one.id) for one, at in self._waiting(destination) if at <= now)
        return [self._take(delivery_id, token, now, lease_until) for _, delivery_id in due[:limit]]

    def _waiting(self, destination: str | None = None) -> Iterable[tuple[Delivery, int]]:
        for one in self._deliveries.values():
            if one.due_at is not None and destination in (None, one.destination):
                yield one, one.due_at

    def _take(self, delivery_id: str, token: str, now: int, lease_until: int) -> Claimed:
        one = self._change(
            delivery_id, state=DeliveryState.DELIVERING, claimed_by=token, due_at=lease_until, updated_at=now
        )
        return Claimed(
            delivery_id=one.id,
            destination=one.destination,
            event=self._events[one.event_id],
            attempts=one.attempts,
            round_start=one.round_start,
            claimed_by=token,
            lease_until=lease_until,
        )

    def _change(self, delivery_id: str, **changes: object) -> Delivery:
        changed: Delivery = replace(self._deliveries[delivery_id], **changes)
        self._deliveries[delivery_id] = changed
        return changed

    def _holds(self, claim: Claimed) -> bool:
        one = self._deliveries.get(claim.delivery_id)
        return (
            one is not None
            and one.state is DeliveryState.DELIVERING
            and (one.claimed_by, one.attempts) == (claim.claimed_by, claim.attempts)
        )

    async def settle(self, settlement: Settlement) -> bool:
        """Record the attempt and its consequence if the claim is still held; False when it is not."""
        await self.ping()
        claim, outcome = settlement.claim, settlement.outcome
        if not self._holds(claim):
            return False
        attempt = Attempt(
            delivery_id=claim.delivery_id,
            number=claim.attempts + 1,
            started_at=settlement.started_at,
            duration_ms=settlement.duration_ms,
            outcome=outcome.kind,
            status=outcome.status,
            detail=outcome.detail,
            response=outcome.response,
        )
        self._attempts[claim.delivery_id].append(attempt)
        self._change(
            claim.delivery_id,
            state=settlement.state,
            attempts=attempt.number,
            due_at=settlement.due_at,
            claimed_by=None,
            last_outcome=outcome.kind.value,
            updated_at=settlement.started_at + settlement.duration_ms,
        )
        return True

    async def release(self, claims: Sequence[Claimed], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""
        await self.ping()
        held = {claim.delivery_id for claim in claims if self._holds(claim)}
        for delivery_id in held:
            self._change(
                delivery_id, state=DeliveryState.PENDING, claimed_by=None, due_at=now, updated_at=now
            )
        return len(held)

    async def replay(self, delivery_ids: Sequence[str], *, now: int) -> list[str]:
        """Begin another round for each delivery that has ended; return the ids that were replayed."""
        await self.ping()
        known = [one for one in dict.fromkeys(delivery_ids) if one in self._deliveries]
        ended = [one for one in known if self._deliveries[one].state in _ENDED]
        for one in ended:
            attempts = self._deliveries[one].attempts
            self._change(one, state=DeliveryState.PENDING, round_start=attempts, due_at=now, updated_at=now)
        return ended

    async def next_due(self, destination: str) -> int | None:
        """Return when the next delivery of `destination` is due (leases included), or None."""
        await self.ping()
        return min((at for _, at in self._waiting(destination)), default=None)

    # ------------------------------------------------------------ reading

    async def event(self, event_id: str) -> Event:
        """Return one event. Raises `NotFound`."""
        await self.ping()
        if event_id not in self._events:
            msg = f"no event has the id {event_id}"
            raise NotFound(msg)
        return self._events[event_id]

    async def body(self, event_id: str) -> bytes | None:
        """Return the kept body of the callback behind an event, None when it is kept as a blob."""
        await self.event(event_id)
        led = [row for row, made in self._callbacks.values() if made == event_id]
        return min(led, key=lambda row: (row.body is None, row.received_at, row.id)).body

    async def events(self, wanted: EventFilter) -> list[Event]:
        """List events, newest first."""
        await self.ping()

        def matches(one: Event) -> bool:
            return (
                wanted.source in (None, one.source)
                and wanted.type in (None, one.type)
                and wanted.job_id in (None, one.job_id)
                and wanted.ref in (None, one.ref)
                and (wanted.since is None or one.recorded_at >= wanted.since)
            )

        return _page(self._events, matches, wanted.after, wanted.limit)

    async def delivery(self, delivery_id: str) -> Delivery:
        """Return one delivery. Raises `NotFound`."""
        await self.ping()
        if delivery_id not in self._deliveries:
            msg = f"no delivery has the id {delivery_id}"
            raise NotFound(msg)
        return self._deliveries[delivery_id]

    async def deliveries(self, wanted: DeliveryFilter) -> list[Delivery]:
        """List deliveries, newest first."""
        await self.ping()

        def matches(one: Delivery) -> bool:
            return (
                wanted.destination in (None, one.destination)
                and wanted.state in (None, one.state)
                and wanted.event_id in (None, one.event_id)
                and (wanted.since is None or one.created_at >= wanted.since)
            )

        return _page(self._deliveries, matches, wanted.after, wanted.limit)

    async def attempts(self, delivery_id: str) -> list[Attempt]:
        """Return the attempts of a delivery, first to last."""
        await self.ping()
        return list(self._attempts.get(delivery_id, ()))

    async def stats(self, now: int) -> StoreStats:
        """Count what is due by `now` (depth, oldest), and what is dead."""
        await self.ping()
        due: dict[str, list[int]] = {}
        for one, at in self._waiting():
            if at <= now:
                due.setdefault(one.destination, []).append(at)
        dead = Counter(
            one.destination for one in self._deliveries.values() if one.state is DeliveryState.DEAD
        )
        counted = [
            Due(destination=name, depth=len(ats), oldest_due_at=min(ats)) for name, ats in sorted(due.items())
        ]
        return StoreStats(due=tuple(counted), dead=dict(dead), pickups=self._pickups_due(now))


def _page(
    rows: dict[str, Kept], matches: Callable[[Kept], bool], after: str | None, limit: int
) -> list[Kept]:
    ids = sorted((key for key in rows if after is None or key < after), reverse=True)
    return [rows[key] for key in ids if matches(rows[key])][:limit]
