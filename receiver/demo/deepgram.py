"""Deepgram, played offline: the callbacks of its three products as they reach a callback URL.

What is documented is kept to (https://developers.deepgram.com/docs/callback and /docs/tts-callback): POST or PUT, audio as raw
bytes, documents as JSON, up to ten more tries 30 s apart. The headers of a speech callback are not documented; those of
direct replies are sent in their place.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from receiver.core.clock import iso
from receiver.demo.serving import Callback
from receiver.system.audio.formats import sniff

WAITS = (30.0,) * 10
"""Seconds between the eleven attempts."""
PRODUCTS = {"speak": "audio", "listen": "transcript", "read": "analysis"}
"""And what each makes."""
_RAW = {"linear16": ("audio/l16", 24000), "mulaw": ("audio/mulaw", 8000), "alaw": ("audio/alaw", 8000)}
_CODED = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg;codecs=opus",
    "flac": "audio/flac",
    "aac": "audio/aac",
}
_EXTENSIONS = {"l16": "linear16", "pcm": "linear16", "mulaw": "mulaw", "ulaw": "mulaw", "alaw": "alaw"} | {
    name: name for name in ("mp3", "flac", "aac")
}


def media_type(format: Mapping[str, Any]) -> str | None:
    """Return the Content-Type of what was asked for, None when `format` names no encoding.

    The table of https://developers.deepgram.com/docs/tts-media-output-settings, defaults included.
    """
    encoding = format.get("encoding")
    if encoding in _CODED:
        return _CODED[encoding]
    if encoding not in _RAW:
        return None
    if format.get("container", "wav") != "none":
        return "audio/wav"
    kind, rate = _RAW[encoding]
    return f"{kind};rate={format.get('sample_rate', rate)}"


def media_type_of(audio: bytes, name: str) -> str:
    """Return the Content-Type that Deepgram gives such bytes; a file's `name` tells raw formats apart."""
    form = sniff(audio[:4096])
    if form is not None and form.certain:
        return form.content_type
    encoding = _EXTENSIONS.get(name.rpartition(".")[2].lower())
    asked = media_type({"encoding": encoding, "container": "none"}) if encoding else None
    return asked or (form.content_type if form else "application/octet-stream")


def speech(
    url: str,
    audio: bytes,
    *,
    content_type: str,
    method: str = "POST",
    chunked: bool = False,
) -> Callback:
    """Return the callback of text to speech: the audio itself."""
    headers = {
        "content-type": content_type,
        "dg-model-name": "aura-2-thalia-en",
        "dg-char-count": "52",
        "dg-request-id": str(uuid.uuid4()),
    }
    return Callback(method.upper(), url, headers, audio, chunked)


def document(
    url: str, fields: Mapping[str, Any], *, method: str = "POST", dg_token: str | None = None
) -> Callback:
    """Return a callback that carries JSON: a transcript, an analysis or an error."""
    headers = {"content-type": "application/json"}
    if dg_token is not None:
        headers["dg-token"] = dg_token
    return Callback(method.upper(), url, headers, json.dumps(fields, ensure_ascii=False).encode())


def transcript(text: str, *, now: int, callback_secret: str | None = None) -> dict[str, Any]:
    """Return a transcript as `/v1/listen` answers; `now` in epoch milliseconds."""
    words = [
        {"word": word.strip(".,").lower(), "start": 0.4 * i, "end": 0.4 * i + 0.3, "confidence": 0.98}
        for i, word in enumerate(text.split())
    ]
    metadata: dict[str, Any] = {
        "transaction_key": "deprecated",
        "request_id": str(uuid.uuid4()),
        "sha256": "0" * 64,
        "created": iso(now),
        "duration": round(0.4 * len(words), 2),
        "channels": 1,
        "models": ["simulator"],
    }
    if callback_secret is not None:
        metadata["extra"] = {"callback_secret": callback_secret}
    alternative = {"transcript": text, "confidence": 0.98, "words": words}
    return {"metadata": metadata, "results": {"channels": [{"alternatives": [alternative]}]}}


def analysis(text: str, *, now: int) -> dict[str, Any]:
    """Return a summary as `/v1/read` answers; `now` in epoch milliseconds."""
    metadata = {"request_id": str(uuid.uuid4()), "created": iso(now), "language": "en"}
    return {"metadata": {"metadata": metadata}, "results": {"summary": {"text": text}}}


def result(product: str, *, now: int, callback_secret: str | None) -> dict[str, Any]:
    """Return the document of a product that makes one; `now` in epoch milliseconds."""
    if product == "read":
        return analysis("A simulator says hello.", now=now)
    text = "Hello, this is the voice of the simulator."
    return transcript(text, now=now, callback_secret=callback_secret)


def failure() -> dict[str, Any]:
    """Return an error document, in the form of https://developers.deepgram.com/docs/errors."""
    return {
        "err_code": "Bad Request",
        "err_msg": "the simulator was asked to fail",
        "request_id": str(uuid.uuid4()),
    }
