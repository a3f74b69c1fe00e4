"""The list of events, and its rows as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from receiver.core.errors import StoreUnavailable, UsageError
from receiver.core.event import EVENT_TYPES, Event, EventFilter
from receiver.core.event_json import iso
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
_POLL_SECONDS = 0.5
_OVERLAP_MS = 5_000
"""How long after its recording an event of another process may become visible."""
_BATCH = 200
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


def _further(after: tuple[int, str] | None) -> str | None:
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
        self._tail = Tail(receiver)

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
            after=place(found[PAGE - 1]) if len(found) > PAGE else _further(found.after),
            newest=newest[0].recorded_at if newest else None,
            told=None,
        )

    async def _search(self, visit: Visit, fields: Mapping[str, str], wanted: EventFilter) -> Response:
        """Show transcripts that have some words, each with the text around them."""
        told = await look(self._receiver, wanted, fields["text"], limit=PAGE)
        rows = await rows_of(self._receiver.store, told.found)
        for row in rows:
            row.text, row.audio, row.error = told.excerpts[row.id], None, None
        return await self._page(visit, fields, rows=rows, after=_further(told.after), newest=None, told=told)

    async def _page(self, visit: Visit, fields: Mapping[str, str], **data: Any) -> Response:
        choices = {"source": list(self._receiver.settings.sources), "type": EVENT_TYPES}
        return await visit.page("events.html", fields=fields, choices=choices, **data)

    async def live(self, visit: Visit) -> Response:
        """Send the rows of new events as server-sent events, until the browser goes or asks again."""
        fields = fields_of(visit, _KNOWN)
        if self._tail.full:
            return PlainTextResponse("too many consoles are open\n", 503)
        since = cursor(visit.request.headers.get("last-event-id", ""))
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._lines(fields, since), media_type="text/event-stream", headers=headers)

    async def _lines(self, fields: Mapping[str, str], since: tuple[int, str] | None) -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        async for events in self._tail.follow(since):
            if events is None:
                yield "event: gap\ndata: {}\n\n"
                continue
            fitting = [event for event in events if _fits(event, fields)]
            rows = await rows_of(self._receiver.store, fitting) if fitting else []
            for event, row in zip(fitting, rows, strict=True):
                data = json.dumps(asdict(row) | {"at": iso(row.recorded_at)})
                yield f"id: {place(event)}\ndata: {data}\n\n"
            if not events:
                yield ": still here\n\n"


def _fits(event: Event, fields: Mapping[str, str]) -> bool:
    values = {"source": event.source, "type": event.type, "ref": event.ref, "job": event.job_id}
    return all(fields[name] in ("", value) for name, value in values.items())


class Tail:
    """Reads what is recorded, by any process, while somebody looks; one reader feeds all."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._readers: set[asyncio.Queue[list[Event] | None]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """True when as many look as may."""
        return len(self._readers) >= _OPEN_AT_ONCE

    async def follow(self, since: tuple[int, str] | None) -> AsyncIterator[list[Event] | None]:
        """Yield events in the order of their recording, an empty list now and then, and None where some are left out."""
        queue: asyncio.Queue[list[Event] | None] = asyncio.Queue(_BATCH)
        self._readers.add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read())
        try:
            if since is not None:
                found = await self._since(since[0])
                yield [event for event in found if (event.recorded_at, event.id) > since]
                if len(found) == _BATCH:
                    yield None
            began = beat = time.monotonic()
            while not self._receiver.stopping and time.monotonic() < began + _STREAM_SECONDS:
                try:
                    yield await asyncio.wait_for(queue.get(), 1)
                except TimeoutError:
                    if time.monotonic() > beat + _BEAT_SECONDS:
                        beat = time.monotonic()
                        yield []
        finally:
            self._readers.discard(queue)

    async def _since(self, at: int) -> list[Event]:
        found = await self._receiver.store.events(EventFilter(since=at, limit=_BATCH))
        return found[::-1]

    async def _read(self) -> None:
        last, seen = self._receiver.clock(), set[str]()
        first = True
        while self._readers:
            with contextlib.suppress(StoreUnavailable):
                found = await self._since(last - _OVERLAP_MS)
                fresh = [event for event in found if event.id not in seen]
                if fresh and not first:
                    self._tell(fresh)
                    if len(fresh) == _BATCH:
                        self._tell(None)
                seen, first = {event.id for event in found}, False
                last = max([last, *(event.recorded_at for event in fresh)])
            await asyncio.sleep(_POLL_SECONDS)

    def _tell(self, events: list[Event] | None) -> None:
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(events)
