"""The event as JSON: composed once when it is recorded, rendered with fresh links at every attempt.

docs/events.md describes it for applications; core/event.py has what it is made of, core/webhook.py its signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET

from receiver.core.event import AudioFacts, Event, EventDraft, JobError, StoredBlob, TranscriptDraft
from receiver.core.event_document import AudioPart, ErrorPart, EventData, StoredPart, TranscriptPart
from receiver.core.projection import Fields, projected
from receiver.core.tokens import ObjectLinks

SCHEMA = 1
DATA_LIMIT = 18_000
"""Bytes of `data` past which provider data goes by link: an event stays under 20 kB (Standard Webhooks' advice)."""
TEXT_LIMIT = 8_000
"""Bytes of transcript text that travel inside an event."""
ERROR_LIMIT = 2_000
"""Characters of a provider's error text that travel inside an event."""
_ERROR_BYTES = 3_000
INLINE_LIMIT = 4_000
"""Bytes of provider data that stay in an event whose document went by link."""

LINKED = ("audio", "media", "document")
"""The fields of an event that may link to its blob."""

Link = Callable[[str, str], tuple[str, int]]
"""Gives (url, expiry in epoch milliseconds) for a blob key and its content type."""

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder().decode


def iso(millis: int) -> str:
    """Return epoch milliseconds as ISO 8601 in UTC with milliseconds."""
    seconds, rest = divmod(millis, 1000)
    return f"{_iso_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _iso_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def compose(
    draft: EventDraft,
    *,
    event_id: str,
    source: str,
    provider: str,
    audio: tuple[StoredBlob, AudioFacts] | None = None,
    media: StoredBlob | None = None,
    document: StoredBlob | None = None,
    short: bool = False,
) -> bytes:
    """Return the event's `data` object as JSON, its links still without URL.

    With `short`, only short fields of the provider's data stay.
    """
    error = draft.error if draft.parked is None else JobError(code="parked", message=draft.parked)
    return _encode(
        EventData(
            event_id=event_id,
            schema=SCHEMA,
            source=source,
            provider=provider,
            job_id=draft.job_id,
            ref=draft.ref,
            late=draft.late,
            replaces=UNSET if draft.replaces is None else draft.replaces,
            audio=_audio(*audio) if audio else None,
            transcript=_transcript(draft.transcript) if draft.transcript else None,
            media=StoredPart(**_stored(media)) if media else None,
            document=StoredPart(**_stored(document)) if document else None,
            error=_error(error) if error else None,
            provider_data=_short(draft.provider_data) if short else draft.provider_data,
        )
    )


def _stored(blob: StoredBlob) -> dict[str, Any]:
    return {
        "uri": blob.uri,
        "content_type": blob.content_type,
        "bytes": blob.size,
        "sha256": blob.sha256,
    }


def _audio(blob: StoredBlob, facts: AudioFacts) -> AudioPart:
    return AudioPart(
        **_stored(blob),
        duration_seconds=facts.duration_seconds,
        duration_estimated=facts.duration_estimated,
        sample_rate_hz=facts.sample_rate_hz,
        channels=facts.channels,
        codec=facts.codec,
    )


def _transcript(draft: TranscriptDraft) -> TranscriptPart:
    text = draft.text
    if text is not None and len(_encode(text)) > TEXT_LIMIT:
        text = None  # it is in the document, by link
    return TranscriptPart(
        text=text,
        confidence=draft.confidence,
        language=draft.language,
        duration_seconds=draft.duration_seconds,
        channels=draft.channels,
    )


def _error(error: JobError) -> ErrorPart:
    return ErrorPart(
        code=error.code and error.code[:200],
        message=_cut(error.message),
        details=error.details and _cut(error.details),
    )


def _cut(text: str) -> str:
    """Return a text, cut to the limit for texts inside an event."""
    text = text[:ERROR_LIMIT]
    while len(_encode(text)) > _ERROR_BYTES:
        text = text[: len(text) * 3 // 4]
    return text


def _short(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the top-level fields of the provider's data that fit, in their order, into `INLINE_LIMIT` bytes."""
    kept: dict[str, Any] = {}
    left = INLINE_LIMIT
    for key, value in fields.items():
        size = len(_encode(value)) + len(key)
        if size <= left:
            kept[key] = value
            left -= size
    return kept


def render(event: Event, link: Link, *, wanted: Fields | None = None) -> bytes:
    """Return the event's JSON as it is sent, with fresh links. `wanted` selects the fields of `data`; None is all."""
    data = event.data
    if event.blob_key is not None or wanted is not None:
        fields = _decode(data)
        for name in LINKED:
            part = fields[name]
            if part is not None and event.blob_key is not None:
                part["url"], expires = link(event.blob_key, part["content_type"])
                part["url_expires_at"] = iso(expires)
        data = _encode(fields if wanted is None else projected(fields, wanted))
    return b'{"type":"%b","timestamp":"%b","data":%b}' % (
        event.type.encode(),
        iso(event.occurred_at).encode(),
        data,
    )


def linker(
    *,
    presign: Callable[..., str | None],
    links: ObjectLinks,
    base: str,
    seconds: int,
    clock: Callable[[], int],
) -> Link:
    """Return a function that makes links valid for `seconds`: presigned ones of the blob store, else `base`'s `/objects/…`.

    `presign` is the blob store's method; it returns None for objects that receiver serves itself.
    """

    def link(key: str, content_type: str) -> tuple[str, int]:
        expires_at = clock() + seconds * 1000
        url = presign(key, content_type=content_type, expires_at=expires_at)
        if url is None:
            url = f"{base}/objects/{links.issue(key, content_type=content_type, expires_at=expires_at)}"
        return url, expires_at

    return link
