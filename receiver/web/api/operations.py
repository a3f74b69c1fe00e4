"""Operations on many rows, and what begins them: replays of events, and callbacks read again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from receiver.app.wiring import build_router
from receiver.core.errors import UsageError
from receiver.core.explain import PARKED
from receiver.core.work import BulkKind, BulkOperation, DeliveryState, Selection
from receiver.engine.bulk import find_named, plan, replay
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Moment, Paged, filter_of, page, refuse_unconfigured, refuse_unknown
from receiver.web.api.operation import Again, Call, operation
from receiver.web.views import Page

Rate = Annotated[int, Meta(ge=1, le=100_000)]


class RunQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """How to run an operation."""

    rate: Rate | None = None
    """At most so many rows in a second; without, as it was."""


@operation("GET /operations", ApiScope.READ)
async def listed(call: Call[Paged, None]) -> Page[BulkOperation]:
    """List operations on many rows and how far each has come, newest first."""
    return page(await call.store.operations(call.query.after, call.query.limit))


@operation("GET /operations/{operation_id}", ApiScope.READ)
async def one(call: Call[None, None]) -> BulkOperation:
    """Show one."""
    return await call.store.operation(call.path["operation_id"])


@operation("POST /operations/{operation_id}/resume", ApiScope.OPERATE)
async def resume(call: Call[RunQuery, None]) -> BulkOperation:
    """Run one that was planned or stopped; or at another rate."""
    return await _run(call, call.path["operation_id"], call.query.rate)


@operation("POST /operations/{operation_id}/stop", ApiScope.OPERATE)
async def stop(call: Call[None, None]) -> BulkOperation:
    """Stop one; what it has done stays done."""
    return await call.store.change_operation(call.path["operation_id"], running=False, now=call.now)


async def _run(call: Call[Any, Any], operation_id: str, rate: int | None = None) -> BulkOperation:
    made = await call.store.change_operation(operation_id, running=True, rate=rate, now=call.now)
    call.wake()
    return made


Ids = Annotated[list[str], Meta(max_length=500)]


class NewReplay(Struct, forbid_unknown_fields=True, frozen=True):
    """What to send again: named, at once; or all that fits, as an operation."""

    ids: Ids | None = None
    """Deliveries, or events: to all their destinations."""
    to: str | None = None
    """With ids: only to this destination; without: the events that it never got."""
    destination: str | None = None
    """Deliveries to this destination."""
    state: Literal["dead", "delivered"] | None = None
    source: str | None = None
    type: str | None = None
    """`*` stands for anything."""
    since: Moment | None = None
    until: Moment | None = None
    rate: Rate | None = None
    """Without ids: at most so many in a second."""
    dry_run: bool = False
    """Count, and replay nothing. Without ids, the operation is planned: resumed, it replays exactly what was counted."""


class Replayed(Struct, frozen=True, kw_only=True):
    """What a replay did, would do, or began to do."""

    found: int
    """Deliveries that fit and have ended, and those that are to be made."""
    replayed: int = 0
    """Done by now; an operation tells itself how far it has come."""
    added: int = 0
    left_alone: int
    """Deliveries that fit and are under way."""
    dry_run: bool
    operation: BulkOperation | None = None
    """What replays by filter; null for ids, and where nothing fits."""


@operation("POST /replays", ApiScope.OPERATE, again=Again.ANSWERED)
async def make_replay(call: Call[None, NewReplay]) -> Replayed:
    """Send events again, or for the first time to a destination that never got them; or count them."""
    wanted = call.body
    refuse_contradictions(wanted)
    for name in (wanted.to, wanted.destination):
        refuse_unknown("destination", name, call.settings.destinations)
    if wanted.ids is None:
        return await _begin(call, *selected(wanted))
    found = await find_named(call.store, build_router(call.settings), wanted.ids, wanted.to)
    replayed = added = 0
    if not wanted.dry_run:
        replayed, added = await replay(call.store, found, now=call.now)
        call.wake(call.settings.destinations)
    return Replayed(
        found=len(found), replayed=replayed, added=added, left_alone=found.busy, dry_run=wanted.dry_run
    )


class NewRenormalization(Struct, forbid_unknown_fields=True, frozen=True):
    """Which events' callbacks to read again."""

    type: str = PARKED
    """`*` stands for anything."""
    source: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    rate: Rate | None = None
    """At most so many in a second."""
    dry_run: bool = False
    """Count, and read nothing. The operation is planned: resumed, it reads exactly what was counted."""


@operation("POST /renormalizations", ApiScope.OPERATE, again=Again.ANSWERED)
async def renormalize(call: Call[None, NewRenormalization]) -> Replayed:
    """Have today's code read many callbacks again, as an operation; or count them."""
    return await _begin(call, BulkKind.RENORMALIZE, filter_of(call.body, Selection))


async def _begin(
    call: Call[None, NewReplay] | Call[None, NewRenormalization], kind: BulkKind, chosen: Selection
) -> Replayed:
    """Count what is chosen, and run the operation unless it is only to be planned."""
    router, wanted, by = build_router(call.settings), call.body, call.holder.name
    planned = await plan(call.store, router, kind, chosen, rate=wanted.rate, by=by, now=call.now)
    made = planned.operation
    if not (made.total or planned.left_alone):
        refuse_unconfigured(call.settings, wanted)
    if made.total and not wanted.dry_run:
        made = await _run(call, made.id)
    return Replayed(
        found=made.total,
        left_alone=planned.left_alone,
        dry_run=wanted.dry_run,
        operation=made if made.total else None,
    )


def refuse_contradictions(
    wanted: NewReplay, *, words: str = "to, state, destination, source, type, since and until"
) -> None:
    """Raise `UsageError`, which names the filters in `words`, for what cannot be meant together, or is not enough."""
    of_deliveries = wanted.state is not None or wanted.destination is not None
    filters = (wanted.source, wanted.type, wanted.since, wanted.until)
    filtered = of_deliveries or any(one is not None for one in filters)
    if wanted.ids is not None and (filtered or wanted.rate is not None):
        raise UsageError(f"name ids, or filter with {words}, and set a rate; not both")
    if wanted.to is not None and of_deliveries:
        among = "a state and a destination choose among those there are"
        raise UsageError(f"to makes the deliveries that are missing, {among}: give one or the other")
    if wanted.ids is None and not filtered and wanted.to is None:
        raise UsageError(f"name ids of deliveries or events, or filter with {words}")


def selected(wanted: NewReplay) -> tuple[BulkKind, Selection]:
    """Return what a replay by filter does, and to which rows."""
    state = DeliveryState(wanted.state) if wanted.state else None
    chosen = filter_of(wanted, Selection, destination=wanted.to or wanted.destination, state=state)
    return (BulkKind.REPLAY if wanted.to is None else BulkKind.BACKFILL), chosen
