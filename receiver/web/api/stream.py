"""`GET /stream`: events as server-sent events, as they are recorded; a reader goes on where it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import StreamingResponse

from receiver.core import event_json
from receiver.core.errors import NotFound, StoreUnavailable
from receiver.core.event import EventSearch, Place
from receiver.engine.following import followed, newest_place
from receiver.settings.model import ApiScope
from receiver.web.api.events import StreamQuery
from receiver.web.api.lists import cursor_of, filter_of, known_place, refuse_unconfigured
from receiver.web.api.operation import Served, operation
from receiver.web.api.problems import Refused

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver

MOST = 64
"""Streams that one process serves at once."""
POLL_SECONDS = 0.5
"""Between two looks for what was recorded, by this process or another."""
HEARTBEAT_SECONDS = 15.0
_PAGE = 100
_open: set[object] = set()
"""The streams of this process."""


@operation("GET /stream", ApiScope.READ, gives="text/event-stream", problems=(409,))
async def events(call: Served[StreamQuery, None]) -> StreamingResponse:
    """Stream events as they are recorded, as server-sent events."""
    if len(_open) >= MOST:
        raise Refused(503, f"{MOST} streams are open in this process", {"retry-after": "5"})
    query = call.query
    refuse_unconfigured(call.settings, query)  # nobody is to wait for what never comes
    given = call.request.headers.get("last-event-id") or query.after
    place = await known_place(call.store, given) or await newest_place(call.store)
    search = filter_of(query, EventSearch, after=place, limit=_PAGE)
    gap = await _gap(call.receiver, place) if given else None
    # The id alone is no event: a reader that is cut off before the first one comes again with it.
    begin = gap or f": the stream begins\nid: {cursor_of(place)}\n\n"
    return StreamingResponse(
        _streamed(call.receiver, search, begin),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _gap(receiver: Receiver, place: Place | None) -> str | None:
    """Return what a reader is told when events after the last that it read may have been removed before it came."""
    if place is None or place.position == 0:
        return None
    oldest = (await receiver.store.positions()).oldest
    if oldest is not None and oldest <= place.position:
        return None
    try:
        await receiver.store.event(place.id)
    except NotFound:
        gap = {"after": cursor_of(place), "detail": "events may have been removed before they were read"}
        return f"event: gap\ndata: {msgspec.json.encode(gap).decode()}\n\n"
    return None


async def _streamed(receiver: Receiver, search: EventSearch, begin: str) -> AsyncIterator[str]:
    mark = object()
    _open.add(mark)
    try:
        yield begin
        told_at = time.monotonic()
        async for found in followed(receiver.store, search, seconds=POLL_SECONDS):
            for one in found:
                body = event_json.render(one.event, receiver.link).decode()
                yield f"id: {cursor_of(one.place)}\nevent: event\ndata: {body}\n\n"
            now = time.monotonic()
            if not found and now - told_at >= HEARTBEAT_SECONDS:
                yield ": heartbeat\n\n"
            told_at = now if found or now - told_at >= HEARTBEAT_SECONDS else told_at
            if receiver.stopping:
                return
    except (StoreUnavailable, asyncio.CancelledError):
        return  # the reader comes again, and goes on where it ended
    except Exception as error:  # a fault of ours is told to operators
        receiver.observer.note("error", "api.internal_error", error=type(error).__name__)
    finally:
        _open.discard(mark)
