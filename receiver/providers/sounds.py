"""Which audio format bytes are (floor 3, shared by the adapters): by the bytes, then their type, then what was asked for.

Nothing documents the types of all that comes from providers, and some of it comes without one, so all three are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from receiver.core.event import AudioDraft
from receiver.core.formats import (
    AAC,
    FLAC,
    MEDIA_TYPES,
    MP3,
    OGG,
    OPUS,
    RAW_CODECS,
    RAW_MEDIA_TYPES,
    WAV,
    Format,
    sniff,
)

UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
"""Media types that say nothing."""
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,60}/[a-z0-9][a-z0-9!#$&^_.+-]{0,60}")
ENCODINGS = {"mp3": MP3, "opus": OPUS, "flac": FLAC, "aac": AAC, "wav": WAV, "ogg": OGG}
"""Formats that a job may have asked for and that have a container or frames of their own."""
_RAW_ENCODINGS = {name: name for name in RAW_CODECS} | {
    "headerless-wav": "linear16",
    "pcm": "linear16",
    "raw": "linear16",
    "ulaw": "mulaw",
}
"""Samples without a container, by the words of several providers (`headerless-wav` is Deepdub's)."""
_ASKED = ("encoding", "format", "output_format")
"""What providers call the setting; the first that is there counts."""
_BASIC_HERTZ = 8000
"""`audio/basic` means mu-law at this rate (RFC 2046, section 4.3)."""


def asked_encoding(asked: Mapping[str, Any]) -> str | None:
    """Return the encoding that a job asked for, raw ones by their name in `RAW_CODECS`; None when that is not known."""
    value = next((asked[name] for name in _ASKED if name in asked), None)
    if not isinstance(value, str):
        return None
    word = value.strip().lower().replace("_", "-")
    return _RAW_ENCODINGS.get(word) or (word if word in ENCODINGS else None)


def magic(media_type: str, prefix: bytes, asked: Mapping[str, Any]) -> Format | None:
    """Return the format that the bytes show; a lone frame header does not outweigh a stated raw format."""
    form = sniff(prefix)
    if form is None or form.certain:
        return form
    stated_raw = media_type in RAW_MEDIA_TYPES or (
        media_type in UNTYPED and asked_encoding(asked) in RAW_CODECS
    )
    return None if stated_raw else form


def audio_draft(
    media_type: str,
    parameters: Mapping[str, str],
    prefix: bytes,
    asked: Mapping[str, Any],
    *,
    default_hertz: Mapping[str, int] | None = None,
) -> AudioDraft:
    """Return what is known of audio bytes. Those of no known format are `application/octet-stream`: never lost.

    `default_hertz` is what the provider makes of a raw encoding when no rate was asked for.
    """
    form = magic(media_type, prefix, asked) or MEDIA_TYPES.get(media_type)
    if form:
        return _contained(form)
    rates = default_hertz or {}
    if media_type in RAW_MEDIA_TYPES:
        return _raw(RAW_MEDIA_TYPES[media_type], parameters, asked, rates, basic=media_type == "audio/basic")
    if (
        media_type not in UNTYPED
        and MEDIA_TYPE.fullmatch(media_type)
        and media_type.startswith(("audio/", "video/"))
    ):
        return AudioDraft(content_type=media_type, extension="bin")
    encoding = asked_encoding(asked)
    if encoding in RAW_CODECS:
        return _raw(encoding, {}, asked, rates)
    if encoding is not None:
        return _contained(ENCODINGS[encoding])
    return AudioDraft(content_type="application/octet-stream", extension="bin")


def _contained(form: Format) -> AudioDraft:
    return AudioDraft(content_type=form.content_type, extension=form.extension, codec=form.codec)


def _raw(
    encoding: str,
    parameters: Mapping[str, str],
    asked: Mapping[str, Any],
    default_hertz: Mapping[str, int],
    *,
    basic: bool = False,
) -> AudioDraft:
    codec, wanted = RAW_CODECS[encoding], asked_encoding(asked)
    rate = _count(parameters.get("rate"), 768_000) or (_BASIC_HERTZ if basic else None)
    if rate is None and wanted in (encoding, None):
        rate = _count(asked.get("sample_rate"), 768_000)
    if rate is None and wanted == encoding:
        rate = default_hertz.get(encoding)
    channels = _count(parameters.get("channels"), 64) or _count(asked.get("channels"), 64) or 1
    content_type = codec.media_type
    if rate:
        content_type += f";rate={rate}"
    if channels > 1:
        content_type += f";channels={channels}"
    return AudioDraft(
        content_type=content_type,
        extension="raw",
        sample_rate_hz=rate,
        channels=channels,
        codec=encoding,
        bytes_per_frame=codec.bytes_per_sample * channels,
    )


def _count(value: Any, most: int) -> int | None:
    """Return a whole number from 1 to `most`, given as a number or as digits; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    return None
