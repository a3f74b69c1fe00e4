"""Events: listed in the order of recording, shown whole, their bodies and their audio."""

from __future__ import annotations

import json
from typing import Literal

from msgspec import Struct
from starlette.responses import RedirectResponse, Response

from receiver.core.errors import NotFound
from receiver.core.event import Callback, Event, EventSearch, Place
from receiver.core.event_json import LINKED
from receiver.core.routing import Decision
from receiver.core.work import DeliveryFilter, DeliveryState, Pickup, PickupFilter
from receiver.engine import holds
from receiver.engine.renormalizer import kept_body
from receiver.settings.model import ApiScope
from receiver.web.api.deliveries import DeliveryWhole
from receiver.web.api.lists import Count, Length, Limit, Moment, cursor_of, filter_of, known_place, place_of
from receiver.web.api.operation import Call, Served, operation
from receiver.web.views import whole

_DELIVERIES = 1000
"""Deliveries that are shown of one event."""


class StreamQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which events to be told of."""

    source: str | None = None
    provider: str | None = None
    type: str | None = None
    """`*` stands for anything, as in `speech.*`."""
    job_id: str | None = None
    ref: str | None = None
    after: str | None = None
    """The `cursor` of a page, or the id of the last event of a stream; a stream without it begins with what is recorded from now on."""


class EventQuery(StreamQuery, frozen=True):
    """Which events to list."""

    limit: Limit = 50
    state: DeliveryState | None = None
    """With a delivery in this state."""
    destination: str | None = None
    """With a delivery to this destination; with `state`, in that state."""
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


class EventPage(Struct, frozen=True, kw_only=True):
    """Some events, in the order of recording."""

    items: list[Event]
    next: str | None
    """What to ask the next page with as `after`; null at the end."""
    cursor: str | None
    """Where to go on later, at the end too: `after` for what is recorded from now on."""


class EventWhole(Event, frozen=True, kw_only=True):
    """An event with all that belongs to it."""

    callback: Callback | None
    """Null once retention has removed it."""
    pickup: Pickup | None
    """The pickup that it ended, if there was one."""
    deliveries: list[DeliveryWhole]
    routing: list[Decision]
    """Empty for progress that came after its job's end, and for events about sources and destinations."""


class Renormalized(Struct, frozen=True, kw_only=True):
    """What came of reading a callback again."""

    replaces: str
    """The event that was made of it before; it stays."""
    event_id: str | None
    """The event that says what was read now, or will once its result is fetched; null where it is the same, or still not understood."""


class LinkQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """How to be told the link."""

    redirect: bool = True
    """False: as JSON."""


class AudioLink(Struct, frozen=True, kw_only=True):
    """A fresh link to what an event has stored."""

    url: str
    url_expires_at: int
    content_type: str


@operation("GET /events", ApiScope.READ, problems=(409,))
async def listed(call: Call[EventQuery, None]) -> EventPage:
    """List events, newest first or in the order of recording."""
    await known_place(call.store, call.query.after)
    found = await call.store.search(search_of(call.query))
    after = None if found.after is None else cursor_of(Place(*found.after))
    last = cursor_of(found[-1].place) if found else call.query.after
    return EventPage(items=[one.event for one in found], next=after, cursor=after or last)


def search_of(query: EventQuery) -> EventSearch:
    """Return the search that a query asks for. Raises `Refused`."""
    return filter_of(
        query,
        EventSearch,
        min_duration_ms=_milliseconds(query.min_seconds),
        max_duration_ms=_milliseconds(query.max_seconds),
        after=place_of(query.after),
        newest_first=query.order == "newest",
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


@operation("GET /events/{event_id}", ApiScope.READ)
async def one(call: Call[None, None]) -> EventWhole:
    """Show an event with its callback, pickup, deliveries and attempts."""
    store = call.store
    event = await store.event(call.path["event_id"])
    callback = await store.callback(event.id)
    pickups = await store.pickups(PickupFilter(event_id=event.id, limit=1))
    wanted = DeliveryFilter(event_id=event.id, limit=_DELIVERIES)
    owed = await holds.deliveries(store, call.settings.destinations, wanted, now=call.now)
    return whole(
        EventWhole,
        event,
        callback=callback,
        pickup=next(iter(pickups), None),
        deliveries=[whole(DeliveryWhole, d, attempts_made=await store.attempts(d.id)) for d in owed],
        routing=await store.routing(event.id),
    )


@operation("GET /events/{event_id}/body", ApiScope.READ, gives="application/octet-stream")
async def body(call: Served[None, None]) -> Response:
    """Return the kept body of its callback, secrets removed."""
    event = await call.store.event(call.path["event_id"])
    return Response(
        await kept_body(call.store, call.receiver.blobs, event),
        media_type="application/octet-stream",
        headers={
            "cache-control": "no-store",
            "content-disposition": f'attachment; filename="{event.id}"',
            "x-content-type-options": "nosniff",
        },
    )


@operation("POST /events/{event_id}/renormalize", ApiScope.OPERATE)
async def renormalize(call: Served[None, None]) -> Renormalized:
    """Have today's code read its callback again; what differs becomes an event of its own."""
    event = await call.store.event(call.path["event_id"])
    made = await call.receiver.renormalizer.again(event)
    return Renormalized(replaces=event.id, event_id=made.event_id if made else None)


@operation("GET /events/{event_id}/audio", ApiScope.READ, gives=AudioLink, statuses=(200, 302))
async def audio(call: Served[LinkQuery, None]) -> Response | AudioLink:
    """Lead to its audio by a fresh link, or tell the link."""
    event = await call.store.event(call.path["event_id"])
    content_type = _linked_type(event)
    if event.blob_key is None or content_type is None:
        raise NotFound(f"{event.id} has no audio (any more)")
    url, expires_at = call.receiver.link(event.blob_key, content_type)
    if call.query.redirect:
        return RedirectResponse(url, status_code=302, headers={"cache-control": "no-store"})
    return AudioLink(url=url, url_expires_at=expires_at, content_type=content_type)


def _linked_type(event: Event) -> str | None:
    """Return the content type of what an event links to: audio before other media, and before its document."""
    fields = json.loads(event.data)
    parts = (fields.get(name) for name in LINKED)
    return next((str(part["content_type"]) for part in parts if part), None)
