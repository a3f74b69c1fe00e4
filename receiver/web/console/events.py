"""The list of events, what tells it of newer ones, and what parked ones brought."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from receiver.core.errors import StoreUnavailable
from receiver.core.event import Event, EventSearch, Place
from receiver.core.work import Progress
from receiver.engine.following import newest_place
from receiver.storage.store.store import Store
from receiver.web.api.events import EventQuery, search_of
from receiver.web.api.lists import cursor_of, known_place
from receiver.web.console.pages import filters
from receiver.web.console.searching import look
from receiver.web.console.visit import Visit

_OPEN_AT_ONCE = 16
_STREAM_SECONDS = 300.0
"""A stream ends then, and the browser opens another: that asks again who is logged in."""
_LOOK_SECONDS = 1.0
_COUNTED = 20
"""Newer events that one look counts: callbacks are not to wait for it."""


class Row(Struct):
    """One event as lists show it."""

    event: Event
    data: dict[str, Any]
    deliveries: list[Progress]
    excerpt: str = ""
    """The words of its transcript around those that were looked for."""


class ListQuery(EventQuery, frozen=True):
    """Which events to list, as the API has it."""

    text: str | None = None
    """With these words in their transcript."""


async def rows_of(store: Store, events: Iterable[Event]) -> list[Row]:
    """Return the rows of some events, with where each went."""
    rows = {event.id: Row(event, json.loads(event.data), []) for event in events}
    for one in sorted(await store.progress_of(list(rows)), key=lambda one: one.destination):
        rows[one.event_id].deliveries.append(one)
    return list(rows.values())


async def latest(store: Store, limit: int, source: str | None = None) -> list[Event]:
    """Return the events that were recorded last, the newest first."""
    found = await store.search(EventSearch(source=source, newest_first=True, limit=limit))
    return [one.event for one in found]


async def events(visit: Visit) -> Response:
    """Show events, those recorded last first; with some words in their transcripts, where they are asked for."""
    store, query = visit.store, visit.asked(ListQuery)
    wanted, end = search_of(query), await newest_place(store)
    searched = await look(visit, wanted, query.text) if query.text else None
    if searched is not None:
        rows = await rows_of(store, [event for event, _ in searched.found.values()])
        for row in rows:
            row.excerpt = searched.found[row.event.id][1]
        after = searched.after and cursor_of(searched.after)
    else:
        found = await store.search(wanted)
        rows = await rows_of(store, [one.event for one in found])
        after = cursor_of(Place(*found.after)) if found.after else None
        end = max([end, *(one.place for one in found)])
    return await visit.page(
        "events.html",
        rows=rows,
        after=after,
        end=cursor_of(end),
        searched=searched,
        newest=None if rows else next(iter(await latest(store, 1)), None),
        **filters(visit, ListQuery),
    )


async def bodies_of(visit: Visit, found: Any) -> dict[str, Any]:
    """Return, for the list of parked callbacks, the data and the body of each."""
    return {
        "parts": {
            one.id: (msgspec.json.decode(one.data), await visit.store.body(one.id)) for one in found.items
        }
    }


async def live(visit: Visit) -> Response:
    """Tell how many events were recorded after the cursor `after`, as server-sent events, until the browser goes or asks again."""
    query, store, streams = visit.asked(EventQuery), visit.store, visit.console.streams
    given = await known_place(store, visit.request.headers.get("last-event-id") or query.after)
    counts = _counts(visit, search_of(query), given or await newest_place(store))
    if len(streams) >= _OPEN_AT_ONCE:  # nothing is waited for between this and taking the place
        return PlainTextResponse("too many consoles are open\n", 503)
    streams.add(visit.request)
    return StreamingResponse(counts, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _counts(visit: Visit, search: EventSearch, place: Place) -> AsyncIterator[str]:
    """Yield the counts of newer events, the place up to which each counts as its id; `20+` stands for more than 20."""
    store, end = visit.store, time.monotonic() + _STREAM_SECONDS
    try:
        yield "retry: 1000\n\n"
        while not visit.receiver.stopping and time.monotonic() < end:
            found = await store.search(replace(search, newest_first=False, after=place, limit=_COUNTED))
            more = "+" if found and found.after is not None else ""
            if more:
                place = await newest_place(store)
            elif found or found.after is not None:
                place = Place(*found.after) if found.after else found[-1].place
            data = f"data: {len(found)}{more}\n" if found else ""
            yield f"id: {cursor_of(place)}\n{data}\n"
            await asyncio.sleep(_LOOK_SECONDS)
    except StoreUnavailable:
        return  # the browser comes again, and goes on where it ended
    finally:
        visit.console.streams.discard(visit.request)
