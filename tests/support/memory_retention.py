"""What the janitor does, in plain dictionaries (floor 3): said as simply as can be, to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace as changed

from receiver.core.event import TIME_CHARS, CallbackRow, Event, new_id
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
from receiver.core.work import Attempt, Delivery, DeliveryState, Pickup, PickupKind
from receiver.storage.store.retention import ERASED, bound
from tests.support.memory_pickups import MemoryPickups


class MemoryRetention(MemoryPickups):
    """What removes, over the dictionaries of the whole store."""

    _callbacks: dict[str, tuple[CallbackRow, str]]
    _events: dict[str, Event]
    _deliveries: dict[str, Delivery]
    _attempts: dict[str, list[Attempt]]

    def __init__(self) -> None:
        super().__init__()
        self._tombstones: dict[str, Tombstone] = {}

    # ------------------------------------------------------------ in time

    async def prune(self, asked: Prune) -> Pruned:
        """Do one batch of one walk."""
        await self.ping()
        looked_at = self._looked_at(asked)
        removed = [self._remove(asked.walk, one) for one, may_go in looked_at if may_go]
        freed = [key for _, key in removed if key is not None]
        after = looked_at[-1][0] if len(looked_at) == asked.limit else None
        return Pruned(count=sum(n for n, _ in removed), after=after, blob_keys=self._unlinked(freed))

    def _looked_at(self, asked: Prune) -> list[tuple[str, bool]]:
        """Return the ids that the batch looks at, in order, and whether each may go."""
        before = asked.before
        if asked.walk in (Walk.DEAD_LETTERS, Walk.KEYS):
            ages = self._dead() if asked.walk is Walk.DEAD_LETTERS else self._keys()
            old = sorted((at, one) for one, at in ages if at < before)
            return [(one, True) for _, one in old[: asked.limit]]
        rows: dict[Walk, tuple[str, Iterable[str], Callable[[str], bool]]] = {
            Walk.BODIES: ("cb", self._with_body(), lambda one: self._body_may_go(one, before)),
            Walk.ATTEMPTS: ("dlv", self._tried(), lambda one: self._attempts_may_go(one, before)),
            Walk.PICKUP_ATTEMPTS: ("pku", self._asked_for(), lambda one: self._pickup_may_go(one, before)),
            Walk.AUDIO: ("evt", self._with_blob(), lambda one: self._audio_may_go(one, before)),
            Walk.EVENTS: ("evt", self._events, lambda one: self._event_may_go(one, asked)),
            Walk.CALLBACKS: ("cb", self._callbacks, lambda one: self._callback_may_go(one, before)),
            Walk.PICKUPS: ("pku", self._pickups, lambda one: self._pickup_may_go(one, before)),
        }
        prefix, ids, may_go = rows[asked.walk]
        page = sorted(one for one in ids if asked.after < one < bound(prefix, before))[: asked.limit]
        return [(one, may_go(one)) for one in page]

    def _dead(self) -> list[tuple[str, int]]:
        return [(o.id, o.updated_at) for o in self._deliveries.values() if o.state is DeliveryState.DEAD]

    def _keys(self) -> list[tuple[str, int]]:
        return [(one, row.received_at) for one, (row, _) in self._callbacks.items() if row.method == ERASED]

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

    def _event_may_go(self, one: str, asked: Prune) -> bool:
        spared = any(
            owed.state is DeliveryState.DEAD and owed.updated_at >= asked.dead_before
            for owed in self._owed(one)
        )
        return self._events[one].recorded_at < asked.before and not spared and not self._under_way(one)

    def _callback_may_go(self, one: str, before: int) -> bool:
        row, event_id = self._callbacks[one]
        lasting = row.method == ERASED or event_id in self._events or self._under_way(event_id)
        return row.received_at < before and not lasting

    def _remove(self, walk: Walk, one: str) -> tuple[int, str | None]:
        """Remove what a walk removes of one row; return how much that was, and the object that it linked to."""
        match walk:
            case Walk.BODIES:
                row, event_id = self._callbacks[one]
                self._callbacks[one] = (changed(row, body=None), event_id)
            case Walk.ATTEMPTS:
                attempts, self._attempts[one] = self._attempts[one], []
                return len(attempts), None
            case Walk.PICKUP_ATTEMPTS:
                tries, self._pickup_attempts[one] = self._pickup_attempts[one], []
                return len(tries), None
            case Walk.AUDIO:
                key = self._events[one].blob_key
                self._events[one] = changed(self._events[one], blob_key=None)
                return 1, key
            case Walk.DEAD_LETTERS:
                del self._deliveries[one], self._attempts[one]
            case Walk.EVENTS:
                return 1, self._remove_event(one)
            case Walk.CALLBACKS | Walk.KEYS:
                del self._callbacks[one]
            case Walk.PICKUPS:
                del self._pickups[one], self._pickup_attempts[one]
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
        """Return those of `keys` that an event links to."""
        await self.ping()
        return {one.blob_key for one in self._events.values() if one.blob_key is not None} & set(keys)

    # ------------------------------------------------------------ on demand

    async def traces(self, subject: Subject, *, limit: int) -> Traces:
        """Return what there is of a subject."""
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
        )

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

    async def erase(self, asked: Erasure) -> Erased:
        """Do all of an erasure."""
        await self.ping()
        found = self._traces(asked.subject)
        links = [self._remove_event(one, callbacks=False) for one in found.event_ids]
        for one in found.callbacks:
            row, event_id = self._callbacks[one]
            self._callbacks[one] = (_emptied(row, asked.now), event_id)
        kept = list(asked.journaled)
        for pickup_id in found.pickup_ids:
            pickup = self._pickups.pop(pickup_id)
            del self._pickup_attempts[pickup_id]
            if pickup.kind is PickupKind.RESULT:
                self._keep(_keys_of(pickup), asked.now)
        for keys in kept:
            self._keep(keys, asked.now)
        freed = self._unlinked(key for key in links if key is not None)
        if found or kept:
            self._bury(asked, found, freed)
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

    def _bury(self, asked: Erasure, found: Traces, freed: Sequence[str]) -> None:
        before = self._tombstones.get(asked.tombstone_id)
        self._tombstones[asked.tombstone_id] = Tombstone(
            id=asked.tombstone_id,
            kind=asked.subject.kind.value,
            digest=asked.digest,
            erased_at=before.erased_at if before else asked.now,
            events=len(found.event_ids) + (before.events if before else 0),
            callbacks=len(found.callbacks) + (before.callbacks if before else 0),
            deliveries=found.deliveries + (before.deliveries if before else 0),
            pickups=len(found.pickup_ids) + (before.pickups if before else 0),
            blobs=len(freed) + (before.blobs if before else 0),
            journal_entries=len(asked.journaled) + (before.journal_entries if before else 0),
        )

    async def tombstones(self, digest: str | None = None, *, limit: int = 100) -> list[Tombstone]:
        """Return tombstones, newest first."""
        await self.ping()
        found = [one for one in self._tombstones.values() if digest in (None, one.digest)]
        return sorted(found, key=lambda one: one.id, reverse=True)[:limit]


def _is_of(subject: Subject, one: Event | Pickup) -> bool:
    if subject.kind is SubjectKind.EVENT:
        return subject.key == (one.id if isinstance(one, Event) else one.event_id)
    if subject.source not in (None, one.source):
        return False
    return subject.key == (one.ref if subject.kind is SubjectKind.REF else one.job_id)


def _emptied(row: CallbackRow, now: int) -> CallbackRow:
    return changed(
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
