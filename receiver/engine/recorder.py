"""The recorder: turns a provider's result, pushed or pulled, into one complete and durable event, or into nothing.

A callback that its adapter does not understand is parked.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache, partial
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from receiver.core import event_json
from receiver.core.callback import Arrival, Body, Head, MemoryBody, VerifiedCallback, kept_headers
from receiver.core.errors import RESOURCE_ERRORS, IgnoredCallback, MalformedCallback
from receiver.core.event import (
    ASKED,
    Answered,
    AudioDraft,
    AudioFacts,
    CallbackRow,
    Event,
    EventDraft,
    Recorded,
    Recording,
    RecordStatus,
    RemoteResult,
    Stage,
    StoredBlob,
    id_beside,
    new_id,
    scope,
    scoped,
)
from receiver.core.observe import CallbackReport, Observer
from receiver.core.routing import Router
from receiver.core.submission import SubmissionFilter, SubmissionState
from receiver.core.work import Deferral, Pickup, PickupKind
from receiver.providers import PullProvider, PushProvider
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.store.store import Store
from receiver.system.audio.formats import facts as audio_facts
from receiver.system.body_buffer import BodyBuffer, FileBody

_BIG_PARKED = 4 * 1024 * 1024
"""Bytes from which a body that was not understood is kept from file to file, not through memory."""


def normalized(provider: PushProvider, callback: VerifiedCallback, observer: Observer) -> EventDraft:
    """Return the event draft of a callback; that of `callback.parked` if the adapter does not understand it. Raises
    `IgnoredCallback`.

    A bug in an adapter parks the callback, and never loses it.
    """
    try:
        draft = provider.normalize(callback)
    except MalformedCallback as error:
        draft = parked(provider, callback, error.message)
    except (IgnoredCallback, *RESOURCE_ERRORS):
        raise
    except Exception as error:  # proved, so it is kept whatever our own code makes of it
        report_bug(observer, "normalize", callback.source, error)
        draft = parked(provider, callback, "receiver could not read it (an internal error)")
    return draft if callback.claims is None else scoped(scope(callback), draft)


def report_bug(observer: Observer, step: str, source: str, error: Exception) -> None:
    """Report a bug of ours in a step of a callback's way in."""
    observer.note("error", "intake.bug", step=step, source=source, error=type(error).__name__)


def parked(provider: PushProvider, callback: VerifiedCallback, why: str) -> EventDraft:
    """Return the draft of `callback.parked`, with the body (secrets removed) for a person to look at."""
    small = callback.body.size <= _BIG_PARKED
    return EventDraft(
        type="callback.parked",
        idempotency_key=provider.fallback_key(callback),
        ref=callback.ref,
        occurred_at=callback.head.received_at,
        stage=Stage.OPEN,
        parked=why,
        provider_data={"content_type": callback.head.media_type[0], "bytes": callback.body.size},
        document=provider.redact(callback.body.load()) if small else None,
    )


_INLINE_BODY = 64 * 1024
"""Bytes up to which a callback's body is kept in its row; longer ones go to the blob store."""
_AT_ONCE_BYTES = 256 * 1024
_AT_ONCE_SECONDS = 0.005
"""Limits for parsing audio on the event loop, in bytes and in seconds of processor time; past either a thread does it."""
_OVERLAP = 64 * 1024
"""Bytes carried from piece to piece while secrets are removed from a long body; more than any secret is long."""
_TYPE_CHARS = 200
_DAY = 24 * 3600 * 1000
_LATE = _DAY // 2
"""How long after arrival an object's key keeps the arrival's day. With that day it is 36 hours at most, and orphans are
removed after 48.
"""
_JOIN_LOOKS, _JOIN_SECONDS = 12, 0.25
"""How often, and at what interval in seconds, a callback looks for the submission of its job."""


class _Origin(Struct, frozen=True, kw_only=True):
    """Where a result came from: a callback, or an attempt of a pickup."""

    source: str
    provider: str
    received_at: int
    method: str
    content_type: str
    proofs: str
    body: Body
    redact: Callable[[bytes], bytes]
    arrival: Callable[[], bytes] | None = None
    """Returns the `Arrival` as JSON; None for results that receiver fetched itself."""


