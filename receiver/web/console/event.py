"""One event: where it stands, what it sounds like, its way step by step, and its data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response

from receiver.core.callback import Arrival
from receiver.core.destination import DestinationState, DestinationStatus
from receiver.core.errors import NotFound
from receiver.core.event import Event, EventFilter
from receiver.core.words import Turn, turns_of
from receiver.core.work import DeliveryFilter, DeliveryState, PickupFilter
from receiver.engine.renormalizer import kept_body
from receiver.engine.waveforms import Waveforms
from receiver.web.console.events import row_of
from receiver.web.console.guard import HOME, Visit
from receiver.web.console.rendering import length, size
from receiver.web.objects import keep_satisfiable
from receiver.web.views import callback_shown

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.event import Callback
    from receiver.core.work import Attempt, Delivery, Pickup, PickupAttempt

_WORDS = 20_000
_PART = 50
_FOLDED = 12
_LINK_MS = 6 * 3600 * 1000
_PLAYED = ("audio/", "video/")
_SANDBOX = {"content-security-policy": "sandbox; default-src 'none'"}


@dataclass(slots=True, kw_only=True)
class Step:
    """One thing that happened on an event's way."""

    at: int | None
    kind: str
    """`ok`, `bad`, `wait`, `held` or `none`."""
    icon: str
    title: str
    detail: str = ""
    answer: str = ""
    """What the other side said, as text."""
    gap: str = ""
    """How long nothing happened before it, where that is long."""
    heading: bool = False


@dataclass(slots=True, kw_only=True)
class Sound:
    """What plays on an event's page, and the words that follow it."""

    audio: Event | None = None
    words: Event | None = None
    turns: list[Turn] = field(default_factory=list)
    left_out: int = 0
    """Words past those that a page shows."""
    count: int = 0
    """Words that are shown."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the audio."""


