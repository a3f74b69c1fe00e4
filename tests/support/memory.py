"""The store in plain dictionaries: the oracle that the real ones are compared with, and a fast one for tests.

It shares values with the product and nothing else: how a row is found, kept or removed is said here a second time.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from receiver.core.audit import Act
from receiver.core.callback import Arrival
from receiver.core.destinations import PLAIN, DestinationState, DestinationStatus, SendingRules
from receiver.core.errors import NotFound, StoreUnavailable
from receiver.core.event import (
    TIME_CHARS,
    Answered,
    Callback,
    CallbackRow,
    Event,
    EventSearch,
    Place,
    PlacedEvent,
    Positions,
    Recorded,
    Recording,
    RecordStatus,
    RejectedRequest,
    Rejection,
    Stage,
    new_id,
)
from receiver.core.observe import HOUR, Process, Tally, TallyBatch
from receiver.core.page import Page
from receiver.core.retention import (
    CallbackKeys,
    Erased,
    Erasure,
    Prune,
    Pruned,
    Subject,
    SubjectKind,
    Tombstone,
    Traces,
    Walk,
)
from receiver.core.routing import Decision
from receiver.core.work import (
    Attempt,
    Batch,
    BulkOperation,
    BulkState,
    Claimed,
    ClaimedPickup,
    Deferral,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Due,
    Pickup,
    PickupAttempt,
    PickupFilter,
    PickupKind,
    PickupSettled,
    PickupSettlement,
    PickupState,
    Progress,
    Settlement,
    StoreStats,
    TakenOver,
)
from receiver.storage.store.destinations import Change, Changed, Tell
from receiver.storage.store.events import REQUESTS, REQUESTS_OF_A_SOURCE
from receiver.storage.store.store import Store

Kept = TypeVar("Kept", Act, BulkOperation, Event, PlacedEvent, Delivery, Pickup)
ERASED = "ERASED"
_ENDED = (DeliveryState.DELIVERED, DeliveryState.DEAD)


def _fits(name: str | None, value: str) -> bool:
    """Tell whether a value has a name, in which `*` stands for anything."""
    return name is None or fnmatchcase(value, name)


class MemoryStore(Store):
    """Everything is lost when the process ends. No method awaits, so each is a transaction by itself."""

    shared = False
    skew_ms: int | None = None

    def __init__(self) -> None:
        self._callbacks: dict[str, tuple[CallbackRow, str]] = {}
        self._events: dict[str, Event] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._attempts: dict[str, list[Attempt]] = {}
        self._pickups: dict[str, Pickup] = {}
        self._pickup_attempts: dict[str, list[PickupAttempt]] = {}
        self._states: dict[str, DestinationState] = {}
        self._rate_at: dict[str, int] = {}
        self._rejections: list[tuple[int, int, Rejection]] = []
        self._tombstones: dict[str, Tombstone] = {}
        self._ended_logins: dict[str, int] = {}
        self._arrivals = itertools.count()
        self._places: dict[str, Place] = {}
        self._acts: dict[str, Act] = {}
        self._tallies: Counter[tuple[int, str, str, str]] = Counter()
        self._hours: Counter[tuple[int, str, str, str]] = Counter()
        self._processes: dict[str, Process] = {}
        self._routing: dict[str, bytes | None] = {}
        self._operations: dict[str, BulkOperation] = {}
        self._open = False

    async def open(self) -> None:
        self._open = True

    async def migrate(self) -> list[str]:
        return []

    async def close(self) -> None:
        self._open = False

    async def ping(self) -> None:
        if not self._open:
            msg = "the store is not open"
            raise StoreUnavailable(msg)

    # ------------------------------------------------------------ the road in

    async def record(self, recording: Recording) -> Recorded:
        await self.ping()
        event = recording.event
        if recording.replaces is not None and recording.replaces not in self._events:
            return Recorded(status=RecordStatus.GONE, event_id=recording.replaces)
        recorded = self._record(recording)
        if recording.answered:
            self._resolve(event.source, recording.answered, recorded.event_id, event.recorded_at)
        return recorded

    def _record(self, recording: Recording) -> Recorded:
        event = recording.event
        first = self._first(recording.callback)
        if first is not None:
            return Recorded(status=RecordStatus.DUPLICATE, event_id=first)
        self._insist_new(event)
        late = event.stage is Stage.PROGRESS and self._has_ended(event)
        self._callbacks[recording.callback.id] = (recording.callback, event.id)
        self._put(event, () if late else recording.destinations)
        self._routing[event.id] = None if late else recording.routing
        return Recorded(status=RecordStatus.LATE if late else RecordStatus.RECORDED, event_id=event.id)

    def _insist_new(self, event: Event) -> None:
        if event.id in self._events:
            msg = "store: the database refused a row: its id is already there"
            raise StoreUnavailable(msg)

    def _put(self, event: Event, destinations: Iterable[str]) -> None:
        self._events[event.id] = event
        self._places[event.id] = Place(next(self._arrivals), event.id)
        for destination in destinations:
            self._owe(event, destination)

    async def defer(self, deferral: Deferral) -> Recorded:
        await self.ping()
        callback, pickup, now = deferral.callback, deferral.pickup, deferral.pickup.created_at
        existing = self._existing(pickup.source, pickup.key)
        first = self._first(callback)
        if first is None:
            target = existing or pickup
            made = _led_to(callback, target.event_id)
            if existing is None:
                self._add(pickup)
            else:
                self._reschedule(existing, pickup)
            self._callbacks[made.id] = (made, target.event_id)
            recorded = Recorded(status=RecordStatus.RECORDED, event_id=target.event_id, pickup_id=target.id)
        else:
            same = existing.id if existing and existing.event_id == first else None
            recorded = Recorded(status=RecordStatus.DUPLICATE, event_id=first, pickup_id=same)
        if deferral.answered:
            self._resolve(callback.source, deferral.answered, recorded.event_id, now)
        return recorded

    async def settle_pickup(self, settlement: PickupSettlement) -> PickupSettled:
        await self.ping()
        if not self._holds_pickup(settlement.claim):
            return PickupSettled(held=False)
        new = [one for one in settlement.progress if self._first(one.callback) is None]
        for one in filter(None, (*new, settlement.recording)):
            self._insist_new(one.event)
        self._settle(settlement)
        progress = tuple(self._record(one) for one in settlement.progress)
        if settlement.recording is None:
            return PickupSettled(held=True, progress=progress)
        recorded = self._end(settlement.claim.pickup, settlement.recording)
        return PickupSettled(held=True, progress=progress, recorded=recorded)

    def _end(self, pickup: Pickup, recording: Recording) -> Recorded:
        event, callback = recording.event, recording.callback
        looked_for = [callback]
        if event.type.endswith(".failed"):
            looked_for = [replace(callback, idempotency_key=pickup.key, second_key=pickup.key), callback]
        for keys in looked_for:
            first = self._first(keys)
            told = self._events.get(first) if first else None
            again = (
                keys is callback
                and first is not None
                and (event.type.endswith(".failed") and first > event.id)
            )
            failed = told is not None and told.type.endswith(".failed")
            if first not in (None, event.id) and (again or (not failed if told else self._is_lasting(first))):
                self._supersede(pickup.id, first, PickupState.GONE if failed else PickupState.COLLECTED)
                return Recorded(status=RecordStatus.DUPLICATE, event_id=first)
        first = self._first(callback)
        if first not in (None, event.id):
            callback = replace(callback, idempotency_key=f"pickup:{pickup.id}", second_key=None)
        if first != event.id:
            self._callbacks[callback.id] = (callback, event.id)
        self._put(event, recording.destinations)
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

    def _owe(self, event: Event, destination: str, now: int | None = None) -> str:
        at = event.recorded_at if now is None else now
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
            job_id=event.job_id,
            ref=event.ref,
        )
        self._deliveries[delivery.id] = delivery
        self._attempts[delivery.id] = []
        return delivery.id

    async def reject(self, rejections: Sequence[Rejection], *, keep: int) -> None:
        await self.ping()
        numbers = [next(self._arrivals) for _ in rejections]
        self._rejections += [
            (one.at, number, replace(one, id=f"rej_{number}", request_kept=one.request is not None))
            for one, number in zip(rejections, numbers, strict=True)
        ]
        self._rejections.sort(key=lambda row: row[:2], reverse=True)
        for kind in {_ring(one) for one in rejections}:
            dropped = [row for row in self._rejections if _ring(row[2]) == kind][keep:]
            self._rejections = [row for row in self._rejections if row not in dropped]
        of_source: Counter[str] = Counter()
        for one in [one for _, _, one in self._rejections if one.request_kept]:
            of_source[one.source] += 1
            if of_source[one.source] > REQUESTS_OF_A_SOURCE or of_source.total() > REQUESTS:
                self._forget_request(one.id)

    def _forget_request(self, row_id: str) -> None:
        self._rejections = [
            (at, n, replace(one, request_kept=False, request=None) if one.id == row_id else one)
            for at, n, one in self._rejections
        ]

    async def rejected_request(self, row_id: str) -> RejectedRequest:
        await self.ping()
        for _, _, one in self._rejections:
            if one.id == row_id and one.request is not None:
                return one.request
        raise NotFound(f"no request of a rejection {row_id} is kept")

    async def begin_act(self, act: Act) -> Act:
        await self.ping()
        same = (one for one in self._acts.values() if (one.token, one.key) == (act.token, act.key))
        return (
            self._acts.setdefault(act.id, act)
            if act.key is None
            else next(same, None) or self._acts.setdefault(act.id, act)
        )

    async def end_act(self, act_id: str, *, status: int, answer: bytes | None) -> None:
        self._acts[act_id] = replace(self._acts[act_id], status=status, answer=answer)

    async def acts(self, token: str | None, after: str | None, limit: int) -> Page[Act]:
        found = sorted(self._acts.values(), key=lambda one: one.id, reverse=True)
        found = [one for one in found if token in (None, one.token) and (after is None or one.id < after)]
        return _page(found, limit, lambda one: one.id)

    async def add_tallies(self, told: TallyBatch) -> None:
        await self.ping()
        for one in told.tallies:
            self._tallies[one.minute, one.kind, one.name, one.outcome] += one.count
        for key in [key for key in self._tallies if key[0] < told.before]:
            self._hours[key[0] // HOUR * HOUR, *key[1:]] += self._tallies.pop(key)
        self._hours = Counter({key: n for key, n in self._hours.items() if key[0] >= told.hours_before})
        self._processes[told.process.id] = told.process
        self._processes = {k: one for k, one in self._processes.items() if one.seen_at >= told.before}

    async def tallies(self, since: int, until: int, step: int) -> list[Tally]:
        sums: Counter[tuple[int, str, str, str]] = Counter()
        counted = [*self._tallies.items(), *self._hours.items()]
        for (minute, kind, name, outcome), n in counted:
            if since <= minute < until:
                sums[minute // step * step, kind, name, outcome] += n
        return [
            Tally(minute=key[0], kind=key[1], name=key[2], outcome=key[3], count=n)
            for key, n in sorted(sums.items())
        ]

    async def processes(self) -> list[Process]:
        return sorted(self._processes.values(), key=lambda one: (one.started_at, one.id), reverse=True)

    async def begin_operation(self, wanted: BulkOperation) -> None:
        await self.ping()
        self._operations[wanted.id] = wanted

    async def operation(self, operation_id: str) -> BulkOperation:
        if operation_id not in self._operations:
            msg = f"no operation has the id {operation_id}"
            raise NotFound(msg)
        return self._operations[operation_id]

    async def operations(self, after: str | None, limit: int) -> Page[BulkOperation]:
        found = sorted(self._operations.values(), key=lambda one: one.id, reverse=True)
        return _page([one for one in found if after is None or one.id < after], limit, lambda one: one.id)

    async def has_due_operation(self, now: int) -> bool:
        return any(one.due_at is not None and one.due_at <= now for one in self._operations.values())

    async def change_operation(
        self, operation_id: str, *, running: bool, rate: int | None = None, now: int
    ) -> BulkOperation:
        one = await self.operation(operation_id)
        if one.state is not BulkState.DONE:
            state, due_at = (BulkState.RUNNING, now) if running else (BulkState.STOPPED, None)
            one = replace(one, state=state, due_at=due_at, rate=rate or one.rate, updated_at=now)
            self._operations[operation_id] = one
        return one

    async def claim_operation(
        self, *, now: int, lease_until: int, only: str | None = None
    ) -> BulkOperation | None:
        await self.ping()
        due = [
            (one.due_at, one.id)
            for one in self._operations.values()
            if one.due_at is not None and one.due_at <= now and only in (None, one.id)
        ]
        if not due:
            return None
        taken = replace(self._operations[min(due)[1]], due_at=lease_until, updated_at=now)
        self._operations[taken.id] = taken
        return taken

    async def advance_operation(self, claimed: BulkOperation, batch: Batch, *, now: int) -> int | None:
        one = await self.operation(claimed.id)
        if one.state is not BulkState.RUNNING or one.place != claimed.place:
            return None
        changed = batch.changed + len(await self.replay(batch.replays, now=now))
        changed += len(await self.add_deliveries(batch.additions, now=now))
        self._operations[one.id] = replace(
            one,
            state=BulkState.DONE if batch.finished else BulkState.RUNNING,
            place=batch.place,
            done=one.done + batch.rows,
            changed=one.changed + changed,
            updated_at=now,
            due_at=None if batch.finished else now + batch.wait,
        )
        return changed

    async def has_scope(self, source: str, scope: str) -> bool:
        await self.ping()
        rows = (row for row, _ in self._callbacks.values() if row.source == source)
        return any(row.idempotency_key.startswith(scope) for row in rows)

    async def rejections(
        self, source: str | None, *, limit: int, ref: str | None = None, one: str | None = None
    ) -> list[Rejection]:
        await self.ping()
        kept = (replace(row, request=None) for _, _, row in self._rejections if source in (None, row.source))
        return [row for row in kept if ref in (None, row.ref) and one in (None, row.id)][:limit]

    # ------------------------------------------------------------ the road out

    async def claim(
        self,
        destination: str,
        *,
        worker: str,
        limit: int,
        now: int,
        lease_until: int,
        rules: SendingRules = PLAIN,
    ) -> list[Claimed]:
        await self.ping()
        token = f"{worker}:{os.urandom(6).hex()}"
        due = self._claimable(destination, limit, now, rules)
        self._spend(destination, len(due), now, lease_until, rules)
        return [
            replace(self._take(delivery_id, token, now, lease_until), probe=rules.probing)
            for _, delivery_id in due
        ]

    def _claimable(
        self, destination: str, limit: int, now: int, rules: SendingRules
    ) -> list[tuple[int, str]]:
        """Return when what a claim may take was due, and its id, in order."""
        state = self._states.get(destination) or DestinationState(name=destination)
        if state.stopped or state.held_until > now or (state.opened_at is not None) is not rules.probing:
            return []
        limit = 1 if rules.probing else limit
        if rules.rate is not None:
            apart, burst = rules.rate.apart_us, rules.rate.burst
            ahead = max(0, self._rate_at.get(destination, 0) - now * 1000)
            limit = min(limit, max(0, (burst * apart - ahead) // apart))
        due = sorted(
            (at, one.id)
            for one, at in self._waiting(destination)
            if at <= now and not self._is_blocked(one, rules)
        )
        return due[:limit]

    async def crowded(self, name: str, rules: SendingRules, now: int) -> bool:
        waiting = sorted((at, one.id, one) for one, at in self._waiting(name) if at <= now)[:256]
        return sum(self._is_blocked(one, rules) for _, _, one in waiting) > 128

    def _is_blocked(self, one: Delivery, rules: SendingRules) -> bool:
        """Tell whether an earlier delivery of the same job has not ended."""
        event = self._events[one.event_id]
        key = {"job": event.job_id, "ref": event.ref, None: None}[rules.order]
        if key is None:
            return False
        for other in self._deliveries.values():
            before = self._events[other.event_id]
            same = before.job_id if rules.order == "job" else before.ref
            waits = other.due_at is not None or (rules.dead_block and other.state is DeliveryState.DEAD)
            if (
                (other.destination, before.source, same) == (one.destination, event.source, key)
                and (before.recorded_at, before.id) < (event.recorded_at, event.id)
                and waits
            ):
                return True
        return False

    def _spend(self, destination: str, count: int, now: int, lease_until: int, rules: SendingRules) -> None:
        """Use up the rate and the probe."""
        if count and rules.probing:
            state = self._states[destination]
            self._states[destination] = replace(state, held_until=lease_until)
        if count and rules.rate is not None:
            start = max(now * 1000, self._rate_at.get(destination, 0))
            self._rate_at[destination] = start + count * rules.rate.apart_us

    async def destinations(self, now: int) -> dict[str, DestinationState]:
        await self.ping()
        used = {name: at // 1000 for name, at in self._rate_at.items()}
        return {
            name: replace(self._states.get(name) or DestinationState(name=name), rate_until=used.get(name, 0))
            for name in self._states.keys() | used
        }

    async def change_destination(self, name: str, change: Change, *, now: int, tell: Tell) -> Changed:
        await self.ping()
        before = self._states.get(name) or DestinationState(name=name, updated_at=now)
        after, told = change(before), None
        self._states[name] = before
        if after != before:
            self._states[name] = replace(after, updated_at=now)
            told = tell(before, after)
            if told is not None:
                self._record(told)
        return Changed(before, after, told)

    async def recover(self, destination: str, *, limit: int, now: int, again_at: int) -> int:
        await self.ping()
        state = self._states.get(destination)
        if state is None or state.recover_from is None or state.recover_until is None:
            return 0
        if state.status is not DestinationStatus.ACTIVE or state.recover_at > now:
            return 0
        first, last = state.recover_from, state.recover_until
        died = sorted(
            one.id
            for one in self._deliveries.values()
            if one.destination == destination
            and one.state is DeliveryState.DEAD
            and first <= one.updated_at <= last
        )[:limit]
        self._states[destination] = (
            replace(state, recover_at=again_at)
            if len(died) == limit
            else replace(state, recover_from=None, recover_until=None, recover_at=0)
        )
        return len(await self.replay(died, now=now))

    def _waiting(self, destination: str | None = None) -> Iterable[tuple[Delivery, int]]:
        for one in self._deliveries.values():
            if one.due_at is not None and destination in (None, one.destination):
                yield one, one.due_at

    def _take(self, delivery_id: str, token: str, now: int, lease_until: int) -> Claimed:
        one = self._change(
            delivery_id, state=DeliveryState.DELIVERING, claimed_by=token, due_at=lease_until, updated_at=now
        )
        return Claimed(
            id=one.id,
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
        one = self._deliveries.get(claim.id)
        return (
            one is not None
            and one.state is DeliveryState.DELIVERING
            and (one.claimed_by, one.attempts) == (claim.claimed_by, claim.attempts)
        )

    async def settle(self, settlement: Settlement) -> bool:
        await self.ping()
        claim, outcome = settlement.claim, settlement.outcome
        if not self._holds(claim):
            return False
        attempt = Attempt(
            delivery_id=claim.id,
            number=claim.attempts + 1,
            started_at=settlement.started_at,
            duration_ms=int(settlement.seconds * 1000),
            outcome=outcome.kind,
            status=outcome.status,
            detail=outcome.detail,
            response=outcome.response,
        )
        self._attempts[claim.id].append(attempt)
        self._change(
            claim.id,
            state=settlement.state,
            attempts=attempt.number,
            due_at=settlement.due_at,
            claimed_by=None,
            round_start=claim.round_start + (not settlement.spent),
            last_outcome=outcome.kind.value,
            updated_at=settlement.started_at + int(settlement.seconds * 1000),
        )
        return True

    async def release(self, claims: Sequence[Claimed], *, now: int) -> int:
        await self.ping()
        held = {claim.id for claim in claims if self._holds(claim)}
        for delivery_id in held:
            self._change(
                delivery_id, state=DeliveryState.PENDING, claimed_by=None, due_at=now, updated_at=now
            )
        return len(held)

    async def take_over(self, *, now: int) -> TakenOver:
        return TakenOver()

    async def replay(self, delivery_ids: Sequence[str], *, now: int) -> list[str]:
        await self.ping()
        known = [one for one in dict.fromkeys(delivery_ids) if one in self._deliveries]
        ended = [one for one in known if self._deliveries[one].state in _ENDED]
        for one in ended:
            attempts = self._deliveries[one].attempts
            self._change(one, state=DeliveryState.PENDING, round_start=attempts, due_at=now, updated_at=now)
        return ended

    async def add_deliveries(self, wanted: Sequence[tuple[str, str]], *, now: int) -> list[str]:
        await self.ping()
        there = {(d.event_id, d.destination) for d in self._deliveries.values()}
        made = []
        for event_id, destination in dict.fromkeys(wanted):
            if event_id in self._events and (event_id, destination) not in there:
                made.append(self._owe(self._events[event_id], destination, now))
        return made

    async def progress_of(self, event_ids: Sequence[str]) -> list[Progress]:
        await self.ping()
        asked = set(event_ids)
        return [
            Progress(
                id=d.id, event_id=d.event_id, destination=d.destination, state=d.state, attempts=d.attempts
            )
            for d in self._deliveries.values()
            if d.event_id in asked
        ]

    async def login_ended(self, login_id: str, name: str, issued_at: int) -> bool:
        await self.ping()
        return login_id in self._ended_logins or self._ended_logins.get(f"all:{name}", -1) >= issued_at

    async def end_login(self, subject: str, *, now: int) -> None:
        await self.ping()
        self._ended_logins[subject] = now

    async def next_due(self, destination: str) -> int | None:
        await self.ping()
        return min((at for _, at in self._waiting(destination)), default=None)

    # ------------------------------------------------------------ reading

    async def event(self, event_id: str) -> Event:
        await self.ping()
        if event_id not in self._events:
            msg = f"no event has the id {event_id}"
            raise NotFound(msg)
        return self._events[event_id]

    async def routing(self, event_id: str) -> list[Decision]:
        await self.ping()
        kept = self._routing.get(event_id) if event_id in self._events else None
        return msgspec.json.decode(kept, type=list[Decision]) if kept else []

    async def body(self, event_id: str) -> bytes | None:
        await self.event(event_id)
        led = [row for row, made in self._callbacks.values() if made == event_id]
        return min(led, key=lambda row: (row.body is None, row.received_at, row.id)).body

    async def callback(self, event_id: str) -> Callback | None:
        led = [row for row, made in self._callbacks.values() if made == event_id]
        if not led:
            return None
        row = min(led, key=lambda row: (row.received_at, row.id))
        return Callback(
            id=row.id,
            event_id=event_id,
            source=row.source,
            method=row.method,
            content_type=row.content_type,
            received_at=row.received_at,
            body_size=row.body_size,
            body_sha256=row.body_sha256,
            proofs=row.proofs,
            arrival=None if row.arrival is None else msgspec.json.decode(row.arrival, type=Arrival),
        )

    async def search(self, wanted: EventSearch) -> Page[PlacedEvent]:
        await self.ping()

        def is_owed(one: Event) -> bool:
            return (wanted.state, wanted.destination) == (None, None) or any(
                wanted.state in (None, d.state) and _fits(wanted.destination, d.destination)
                for d in self._owed(one.id)
            )

        def is_within(value: int | None, least: int | None, most: int | None) -> bool:
            if value is None:
                return least is None and most is None
            return (least is None or value >= least) and (most is None or value <= most)

        def matches(one: Event) -> bool:
            place = self._places[one.id]
            return (
                _fits(wanted.source, one.source)
                and wanted.provider in (None, one.provider)
                and (wanted.types is None or one.type in wanted.types)
                and wanted.job_id in (None, one.job_id)
                and wanted.ref in (None, one.ref)
                and (wanted.since is None or one.recorded_at >= wanted.since)
                and (wanted.until is None or one.recorded_at < wanted.until)
                and is_within(one.size, wanted.min_bytes, wanted.max_bytes)
                and is_within(one.duration_ms, wanted.min_duration_ms, wanted.max_duration_ms)
                and (
                    wanted.after is None
                    or (place < wanted.after if wanted.newest_first else place > wanted.after)
                )
                and is_owed(one)
            )

        found = [PlacedEvent(self._places[one.id], one) for one in self._events.values() if matches(one)]
        found.sort(key=lambda one: one.place, reverse=wanted.newest_first)
        return _page(found, wanted.limit, lambda one: one.place)

    async def positions(self) -> Positions:
        await self.ping()
        kept = [self._places[one].position for one in self._events]
        return Positions(min(kept, default=None), max(self._places.values(), default=Place(0, "")).position)

    async def delivery(self, delivery_id: str) -> Delivery:
        await self.ping()
        if delivery_id not in self._deliveries:
            msg = f"no delivery has the id {delivery_id}"
            raise NotFound(msg)
        return self._deliveries[delivery_id]

    async def deliveries(self, filter: DeliveryFilter) -> Page[Delivery]:
        await self.ping()

        def matches(one: Delivery) -> bool:
            return (
                _fits(filter.destination, one.destination)
                and filter.state in (None, one.state)
                and filter.event_id in (None, one.event_id)
                and (filter.since is None or one.created_at >= filter.since)
                and (filter.until is None or one.created_at < filter.until)
                and _fits(filter.source, self._events[one.event_id].source)
                and (filter.types is None or one.event_type in filter.types)
                and (filter.after is None or (one.id < filter.after) is not filter.oldest_first)
                and one.id != filter.after
                and (
                    filter.ended_before is None
                    or (one.due_at is None and one.updated_at < filter.ended_before)
                )
            )

        matching = [one for one in self._deliveries.values() if matches(one)]
        found = sorted(matching, key=lambda one: one.id, reverse=not filter.oldest_first)
        return _page(found, filter.limit, lambda one: one.id)

    async def behind(self, delivery_ids: Sequence[str], rules: SendingRules) -> set[str]:
        await self.ping()
        return {one for one in delivery_ids if self._is_blocked(self._deliveries[one], rules)}

    async def attempts(self, delivery_id: str) -> list[Attempt]:
        await self.ping()
        return list(self._attempts.get(delivery_id, ()))

    async def stats(self, now: int) -> StoreStats:
        await self.ping()
        due: dict[str, list[int]] = {}
        for one, at in self._waiting():
            if at <= now:
                due.setdefault(one.destination, []).append(at)
        dead = Counter(
            one.destination for one in self._deliveries.values() if one.state is DeliveryState.DEAD
        )
        counted = [
            Due(name=name, depth=len(ats), oldest_due_at=min(ats)) for name, ats in sorted(due.items())
        ]
        return StoreStats(due=tuple(counted), dead=dict(dead), pickups=self._pickups_due(now))

    # ------------------------------------------------------------ pickups: made and told

    async def add_pickup(self, pickup: Pickup) -> tuple[Pickup, bool]:
        await self.ping()
        existing = self._existing(pickup.source, pickup.key)
        if existing is not None:
            return existing, False
        self._add(pickup)
        return pickup, True

    def _existing(self, source: str, key: str) -> Pickup | None:
        return next((one for one in self._of(source, key) if one.state is not PickupState.GONE), None)

    def _of(self, source: str, key: str) -> list[Pickup]:
        return [one for one in self._pickups.values() if (one.source, one.key) == (source, key)]

    def _add(self, pickup: Pickup) -> None:
        if pickup.id in self._pickups:
            msg = "store: the database refused a row: its id is already there"
            raise StoreUnavailable(msg)
        self._pickups[pickup.id] = pickup
        self._pickup_attempts[pickup.id] = []

    def _reschedule(self, existing: Pickup, update: Pickup) -> None:
        """Let a pickup that has not ended know what a callback told of its result."""
        if existing.state in (PickupState.PENDING, PickupState.COLLECTING):
            self._change_pickup(
                existing.id,
                target=existing.target if update.target is None else update.target,
                draft=existing.draft if update.draft is None else update.draft,
                job_id=update.job_id if existing.job_id is None else existing.job_id,
                ref=update.ref if existing.ref is None else existing.ref,
                format=existing.format or update.format,
                state=PickupState.PENDING,
                claimed_by=None,
                deadline_at=max(existing.deadline_at, update.deadline_at),
                due_at=update.created_at,
                updated_at=update.created_at,
            )

    def _resolve(self, source: str, answered: Answered, event_id: str, at: int) -> None:
        """Tell the pickup that watches for a callback: the one that stands, else the last that is gone."""
        watching = self._existing(source, answered.key) or max(
            self._of(source, answered.key), key=lambda one: one.id, default=None
        )
        if watching is None or watching.state is PickupState.COLLECTED:
            return
        job_id = answered.job_id if watching.job_id is None else watching.job_id
        if answered.final:
            self._change_pickup(
                watching.id,
                state=PickupState.COLLECTED,
                event_id=event_id,
                job_id=job_id,
                due_at=None,
                claimed_by=None,
                last_outcome="late" if watching.state is PickupState.GONE else "answered",
                updated_at=at,
            )
        elif answered.job_id:
            self._change_pickup(watching.id, job_id=job_id, updated_at=at)

    # ------------------------------------------------------------ pickups: attempts

    async def claim_pickups(
        self, source: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[ClaimedPickup]:
        await self.ping()
        token = f"{worker}:{os.urandom(6).hex()}"
        due = sorted((at, one.id) for one, at in self._waiting_pickups(source) if at <= now)
        taken = [self._pickups[pickup_id] for _, pickup_id in due[:limit]]
        for one in taken:
            self._change_pickup(
                one.id,
                state=PickupState.COLLECTING,
                claimed_by=token,
                due_at=lease_until,
                updated_at=now,
            )
        return [ClaimedPickup(pickup=one, claimed_by=token, lease_until=lease_until) for one in taken]

    def _waiting_pickups(self, source: str | None = None) -> Iterable[tuple[Pickup, int]]:
        for one in self._pickups.values():
            if one.due_at is not None and source in (None, one.source):
                yield one, one.due_at

    def _holds_pickup(self, claim: ClaimedPickup) -> bool:
        one = self._pickups.get(claim.pickup.id)
        return (
            one is not None
            and one.state is PickupState.COLLECTING
            and (one.claimed_by, one.attempts) == (claim.claimed_by, claim.pickup.attempts)
        )

    def _settle(self, settlement: PickupSettlement) -> None:
        pickup_id, outcome = settlement.claim.pickup.id, settlement.outcome
        attempt = PickupAttempt(
            pickup_id=pickup_id,
            number=settlement.claim.pickup.attempts + 1,
            started_at=settlement.started_at,
            duration_ms=int(settlement.seconds * 1000),
            outcome=outcome.kind,
            status=outcome.status,
            detail=outcome.detail,
        )
        self._pickup_attempts[pickup_id].append(attempt)
        self._change_pickup(
            pickup_id,
            state=settlement.state,
            attempts=attempt.number,
            failures=settlement.failures,
            due_at=settlement.due_at,
            claimed_by=None,
            last_outcome=outcome.kind.value,
            last_detail=outcome.detail,
            updated_at=settlement.started_at + int(settlement.seconds * 1000),
        )

    def _supersede(self, pickup_id: str, event_id: str, state: PickupState) -> None:
        """End a pickup with another's event."""
        self._change_pickup(pickup_id, state=state, event_id=event_id, due_at=None)

    def _change_pickup(self, pickup_id: str, **changes: object) -> None:
        self._pickups[pickup_id] = replace(self._pickups[pickup_id], **changes)

    async def release_pickups(self, claims: Sequence[ClaimedPickup], *, now: int) -> int:
        await self.ping()
        held = {claim.pickup.id for claim in claims if self._holds_pickup(claim)}
        for pickup_id in held:
            self._change_pickup(
                pickup_id, state=PickupState.PENDING, claimed_by=None, due_at=now, updated_at=now
            )
        return len(held)

    # ------------------------------------------------------------ pickups: reading

    async def next_due_pickup(self, source: str) -> int | None:
        await self.ping()
        return min((at for _, at in self._waiting_pickups(source)), default=None)

    async def pickup(self, pickup_id: str) -> Pickup:
        await self.ping()
        if pickup_id not in self._pickups:
            msg = f"no pickup has the id {pickup_id}"
            raise NotFound(msg)
        return self._pickups[pickup_id]

    async def pickups(self, filter: PickupFilter) -> Page[Pickup]:
        await self.ping()
        found = [
            one
            for one in self._pickups.values()
            if _fits(filter.source, one.source)
            and filter.state in (None, one.state)
            and filter.job_id in (None, one.job_id)
            and filter.ref in (None, one.ref)
            and filter.event_id in (None, one.event_id)
            and (filter.after is None or one.id < filter.after)
        ]
        found.sort(key=lambda one: one.id, reverse=True)
        return _page(found, filter.limit, lambda one: one.id)

    async def pickup_attempts(self, pickup_id: str) -> list[PickupAttempt]:
        await self.ping()
        return list(self._pickup_attempts.get(pickup_id, ()))

    def _pickups_due(self, now: int) -> tuple[Due, ...]:
        due: dict[str, list[int]] = {}
        for one, at in self._waiting_pickups():
            if at <= now:
                due.setdefault(one.source, []).append(at)
        return tuple(
            Due(name=source, depth=len(ats), oldest_due_at=min(ats)) for source, ats in sorted(due.items())
        )

    # ------------------------------------------------------------ retention

    async def prune(self, request: Prune) -> Pruned:
        await self.ping()
        looked_at = self._looked_at(request)
        removed = [self._remove(request.walk, one) for one, may_go in looked_at if may_go]
        freed = [key for _, key in removed if key is not None]
        after = looked_at[-1][0] if len(looked_at) == request.limit else None
        return Pruned(count=sum(n for n, _ in removed), after=after, blob_keys=self._unlinked(freed))

    def _looked_at(self, request: Prune) -> list[tuple[str, bool]]:
        """Return the ids that the batch looks at, in order, and whether each may go."""
        before = request.before
        if request.walk in (Walk.TOKENS, Walk.SUBMISSIONS):  # it keeps none
            return []
        listed = {
            Walk.DEAD_LETTERS: self._dead,
            Walk.KEYS: self._keys,
            Walk.REJECTED_REQUESTS: self._requests,
            Walk.OPERATIONS: self._idle_operations,
        }
        if request.walk in listed:
            ages = listed[request.walk]()
            old = sorted((at, one) for one, at in ages if at < before)
            return [(one, True) for _, one in old[: request.limit]]
        rows: dict[Walk, tuple[str, Iterable[str], Callable[[str], bool]]] = {
            Walk.BODIES: ("cb", self._with_body(), lambda one: self._body_may_go(one, before)),
            Walk.ATTEMPTS: ("dlv", self._tried(), lambda one: self._attempts_may_go(one, before)),
            Walk.PICKUP_ATTEMPTS: ("pku", self._asked_for(), lambda one: self._pickup_may_go(one, before)),
            Walk.AUDIO: ("evt", self._with_blob(), lambda one: self._audio_may_go(one, before)),
            Walk.EVENTS: ("evt", self._events, lambda one: self._event_may_go(one, request)),
            Walk.CALLBACKS: ("cb", self._callbacks, lambda one: self._callback_may_go(one, before)),
            Walk.PICKUPS: ("pku", self._pickups, lambda one: self._pickup_may_go(one, before)),
        }
        prefix, ids, may_go = rows[request.walk]
        page = sorted(one for one in ids if request.after < one < _bound(prefix, before))[: request.limit]
        return [(one, may_go(one)) for one in page]

    def _dead(self) -> list[tuple[str, int]]:
        return [(o.id, o.updated_at) for o in self._deliveries.values() if o.state is DeliveryState.DEAD]

    def _keys(self) -> list[tuple[str, int]]:
        return [(one, row.received_at) for one, (row, _) in self._callbacks.items() if row.method == ERASED]

    def _requests(self) -> list[tuple[str, int]]:
        return [(one.id, one.at) for _, _, one in self._rejections if one.request_kept]

    def _idle_operations(self) -> list[tuple[str, int]]:
        return [(one.id, one.updated_at) for one in self._operations.values() if one.due_at is None]

    def _with_body(self) -> list[str]:
        return [one for one, (row, _) in self._callbacks.items() if row.body is not None]

    def _tried(self) -> list[str]:
        return [one for one, attempts in self._attempts.items() if attempts]

    def _asked_for(self) -> list[str]:
        return [one for one, attempts in self._pickup_attempts.items() if attempts]

    def _with_blob(self) -> list[str]:
        return [one.id for one in self._events.values() if one.blob_key is not None]

    def _owed(self, event_id: str) -> list[Delivery]:
        return [one for one in self._deliveries.values() if one.event_id == event_id]

    def _under_way(self, event_id: str) -> bool:
        return any(one.due_at is not None for one in self._owed(event_id)) or any(
            one.due_at is not None and one.event_id == event_id for one in self._pickups.values()
        )

    def _body_may_go(self, one: str, before: int) -> bool:
        row, event_id = self._callbacks[one]
        return row.received_at < before and not self._under_way(event_id)

    def _attempts_may_go(self, one: str, before: int) -> bool:
        delivery = self._deliveries[one]
        return delivery.state is DeliveryState.DELIVERED and delivery.updated_at < before

    def _pickup_may_go(self, one: str, before: int) -> bool:
        pickup = self._pickups[one]
        return pickup.due_at is None and pickup.updated_at < before

    def _audio_may_go(self, one: str, before: int) -> bool:
        busy = any(delivery.due_at is not None for delivery in self._owed(one))
        return self._events[one].recorded_at < before and not busy

    def _event_may_go(self, one: str, request: Prune) -> bool:
        spared = any(
            owed.state is DeliveryState.DEAD and owed.updated_at >= request.dead_before
            for owed in self._owed(one)
        )
        return self._events[one].recorded_at < request.before and not spared and not self._under_way(one)

    def _callback_may_go(self, one: str, before: int) -> bool:
        row, event_id = self._callbacks[one]
        lasting = row.method == ERASED or event_id in self._events or self._under_way(event_id)
        return row.received_at < before and not lasting

    def _remove(self, walk: Walk, one: str) -> tuple[int, str | None]:
        """Remove what a walk removes of one row; return how much that was, and the object that it linked to."""
        match walk:
            case Walk.BODIES:
                row, event_id = self._callbacks[one]
                self._callbacks[one] = (replace(row, body=None), event_id)
            case Walk.ATTEMPTS:
                attempts, self._attempts[one] = self._attempts[one], []
                return len(attempts), None
            case Walk.PICKUP_ATTEMPTS:
                tries, self._pickup_attempts[one] = self._pickup_attempts[one], []
                return len(tries), None
            case Walk.AUDIO:
                key = self._events[one].blob_key
                self._events[one] = replace(self._events[one], blob_key=None)
                return 1, key
            case Walk.DEAD_LETTERS:
                del self._deliveries[one], self._attempts[one]
            case Walk.EVENTS:
                return 1, self._remove_event(one)
            case Walk.CALLBACKS | Walk.KEYS:
                del self._callbacks[one]
            case Walk.PICKUPS:
                del self._pickups[one], self._pickup_attempts[one]
            case Walk.OPERATIONS:
                del self._operations[one]
            case Walk.REJECTED_REQUESTS:
                self._forget_request(one)
        return 1, None

    def _remove_event(self, event_id: str, *, callbacks: bool = True) -> str | None:
        for delivery in self._owed(event_id):
            del self._deliveries[delivery.id], self._attempts[delivery.id]
        if callbacks:
            self._callbacks = {k: v for k, v in self._callbacks.items() if v[1] != event_id}
        return self._events.pop(event_id).blob_key

    def _unlinked(self, keys: Iterable[str]) -> tuple[str, ...]:
        linked = {one.blob_key for one in self._events.values()}
        return tuple(key for key in dict.fromkeys(keys) if key not in linked)

    async def known_blobs(self, keys: Sequence[str]) -> set[str]:
        await self.ping()
        return {one.blob_key for one in self._events.values() if one.blob_key is not None} & set(keys)

    # ------------------------------------------------------------ erasure

    async def traces(self, subject: Subject, *, limit: int) -> Traces:
        await self.ping()
        return self._traces(subject)

    def _traces(self, subject: Subject) -> Traces:
        events = {one.id for one in self._events.values() if _is_of(subject, one)}
        pickups = {one.id for one in self._pickups.values() if _is_of(subject, one)}
        found: list[Event | Pickup] = [self._events[one] for one in events]
        found += [self._pickups[one] for one in pickups]
        jobs = [(one.source, one.job_id) for one in found if one.job_id is not None]
        if subject.kind is SubjectKind.REF:
            events |= {o.id for o in self._events.values() if (o.source, o.job_id) in jobs and o.ref is None}
            pickups |= {
                o.id for o in self._pickups.values() if (o.source, o.job_id) in jobs and o.ref is None
            }
        others = {one.blob_key for one in self._events.values() if one.id not in events}
        links = {self._events[one].blob_key for one in events} - others
        return Traces(
            event_ids=tuple(sorted(events)),
            callbacks=self._callbacks_of(events, pickups),
            deliveries=sum(len(self._owed(one)) for one in events),
            pickup_ids=tuple(sorted(pickups)),
            blob_keys=tuple(sorted(key for key in links if key is not None)),
            jobs=tuple(sorted(set(jobs))),
            requests=tuple(sorted(self._naming(subject, {job_id for _, job_id in jobs}))),
        )

    def _naming(self, subject: Subject, job_ids: set[str]) -> Iterable[str]:
        for _, _, one in self._rejections:
            if one.request is not None:
                text = f"{one.request.head} {one.request.body.decode('utf-8', 'replace')}"
                named = any(
                    name in text or json.dumps(name)[1:-1] in text for name in job_ids | {subject.key}
                )
                if named or (subject.kind is SubjectKind.REF and one.ref == subject.key):
                    yield one.id

    def _callbacks_of(self, events: set[str], pickups: set[str]) -> Mapping[str, CallbackKeys]:
        asked = [self._pickups[one] for one in pickups]
        ends = {one.event_id for one in asked}
        keys = {(one.source, one.key) for one in asked}
        return {
            row.id: CallbackKeys(
                source=row.source,
                idempotency_key=row.idempotency_key,
                second_key=row.second_key,
                event_id=event_id,
            )
            for row, event_id in self._callbacks.values()
            if row.method != ERASED
            and (event_id in events or event_id not in self._events)
            and (
                event_id in events | ends
                or (row.source, row.idempotency_key) in keys
                or (row.source, row.second_key) in keys
            )
        }

    async def erase(self, request: Erasure) -> Erased:
        await self.ping()
        found = self._traces(request.subject)
        if request.subject.kind is SubjectKind.REF:
            self._rejections = [row for row in self._rejections if row[2].ref != request.subject.key]
        for row_id in found.requests:
            self._forget_request(row_id)
        links = [self._remove_event(one, callbacks=False) for one in found.event_ids]
        for one in found.callbacks:
            row, event_id = self._callbacks[one]
            self._callbacks[one] = (_emptied(row, request.now), event_id)
        kept = list(request.journaled)
        for pickup_id in found.pickup_ids:
            pickup = self._pickups.pop(pickup_id)
            del self._pickup_attempts[pickup_id]
            if pickup.kind is PickupKind.RESULT:
                self._keep(_keys_of(pickup), request.now)
        for keys in kept:
            self._keep(keys, request.now)
        freed = self._unlinked(key for key in links if key is not None)
        if found or kept or request.noted:
            self._bury(request, found, freed)
        return Erased(traces=found, blob_keys=freed)

    def _keep(self, keys: CallbackKeys, now: int) -> None:
        moment = keys.event_id[4 : 4 + TIME_CHARS]
        row = CallbackRow(
            id=f"cb_{moment}{new_id('cb', now)[3 + TIME_CHARS :]}",
            source=keys.source,
            idempotency_key=keys.idempotency_key,
            second_key=keys.second_key,
            method=ERASED,
            content_type="",
            received_at=now,
            body_size=0,
            body_sha256="",
            body=None,
            proofs="",
        )
        for other, _ in self._callbacks.values():
            same = other.idempotency_key == row.idempotency_key
            second = row.second_key is not None and other.second_key == row.second_key
            if other.source == row.source and (same or second):
                return
        self._callbacks[row.id] = (row, keys.event_id)

    def _bury(self, request: Erasure, found: Traces, freed: Sequence[str]) -> None:
        before = self._tombstones.get(request.tombstone_id)
        self._tombstones[request.tombstone_id] = Tombstone(
            id=request.tombstone_id,
            kind=request.subject.kind.value,
            digest=request.digest,
            erased_at=before.erased_at if before else request.now,
            events=len(found.event_ids) + (before.events if before else 0),
            callbacks=len(found.callbacks) + (before.callbacks if before else 0),
            deliveries=found.deliveries + (before.deliveries if before else 0),
            pickups=len(found.pickup_ids) + (before.pickups if before else 0),
            blobs=len(freed) + (before.blobs if before else 0),
            journal_entries=len(request.journaled) + (before.journal_entries if before else 0),
        )
        for one in request.of_jobs:
            stone = Tombstone(
                id=f"{request.tombstone_id}.{one}",
                kind=SubjectKind.JOB_OF_REF.value,
                digest=one,
                erased_at=request.now,
            )
            self._tombstones.setdefault(stone.id, stone)

    async def tombstones(self, digest: str | None = None, *, limit: int = 100) -> list[Tombstone]:
        await self.ping()
        hidden = None if digest else SubjectKind.JOB_OF_REF
        found = [
            one for one in self._tombstones.values() if digest in (None, one.digest) and one.kind != hidden
        ]
        return sorted(found, key=lambda one: one.id, reverse=True)[:limit]


