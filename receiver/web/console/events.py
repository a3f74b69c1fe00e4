"""The list of events, and its rows as they arrive."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from receiver.core.errors import StoreUnavailable, UsageError
from receiver.core.event import EVENT_TYPES, Event, EventFilter, EventSearch, Place
from receiver.core.event_json import iso
from receiver.web.api.lists import cursor_of, place_of
from receiver.web.api.problems import Refused
from receiver.web.api.stream import POLL_SECONDS, newest_place
from receiver.web.console.guard import HOME, Visit
from receiver.web.console.searching import look

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.work import Progress
    from receiver.storage.store.store import Store

PAGE = 50
_KNOWN = ("source", "type", "ref", "job", "after")
_TEXT = 200
_OPEN_AT_ONCE = 16
_STREAM_SECONDS = 300.0
"""A stream ends then, and the browser opens another: that asks again who is logged in."""
_BEAT_SECONDS = 15.0


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


def row_of(event: Event, deliveries: Sequence[Progress] = ()) -> Row:
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
        for one in deliveries
    ]
    return row


async def rows_of(store: Store, events: Sequence[Event]) -> list[Row]:
    """Return the rows of some events, with where each went."""
    progress: dict[str, list[Progress]] = {}
    for one in await store.progress_of([event.id for event in events]):
        progress.setdefault(one.event_id, []).append(one)
    return [
        row_of(event, sorted(progress.get(event.id, ()), key=lambda one: one.destination)) for event in events
    ]


def fields_of(visit: Visit, known: Sequence[str]) -> dict[str, str]:
    """Return the filters in a page's address. Raises `UsageError` for one that there is not."""
    unknown = set(visit.request.query_params) - {*known, "done"}
    if unknown:
        raise UsageError(f"this list has no filter {min(unknown)[:100]}; it has {', '.join(known)}")
    return {name: visit.given(name) for name in known}


def cursor(text: str) -> tuple[int, str] | None:
    """Return the place in the list that an address names. Raises `UsageError`."""
    if not text:
        return None
    at, _, event_id = text.partition(".")
    if not at.isdecimal() or len(at) > 15 or not event_id:
        raise UsageError("the address names no place in the list: begin at its newest")
    return int(at), event_id


def place(event: Event) -> str:
    """Return an event's place in the list."""
    return f"{event.recorded_at}.{event.id}"


def further(after: tuple[int, str] | None) -> str | None:
    """Return where to look on when a page is short and there is more."""
    return None if after is None else f"{after[0]}.{after[1]}"


def _filter(fields: Mapping[str, str], **more: Any) -> EventFilter:
    return EventFilter(
        source=fields["source"] or None,
        type=fields["type"] or None,
        ref=fields["ref"] or None,
        job_id=fields["job"] or None,
        **more,
    )


class Events:
    """The list, and the stream of what comes to it."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._open: set[object] = set()

    async def list(self, visit: Visit) -> Response:
        """Show events, those recorded last first."""
        store = self._receiver.store
        fields = fields_of(visit, (*_KNOWN, "text"))
        wanted = _filter(fields, after=cursor(fields["after"]), limit=PAGE + 1)
        if fields["text"]:
            return await self._search(
                visit, fields, replace(wanted, type=wanted.type or "transcript.completed")
            )
        found = await store.events(wanted)
        newest = [] if found else await store.events(EventFilter(limit=1))
        return await self._page(
            visit,
            fields,
            rows=await rows_of(store, found[:PAGE]),
            after=place(found[PAGE - 1]) if len(found) > PAGE else further(found.after),
            newest=newest[0].recorded_at if newest else None,
            searched=None,
        )

    async def _search(self, visit: Visit, fields: Mapping[str, str], wanted: EventFilter) -> Response:
        """Show transcripts that have some words, each with the text around them."""
        searched = await look(self._receiver, wanted, fields["text"], limit=PAGE)
        rows = await rows_of(self._receiver.store, searched.found)
        for row in rows:
            row.text, row.audio, row.error = searched.excerpts[row.id], None, None
        return await self._page(
            visit, fields, rows=rows, after=further(searched.after), newest=None, searched=searched
        )

    async def _page(self, visit: Visit, fields: Mapping[str, str], **data: Any) -> Response:
        choices = {"source": list(self._receiver.settings.sources), "type": EVENT_TYPES}
        return await visit.page("events.html", fields=fields, choices=choices, **data)

    async def live(self, visit: Visit) -> Response:
        """Send the rows of new events as server-sent events, until the browser goes or asks again."""
        fields = fields_of(visit, _KNOWN)
        if len(self._open) >= _OPEN_AT_ONCE:
            return PlainTextResponse("too many consoles are open\n", 503)
        try:
            given = place_of(visit.request.headers.get("last-event-id"))
        except Refused:
            raise UsageError("the browser names no place in the list: load the page again") from None
        search = EventSearch(
            source=fields["source"] or None,
            types=(fields["type"],) if fields["type"] else None,
            ref=fields["ref"] or None,
            job_id=fields["job"] or None,
            after=given or await newest_place(self._receiver),
            limit=PAGE,
        )
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._lines(search), media_type="text/event-stream", headers=headers)

    async def _lines(self, search: EventSearch) -> AsyncIterator[str]:
        """Yield the rows in the order of recording: none is missed, but where more come than anybody reads."""
        store, mark = self._receiver.store, object()
        self._open.add(mark)
        try:
            yield "retry: 1000\n\n"
            began = beat = time.monotonic()
            while not self._receiver.stopping and time.monotonic() < began + _STREAM_SECONDS:
                found = await store.search(search)
                rows = await rows_of(store, [one.event for one in found])
                for one, row in zip(found, rows, strict=True):
                    data = json.dumps(asdict(row) | {"at": iso(row.recorded_at)})
                    yield f"id: {cursor_of(one.place)}\ndata: {data}\n\n"
                if found.after is not None and found:  # more in half a second than a list shows
                    yield "event: gap\ndata: {}\n\n"
                    search = replace(search, after=await newest_place(self._receiver))
                elif found.after is not None:
                    search = replace(search, after=Place(*found.after))
                elif found:
                    search = replace(search, after=found[-1].place)
                if time.monotonic() > beat + _BEAT_SECONDS:
                    beat = time.monotonic()
                    yield ": still here\n\n"
                await asyncio.sleep(POLL_SECONDS)
        except StoreUnavailable:
            return  # the browser comes again, and goes on where it ended
        finally:
            self._open.discard(mark)
