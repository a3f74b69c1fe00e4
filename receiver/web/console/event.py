"""The page of one event: its state, its audio, its timeline, its data, and the actions on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from starlette.responses import FileResponse, RedirectResponse, Response

from receiver.app.wiring import build_router
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import Event, EventSearch
from receiver.core.explain import explain
from receiver.core.words import Turn, turns_of
from receiver.core.work import PickupFilter
from receiver.engine.jobs import gather_events
from receiver.engine.renormalizer import kept_body
from receiver.engine.replays import find_named, replay
from receiver.web.api import events as api
from receiver.web.console.events import row_of
from receiver.web.console.visit import HOME, Visit
from receiver.web.objects import keep_satisfiable
from receiver.web.views import callback_shown

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver

_WORDS = 20_000
_PART = 50
_LINK_MS = 6 * 3600 * 1000
_PLAYED = ("audio/", "video/")
_SANDBOX = {"content-security-policy": "sandbox; default-src 'none'"}


class Sound(Struct, kw_only=True):
    """What plays on an event's page, and the words that follow it."""

    audio: Event | None = None
    words: Event | None = None
    turns: list[Turn] = []
    count: int = 0
    """Words that are shown."""
    left_out: int = 0
    """Words past those."""


async def show(visit: Visit) -> Response:
    """Show the page."""
    receiver, store = visit.receiver, visit.receiver.store
    event = await store.event(visit.path("event_id"))
    pickups = {one.id: one for one in await store.pickups(PickupFilter(event_id=event.id))}
    job = await gather_events(store, receiver.settings, [event], pickups, now=receiver.clock())
    body = await _body(receiver, event)
    sound = await _sound(receiver, event, body)
    return await visit.page(
        "event.html",
        event=event,
        row=row_of(event),
        data=json.loads(event.data),
        explained=explain(job),
        routing=await store.routing(event.id),
        callback=callback_shown(job.callbacks[0]) if job.callbacks else None,
        destinations=list(receiver.settings.destinations),
        sound=sound,
        facts=json.loads(sound.audio.data)["audio"] if sound.audio else None,
        event_json=_document(event),
        body=body,
        readable=body is not None and _is_text(body),
    )


def _document(event: Event) -> bytes:
    return msgspec.json.encode({"type": event.type, "data": msgspec.Raw(event.data)})


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _body(receiver: Receiver, event: Event) -> bytes | None:
    """Return the callback's body as it is kept, or its document; None for audio and where nothing is kept."""
    data = json.loads(event.data)
    if data["audio"] or data["media"]:
        return None
    try:
        return await kept_body(receiver.store, receiver.blobs, event)
    except NotFound:
        return None


# ---------------------------------------------------------------- sound and words


async def _sound(receiver: Receiver, event: Event, body: bytes | None) -> Sound:
    """Pair audio and words: of the event itself, else of its job, else of its ref, the nearest in time."""
    related = [event, *await _related(receiver, event)]
    sound = Sound(audio=next(filter(_has_audio, related), None))
    for one in related:
        if one.type.startswith("transcript."):
            words = await _words(receiver, one, body if one is event else await _body(receiver, one))
            if words:
                sound.words, sound.turns = one, turns_of(words[:_WORDS])
                sound.count, sound.left_out = min(len(words), _WORDS), max(0, len(words) - _WORDS)
                break
    return sound


async def _related(receiver: Receiver, event: Event) -> list[Event]:
    searches = [EventSearch(source=event.source, job_id=event.job_id)] if event.job_id else []
    searches += [EventSearch(ref=event.ref)] if event.ref else []
    found: dict[str, Event] = {}
    for search in searches:
        page = await receiver.store.search(msgspec.structs.replace(search, newest_first=True, limit=_PART))
        for one in sorted(page, key=lambda one: abs(one.event.recorded_at - event.recorded_at)):
            found.setdefault(one.event.id, one.event)
    found.pop(event.id, None)
    return list(found.values())


async def _words(receiver: Receiver, event: Event, body: bytes | None) -> Sequence[Any]:
    provider: Any = receiver.ports.providers.get(event.source) or receiver.ports.pulls.get(event.source)
    if provider is None or body is None:
        return ()
    found: Sequence[Any] = await asyncio.to_thread(provider.words, body)
    return found


def _has_audio(event: Event) -> bool:
    return event.blob_key is not None and json.loads(event.data)["audio"] is not None


# ---------------------------------------------------------------- files


async def _audio_of(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Return the key of an event's audio, and what is known of it. Raises `NotFound`."""
    event = await visit.receiver.store.event(visit.path("event_id"))
    if not _has_audio(event) or event.blob_key is None:
        raise NotFound("this event has no audio (any more)")
    return event.blob_key, json.loads(event.data)["audio"]


async def audio(visit: Visit) -> Response:
    """Answer the audio, in parts as the player asks for them."""
    blobs, (key, facts) = visit.receiver.blobs, await _audio_of(visit)
    played = facts["content_type"].lower().startswith(_PLAYED)
    content_type = facts["content_type"] if played else "application/octet-stream"
    expires = visit.receiver.clock() + _LINK_MS
    if link := blobs.presign(key, content_type=content_type, expires_at=expires):
        return RedirectResponse(link, 302)
    found = await asyncio.to_thread(blobs.local, key)
    if found is None:
        raise NotFound("the object is not here any more")
    keep_satisfiable(visit.request, found.size)
    kind = "attachment" if visit.given("download") or not played else "inline"
    headers = _SANDBOX | {"content-disposition": f'{kind}; filename="{key.rpartition("/")[2]}"'}
    return FileResponse(found.path, media_type=content_type, headers=headers)


async def peaks(visit: Visit) -> Response:
    """Answer the outline of the audio as JSON, or 202 while it is computed."""
    key, facts = await _audio_of(visit)
    outline = await visit.console.waveforms.of(key, size=facts["bytes"])
    if outline is None:
        return Response(status_code=202, headers={"retry-after": "1"})
    return Response(msgspec.json.encode(outline), media_type="application/json")


async def download(visit: Visit) -> Response:
    """Answer the event, as it is sent, as a file that no browser runs."""
    event = await visit.receiver.store.event(visit.path("event_id"))
    headers = _SANDBOX | {"content-disposition": f'attachment; filename="{event.id}-event.json"'}
    return Response(_document(event), media_type="application/octet-stream", headers=headers)


async def download_body(visit: Visit) -> Response:
    """Answer what the callback brought, as a file that no browser runs."""
    answer: Response = await api.body.handle(visit.call())
    return answer


# ---------------------------------------------------------------- what can be done


async def renormalize(visit: Visit) -> Response:
    """Have today's code read an event's callback again, and lead to what it became."""
    made = await api.renormalize.handle(visit.call())
    where = f"{made.event_id}?done=read" if made.event_id else f"{made.replaces}?done=same"
    return RedirectResponse(f"{HOME}/events/{where}", 303)


async def send(visit: Visit) -> Response:
    """Send an event again to a destination, or for the first time to one that it never went to, whatever the rules say."""
    receiver, event_id, to = visit.receiver, visit.path("event_id"), visit.given("to")
    if to not in receiver.settings.destinations:
        raise UsageError("there is no such destination")
    found = await find_named(receiver.store, build_router(receiver.settings), [event_id], to)
    if not found and not found.busy:
        found.missing = [(event_id, to)]
    count = sum(await replay(receiver.store, found, now=receiver.clock()))
    receiver.relay.wake([to])
    done = f"replayed.{count}" if count else "nothing"
    return RedirectResponse(f"{HOME}/events/{event_id}?done={done}", 303)