def _page(found: Sequence[Kept], limit: int, place: Callable[[Kept], object]) -> Page[Kept]:
    items = found[:limit]
    return Page(items, place(items[-1]) if len(items) == limit else None)


def _is_of(subject: Subject, one: Event | Pickup) -> bool:
    if subject.kind is SubjectKind.EVENT:
        return subject.key == (one.id if isinstance(one, Event) else one.event_id)
    if subject.source not in (None, one.source):
        return False
    return subject.key == (one.ref if subject.kind is SubjectKind.REF else one.job_id)


def _emptied(row: CallbackRow, now: int) -> CallbackRow:
    return replace(
        row,
        method=ERASED,
        content_type="",
        received_at=now,
        body_size=0,
        body_sha256="",
        body=None,
        proofs="",
    )


def _keys_of(pickup: Pickup) -> CallbackKeys:
    return CallbackKeys(
        source=pickup.source, idempotency_key=pickup.key, second_key=pickup.key, event_id=pickup.event_id
    )


def _ring(one: Rejection) -> tuple[str, str, bool]:
    return one.source, one.kind, one.token_id is None


def _led_to(callback: CallbackRow, event_id: str) -> CallbackRow:
    """Return the callback with an id of the event's millisecond."""
    return replace(callback, id=f"cb_{_moment(event_id)}{callback.id[3 + TIME_CHARS :]}")


def _moment(event_id: str) -> str:
    return event_id.partition("_")[2][:TIME_CHARS]


def _bound(prefix: str, at: int) -> str:
    """Return what all ids of `prefix` made before `at` sort before."""
    return f"{prefix}_{_moment(new_id(prefix, max(at, 0)))}"
