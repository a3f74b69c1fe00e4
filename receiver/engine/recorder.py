"""Where push and pull meet: what came from a provider becomes a whole, durable event, or nothing at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from receiver.core import envelope
from receiver.core.callback import Body, MemoryBody, VerifiedCallback
from receiver.core.event import (
    Answered,
    CallbackRow,
    Event,
    EventDraft,
    Recorded,
    Recording,
    RecordStatus,
    RemoteResult,
    Stage,
    StoredBlob,
    moment_of,
    new_id,
)
from receiver.core.routing import Router
from receiver.core.work import Deferral, Pickup, PickupKind
from receiver.providers.base import PullProvider, PushProvider
from receiver.storage.blobs.base import Blobs
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.store.store import Store
from receiver.system import audio
from receiver.system.bodies import BodyBuffer

_INLINE_BODY = 64 * 1024
"""Bytes up to which a callback's body is kept in its row; longer ones go to the blob store."""
_AUDIO_SECONDS = 1.0
"""Time that reading an audio head may take; past it the event goes without those facts."""
_OVERLAP = 64 * 1024
"""Bytes carried from piece to piece while secrets are removed from a long body; more than any secret is long."""
_DAY = 24 * 3600 * 1000
_LATE = _DAY // 2
"""An object is put under the name of its arrival's day for so long: with that day, at most 36 hours, and orphans go after 48."""
ASKED = "asked"
"""The proof of a result that we fetched ourselves: we asked its provider for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """What brought it: a callback, or an attempt of a pickup."""

    source: str
    provider: str
    received_at: int
    method: str
    content_type: str
    proofs: str
    body: Body
    redact: Callable[[bytes], bytes]


class Recorder:
    """Stores what came: the blob first, then callback, event and deliveries in one transaction."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        bodies: BodyBuffer,
        router: Router,
        keys: KeyTemplate,
        clock: Callable[[], int],
        wake: Callable[[Iterable[str]], None],
        wake_pickups: Callable[[str], None],
    ) -> None:
        """`wake` is told the destinations of a new event, `wake_pickups` the source of a new pickup."""
        self._store = store
        self._blobs = blobs
        self._bodies = bodies
        self._router = router
        self._keys = keys
        self._clock = clock
        self._wake = wake
        self._wake_pickups = wake_pickups

    # ------------------------------------------------------------ push

    async def record(self, provider: PushProvider, callback: VerifiedCallback, draft: EventDraft) -> Recorded:
        """Make the event whole and durable, and wake its destinations. Raises `Unavailable`; harmless to repeat.

        When the result still lies at the provider, callback and pickup are made durable, and the event comes with the result.
        """
        now = self._clock()
        draft, answered = _expectation(callback, draft)
        origin = _Origin(
            source=callback.source,
            provider=provider.provider,
            received_at=callback.head.received_at,
            method=callback.head.method,
            content_type=callback.head.content_type(),
            proofs=",".join(sorted(callback.proofs)),
            body=callback.body,
            redact=provider.redact,
        )
        if draft.remote is not None:
            return await self._defer(origin, callback, draft, draft.remote, answered, now)
        recording = await self._recording(origin, draft, new_id("evt", now), now, answered)
        recorded = await self._store.record(recording)
        if recorded.status is RecordStatus.RECORDED:
            self.wake(recording)
        return recorded

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
        row = _row(origin, draft, now, draft.document)
        deferral = Deferral(callback=row, pickup=pickup, answered=answered)
        recorded = await self._store.defer(deferral)
        if recorded.status is RecordStatus.RECORDED:
            self._wake_pickups(origin.source)
        return recorded

    def wake(self, recording: Recording) -> None:
        """Tell the destinations of an event that it was recorded."""
        if recording.destinations:
            self._wake(recording.destinations)

    # ------------------------------------------------------------ pull

    async def told(self, provider: PullProvider, pickup: Pickup, draft: EventDraft) -> Recording:
        """Return an event about a job that goes on, to be written with its pickup's settlement. Raises `Unavailable`."""
        now = self._clock()
        origin = _pulled(provider.provider, pickup, MemoryBody(b""), provider.redact)
        return await self._recording(origin, draft, new_id("evt", now), now, None)

    async def whole(
        self, provider: PullProvider, pickup: Pickup, draft: EventDraft, body: Body | None
    ) -> Recording:
        """Store what a pickup brought; return what is to be written with its settlement. Raises `Unavailable`."""
        origin = _pulled(provider.provider, pickup, body or MemoryBody(b""), provider.redact)
        return await self._recording(origin, draft, pickup.event_id, self._clock(), None)

    async def overdue(self, provider_name: str, pickup: Pickup, draft: EventDraft) -> Recording:
        """Return what ends an expectation that nobody can be asked about; nothing is stored yet."""
        origin = _pulled(provider_name, pickup, MemoryBody(b""), lambda body: body)
        return await self._recording(origin, draft, pickup.event_id, self._clock(), None)

    # ------------------------------------------------------------ both

    async def _recording(
        self, origin: _Origin, draft: EventDraft, event_id: str, now: int, answered: Answered | None
    ) -> Recording:
        blob, data = await self._whole(origin, draft, event_id)
        event = Event(
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
        )
        kept_as_blob = blob is not None and draft.audio is None and draft.file is None
        row = _row(origin, draft, moment_of(event_id), None if kept_as_blob else draft.document)
        destinations = self._router.destinations(origin.source, draft.type)
        return Recording(callback=row, event=event, destinations=destinations, answered=answered)

    async def _whole(
        self, origin: _Origin, draft: EventDraft, event_id: str
    ) -> tuple[StoredBlob | None, bytes]:
        compose = partial(
            envelope.compose, draft, event_id=event_id, source=origin.source, provider=origin.provider
        )
        if draft.audio is not None:
            key = self._blob_key(origin, draft, draft.audio.extension)
            source = origin.body.path or origin.body.load()
            blob, facts = await asyncio.gather(
                self._blobs.put(key, origin.body, content_type=draft.audio.content_type),
                asyncio.to_thread(audio.facts, source, draft.audio, deadline_seconds=_AUDIO_SECONDS),
            )
            return blob, _fitting(partial(compose, audio=(blob, facts)))
        if draft.file is not None:
            key = self._blob_key(origin, draft, draft.file.extension)
            blob = await self._blobs.put(key, origin.body, content_type=draft.file.content_type)
            linked = (
                partial(compose, media=blob)
                if draft.file.part == "media"
                else partial(compose, document=blob)
            )
            return blob, _fitting(linked)
        data = compose()
        document = draft.document
        fits = len(data) <= envelope.DATA_LIMIT and len(document or b"") <= _INLINE_BODY
        must_keep = document is None and draft.parked is not None and origin.body.size > 0
        if fits and not must_keep:
            return None, data
        if document is None and origin.body.size == 0:
            return None, compose(short=True)
        blob = await self._keep_document(origin, draft)
        return blob, compose(document=blob, short=True)

    def _blob_key(self, origin: _Origin, draft: EventDraft, extension: str) -> str:
        """Derive the key from the callback's identity, content and day, so that storing it again soon changes nothing.

        What lies under an older name may be an orphan about to be swept, so nothing is put there, and nothing that is
        there counts as put; whether the template has a day in it or not.
        """
        now = self._clock()
        at = origin.received_at if now - origin.received_at < _LATE else now
        identity = f"{origin.source}\0{draft.idempotency_key}\0{origin.body.sha256}\0{at // _DAY}"
        name = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:32]
        return self._keys.key(source=origin.source, received_at=at, name=f"{name}.{extension}")

    async def _keep_document(self, origin: _Origin, draft: EventDraft) -> StoredBlob:
        """Store a document too long for an event or a row: as bytes, or rewritten from file to file."""
        if draft.document is not None:
            body: Body = MemoryBody(draft.document)
            return await self._put_document(origin, draft, body)
        kept = await self._bodies.rewrite(origin.body, origin.redact, overlap=_OVERLAP)
        try:
            return await self._put_document(origin, draft, kept)
        finally:
            kept.discard()

    async def _put_document(self, origin: _Origin, draft: EventDraft, body: Body) -> StoredBlob:
        is_json = body.prefix.lstrip()[:1] in (b"{", b"[")
        kind, extension = ("application/json", "json") if is_json else ("application/octet-stream", "bin")
        key = self._blob_key(origin, draft, extension)
        return await self._blobs.put(key, body, content_type=kind)


def _fitting(compose: Callable[..., bytes]) -> bytes:
    """Return an event's data, with the provider's own fields shortened when it would be too long."""
    data = compose()
    return data if len(data) <= envelope.DATA_LIMIT else compose(short=True)


def _expectation(callback: VerifiedCallback, draft: EventDraft) -> tuple[EventDraft, Answered | None]:
    """Tell which expectation a callback answers, and mark it late when it came after its time."""
    claims = callback.claims
    if claims is None or claims.expect_by is None:
        return draft, None
    final = draft.stage is not Stage.PROGRESS
    if final and callback.head.received_at > claims.expect_by:
        draft = replace(draft, late=True)
    return draft, Answered(key=claims.expectation, final=final, job_id=draft.job_id)


def _pulled(provider: str, pickup: Pickup, body: Body, redact: Callable[[bytes], bytes]) -> _Origin:
    return _Origin(
        source=pickup.source,
        provider=provider,
        received_at=pickup.created_at,
        method="GET",
        content_type="",
        proofs=ASKED,
        body=body,
        redact=redact,
    )


def _row(origin: _Origin, draft: EventDraft, made_at: int, body: bytes | None) -> CallbackRow:
    return CallbackRow(
        id=new_id("cb", made_at),
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
    )
