"""Normalizes kept callbacks again with today's code. A different result becomes a new event.

Nothing is proved again: the callback was proved when it came. The old event stays; the new one names it in `replaces`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from receiver.core import event_json
from receiver.core.callback import Arrival, Head, MemoryBody, TokenClaims, VerifiedCallback
from receiver.core.errors import IgnoredCallback, MalformedCallback, NotFound, UsageError
from receiver.core.event import (
    ASKED,
    Callback,
    Event,
    EventDraft,
    Recorded,
    RecordStatus,
    again_key,
    scope,
    scoped,
)
from receiver.core.explain import PARKED
from receiver.engine.recorder import Recorder
from receiver.providers import PushProvider
from receiver.storage.blobs import Blobs
from receiver.storage.store.store import Store

MOST_BYTES = 32 * 1024 * 1024
"""Largest kept body, in bytes, that is normalized again: it is held in memory."""
_OWN = ("event_id", "replaces", "late", *event_json.LINKED)
"""Fields of an event that do not come from reading its callback."""


async def kept_body(store: Store, blobs: Blobs, event: Event) -> bytes:
    """Return the body of an event's callback, secrets removed. Raises `NotFound`, `Unavailable`."""
    kept = await store.body(event.id)
    if kept is None and event.blob_key is not None:
        kept = await blobs.get(event.blob_key)
    if kept is None:
        raise NotFound(f"the body of {event.id} is not kept (any more)")
    return kept


class Renormalizer(Struct, kw_only=True, eq=False):
    """Reads kept callbacks again."""

    store: Store
    blobs: Blobs
    recorder: Recorder
    providers: Mapping[str, PushProvider]

    async def again(self, event: Event) -> Recorded | None:
        """Record what today's code makes of an event's callback; return it, None where it is the same or still not understood.

        Harmless to repeat: the same reading makes no second event. Raises `NotFound` and `UsageError` where nothing can be
        read, `Unavailable`.
        """
        provider = self.providers.get(event.source)
        if provider is None:
            raise UsageError(
                f"{event.id} came by {event.source}, which is no source of the settings that is called"
            )
        callback = await self._callback(event)
        try:
            draft = await asyncio.to_thread(provider.normalize, callback)
        except (MalformedCallback, IgnoredCallback):
            return None
        if draft.remote is not None and event.type != PARKED:
            return None  # the event was made of the result that was fetched, not of this callback
        read = _read(draft, event, provider.provider)
        if read is None:
            return None
        key = again_key(event.id, hashlib.sha256(read).hexdigest()[:16])
        draft = replace(
            scoped(scope(callback), draft), idempotency_key=key, second_key=None, replaces=event.id
        )
        recorded = await self.recorder.record(provider, callback, draft)
        if recorded.status is RecordStatus.GONE:
            raise NotFound(f"{event.id} was erased meanwhile")
        return recorded

    async def _callback(self, event: Event) -> VerifiedCallback:
        """Return an event's callback as it was proved. Raises `NotFound`, `UsageError`, `Unavailable`."""
        kept = await self.store.callback(event.id)
        if kept is None or kept.proofs in ("", ASKED):
            raise UsageError(f"{event.id} came of no callback that is kept")
        if (event.size or 0) > MOST_BYTES:
            raise UsageError(f"the body of {event.id} is larger than {MOST_BYTES} bytes")
        body = await kept_body(self.store, self.blobs, event)
        data = msgspec.json.decode(event.data)
        if (data["audio"] or data["media"]) and hashlib.sha256(body).hexdigest() != kept.body_sha256:
            raise UsageError(f"of the callback of {event.id} only the audio or file in it is kept")
        return _restored(kept, event, body)


def _restored(kept: Callback, event: Event, body: bytes) -> VerifiedCallback:
    came = kept.arrival or Arrival()
    headers = tuple((name, value) for name, value in came.headers if value is not None)
    claims = came.claims
    if kept.arrival is None and event.ref is not None:  # of a version that kept no more of it
        claims = TokenClaims(source=event.source, token_id="", ref=event.ref)
    return VerifiedCallback(
        head=Head(
            source=kept.source,
            method=kept.method,
            headers=headers or (("content-type", kept.content_type),),
            received_at=kept.received_at,
            peer=came.peer,
            query=came.query,
        ),
        claims=claims,
        proofs=frozenset(kept.proofs.split(",")),
        secret=came.secret,
        body=MemoryBody(body),
    )


def _read(draft: EventDraft, event: Event, provider: str) -> bytes | None:
    """Return the new reading as JSON; None if the event already says the same."""
    before = _meaning(event.type, event.data)
    file = draft.audio or (draft.file if draft.file is not None and draft.file.part == "media" else None)
    for short in (False, True):
        data = event_json.compose(
            draft, event_id=event.id, source=event.source, provider=provider, short=short
        )
        now = _meaning(draft.type, data)
        now["stored"] = file.content_type if file is not None else None
        if now == before:
            return None
    return msgspec.json.encode(now)


def _meaning(event_type: str, data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(data)
    file = fields["audio"] or fields["media"]
    meaning = {name: value for name, value in fields.items() if name not in _OWN}
    return {"type": event_type, "stored": file["content_type"] if file else None, **meaning}