class Recorder(Struct, kw_only=True, eq=False):
    """Stores results: the blob first, then callback, event and deliveries in one transaction."""

    store: Store
    blobs: Blobs
    bodies: BodyBuffer
    router: Router
    keys: KeyTemplate
    by_job: Collection[str] = ()
    """The sources whose callbacks are matched with submissions by job id."""
    clock: Callable[[], int]
    expect: Callable[[Iterable[str]], Callable[[str], None]]
    """Called with the destinations before an event is recorded; what it returns is called with the event's id afterwards."""
    wake: Callable[[Iterable[str]], None]
    """Gets the destinations of a pickup's event."""
    wake_pickups: Callable[[str], None]
    """Gets the source of a new pickup."""

    # ------------------------------------------------------------ push

    async def record(
        self,
        provider: PushProvider,
        callback: VerifiedCallback,
        draft: EventDraft,
        report: CallbackReport | None = None,
    ) -> Recorded:
        """Store the event's parts, record the event, and wake its destinations. Raises `Unavailable`; harmless to repeat.

        If the result is still at the provider, this records the callback and a pickup; the event comes with the result.
        `report` has the times for the arrival; None for a callback from the journal.
        """
        now = self.clock()
        head, claims, answered = callback.head, callback.claims, None
        if claims is not None and claims.expect_by is not None:
            final = draft.stage is not Stage.PROGRESS
            if final and head.received_at > claims.expect_by:
                draft = replace(draft, late=True)
            answered = Answered(key=claims.expectation, final=final, job_id=draft.job_id)
        elif claims is None and head.source in self.by_job:
            draft, answered = await self._joined(head.source, draft)
        origin = _Origin(
            source=head.source,
            provider=provider.provider,
            received_at=head.received_at,
            method=head.method,
            content_type=report.content_type if report else kept_type(provider.redact, head),
            proofs=",".join(sorted(callback.proofs)),
            body=callback.body,
            redact=provider.redact,
            arrival=partial(_arrival, provider, callback, report),
        )
        if draft.remote is not None:
            return await self._defer(origin, callback, draft, draft.remote, answered, now)
        recording = await self._recording(origin, draft, new_id("evt", now), now, answered)
        done = self.expect(recording.destinations)
        recorded = await self.store.record(recording)
        if recorded.status is RecordStatus.RECORDED:
            done(recorded.event_id)
        return recorded

    async def _joined(self, source: str, draft: EventDraft) -> tuple[EventDraft, Answered | None]:
        """Return the draft with its submission's ref, and the expectation that it answers.

        The callback may arrive before the submission's answer tells the job id; so it waits while a submission is open.
        """
        under_way = SubmissionFilter(source=source, state=SubmissionState.OPEN, limit=1)
        for _ in range(_JOIN_LOOKS if draft.job_id else 0):
            # Asked first: a submission that ends between the two questions is found by the second.
            may_be = await self.store.submissions(under_way)
            of_job = SubmissionFilter(source=source, job_id=draft.job_id, limit=1)
            for made in await self.store.submissions(of_job):
                final, ref = draft.stage is not Stage.PROGRESS, made.ref if draft.ref is None else draft.ref
                answered = Answered(key=made.expectation, final=final, job_id=draft.job_id)
                return replace(draft, ref=ref), answered
            if not may_be:
                break
            await asyncio.sleep(_JOIN_SECONDS)
        return draft, None

    async def _defer(
        self,
        origin: _Origin,
        callback: VerifiedCallback,
        draft: EventDraft,
        remote: RemoteResult,
        answered: Answered | None,
        now: int,
    ) -> Recorded:
        pickup = Pickup(
            id=new_id("pku", now),
            source=origin.source,
            kind=PickupKind.RESULT,
            key=remote.key,
            job_id=draft.job_id,
            ref=draft.ref,
            target=remote.url,
            event_id=new_id("evt", now),
            draft=replace(draft, remote=None, document=None),
            format=callback.claims.format if callback.claims else {},
            deadline_at=remote.deadline_at,
            due_at=now,
            created_at=now,
            updated_at=now,
        )
        row = _row(origin, draft, new_id("cb", now), draft.document)
        recorded = await self.store.defer(Deferral(callback=row, pickup=pickup, answered=answered))
        if recorded.status is RecordStatus.RECORDED:
            self.wake_pickups(origin.source)
        return recorded

    # ------------------------------------------------------------ pull

    async def progress(self, provider: PullProvider, pickup: Pickup, draft: EventDraft) -> Recording:
        """Return an event about a job that goes on, to be written with its pickup's settlement. Raises `Unavailable`."""
        now = self.clock()
        origin = _pulled(provider.provider, pickup, None, provider.redact)
        return await self._recording(origin, draft, new_id("evt", now), now, None)

    async def result(
        self, provider: PullProvider, pickup: Pickup, draft: EventDraft, body: Body | None
    ) -> Recording:
        """Store a pickup's result; return the event for its settlement. Raises `Unavailable`."""
        origin = _pulled(provider.provider, pickup, body, provider.redact)
        return await self._recording(origin, draft, pickup.event_id, self.clock(), None)

    async def overdue(self, provider_name: str, pickup: Pickup, draft: EventDraft) -> Recording:
        """Return the event that ends an expectation whose provider cannot be polled. It is not stored yet."""
        origin = _pulled(provider_name, pickup, None, lambda body: body)
        return await self._recording(origin, draft, pickup.event_id, self.clock(), None)

    # ------------------------------------------------------------ both

    async def _recording(
        self, origin: _Origin, draft: EventDraft, event_id: str, now: int, answered: Answered | None
    ) -> Recording:
        blob, link = await self._store_body(origin, draft, now)
        names: dict[str, Any] = {"event_id": event_id, "source": origin.source, "provider": origin.provider}
        data = event_json.compose(draft, **names, **link)
        document = draft.document
        short = len(data) > event_json.DATA_LIMIT
        if blob is None and (document is not None or origin.body.size > 0):
            # What was not understood is kept whole, for a person.
            parked = document is None and draft.parked is not None
            if short or parked or len(document or b"") > _INLINE_BODY:
                blob = await self._store_document(origin, draft, now)
                link, short = {"document": blob}, True
        if short:
            data = event_json.compose(draft, **names, **link, short=True)
        event = _event(origin, draft, event_id, now, data, blob, _milliseconds(link) if link else None)
        row = _row(origin, draft, id_beside("cb", event_id), None if blob else document)
        destinations, routing = self.router.decided(origin.source, draft.type, data)
        return Recording(
            callback=row,
            event=event,
            destinations=destinations,
            answered=answered,
            routing=routing,
            replaces=draft.replaces,
        )

    async def _store_body(
        self, origin: _Origin, draft: EventDraft, now: int
    ) -> tuple[StoredBlob | None, dict[str, Any]]:
        """Store a body that is audio or a file; return it, and the field of the event that links to it."""
        body = origin.body if draft.content is None else MemoryBody(draft.content)
        if draft.audio is not None:
            key = self._blob_key(origin, draft, draft.audio.extension, now)
            putting = self.blobs.put(key, body, content_type=draft.audio.content_type)
            facts = _facts_at_once(body, draft.audio)
            if facts is not None:
                blob = await putting
            else:
                source = body.path or body.load()
                reading = asyncio.to_thread(audio_facts, source, draft.audio)
                blob, facts = await asyncio.gather(putting, reading)
            return blob, {"audio": (blob, facts)}
        if draft.file is not None:
            key = self._blob_key(origin, draft, draft.file.extension, now)
            blob = await self.blobs.put(key, body, content_type=draft.file.content_type)
            return blob, {draft.file.part: blob}
        return None, {}

    async def _store_document(self, origin: _Origin, draft: EventDraft, now: int) -> StoredBlob:
        """Store a document too long for an event or a row: from memory, or rewritten from file to file."""
        if draft.document is not None:
            body: MemoryBody | FileBody = MemoryBody(draft.document)
        else:
            body = await self.bodies.rewrite(origin.body, origin.redact, overlap=_OVERLAP)
        try:
            is_json = body.prefix.lstrip()[:1] in (b"{", b"[")
            kind, extension = ("application/json", "json") if is_json else ("application/octet-stream", "bin")
            key = self._blob_key(origin, draft, extension, now)
            return await self.blobs.put(key, body, content_type=kind)
        finally:
            body.discard()

    def _blob_key(self, origin: _Origin, draft: EventDraft, extension: str, now: int) -> str:
        """Return the object's key, derived from the callback's identity, content and day: storing again on that day gives
        the same key.

        An object with the key of an older day may be an orphan that the janitor is about to delete. So a later attempt uses
        a new key, whether or not the template contains a day.
        """
        at = origin.received_at if now - origin.received_at < _LATE else now
        identity = f"{origin.source}\0{draft.idempotency_key}\0{origin.body.sha256}\0{at // _DAY}"
        name = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:32]
        return self.keys.key(source=origin.source, received_at=at, name=f"{name}.{extension}")


