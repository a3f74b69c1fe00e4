"""The list of events, its rows as they arrive, and the parked ones with their bodies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from receiver.core.errors import StoreUnavailable
from receiver.core.event import Event, EventSearch, Place, PlacedEvent
from receiver.core.event_json import iso
from receiver.core.explain import PARKED
from receiver.engine.following import newest_place
from receiver.web.api.events import EventQuery, search_of
from receiver.web.api.lists import cursor_of, known_place
from receiver.web.console.lists import filters
from receiver.web.console.searching import look
from receiver.web.console.visit import HOME, Visit

if TYPE_CHECKING:
    from receiver.core.page import Page
    from receiver.core.work import Progress
    from receiver.storage.store.store import Store

_TEXT = 200
_OPEN_AT_ONCE = 16
_STREAM_SECONDS = 300.0
"""A stream ends then, and the browser opens another: that asks again who is logged in."""
_BEAT_SECONDS = 15.0
_LOOK_SECONDS = 1.0
_PARKED = 20
"""Parked callbacks on a page: each with its body."""
_ROWS = 20
"""Rows of one look: nobody reads more in a second, and callbacks are not to wait for them."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One event as lists show it."""

    id: str
    type: str
    source: str
    ref: str | None
    recorded_at: int
    text: str | None = None
    error: str | None = None
    seconds: float | None = None
    audio: str | None = None
    """Where its audio plays from."""
    deliveries: list[dict[str, Any]] = field(default_factory=list)


class ListQuery(EventQuery, frozen=True):
    """Which events to list, as the API has it."""

    text: str | None = None
    """With these words in their transcript."""


def row_of(event: Event, deliveries: Iterable[Progress] = ()) -> Row:
    """Return an event's row."""
    data = json.loads(event.data)
    audio, error, transcript = data["audio"], data["error"], data["transcript"]
    row = Row(id=event.id, type=event.type, source=event.source, ref=event.ref, recorded_at=event.recorded_at)
    if audio and event.blob_key:
        row.seconds, row.audio = audio["duration_seconds"], f"{HOME}/events/{event.id}/audio"
    if error:
        row.error = ": ".join(str(error[part]) for part in ("code", "message") if error[part])[:_TEXT]
    if transcript and transcript["text"]:
        row.text = transcript["text"][:_TEXT]
    row.deliveries = [
        {"destination": one.destination, "state": one.state.value, "attempts": one.attempts}
        for one in sorted(deliveries, key=lambda one: one.destination)
    ]
    return row


async def rows_of(store: Store, events: Iterable[Event]) -> list[Row]:
    """Return the rows of some events, with where each went."""
    shown = list(events)
    progress: dict[str, list[Progress]] = {}
    for one in await store.progress_of([event.id for event in shown]):
        progress.setdefault(one.event_id, []).append(one)
    return [row_of(event, progress.get(event.id, ())) for event in shown]


async def latest(store: Store, limit: int, source: str | None = None) -> list[Event]:
    """Return the events that were recorded last, the newest first."""
    found = await store.search(EventSearch(source=source, newest_first=True, limit=limit))
    return [one.event for one in found]


def older(found: Page[PlacedEvent]) -> str | None:
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
            row.text, row.audio, row.error = searched.excerpts[row.id], None, None
    else:
        found = await store.search(wanted)
        rows, after = await rows_of(store, [one.event for one in found]), older(found)
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
    shown = [(one.event, row_of(one.event), await store.body(one.event.id)) for one in found]
    return await visit.page("parked.html", items=shown, after=older(found), **filters(visit, EventQuery))


async def live(visit: Visit) -> Response:
    """Send the rows of events after the cursor `after` as server-sent events, until the browser goes or asks again."""
    if len(visit.console.streams) >= _OPEN_AT_ONCE:
        return PlainTextResponse("too many consoles are open\n", 503)
    query, store = visit.query(EventQuery), visit.receiver.store
    given = await known_place(store, visit.request.headers.get("last-event-id") or query.after)
    begin = given or await newest_place(store)
    search = replace(search_of(query), newest_first=False, after=begin, limit=_ROWS)
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(
        _lines(visit, search, cursor_of(begin)), media_type="text/event-stream", headers=headers
    )


async def _lines(visit: Visit, search: EventSearch, begin: str) -> AsyncIterator[str]:
    """Yield the rows in the order of recording: none is missed, but where more come than anybody reads."""
    receiver, mark = visit.receiver, object()
    visit.console.streams.add(mark)
    try:
        yield f"retry: 1000\nid: {begin}\n\n"
        began = beat = time.monotonic()
        while not receiver.stopping and time.monotonic() < began + _STREAM_SECONDS:
            found = await receiver.store.search(search)
            rows = await rows_of(receiver.store, [one.event for one in found])
            yield "".join(map(_line, found, rows))
            if found.after is not None and found:
                yield "event: gap\ndata: {}\n\n"
                search = replace(search, after=await newest_place(receiver.store))
            elif found or found.after is not None:
                search = replace(search, after=Place(*found.after) if found.after else found[-1].place)
            if time.monotonic() > beat + _BEAT_SECONDS:
                beat = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK_SECONDS)
    except StoreUnavailable:
        return  # the browser comes again, and goes on where it ended
    finally:
        visit.console.streams.discard(mark)


def _line(one: PlacedEvent, row: Row) -> str:
    data = json.dumps(asdict(row) | {"at": iso(row.recorded_at)})
    return f"id: {cursor_of(one.place)}\ndata: {data}\n\n"
