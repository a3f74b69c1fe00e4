"""What kind of body Deepgram sent, and which audio format it is.

Nothing documents the Content-Type of a speech callback, so bytes are asked first, then the type, then what the
callback token says was asked for. The types are those of https://developers.deepgram.com/docs/tts-media-output-settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from receiver.core.callback import Head, TokenClaims
from receiver.core.errors import MalformedCallback
from receiver.core.event import AudioDraft
from receiver.core.formats import MEDIA_TYPES
from receiver.providers import sounds
from receiver.providers.jsonbody import is_json_type, looks_like_json

_DEFAULT_HERTZ = {"linear16": 24000, "mulaw": 8000, "alaw": 8000}
"""What Deepgram makes when an encoding was asked for without a rate."""


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
    if sounds.magic(media_type, prefix, _asked(claims)):
        return Kind.AUDIO
    if is_json_type(media_type) or looks_like_json(prefix):
        return Kind.JSON
    if media_type.startswith("text/"):
        return Kind.TEXT
    if (
        media_type in sounds.UNTYPED
        or media_type.startswith(("audio/", "video/"))
        or media_type in MEDIA_TYPES
    ):
        return Kind.AUDIO
    if sounds.asked_encoding(_asked(claims)):
        return Kind.AUDIO
    raise MalformedCallback(
        "the body's content type is neither audio nor JSON, and its bytes are of no known format"
    )


def audio_draft(head: Head, prefix: bytes, claims: TokenClaims | None) -> AudioDraft:
    """Return what is known of an audio body. Bytes of no known format are `application/octet-stream`: never lost."""
    media_type, parameters = head.media_type()
    return sounds.audio_draft(media_type, parameters, prefix, _asked(claims), default_hertz=_DEFAULT_HERTZ)


def _asked(claims: TokenClaims | None) -> Mapping[str, Any]:
    return claims.format if claims else {}