def _milliseconds(link: dict[str, Any]) -> int | None:
    """Return how long an event's audio plays."""
    seconds = link["audio"][1].duration_seconds if "audio" in link else None
    return None if seconds is None else round(seconds * 1000)


def _facts_at_once(body: Body, draft: AudioDraft) -> AudioFacts | None:
    """Return the audio facts of a short body in memory; None if parsing takes longer than the event loop allows."""
    if body.path is not None or body.size > _AT_ONCE_BYTES:
        return None
    began = time.thread_time()
    found = audio_facts(body.load(), draft, deadline_seconds=_AT_ONCE_SECONDS)
    return found if time.thread_time() - began < _AT_ONCE_SECONDS else None


def kept_type(redact: Callable[[bytes], bytes], head: Head) -> str:
    """Return a callback's `Content-Type` as it is kept and logged: secrets removed, cut at 200 characters."""
    content_type = head.content_type()
    return (_short_type if len(content_type) <= _TYPE_CHARS else _kept_type)(redact, content_type)


def _kept_type(redact: Callable[[bytes], bytes], content_type: str) -> str:
    return redact(content_type.encode("latin-1", "replace")).decode("latin-1")[:_TYPE_CHARS]


_short_type = lru_cache(maxsize=256)(_kept_type)
"""Senders have few types each, so hardly any is looked through."""


