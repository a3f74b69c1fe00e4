"""The event as applications receive it: the structs that are encoded, and that its JSON Schemas are made from.

docs/events.md describes each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""ISO 8601 in UTC."""


class StoredPart(Struct, frozen=True, kw_only=True):
    """A stored object that the event links to."""

    uri: str
    url: str | None = None
    """A link that expires; renewed at each attempt."""
    url_expires_at: Time | None = None
    content_type: str
    bytes: int
    sha256: str


class AudioPart(StoredPart, frozen=True, kw_only=True):
    """Stored audio, and what its bytes say of it."""

    duration_seconds: float | None
    duration_estimated: bool
    sample_rate_hz: int | None
    channels: int | None
    codec: str | None


class TranscriptPart(Struct, frozen=True, kw_only=True):
    """The text of a transcript; null where it is too long for an event, and in the document."""

    text: str | None
    confidence: float | None
    language: str | None
    duration_seconds: float | None
    channels: int | None


class ErrorPart(Struct, frozen=True, kw_only=True):
    """What went wrong."""

    code: str | None
    message: str
    details: str | None


class EventData(Struct, frozen=True, kw_only=True):
    """What happened."""

    event_id: str
    schema: int
    source: str
    provider: str
    job_id: str | None
    ref: str | None
    late: bool
    audio: AudioPart | None
    transcript: TranscriptPart | None
    media: StoredPart | None
    document: StoredPart | None
    error: ErrorPart | None
    provider_data: Mapping[str, Any]
    """The provider's own fields, secrets removed."""
    replaces: str | UnsetType = UNSET
    """Only where a kept callback was read again: the event that was made of it before."""


class EventDocument(Struct, frozen=True, kw_only=True):
    """The body of a delivery."""

    type: str
    timestamp: Time
    data: EventData
