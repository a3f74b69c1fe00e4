"""Events: listed in the order of recording, shown whole, their bodies and their audio."""

from __future__ import annotations

import json
from typing import Any, Literal

from msgspec import Struct
from starlette.responses import RedirectResponse, Response

from receiver.core.errors import NotFound
from receiver.core.event import Event, EventSearch, Place
from receiver.core.event_json import LINKED, iso
from receiver.core.routing import fitting_types
from receiver.core.work import DeliveryFilter, DeliveryState, PickupFilter
from receiver.engine.renormalizer import kept_body
from receiver.web.api.call import Call
from receiver.web.api.lists import Count, Length, Limit, Moment, cursor_of, millis, place_of
from receiver.web.views import (
    AudioLink,
    DecisionShown,
    DeliveryWhole,
    EventPage,
    EventShown,
    EventWhole,
    PickupShown,
    Renormalized,
    callback_shown,
    shown,
)

_DELIVERIES = 1000
"""Deliveries that are shown of one event."""


class EventQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which events to list."""

    source: str | None = None
    provider: str | None = None
    type: str | None = None
    """`*` stands for anything, as in `speech.*`."""
    state: DeliveryState | None = None
    """With a delivery in this state."""
    destination: str | None = None
    """With a delivery to this destination; with `state`, in that state."""
    job_id: str | None = None
    ref: str | None = None
    since: Moment | None = None
    """Recorded at or after this time."""
    until: Moment | None = None
    """Recorded before this time."""
    min_bytes: Count | None = None
    """Of what the event links to."""
    max_bytes: Count | None = None
    min_seconds: Length | None = None
    """Of its audio."""
    max_seconds: Length | None = None
    order: Literal["newest", "oldest"] = "newest"
    """`oldest` lists in the order of recording, and misses nothing of what is recorded meanwhile."""
    after: str | None = None
    """`next` or `cursor` of a page before."""
    limit: Limit = 50


async def listed(call: Call[EventQuery, None]) -> EventPage:
    """List events."""
    wanted = search_of(call.query)
    found = await call.receiver.store.search(wanted)
    after = None if found.after is None else cursor_of(Place(*found.after))
    last = cursor_of(found[-1].place) if found else call.query.after
    return EventPage(items=[shown(one.event, EventShown) for one in found], next=after, cursor=after or last)


def search_of(query: EventQuery) -> EventSearch:
    """Return the search that a query asks for. Raises `Refused`."""
    return EventSearch(
        source=query.source,
        provider=query.provider,
        types=None if query.type is None else fitting_types(query.type),
        state=query.state,
        destination=query.destination,
        job_id=query.job_id,
        ref=query.ref,
        since=millis(query.since),
        until=millis(query.until),
        min_bytes=query.min_bytes,
        max_bytes=query.max_bytes,
        min_duration_ms=None if query.min_seconds is None else int(query.min_seconds * 1000),
        max_duration_ms=None if query.max_seconds is None else int(query.max_seconds * 1000),
        after=place_of(query.after),
        newest_first=query.order == "newest",
        limit=query.limit,
    )


async def one(call: Call[None, None]) -> EventWhole:
    """Show an event with its callback, its pickup, its deliveries and their attempts."""
    store = call.receiver.store
    event = await store.event(call.path["event_id"])
    callback = await store.callback(event.id)
    pickups = await store.pickups(PickupFilter(event_id=event.id, limit=1))
    owed = await store.deliveries(DeliveryFilter(event_id=event.id, limit=_DELIVERIES))
    deliveries = [shown(d, DeliveryWhole, attempts_made=await store.attempts(d.id)) for d in owed]
    whole: dict[str, Any] = {
        name: getattr(shown(event, EventShown), name) for name in EventShown.__struct_fields__
    }
    return EventWhole(
        **whole,
        callback=callback_shown(callback) if callback else None,
        pickup=shown(pickups[0], PickupShown) if pickups else None,
        deliveries=deliveries,
        routing=[shown(one, DecisionShown) for one in await store.routing(event.id)],
    )


async def body(call: Call[None, None]) -> Response:
    """Return the kept body of an event's callback, byte by byte."""
    event = await call.receiver.store.event(call.path["event_id"])
    return Response(
        await kept_body(call.receiver.store, call.receiver.blobs, event),
        media_type="application/octet-stream",
        headers={
            "cache-control": "no-store",
            "content-disposition": f'attachment; filename="{event.id}"',
            "x-content-type-options": "nosniff",
        },
    )


async def renormalize(call: Call[None, None]) -> Renormalized:
    """Have today's code read an event's callback again."""
    event = await call.receiver.store.event(call.path["event_id"])
    made = await call.receiver.renormalizer.again(event)
    return Renormalized(replaces=event.id, event_id=made.event_id if made else None)


class LinkQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """How to be told the link."""

    redirect: bool = True
    """False: as JSON."""


async def audio(call: Call[LinkQuery, None]) -> Response | AudioLink:
    """Lead to what an event has stored by a fresh link."""
    event = await call.receiver.store.event(call.path["event_id"])
    content_type = _linked_type(event)
    if event.blob_key is None or content_type is None:
        raise NotFound(f"{event.id} has no audio (any more)")
    url, expires_at = call.receiver.link(event.blob_key, content_type)
    if call.query.redirect:
        return RedirectResponse(url, status_code=302, headers={"cache-control": "no-store"})
    return AudioLink(url=url, url_expires_at=iso(expires_at), content_type=content_type)


def _linked_type(event: Event) -> str | None:
    """Return the content type of what an event links to: audio before other media, and before its document."""
    fields = json.loads(event.data)
    parts = (fields.get(name) for name in LINKED)
    return next((str(part["content_type"]) for part in parts if part), None)
