"""Bulk operations: a dry run counts the rows; then each process works on batches, one operation at a time. Sees ports only.

The count fixes the selection: rows that come, or end, later are not touched. One transaction holds a batch and the
operation's position, so a killed process neither repeats nor skips a row, and another process continues there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from receiver.core.errors import RESOURCE_ERRORS, NotFound, StoreUnavailable, Unavailable, UsageError
from receiver.core.event import Event, EventSearch, Place, Recorded, new_id
from receiver.core.observe import Observer
from receiver.core.page import Page
from receiver.core.routing import Router, fitting_types
from receiver.core.work import (
    COUNTED,
    Batch,
    BulkKind,
    BulkOperation,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Selection,
)
from receiver.engine.worker import Clock
from receiver.storage.store.store import Store
from receiver.system.background import BackgroundPart

BATCH = 200
"""Rows in one transaction. Callbacks that arrive meanwhile wait for its commit, so it stays small."""
_PAGE = 500
_READ = 20
"""Kept callbacks that one batch of a renormalize operation reads."""
_LEASE_MS = 5_000
"""The lease of a batch: how long other processes wait before they take over the operation of a killed process."""
_LOOK_SECONDS = 1.0
"""How often a process looks whether another, or a person, began an operation."""


class Plan(Struct, kw_only=True):
    """The result of a dry run: what an operation will do."""

    operation: BulkOperation
    left_alone: int = 0
    """Deliveries that fit and are under way."""
    delivered: int = 0
    """Deliveries that fit and had been delivered."""
    oldest_at: int | None = None
    newest_at: int | None = None
    destinations: Counter[str] = field(default_factory=Counter)
    """Rows by destination."""

    def add(self, destination: str, at: int) -> None:
        """Count one row."""
        self.destinations[destination] += 1
        self.oldest_at = min(at, self.oldest_at or at)
        self.newest_at = max(at, self.newest_at or at)


async def plan(
    store: Store,
    router: Router,
    kind: BulkKind,
    selection: Selection,
    *,
    rate: int | None = None,
    by: str,
    now: int,
) -> Plan:
    """Count the matching rows, and store an operation for exactly these, not yet running; none if no row matches. Raises
    `StoreUnavailable`.
    """
    operation = BulkOperation(
        id=new_id("op", now),
        kind=kind,
        selection=selection,
        rate=rate,
        requested_by=by,
        created_at=now,
        updated_at=now,
    )
    planned = Plan(operation=operation)
    await _count(store, router, planned)
    total = planned.destinations.total()
    planned.operation = replace(operation, total=total)
    if total:
        await store.begin_operation(planned.operation)
    return planned


async def _count(store: Store, router: Router, planned: Plan) -> None:
    operation = planned.operation
    while True:
        page = await _rows(store, router, operation, limit=_PAGE)
        for one, destination in page:
            if isinstance(one, Event):
                planned.add(destination, one.recorded_at)
            elif one.due_at is None and one.updated_at <= operation.created_at:
                planned.add(destination, one.created_at)
                planned.delivered += one.state is DeliveryState.DELIVERED
            else:
                planned.left_alone += 1
        if page.after is None or planned.destinations.total() >= COUNTED:
            return
        operation = replace(operation, place=_place(page.after))


class BulkWorker(BackgroundPart):
    """One for each process that works."""

    def __init__(
        self,
        store: Store,
        router: Router,
        *,
        wake: Callable[[Iterable[str]], object],
        observer: Observer,
        clock: Clock,
        again: Callable[[Event], Awaitable[Recorded | None]] | None = None,
    ) -> None:
        """`wake` gets the destinations of deliveries that are due; `again` reads an event's callback again."""
        super().__init__()
        self._store, self._router, self._wake, self._again = store, router, wake, again
        self._observer, self._clock = observer, clock
        self.look = asyncio.Event()
        """Set when an operation may have begun."""

    async def _run(self) -> None:
        while True:
            try:
                while await self._store.has_due_operation(self._clock()) and await self.step():
                    pass
            except StoreUnavailable:  # the lanes tell that it is out
                pass
            except Exception as error:  # a bug of ours must not end the looking
                self._observer.note("error", "operations.failed", error=type(error).__name__)
            self.look.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.look.wait(), _LOOK_SECONDS)

    async def step(self, only: str | None = None) -> bool:
        """Do one batch of the operation that has been due longest, or of that one; return whether one was due.

        Raises `StoreUnavailable`.
        """
        now = self._clock()
        claimed = await self._store.claim_operation(now=now, lease_until=now + _LEASE_MS, only=only)
        if claimed is None:
            return False
        batch, destinations = await self._batch(claimed)
        if await self._store.advance_operation(claimed, batch, now=self._clock()):
            self._wake(destinations)
        return True

    async def _batch(self, operation: BulkOperation) -> tuple[Batch, set[str]]:
        """Return the next batch, and the destinations to wake after its commit."""
        reads, rate = operation.kind is BulkKind.RENORMALIZE, operation.rate
        limit = min(_READ if reads else BATCH, rate or BATCH)
        page = await _rows(self._store, self._router, operation, limit=limit, ended=True)
        batch = Batch(
            place=operation.place if page.after is None else _place(page.after),
            finished=page.after is None,
            replays=tuple(one.id for one, _ in page if isinstance(one, Delivery)),
            additions=tuple((one.id, to) for one, to in page if to and isinstance(one, Event)),
            changed=await self._read_again([one for one, _ in page if isinstance(one, Event)])
            if reads
            else 0,
            rows=len(page),
            wait=1000 * len(page) // rate if rate else 0,
        )
        return batch, {to for _, to in page if to}

    async def _read_again(self, events: Sequence[Event]) -> int:
        """Read callbacks again; return how many made an event: each is recorded by itself, and once, however often it is repeated."""
        changed = 0
        for event in events:
            try:
                changed += self._again is not None and await self._again(event) is not None
            except (UsageError, NotFound):
                pass
            except (Unavailable, *RESOURCE_ERRORS):  # the batch is done again
                raise
            except (
                Exception
            ) as error:  # a bug that one callback meets must not keep the others from being read
                fields = {"event_id": event.id, "error": type(error).__name__}
                self._observer.note("error", "operations.event_failed", **fields)
        return changed


