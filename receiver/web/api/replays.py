"""Replays: events sent again, or for the first time to a destination that came later."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from receiver.app.wiring import build_router
from receiver.core.errors import UsageError
from receiver.core.event import EventFilter
from receiver.core.routing import fitting_types
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.engine.replays import (
    PAGE,
    Replayable,
    find_fitting,
    find_named,
    find_never_sent,
    replay,
    routed_to,
)
from receiver.settings.model import Settings
from receiver.web.api.call import Call
from receiver.web.api.lists import Moment, millis
from receiver.web.views import Replayed

MOST = 10_000
"""Deliveries that one request replays."""
Ids = Annotated[list[str], Meta(max_length=500)]


class NewReplay(Struct, forbid_unknown_fields=True, frozen=True):
    """What to send again: named, or all that fits."""

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
    dry_run: bool = False
    """Count, and replay nothing."""


async def make(call: Call[None, NewReplay]) -> Replayed:
    """Replay, or count what would be."""
    receiver, wanted = call.receiver, call.body
    _refuse_contradictions(wanted, receiver.settings)
    found = await _find(call, wanted)
    if len(found) > MOST:
        raise UsageError(f"{len(found)} fit, and {MOST} are the most at once: narrow the time")
    replayed = added = 0
    if not wanted.dry_run:
        replayed, added = await replay(receiver.store, found, now=receiver.clock())
        receiver.relay.wake(receiver.settings.destinations)
    return Replayed(
        found=len(found), replayed=replayed, added=added, left_alone=found.busy, dry_run=wanted.dry_run
    )


def _refuse_contradictions(wanted: NewReplay, settings: Settings) -> None:
    of_deliveries = wanted.state is not None or wanted.destination is not None
    filters = (wanted.source, wanted.type, wanted.since, wanted.until)
    filtered = of_deliveries or any(one is not None for one in filters)
    if wanted.ids is not None and filtered:
        raise UsageError(
            "name ids, or filter with state, destination, source, type, since and until; not both"
        )
    if wanted.to is not None and of_deliveries:
        raise UsageError("to makes deliveries; state and destination choose among those there are")
    if wanted.ids is None and not filtered and wanted.to is None:
        raise UsageError("name ids, or filter with to, state, destination, source, type, since or until")
    for name in (wanted.to, wanted.destination):
        if name is not None and name not in settings.destinations:
            known = ", ".join(sorted(settings.destinations)) or "none is configured"
            raise UsageError(f"there is no destination {name[:100]!r}; there is: {known}")


async def _find(call: Call[None, NewReplay], wanted: NewReplay) -> Replayable:
    store = call.receiver.store
    routed = routed_to(build_router(call.receiver.settings), wanted.to)
    types = (None,) if wanted.type is None else fitting_types(wanted.type)
    since, until = millis(wanted.since), millis(wanted.until)
    if wanted.ids is not None:
        return await find_named(store, wanted.ids, wanted.to, routed)
    if wanted.to is not None:
        events = [
            EventFilter(source=wanted.source, type=type_, since=since, until=until, limit=PAGE)
            for type_ in types
        ]
        return await find_never_sent(store, events, routed)
    deliveries = DeliveryFilter(
        destination=wanted.destination,
        state=DeliveryState(wanted.state) if wanted.state else None,
        source=wanted.source,
        event_types=None if wanted.type is None else fitting_types(wanted.type),
        since=since,
        until=until,
        limit=PAGE,
    )
    return await find_fitting(store, [deliveries])
