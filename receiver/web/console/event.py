"""The page of one event: its state, its audio, its timeline, its data, and the actions on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import RedirectResponse, Response

from receiver.app.wiring import build_router
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import Event, EventSearch
from receiver.core.explain import explain
from receiver.core.transcript import turns_of
from receiver.core.work import PickupFilter
from receiver.engine.bulk import find_named, replay
from receiver.engine.jobs import gather_events
from receiver.engine.renormalizer import kept_body
from receiver.web.api import events as api
from receiver.web.console.visit import Visit
from receiver.web.objects import served
from receiver.web.views import shown

_WORDS = 20_000
_PART = 50
_LINK_MS = 6 * 3600 * 1000


async def show(visit: Visit) -> Response:
    """Show the page."""
    store, event = visit.store, await visit.store.event(visit.path["event_id"])
    pickups = {one.id: one for one in await store.pickups(PickupFilter(event_id=event.id))}
    job = await gather_events(store, visit.settings, [event], pickups, now=visit.now)
    body = await _body(visit, event)
    return await visit.page(
        "event.html",
        event=event,
        data=json.loads(event.data),
        explained=explain(job),
        routing=await store.routing(event.id),
        callback=shown(job.callbacks[0]) if job.callbacks else None,
        destinations=list(visit.settings.destinations),
        sound=await _sound(visit, event, body),
        event_json=_document(event),
        body=body,
    )


def _document(event: Event) -> bytes:
    return msgspec.json.encode({"type": event.type, "data": msgspec.Raw(event.data)})


async def _body(visit: Visit, event: Event) -> bytes | None:
    """Return the callback's body as it is kept, or its document; None for audio and where nothing is kept."""
    data = json.loads(event.data)
    if data["audio"] or data["media"]:
        return None
    try:
        return await kept_body(visit.store, visit.receiver.blobs, event)
    except NotFound:
        return None


# ---------------------------------------------------------------- sound and words


async def _sound(visit: Visit, event: Event, body: bytes | None) -> dict[str, Any]:
    """Pair audio and words: of the event itself, else of its job, else of its ref, the nearest in time."""
    related = await _related(visit, event)
    audio = next(filter(_facts, related), None)
    sound = {"audio": audio, "facts": audio and _facts(audio), "words": None, "turns": (), "most": _WORDS}
    for one in related:
        if one.type.startswith("transcript."):
            words = await _words(visit, one, body if one is event else await _body(visit, one))
            if words:
                return sound | {"words": one, "turns": turns_of(words[:_WORDS]), "count": len(words)}
    return sound


async def _related(visit: Visit, event: Event) -> list[Event]:
    """Return the event, those of its job, and those with its ref, each the nearest in time first."""
    searches = [EventSearch(source=event.source, job_id=event.job_id)] if event.job_id else []
    searches += [EventSearch(ref=event.ref)] if event.ref else []
    found = {event.id: event}
    for search in searches:
        wanted = msgspec.structs.replace(search, newest_first=True, limit=_PART)
        events = [one.event for one in await visit.store.search(wanted)]
        for one in sorted(events, key=lambda one: abs(one.recorded_at - event.recorded_at)):
            found.setdefault(one.id, one)
    return list(found.values())


async def _words(visit: Visit, event: Event, body: bytes | None) -> Sequence[Any]:
    ports = visit.receiver.ports
    provider: Any = ports.providers.get(event.source) or ports.pulls.get(event.source)
    return () if provider is None or body is None else await asyncio.to_thread(provider.words, body)


def _facts(event: Event) -> dict[str, Any] | None:
    """Return what is known of an event's audio; None without audio, and once it is removed."""
    audio: dict[str, Any] | None = json.loads(event.data)["audio"]
    return audio if event.blob_key is not None else None


# ---------------------------------------------------------------- files


async def _audio_of(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Return the key of an event's audio, and what is known of it. Raises `NotFound`."""
    event = await visit.store.event(visit.path["event_id"])
    facts = _facts(event)
    if facts is None or event.blob_key is None:
        raise NotFound("this event has no audio (any more)")
    return event.blob_key, facts


async def audio(visit: Visit) -> Response:
    """Answer the audio, in parts as the player asks for them."""
    blobs, (key, facts) = visit.receiver.blobs, await _audio_of(visit)
    expires = visit.now + _LINK_MS
    if link := blobs.presign(key, content_type=facts["content_type"], expires_at=expires):
        return RedirectResponse(link, 302)
    return await served(visit.request, blobs, key, facts["content_type"])


async def peaks(visit: Visit) -> Response:
    """Answer the outline of the audio as JSON, or 202 while it is computed."""
    key, facts = await _audio_of(visit)
    outline = await visit.console.waveforms.of(key, size=facts["bytes"])
    if outline is None:
        return Response(status_code=202, headers={"retry-after": "1"})
    return Response(msgspec.json.encode(outline), media_type="application/json")


async def download(visit: Visit) -> Response:
    """Answer the event, as it is sent, as a file that no browser runs."""
    event = await visit.store.event(visit.path["event_id"])
    headers = {"content-disposition": f'attachment; filename="{event.id}-event.json"'}
    return Response(_document(event), media_type="application/octet-stream", headers=headers)


async def download_body(visit: Visit) -> Response:
    """Answer what the callback brought, as a file that no browser runs."""
    answer: Response = await visit.do(api.body)
    return answer


# ---------------------------------------------------------------- what can be done


async def renormalize(visit: Visit) -> Response:
    """Have today's code read an event's callback again, and lead to what it became."""
    made = await visit.do(api.renormalize)
    where = f"{made.event_id}?done=read" if made.event_id else f"{made.replaces}?done=same"
    return visit.lead(f"/events/{where}")


async def send(visit: Visit) -> Response:
    """Send an event again to a destination, or for the first time to one that it never went to, whatever the rules say."""
    store, event_id, to = visit.store, visit.path["event_id"], visit.given("to")
    if to not in visit.settings.destinations:
        raise UsageError("there is no such destination")
    found = await find_named(store, build_router(visit.settings), [event_id], to)
    if not found and not found.busy:
        found.missing = [(event_id, to)]
    count = sum(await replay(store, found, now=visit.now))
    visit.receiver.relay.wake([to])
    return visit.lead(f"/events/{event_id}?done={f'replayed.{count}' if count else 'nothing'}")
