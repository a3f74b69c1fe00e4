"""Where push and pull meet (floor 5): a proved callback becomes a whole, durable event, or nothing at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from receiver import audio, envelope
from receiver.blobs.base import Blobs
from receiver.callback import Body, VerifiedCallback
from receiver.model import (
    AudioFacts,
    CallbackRow,
    Event,
    EventDraft,
    Recorded,
    Recording,
    RecordStatus,
    StoredBlob,
    new_id,
)
from receiver.providers.base import PushProvider
from receiver.routing import Router
from receiver.spool import MemoryBody, Spool
from receiver.store.base import Store

_INLINE_BODY = 64 * 1024
"""Bytes up to which a callback's body is kept in its row; longer ones go to the blob store."""
_AUDIO_SECONDS = 1.0
"""Time that reading an audio head may take; past it the event goes without those facts."""
_OVERLAP = 64 * 1024
"""Bytes carried from piece to piece while secrets are removed from a long body; more than any secret is long."""


class Recorder:
    """Stores what a callback brought: the blob first, then callback, event and deliveries in one transaction."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        spool: Spool,
        router: Router,
        clock: Callable[[], int],
        wake: Callable[[Iterable[str]], None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._spool = spool
        self._router = router
        self._clock = clock
        self._wake = wake

    async def record(self, provider: PushProvider, callback: VerifiedCallback, draft: EventDraft) -> Recorded:
        """Make the event whole and durable, and wake its destinations. Raises `Unavailable`; harmless to repeat."""
        now = self._clock()
        event_id = new_id("evt", now)
        blob, data = await self._whole(provider, callback, draft, event_id)
        destinations = self._router.destinations(callback.source, draft.type)
        event = Event(
            id=event_id,
            type=draft.type,
            source=callback.source,
            provider=provider.provider,
            job_id=draft.job_id,
            ref=draft.ref,
            stage=draft.stage,
            occurred_at=draft.occurred_at,
            recorded_at=now,
            data=data,
            blob_key=blob.key if blob else None,
        )
        row = _row(callback, draft, now, None if blob else draft.document)
        recorded = await self._store.record(Recording(callback=row, event=event, destinations=destinations))
        if recorded.status is RecordStatus.RECORDED and destinations:
            self._wake(destinations)
        return recorded

    async def _whole(
        self, provider: PushProvider, callback: VerifiedCallback, draft: EventDraft, event_id: str
    ) -> tuple[StoredBlob | None, bytes]:
        def compose(
            sound: tuple[StoredBlob, AudioFacts] | None = None, document: StoredBlob | None = None
        ) -> bytes:
            return envelope.compose(
                draft,
                event_id=event_id,
                source=callback.source,
                provider=provider.provider,
                audio=sound,
                document=document,
            )

        if draft.audio is not None:
            key = _blob_key(callback, draft, draft.audio.extension)
            source = callback.body.path or callback.body.load()
            blob, facts = await asyncio.gather(
                self._blobs.put(key, callback.body, content_type=draft.audio.content_type),
                asyncio.to_thread(audio.facts, source, draft.audio, deadline_seconds=_AUDIO_SECONDS),
            )
            return blob, compose(sound=(blob, facts))
        data = compose()
        document = draft.document
        fits = len(data) <= envelope.DATA_LIMIT and len(document or b"") <= _INLINE_BODY
        must_keep = document is None and draft.parked is not None and callback.body.size > 0
        if fits and not must_keep:
            return None, data
        blob = await self._keep_document(provider, callback, draft)
        return blob, compose(document=blob)

    async def _keep_document(
        self, provider: PushProvider, callback: VerifiedCallback, draft: EventDraft
    ) -> StoredBlob:
        """Store a document too long for an event or a row: as bytes, or rewritten from file to file."""
        if draft.document is not None:
            body: Body = MemoryBody(draft.document)
            return await self._put_document(callback, draft, body)
        kept = await self._spool.rewrite(callback.body, provider.redact, overlap=_OVERLAP)
        try:
            return await self._put_document(callback, draft, kept)
        finally:
            kept.discard()

    async def _put_document(self, callback: VerifiedCallback, draft: EventDraft, body: Body) -> StoredBlob:
        is_json = body.prefix.lstrip()[:1] in (b"{", b"[")
        kind, extension = ("application/json", "json") if is_json else ("application/octet-stream", "bin")
        key = _blob_key(callback, draft, extension)
        return await self._blobs.put(key, body, content_type=kind)


def _row(callback: VerifiedCallback, draft: EventDraft, now: int, body: bytes | None) -> CallbackRow:
    return CallbackRow(
        id=new_id("cb", now),
        source=callback.source,
        idempotency_key=draft.idempotency_key,
        second_key=draft.second_key,
        method=callback.head.method,
        content_type=callback.head.content_type(),
        received_at=callback.head.received_at,
        body_size=callback.body.size,
        body_sha256=callback.body.sha256,
        body=body,
        proofs=",".join(sorted(callback.proofs)),
    )


def _blob_key(callback: VerifiedCallback, draft: EventDraft, extension: str) -> str:
    """Derive the key from the callback's identity and content, so that storing it again changes nothing."""
    day = datetime.fromtimestamp(callback.head.received_at / 1000, UTC).strftime("%Y/%m/%d")
    identity = f"{callback.source}\0{draft.idempotency_key}\0{callback.body.sha256}"
    name = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:32]
    return f"{callback.source}/{day}/{name}.{extension}"