# ---------------------------------------------------------------- which rows an operation is about


async def _rows(
    store: Store, router: Router, operation: BulkOperation, *, limit: int, ended: bool = False
) -> Page[tuple[Delivery | Event, str]]:
    """Return the next rows of an operation, each with its destination, if any: deliveries (only those that have `ended`) or events."""
    chosen, counted = operation.selection, operation.created_at + 1
    place = msgspec.json.decode(operation.place) if operation.place else None
    types = None if chosen.type is None else fitting_types(chosen.type)
    until = counted if chosen.until is None else min(chosen.until, counted)
    if operation.kind is BulkKind.REPLAY:
        deliveries = await store.deliveries(
            DeliveryFilter(
                destination=chosen.destination,
                state=chosen.state,
                source=chosen.source,
                types=types,
                since=chosen.since,
                until=until,
                ended_before=counted if ended else None,
                oldest_first=True,
                after=place,
                limit=limit,
            )
        )
        return Page([(one, one.destination) for one in deliveries], deliveries.after)
    after = Place(*place) if place else None
    found = await store.search(
        EventSearch(
            source=chosen.source, types=types, since=chosen.since, until=until, after=after, limit=limit
        )
    )
    events = [one.event for one in found]
    if operation.kind is BulkKind.BACKFILL:
        return Page(await missing(store, router, chosen.destination or "", events), found.after)
    return Page([(event, "") for event in events], found.after)


def _place(after: object) -> str:
    return msgspec.json.encode(after).decode()


async def missing(store: Store, router: Router, to: str, events: Sequence[Event]) -> list[tuple[Event, str]]:
    """Return events, each with a destination fitting `to` that it goes to by today's settings and has no delivery to."""
    of_events = await store.progress_of([event.id for event in events])
    there = {(one.event_id, one.destination) for one in of_events}
    return [
        (event, name)
        for event in events
        for name in router.destinations(event.source, event.type, event.data)
        if fnmatchcase(name, to) and (event.id, name) not in there
    ]


# ---------------------------------------------------------------- replays by id; `find_named` changes nothing, so it also serves a dry run


class Replayable(Struct, kw_only=True):
    """What can be replayed of the named deliveries and events."""

    ended: list[str]
    """Deliveries that have ended: they get another round."""
    missing: list[tuple[str, str]]
    """Pairs of event and destination without a delivery: `replay` makes one."""
    busy: int
    """Deliveries under way: they are left alone."""

    def __len__(self) -> int:
        return len(self.ended) + len(self.missing)


async def find_named(store: Store, router: Router, ids: Sequence[str], to: str | None) -> Replayable:
    """Return what can be replayed of the named deliveries and events, to all destinations or those that fit `to`. Raises `NotFound`."""
    to, named = to or "*", dict.fromkeys(ids)
    events = [await store.event(one) for one in named if one.startswith("evt_")]
    of_events = await store.progress_of([event.id for event in events])
    states = {one.id: one.state for one in of_events if fnmatchcase(one.destination, to)}
    states |= {one: (await store.delivery(one)).state for one in named if not one.startswith("evt_")}
    over = (DeliveryState.DEAD, DeliveryState.DELIVERED)
    ended = sorted(one for one, state in states.items() if state in over)
    return Replayable(
        ended=ended,
        missing=[(event.id, name) for event, name in await missing(store, router, to, events)],
        busy=len(states) - len(ended),
    )


async def replay(store: Store, found: Replayable, *, now: int) -> tuple[int, int]:
    """Replay what was found; return how many deliveries were replayed, and how many made."""
    replayed = await store.replay(found.ended, now=now)
    added = await store.add_deliveries(found.missing, now=now)
    return len(replayed), len(added)
