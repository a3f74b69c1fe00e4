"""The list of events, what tells it of newer ones, and the parked ones with their bodies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from receiver.core.errors import StoreUnavailable
from receiver.core.event import Event, EventSearch, Place, PlacedEvent
from receiver.core.explain import PARKED
from receiver.core.page import Page
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
_BEAT_SECONDS = 15.0
_LOOK_SECONDS = 1.0
_PARKED = 20
"""Parked callbacks on a page: each with its body."""
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


def _older(found: Page[PlacedEvent]) -> str | None:
    """Return the cursor of the page after this one; None at the end."""
    return None if found.after is None else cursor_of(Place(*found.after))


async def events(visit: Visit) -> Response:
    """Show events, those recorded last first; with some words in their transcripts, where they are asked for."""
    store, query = visit.receiver.store, visit.query(ListQuery)
    wanted, end = search_of(query), await newest_place(store)
    searched = await look(visit.receiver, wanted, query.text) if query.text else None
    if searched is not None:
        rows, after = await rows_of(store, searched.found), searched.after and cursor_of(searched.after)
        for row in rows:
            row.excerpt = searched.excerpts[row.event.id]
    else:
        found = await store.search(wanted)
        rows, after = await rows_of(store, [one.event for one in found]), _older(found)
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


async def parked(visit: Visit) -> Response:
    """Show callbacks that were verified and not understood."""
    store = visit.receiver.store
    wanted = replace(search_of(visit.query(EventQuery)), types=(PARKED,), limit=_PARKED)
    found = await store.search(wanted)
    shown = [(one.event, json.loads(one.event.data), await store.body(one.event.id)) for one in found]
    return await visit.page("parked.html", shown=shown, after=_older(found), **filters(visit, EventQuery))


async def live(visit: Visit) -> Response:
    """Tell how many events were recorded after the cursor `after`, as server-sent events, until the browser goes or asks again."""
    if len(visit.console.streams) >= _OPEN_AT_ONCE:
        return PlainTextResponse("too many consoles are open\n", 503)
    query, store = visit.query(EventQuery), visit.receiver.store
    given = await known_place(store, visit.request.headers.get("last-event-id") or query.after)
    begin = given or await newest_place(store)
    search = replace(search_of(query), newest_first=False, after=begin, limit=_COUNTED)
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(_counts(visit, search), media_type="text/event-stream", headers=headers)


async def _counts(visit: Visit, search: EventSearch) -> AsyncIterator[str]:
    """Yield the counts of newer events, the place up to which each counts as its id; `20+` stands for more than 20."""
    receiver, mark = visit.receiver, object()
    visit.console.streams.add(mark)
    try:
        yield "retry: 1000\n\n"
        began = beat = time.monotonic()
        while not receiver.stopping and time.monotonic() < began + _STREAM_SECONDS:
            found = await receiver.store.search(search)
            more = "+" if found and found.after is not None else ""
            if more:
                search = replace(search, after=await newest_place(receiver.store))
            elif found or found.after is not None:
                search = replace(search, after=Place(*found.after) if found.after else found[-1].place)
            if found and search.after:
                yield f"id: {cursor_of(search.after)}\ndata: {len(found)}{more}\n\n"
            if time.monotonic() > beat + _BEAT_SECONDS:
                beat = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK_SECONDS)
    except StoreUnavailable:
        return  # the browser comes again, and goes on where it ended
    finally:
        visit.console.streams.discard(mark)