def _pulled(provider: str, pickup: Pickup, body: Body | None, redact: Callable[[bytes], bytes]) -> _Origin:
    return _Origin(
        source=pickup.source,
        provider=provider,
        received_at=pickup.created_at,
        method="GET",
        content_type="",
        proofs=ASKED,
        body=body or MemoryBody(b""),
        redact=redact,
    )


def _event(
    origin: _Origin,
    draft: EventDraft,
    event_id: str,
    now: int,
    data: bytes,
    blob: StoredBlob | None,
    duration_ms: int | None,
) -> Event:
    return Event(
        id=event_id,
        type=draft.type,
        source=origin.source,
        provider=origin.provider,
        job_id=draft.job_id,
        ref=draft.ref,
        stage=draft.stage,
        occurred_at=draft.occurred_at,
        recorded_at=now,
        data=data,
        blob_key=blob.key if blob else None,
        size=blob.size if blob else None,
        duration_ms=duration_ms,
    )


def _row(origin: _Origin, draft: EventDraft, row_id: str, body: bytes | None) -> CallbackRow:
    return CallbackRow(
        id=row_id,
        source=origin.source,
        idempotency_key=draft.idempotency_key,
        second_key=draft.second_key,
        method=origin.method,
        content_type=origin.content_type,
        received_at=origin.received_at,
        body_size=origin.body.size,
        body_sha256=origin.body.sha256,
        body=body,
        proofs=origin.proofs,
        arrival=origin.arrival and origin.arrival(),
    )


def _arrival(provider: PushProvider, callback: VerifiedCallback, report: CallbackReport | None) -> bytes:
    """Return the callback's `Arrival` as JSON. Only the commit follows, so its times are nearly final."""
    head, parts = callback.head, {}
    if report is not None:
        parts = {
            "body_ms": int(report.body_seconds * 1000),
            "proved_ms": int(report.proved_seconds * 1000),
            "stored_ms": int((time.perf_counter() - report.began) * 1000),
        }
    arrival = Arrival(
        peer=head.peer,
        headers=kept_headers(head, provider.secret_headers),
        query=head.query,
        secret=callback.secret,
        claims=callback.claims,
        **parts,
    )
    return provider.redact(msgspec.json.encode(arrival))
