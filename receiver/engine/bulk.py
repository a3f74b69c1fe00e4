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

from receiver.core.bulk import COUNTED, Batch, BulkKind, BulkOperation, BulkState, Selection
from receiver.core.errors import RESOURCE_ERRORS, NotFound, StoreUnavailable, Unavailable, UsageError
from receiver.core.event import Event, EventSearch, Place, Recorded, new_id
from receiver.core.observe import Observer
from receiver.core.page import pages
from receiver.core.routing import Router, fitting_types
from receiver.core.work import Delivery, DeliveryFilter, DeliveryState
from receiver.engine.worker import Clock
from receiver.storage.store.store import Store
from receiver.system.background import Background

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
        state=BulkState.PLANNED,
        place="",
        total=0,
        done=0,
        changed=0,
        requested_by=by,
        created_at=now,
        updated_at=now,
        due_at=None,
    )
    planned = Plan(operation=operation)
    if kind is BulkKind.REPLAY:
        await _count_deliveries(store, planned)
    else:
        await _count_events(store, router, planned)
    total = planned.destinations.total()
    planned.operation = replace(operation, total=total)
    if total:
        await store.begin_operation(planned.operation)
    return planned


async def _count_deliveries(store: Store, planned: Plan) -> None:
    async for page in pages(store.deliveries, _deliveries(planned.operation, ended=False)):
        for one in page:
            if _has_ended(one, planned.operation):
                planned.add(one.destination, one.created_at)
                planned.delivered += one.state is DeliveryState.DELIVERED
            else:
                planned.left_alone += 1
        if planned.destinations.total() >= COUNTED:
            return


async def _count_events(store: Store, router: Router, planned: Plan) -> None:
    async for page in pages(store.search, _events(planned.operation)):
        owed = [(one.event, "") for one in page]
        if planned.operation.kind is BulkKind.BACKFILL:
            owed = await _missing(store, router, planned.operation, [one.event for one in page])
        for event, destination in owed:
            planned.add(destination, event.recorded_at)
        if planned.destinations.total() >= COUNTED:
            return


class BulkWorker:
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
        self._store, self._router, self._wake, self._again = store, router, wake, again
        self._observer, self._clock = observer, clock
        self.look = asyncio.Event()
        """Set when an operation may have begun."""
        self._background = Background()

    def start(self) -> None:
        """Carry on operations from now on, in a task of the running loop."""
        self._background.start(self._run())

    async def stop(self) -> None:
        """Stop at once: a batch under way is done whole or not at all."""
        await self._background.stop()

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

    async def _batch(self, operation: BulkOperation) -> Made:
        match operation.kind:
            case BulkKind.REPLAY:
                return await _replays(self._store, operation)
            case BulkKind.BACKFILL:
                return await _additions(self._store, self._router, operation)
            case BulkKind.RENORMALIZE:
                return await self._renormalized(operation), ()

    async def _renormalized(self, operation: BulkOperation) -> Batch:
        """Read the next events again: each is recorded by itself, and once, however often that is repeated."""
        page = await self._store.search(replace(_events(operation), limit=min(_READ, _size(operation))))
        changed = 0
        for one in page:
            try:
                changed += self._again is not None and await self._again(one.event) is not None
            except (UsageError, NotFound):
                pass
            except (Unavailable, *RESOURCE_ERRORS):  # the batch is done again
                raise
            except (
                Exception
            ) as error:  # a bug that one callback meets must not keep the others from being read
                fields = {"event_id": one.event.id, "error": type(error).__name__}
                self._observer.note("error", "operations.event_failed", **fields)
        return _batch(operation, page.after, len(page), changed=changed)


# ---------------------------------------------------------------- what a batch is

Made = tuple[Batch, Iterable[str]]
"""A batch, and the destinations to wake after its commit."""


async def _replays(store: Store, operation: BulkOperation) -> Made:
    page = await store.deliveries(_deliveries(operation, ended=True))
    return (
        _batch(operation, page.after, len(page), replays=tuple(one.id for one in page)),
        {one.destination for one in page},
    )


async def _additions(store: Store, router: Router, operation: BulkOperation) -> Made:
    page = await store.search(_events(operation))
    missing = await _missing(store, router, operation, [one.event for one in page])
    pairs = tuple((event.id, to) for event, to in missing)
    return _batch(operation, page.after, len(pairs), additions=pairs), {to for _, to in pairs}


def _batch(
    operation: BulkOperation,
    after: object,
    rows: int,
    replays: tuple[str, ...] = (),
    additions: tuple[tuple[str, str], ...] = (),
    changed: int = 0,
) -> Batch:
    return Batch(
        place=operation.place if after is None else msgspec.json.encode(after).decode(),
        finished=after is None,
        replays=replays,
        additions=additions,
        changed=changed,
        rows=rows,
        wait=1000 * rows // operation.rate if operation.rate else 0,
    )


def _size(operation: BulkOperation) -> int:
    return BATCH if operation.rate is None else min(BATCH, operation.rate)


def _until(operation: BulkOperation) -> int:
    until, counted = operation.selection.until, operation.created_at + 1
    return counted if until is None else min(until, counted)


def _deliveries(operation: BulkOperation, *, ended: bool) -> DeliveryFilter:
    """Return the filter for an operation's deliveries: the next to replay, or all that match."""
    chosen, place = operation.selection, operation.place
    return DeliveryFilter(
        destination=chosen.destination,
        state=chosen.state,
        source=chosen.source,
        types=None if chosen.type is None else fitting_types(chosen.type),
        since=chosen.since,
        until=_until(operation),
        ended_before=operation.created_at + 1 if ended else None,
        oldest_first=True,
        after=msgspec.json.decode(place) if place else None,
        limit=_size(operation) if ended else _PAGE,
    )


def _has_ended(one: Delivery, operation: BulkOperation) -> bool:
    return one.due_at is None and one.updated_at <= operation.created_at


def _events(operation: BulkOperation) -> EventSearch:
    chosen, place = operation.selection, operation.place
    return EventSearch(
        source=chosen.source,
        types=None if chosen.type is None else fitting_types(chosen.type),
        since=chosen.since,
        until=_until(operation),
        after=Place(*msgspec.json.decode(place)) if place else None,
        limit=_size(operation) if operation.state is BulkState.RUNNING else _PAGE,
    )


async def _missing(
    store: Store, router: Router, operation: BulkOperation, events: Sequence[Event]
) -> list[tuple[Event, str]]:
    """Return events, each with a destination of the operation's that it goes to by today's settings and has no delivery to."""
    to = operation.selection.destination or ""
    there = await store.deliveries_of([event.id for event in events])
    return [
        (event, name)
        for event in events
        for name in router.destinations(event.source, event.type, event.data)
        if fnmatchcase(name, to) and (event.id, name) not in there
    ]