class EventPages:
    """The page of an event, its audio, its outline and its downloads."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._waveforms = Waveforms(receiver.blobs)

    async def show(self, visit: Visit) -> Response:
        """Show the page."""
        store = self._receiver.store
        event = await store.event(visit.path("event_id"))
        deliveries = (await store.deliveries(DeliveryFilter(event_id=event.id, limit=_PART)))[::-1]
        attempts = {one.id: await store.attempts(one.id) for one in deliveries}
        callback = await store.callback(event.id)
        body = await self._body(event)
        pickup = await self._pickup(event)
        tries = await store.pickup_attempts(pickup.id) if pickup else []
        now = self._receiver.clock()
        steps = timeline(event, callback, (pickup, tries), [(one, attempts[one.id]) for one in deliveries])
        return await visit.page(
            "event.html",
            event=event,
            row=row_of(event),
            data=json.loads(event.data),
            sentence=sentence(deliveries, attempts, await store.destinations(now), now),
            steps=steps,
            began=next((step.at for step in steps if step.at is not None), event.recorded_at),
            routing=await store.routing(event.id),
            callback=callback and callback_shown(callback),
            deliveries=deliveries,
            destinations=list(self._receiver.settings.destinations),
            sound=await self._sound(event, body),
            event_json=msgspec.json.encode({"type": event.type, "data": msgspec.Raw(event.data)}),
            body=body,
            readable=body is not None and _is_text(body),
        )

    async def renormalize(self, visit: Visit) -> Response:
        """Have today's code read an event's callback again, and lead to what it became."""
        event = await self._receiver.store.event(visit.path("event_id"))
        made = await self._receiver.renormalizer.again(event)
        where, done = (made.event_id, "read") if made else (event.id, "same")
        return RedirectResponse(f"{HOME}/events/{where}?done={done}", 303)

    async def _body(self, event: Event) -> bytes | None:
        """Return the callback's body as it is kept, or its document; None for audio and where nothing is kept."""
        data = json.loads(event.data)
        if data["audio"] or data["media"]:
            return None
        try:
            return await kept_body(self._receiver.store, self._receiver.blobs, event)
        except NotFound:
            return None

    async def _pickup(self, event: Event) -> Pickup | None:
        """Return the pickup that ended in this event."""
        found = await self._receiver.store.pickups(PickupFilter(event_id=event.id, limit=1))
        return found[0] if found else None

    # ------------------------------------------------------------ sound and words

    async def _sound(self, event: Event, body: bytes | None) -> Sound:
        """Pair audio and words: of the event itself, else of its job, else of its ref, the nearest in time."""
        others = await self._related(event)
        sound = Sound(audio=next(filter(_has_audio, [event, *others]), None))
        for one in [event, *others]:
            document = body if one is event else None
            if one.type.startswith("transcript.") and (words := await self._words(one, document)):
                shown = words[:_WORDS]
                sound.words, sound.turns = one, turns_of(shown)
                sound.count, sound.left_out = len(shown), len(words) - len(shown)
                break
        if sound.audio is not None:
            sound.facts = json.loads(sound.audio.data)["audio"]
        return sound

    async def _related(self, event: Event) -> list[Event]:
        store = self._receiver.store
        found: dict[str, Event] = {}
        for one in (
            EventFilter(source=event.source, job_id=event.job_id, limit=_PART) if event.job_id else None,
            EventFilter(ref=event.ref, limit=_PART) if event.ref else None,
        ):
            near = sorted(
                await store.events(one) if one else (),
                key=lambda other: abs(other.recorded_at - event.recorded_at),
            )
            for other in near:
                found.setdefault(other.id, other)
        found.pop(event.id, None)
        return list(found.values())

    async def _words(self, event: Event, body: bytes | None) -> Sequence[Any]:
        ports, source = self._receiver.ports, event.source
        provider: Any = ports.providers.get(source) or ports.pulls.get(source)
        document = body if body is not None else await self._body(event)
        if provider is None or document is None:
            return ()
        found: Sequence[Any] = await asyncio.to_thread(provider.words, document)
        return found

    # ------------------------------------------------------------ files

    async def audio(self, visit: Visit) -> Response:
        """Answer the audio, in parts as the player asks for them."""
        event = await self._receiver.store.event(visit.path("event_id"))
        if not _has_audio(event) or event.blob_key is None:
            raise NotFound("this event has no audio")
        content_type = json.loads(event.data)["audio"]["content_type"]
        if not content_type.lower().startswith(_PLAYED):
            content_type = "application/octet-stream"
        return await self._stored(visit, event.blob_key, content_type, download=bool(visit.given("download")))

    async def _stored(self, visit: Visit, key: str, content_type: str, *, download: bool) -> Response:
        expires = self._receiver.clock() + _LINK_MS
        if link := self._receiver.blobs.presign(key, content_type=content_type, expires_at=expires):
            return RedirectResponse(link, 302)
        found = await asyncio.to_thread(self._receiver.blobs.local, key)
        if found is None:
            raise NotFound("the object is not here any more")
        keep_satisfiable(visit.request, found.size)
        name = key.rpartition("/")[2]
        kind = "attachment" if download or content_type == "application/octet-stream" else "inline"
        headers = _SANDBOX | {"content-disposition": f'{kind}; filename="{name}"'}
        return FileResponse(found.path, media_type=content_type, headers=headers)

    async def peaks(self, visit: Visit) -> Response:
        """Answer the outline of the audio as JSON."""
        event = await self._receiver.store.event(visit.path("event_id"))
        if not _has_audio(event) or event.blob_key is None:
            raise NotFound("this event has no audio")
        outline = await self._waveforms.of(event.blob_key, size=json.loads(event.data)["audio"]["bytes"])
        return Response(msgspec.json.encode(outline), media_type="application/json")

    async def download(self, visit: Visit) -> Response:
        """Answer the event, or what its callback brought, as a file that no browser runs."""
        event = await self._receiver.store.event(visit.path("event_id"))
        if visit.path("what") not in ("event", "body"):
            raise NotFound("an event has an event and a body to download, and nothing else")
        if visit.path("what") == "event":
            content: bytes | None = msgspec.json.encode({"type": event.type, "data": msgspec.Raw(event.data)})
        else:
            content = await self._body(event)
        if content is None:
            return PlainTextResponse("The body is not kept any more.\n", 404)
        name = f"{event.id}-{visit.path('what')}.json"
        headers = _SANDBOX | {"content-disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)


def _has_audio(event: Event) -> bool:
    return event.blob_key is not None and json.loads(event.data)["audio"] is not None


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---------------------------------------------------------------- words about it


def sentence(
    deliveries: Sequence[Delivery],
    attempts: Mapping[str, Sequence[Attempt]],
    destinations: Mapping[str, DestinationState],
    now: int,
) -> str:
    """Return where an event stands, in a sentence or two."""
    done = [one.destination for one in deliveries if one.state is DeliveryState.DELIVERED]
    parts = [f"Delivered to {listed(done)}."] if done else []
    for one in deliveries:
        made = attempts[one.id]
        last = f" Its last answer: {answer_of(made[-1])}." if made else ""
        if one.state is DeliveryState.DEAD:
            parts.append(f"{one.destination} was given up after {counted(one.attempts, 'attempt')}.{last}")
        elif one.state is not DeliveryState.DELIVERED and (held := _held(destinations.get(one.destination))):
            parts.append(f"{one.destination} waits: the destination {held}.{last}")
        elif one.state is DeliveryState.DELIVERING:
            parts.append(f"{one.destination} is being sent it now.{last}")
        elif one.state is not DeliveryState.DELIVERED:
            due = (
                f" Due in {length((one.due_at - now) / 1000)}."
                if one.due_at and one.due_at > now
                else " Due now."
            )
            word = f"{counted(one.attempts, 'attempt')} failed" if one.attempts else "not tried yet"
            parts.append(f"{one.destination} waits: {word}.{due}{last}")
    return (
        " ".join(parts)
        or "Recorded, but not sent: no destination takes it, or its deliveries are gone by retention."
    )


def _held(state: DestinationState | None) -> str:
    """Return why nothing is sent to a destination; empty where something is."""
    if state is None or state.status is DestinationStatus.ACTIVE:
        return ""
    if state.status is DestinationStatus.FAILING:
        return f"is held after {state.failures} failed attempts in a row"
    return f"is {state.status.value}"


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def counted(number: int, word: str) -> str:
    """Return a number and its word."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def answer_of(attempt: Attempt | PickupAttempt) -> str:
    """Return the result of one attempt in words."""
    words = attempt.detail or attempt.outcome.value.replace("_", " ")
    return f"{attempt.status}, {words}" if attempt.status and str(attempt.status) not in words else words


def timeline(
    event: Event,
    callback: Callback | None,
    pickup: tuple[Pickup | None, Sequence[PickupAttempt]],
    deliveries: Sequence[tuple[Delivery, Sequence[Attempt]]],
) -> list[Step]:
    """Return an event's way, first to last; each destination's attempts stand together."""
    steps: list[Step] = []
    if callback is not None and callback.method != "NONE":  # receiver itself makes some
        steps += _arrival(callback)
    found, tries = pickup
    if found is not None:
        steps += [_try(attempt, ("collected",)) for attempt in tries]
    late = f"the provider’s time is {event.occurred_at}" if event.occurred_at > event.recorded_at else ""
    where = f"with {counted(len(deliveries), 'delivery')}".replace("deliverys", "deliveries")
    steps.append(
        Step(
            at=event.recorded_at,
            kind="ok",
            icon="box",
            title=f"Recorded as {event.type}",
            detail=late or where,
        )
    )
    for delivery, attempts in deliveries:
        kind = {"delivered": "ok", "dead": "bad"}.get(delivery.state.value, "wait")
        words = f"{delivery.state.value}, {counted(delivery.attempts, 'attempt')}"
        steps.append(
            Step(at=None, kind=kind, icon="out", title=delivery.destination, detail=words, heading=True)
        )
        shown = [_try(attempt, ("delivered",)) for attempt in attempts]
        if len(shown) > _FOLDED:
            left = len(shown) - _FOLDED
            shown[_FOLDED // 2 : -_FOLDED // 2] = [
                Step(at=None, kind="none", icon="none", title=f"{counted(left, 'attempt')} between")
            ]
        steps += shown
        if delivery.due_at is not None and delivery.state is not DeliveryState.DELIVERING:
            steps.append(Step(at=delivery.due_at, kind="wait", icon="wait", title="next attempt"))
    return _with_gaps(steps)


def _arrival(callback: Callback) -> Iterator[Step]:
    """Yield how a callback came: its URL, its body, its proof, its audio."""
    came, claims = callback.arrival or Arrival(), callback.arrival and callback.arrival.claims
    if claims and claims.issued_at:
        yield Step(at=claims.issued_at, kind="none", icon="out", title="Its callback URL was made")
    yield Step(
        at=callback.received_at,
        kind="ok",
        icon="in",
        title=f"{callback.method} to /callbacks/{callback.source}",
        detail=f"{size(callback.body_size)} of {callback.content_type or 'no content type'}"
        + (f", from {came.peer}" if came.peer else "")
        + (f", whole after {came.body_ms} ms" if came.body_ms is not None else ""),
    )
    proofs = listed(callback.proofs.split(",")) if callback.proofs else "nothing"
    proved = came.proved_ms
    yield Step(
        at=None if proved is None else callback.received_at + proved,
        kind="ok",
        icon="proof",
        title="Verified",
        detail=f"by {proofs}" + (f", with secret {came.secret} of the setting" if came.secret else ""),
    )


def _try(attempt: Attempt | PickupAttempt, well: Sequence[str]) -> Step:
    good = attempt.outcome.value in well
    kind, icon = (
        ("ok", "ok") if good else ("wait", "again") if attempt.outcome.value == "not_yet" else ("bad", "dead")
    )
    response: bytes = getattr(attempt, "response", b"")
    return Step(
        at=attempt.started_at,
        kind=kind,
        icon=icon,
        title=f"attempt {attempt.number}: {answer_of(attempt)}",
        detail=f"in {length(attempt.duration_ms / 1000)}",
        answer=response.decode("utf-8", "replace"),
    )


def _with_gaps(steps: list[Step]) -> list[Step]:
    before: int | None = None
    for step in steps:
        if step.heading:
            before = None
        if step.at is not None:
            if before is not None and step.at - before > 1000:
                step.gap = length((step.at - before) / 1000)
            before = step.at
    return steps
