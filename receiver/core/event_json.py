"""The event as JSON: the structs that are encoded, composed once when it is recorded, rendered with fresh links at every attempt.

docs/events.md describes each field for applications, and JSON Schemas are made from the structs; core/event.py has what an event is
made of, core/webhook.py its signature. An event also goes as a CloudEvent 1.0, in structured and in binary mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from receiver.core.clock import iso
from receiver.core.event import AudioFacts, Event, EventDraft, JobError, StoredBlob, TranscriptDraft

if TYPE_CHECKING:
    from receiver.core.tokens import ObjectLinks


SCHEMA = 1
DATA_LIMIT = 18_000
"""Bytes of `data` past which provider data goes by link: an event stays under 20 kB (Standard Webhooks' advice)."""
TEXT_LIMIT = 8_000
"""Bytes of transcript text that travel inside an event."""
_CHAR_BYTES = 6
"""Most bytes of a character in JSON."""
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


# ---------------------------------------------------------------- what is encoded

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


# ---------------------------------------------------------------- composed and rendered


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
    if text is not None and _CHAR_BYTES * len(text) > TEXT_LIMIT < len(_encode(text)):
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


# ---------------------------------------------------------------- the fields that a destination wants

Fields = Mapping[str, Any]
"""Names of the wanted fields, each with the wanted fields below it. An empty mapping means the whole field."""

ALWAYS = ("event_id", "schema", "source", "job_id")
"""What every event holds: it tells which event it is, and of which job."""


def fields(places: Iterable[str]) -> Fields:
    """Return the fields at these places below `data` (`audio.url`), and those that are always sent."""
    return _tree([*ALWAYS, *places])


def _tree(places: Iterable[str]) -> Fields:
    below: dict[str, list[str]] = {}
    for place in places:
        name, _, rest = place.partition(".")
        below.setdefault(name, []).append(rest)
    return {name: {} if "" in rests else _tree(rests) for name, rests in below.items()}


def projected(data: Mapping[str, Any], wanted: Fields) -> dict[str, Any]:
    """Return the wanted fields of `data`, as far as it has them. What is null stays null, whatever is wanted below it."""
    kept = {}
    for name, value in data.items():
        below = wanted.get(name)
        if below is None:
            continue
        if not below or value is None:
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = projected(value, below)
    return kept


def _places(kind: type[Struct], above: str = "") -> Iterator[str]:
    for one in msgspec.structs.fields(kind):
        yield above + one.name
        for part in get_args(one.type):
            if isinstance(part, type) and issubclass(part, Struct):
                yield from _places(part, f"{above}{one.name}.")


PLACES = frozenset(_places(EventData))
"""The places of all fields that events have, but for the provider's own."""


def may_be_there(place: str) -> bool:
    """Tell whether any event may have a field at this place below `data`."""
    return place in PLACES or place.startswith("provider_data.")


# ---------------------------------------------------------------- attributes of messages, and CloudEvents
# https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md

STRUCTURED_TYPE = "application/cloudevents+json"
"""The content type of structured mode."""
_PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")


class _Data(Struct):
    source: str
    job_id: str | None = None


class About(Struct):
    """The attributes of an event, read from its JSON body."""

    type: str
    time: str = field(name="timestamp")
    """RFC 3339, as the body has it."""
    data: msgspec.Raw
    """The event's data as it stands in the body."""
    source: str = ""
    job_id: str | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """What a message says of its event, by name: consumers filter by it without reading the body."""
        return {"event-type": self.type, "event-source": self.source, "event-time": self.time}


def about(body: bytes) -> About:
    """Return the attributes of an event from its JSON body, whether or not some of its fields were left out."""
    event = msgspec.json.decode(body, type=About)
    data = msgspec.json.decode(event.data, type=_Data)
    event.source, event.job_id = data.source, data.job_id
    return event


def structured(body: bytes, event_id: str) -> bytes:
    """Return a whole event as one JSON document in structured mode."""
    attributes, data = _cloud_event(body, event_id)
    return msgspec.json.encode({**attributes, "datacontenttype": "application/json", "data": data})


def binary(body: bytes, event_id: str) -> tuple[dict[str, str], bytes]:
    """Return the `ce-…` headers of binary mode, and the event's data as the body."""
    attributes, data = _cloud_event(body, event_id)
    # What a header cannot hold is percent-encoded, as the binding says; so is what would end the quoting.
    headers = {f"ce-{name}": quote(value, safe=_PLAIN) for name, value in attributes.items()}
    return headers, bytes(data)


def _cloud_event(body: bytes, event_id: str) -> tuple[dict[str, str], msgspec.Raw]:
    event = about(body)
    attributes = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/sources/{quote(event.source)}",
        "type": event.type,
        "time": event.time,
    }
    if event.job_id:
        attributes["subject"] = event.job_id
    return attributes, event.data
