"""What kind of body Deepgram sent, and which audio format it is (floor 3).

Nothing documents the Content-Type of a speech callback, so bytes are asked first, then the type, then what the
callback token says was asked for. The types are those of https://developers.deepgram.com/docs/tts-media-output-settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from receiver.callback import Head, TokenClaims
from receiver.errors import MalformedCallback
from receiver.formats import (
    AAC,
    FLAC,
    MEDIA_TYPES,
    MP3,
    OPUS,
    RAW_CODECS,
    RAW_MEDIA_TYPES,
    Format,
    sniff,
)
from receiver.model import AudioDraft
from receiver.providers.jsonbody import is_json_type, looks_like_json

_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,60}/[a-z0-9][a-z0-9!#$&^_.+-]{0,60}")
_ENCODINGS = {"mp3": MP3, "opus": OPUS, "flac": FLAC, "aac": AAC}
_DEFAULT_HERTZ = {"linear16": 24000, "mulaw": 8000, "alaw": 8000}
"""What Deepgram makes when an encoding was asked for without a rate."""
_BASIC_HERTZ = 8000
"""`audio/basic` means mu-law at this rate (RFC 2046, section 4.3)."""


class Kind(Enum):
    """What a body is."""

    AUDIO = "audio"
    JSON = "json"
    TEXT = "text"


def kind_of(head: Head, prefix: bytes, claims: TokenClaims | None) -> Kind:
    """Return what a body is, by its first bytes, then its type, then its token.

    Audio under any type is audio; JSON under any type is JSON, since Deepgram's errors may come on the audio path.
    Raises `MalformedCallback` for a type that is neither audio nor text, unless bytes or token speak for audio.
    """
    media_type, _ = head.media_type()
    if _magic(media_type, prefix, claims):
        return Kind.AUDIO
    if is_json_type(media_type) or looks_like_json(prefix):
        return Kind.JSON
    if media_type.startswith("text/"):
        return Kind.TEXT
    if media_type in _UNTYPED or media_type.startswith(("audio/", "video/")) or media_type in MEDIA_TYPES:
        return Kind.AUDIO
    if claims and claims.format.get("encoding") in (*RAW_CODECS, *_ENCODINGS):
        return Kind.AUDIO
    raise MalformedCallback(
        "the body's content type is neither audio nor JSON, and its bytes are of no known format"
    )


def audio_draft(head: Head, prefix: bytes, claims: TokenClaims | None) -> AudioDraft:
    """Return what is known of an audio body. Bytes of no known format are `application/octet-stream`: never lost."""
    media_type, parameters = head.media_type()
    form = _magic(media_type, prefix, claims) or MEDIA_TYPES.get(media_type)
    if form:
        return _contained(form)
    asked: Mapping[str, Any] = claims.format if claims else {}
    if media_type in RAW_MEDIA_TYPES:
        return _raw(RAW_MEDIA_TYPES[media_type], parameters, asked, basic=media_type == "audio/basic")
    encoding = asked.get("encoding")
    if (
        media_type not in _UNTYPED
        and _MEDIA_TYPE.fullmatch(media_type)
        and media_type.startswith(("audio/", "video/"))
    ):
        return AudioDraft(content_type=media_type, extension="bin")
    if isinstance(encoding, str) and encoding in RAW_CODECS:
        return _raw(encoding, {}, asked)
    if isinstance(encoding, str) and encoding in _ENCODINGS:
        return _contained(_ENCODINGS[encoding])
    return AudioDraft(content_type="application/octet-stream", extension="bin")


def _magic(media_type: str, prefix: bytes, claims: TokenClaims | None) -> Format | None:
    """Return the format that the bytes show; a lone frame header does not outweigh a stated raw format."""
    form = sniff(prefix)
    if form is None or form.certain:
        return form
    stated_raw = media_type in RAW_MEDIA_TYPES or (
        media_type in _UNTYPED and claims is not None and claims.format.get("encoding") in RAW_CODECS
    )
    return None if stated_raw else form


def _contained(form: Format) -> AudioDraft:
    return AudioDraft(content_type=form.content_type, extension=form.extension, codec=form.codec)


def _raw(
    encoding: str, parameters: Mapping[str, str], asked: Mapping[str, Any], *, basic: bool = False
) -> AudioDraft:
    codec = RAW_CODECS[encoding]
    rate = _count(parameters.get("rate"), 768_000) or (_BASIC_HERTZ if basic else None)
    if rate is None and asked.get("encoding") in (encoding, None):
        rate = _count(asked.get("sample_rate"), 768_000)
    if rate is None and asked.get("encoding") == encoding:
        rate = _DEFAULT_HERTZ[encoding]
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
