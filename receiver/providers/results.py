"""What downloaded bytes are: the result that was wanted, or something else.

Order: the bytes themselves, then their Content-Type, then what the job asked for. What is no result (a web page, an
error document, an image in place of audio) is `Failed(UNUSABLE)`: another try may find the result.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from receiver.core.callback import Body, split_media_type
from receiver.core.errors import MalformedCallback
from receiver.core.event import AudioDraft, FileDraft, TranscriptDraft
from receiver.core.fetch import Failed
from receiver.providers.documents import (
    BOM,
    Document,
    decode_object,
    first_text,
    is_json_type,
    is_text,
    looks_like_json,
    table,
    text,
)
from receiver.providers.proofs.request import follow
from receiver.providers.toolkit import (
    ACTIVE,
    MEDIA_TYPE,
    UNTYPED,
    asked_encoding,
    audio_draft,
    magic,
    unusable,
)
from receiver.system.audio.formats import MEDIA_TYPES, RAW_CODECS, RAW_MEDIA_TYPES, beginning

ResultKind = Literal["audio", "transcript", "media", "any"]
"""`any`: the bytes decide."""
_WANTED: Mapping[str | None, ResultKind] = {
    "speech": "audio",
    "transcript": "transcript",
    "analysis": "transcript",
    "media": "media",
    None: "any",
}
"""What a job's result is, by the family of its event; None where that is not known."""

_HTML = re.compile(
    rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title)\b", re.IGNORECASE | re.DOTALL
)
_SRT = re.compile(rb"\s*\d{1,6}[ \t]*\r?\n\d{1,3}:\d\d:\d\d[,.]\d{1,3}[ \t]*-->")
_IMAGES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png", "png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg", "jpg"),
    (re.compile(rb"GIF8[79]a"), "image/gif", "gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp", "webp"),
    (re.compile(rb"....ftyp(?:avif|avis)", re.DOTALL), "image/avif", "avif"),
    (re.compile(rb"....ftyp(?:heic|heix|mif1|msf1)", re.DOTALL), "image/heic", "heic"),
    (re.compile(rb"II\*\x00|MM\x00\*"), "image/tiff", "tif"),
)
_FILES = (
    (re.compile(rb"%PDF-"), "application/pdf", "pdf"),
    (re.compile(rb"PK\x03\x04"), "application/zip", "zip"),
    (re.compile(rb"\x1f\x8b\x08"), "application/gzip", "gz"),
)
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "video/quicktime": "mov",
    "application/pdf": "pdf",
    "application/zip": "zip",
    "model/gltf-binary": "glb",
}
_ERROR_KEYS = frozenset({"message", "success", "status", "code", "statusCode", "exception", "detail"})
_MAX_ERROR = 64 * 1024
"""Bytes past which a JSON document is too long to be an error's."""
_MAX_TEXT = 1024 * 1024
"""Bytes past which a transcript is not read for its text: an event would not carry it anyway."""
_FEW = 4
"""So few different byte values are silence in A-law (0x55, a letter) rather than text."""
_WORDS = {"audio": "audio", "transcript": "a transcript", "media": "a result", "any": "a result"}


def classify(
    body: Body, *, content_type: str, format: Mapping[str, Any], wanted: ResultKind
) -> AudioDraft | FileDraft | Failed:
    """Return what a downloaded body is, or `Failed` with `UNUSABLE` and a sentence for a person.

    `content_type` as the reply had it, "" for none; `format` is what the job asked for (`encoding`, `sample_rate`, …).
    """
    if body.size == 0:
        return unusable("the result is empty")
    media_type, parameters = split_media_type(content_type[:200])
    raw = asked_encoding(format) in RAW_CODECS or media_type in RAW_MEDIA_TYPES
    page = _page(media_type, body, raw=raw and wanted in ("audio", "any"))
    if page:
        return unusable(f"the result is {page}, not {_WORDS[wanted]}")
    if wanted == "audio":
        return _audio(body, media_type, parameters, format)
    if wanted == "transcript":
        return _transcript(body, media_type)
    if wanted == "any" and _is_audio(body, media_type, format):
        return _audio(body, media_type, parameters, format)
    return _file(body, media_type)


def classify_audio(body: Body, *, content_type: str, format: Mapping[str, Any]) -> AudioDraft | Failed:
    """Do the same for a body that can be nothing but audio."""
    return cast(
        "AudioDraft | Failed", classify(body, content_type=content_type, format=format, wanted="audio")
    )


def parts_of(
    body: Body, *, content_type: str, format: Mapping[str, Any], family: str | None
) -> dict[str, Any] | Failed:
    """Return what an event of this family has of a downloaded body: `audio`, or `file` and the `transcript` that it is."""
    result = classify(body, content_type=content_type, format=format, wanted=_WANTED[family])
    if isinstance(result, Failed):
        return result
    if isinstance(result, AudioDraft):
        return {"audio": result}
    is_transcript = family == "transcript" or (family is None and result.part == "document")
    return {"file": result} | ({"transcript": transcript_of(body, result)} if is_transcript else {})


def transcript_of(body: Body, file: FileDraft) -> TranscriptDraft:
    """Return the text of a stored transcript where it is plain text, JSON with a `text`, or a file of Amazon Transcribe's.

    Subtitles stay in their file, and so does all of a transcript over 1 MiB.
    """
    if body.size > _MAX_TEXT:
        return TranscriptDraft(text=None)
    if file.extension == "json":
        with contextlib.suppress(MalformedCallback):
            document = decode_object(body.load())
            words = first_text(document, "text", "transcript", limit=body.size)
            said = table(document, "results")
            if words is None and isinstance(found := follow(said, ("transcripts", 0, "transcript")), str):
                words = found or None
            language = text(document, "language", 40) or text(said, "language_code", 40)
            return TranscriptDraft(text=words, language=language)
    if file.extension == "txt":
        with contextlib.suppress(UnicodeDecodeError):
            return TranscriptDraft(text=body.load().decode("utf-8-sig").replace("\0", ""))
    return TranscriptDraft(text=None)


# ---------------------------------------------------------------- audio


def _audio(
    body: Body, media_type: str, parameters: Mapping[str, str], format: Mapping[str, Any]
) -> AudioDraft | Failed:
    other = _known_file(body.prefix)
    if other:
        kind = "an image" if other[0].startswith("image/") else "a file"
        return unusable(f"the result is {kind} ({other[0]}), not audio")
    prefix = beginning(body)
    draft = audio_draft(media_type, parameters, prefix, format)
    if magic(media_type, prefix, format):
        return draft
    if is_json_type(media_type) or looks_like_json(body.prefix):
        return unusable("the result is JSON, not audio")
    raw = draft.codec in RAW_CODECS or asked_encoding(format) in RAW_CODECS
    if _reads_as_text(body, raw=raw):
        return unusable("the result is text, not audio")
    if _may_be_audio(media_type):
        return draft
    if asked_encoding(format) in RAW_CODECS:
        return audio_draft("", {}, body.prefix, format)  # some servers call quiet mu-law text
    return unusable(f"the result is {_named(media_type)}, not audio")


def _is_audio(body: Body, media_type: str, format: Mapping[str, Any]) -> bool:
    form = magic(media_type, beginning(body), format)
    if form and form.video:
        return media_type.startswith("audio/")
    return bool(form) or (
        _may_be_audio(media_type) and (media_type not in UNTYPED or asked_encoding(format) is not None)
    )


def _may_be_audio(media_type: str) -> bool:
    return media_type in UNTYPED or media_type in MEDIA_TYPES or media_type.startswith(("audio/", "video/"))


# ---------------------------------------------------------------- text and other files


def _transcript(body: Body, media_type: str) -> FileDraft | Failed:
    known = _known_file(body.prefix)
    if known:
        return unusable(f"the result is a file ({known[0]}), not a transcript")
    textual = media_type.startswith("text/") or is_json_type(media_type)
    if not is_text(body.prefix) and (not textual or b"\0" in body.prefix):
        return unusable(f"the result is {_named(media_type)} and no text, so it is no transcript")
    return _document(body, media_type)


def _document(body: Body, media_type: str) -> FileDraft | Failed:
    prefix = body.prefix.removeprefix(BOM)
    if is_json_type(media_type) or prefix.lstrip()[:1] in (b"{", b"["):
        if _is_error(body):
            return unusable("the result is a JSON error document")
        return FileDraft(part="document", content_type="application/json", extension="json")
    if prefix.startswith(b"WEBVTT"):
        return FileDraft(part="document", content_type="text/vtt;charset=utf-8", extension="vtt")
    if _SRT.match(prefix):
        return FileDraft(part="document", content_type="application/x-subrip", extension="srt")
    kind = "text/plain;charset=utf-8" if is_text(body.prefix) else "text/plain"
    return FileDraft(part="document", content_type=kind, extension="txt")


def _file(body: Body, media_type: str) -> FileDraft | Failed:
    known = _known_file(body.prefix)
    if known:
        return FileDraft(part="media", content_type=known[0], extension=known[1])
    form = magic(media_type, beginning(body), {})
    if form:
        kind, extension = form.content_type, form.extension
        if form.video and not media_type.startswith("audio/"):
            kind, extension = kind.replace("audio/", "video/"), form.video
        return FileDraft(part="media", content_type=kind, extension=extension)
    if is_text(body.prefix):
        return _document(body, media_type)
    if not MEDIA_TYPE.fullmatch(media_type) or ACTIVE.search(media_type):
        media_type = "application/octet-stream"
    return FileDraft(part="media", content_type=media_type, extension=_EXTENSIONS.get(media_type, "bin"))


# ---------------------------------------------------------------- what is no result


def _page(media_type: str, body: Body, *, raw: bool) -> str | None:
    """Return what a body is called when it is a web page or a storage's error document."""
    start = body.prefix.removeprefix(BOM)
    if _HTML.match(start):
        return "a web page (text/html)"
    if media_type in ("text/html", "application/xhtml+xml") and _reads_as_text(body, raw=raw):
        return "a web page (text/html)"
    if start.lstrip().startswith((b"<?xml", b"<Error>")) and b"<Error>" in start:
        return "a storage's error document (XML)"
    return None


def _reads_as_text(body: Body, *, raw: bool) -> bool:
    return is_text(body.prefix) and not (raw and len(set(body.prefix)) <= _FEW)


def _known_file(prefix: bytes) -> tuple[str, str] | None:
    """Return media type and extension of what is surely neither audio nor text."""
    for shape, media_type, extension in (*_IMAGES, *_FILES):
        if shape.match(prefix):
            return media_type, extension
    return None


def _is_error(body: Body) -> bool:
    """Tell whether a JSON document is an error's: it has an `error`, or says nothing but a message."""
    if body.size > _MAX_ERROR:
        return False
    try:
        document: Document = decode_object(body.load())
    except MalformedCallback:
        return False
    if document.get("error") or document.get("errors") or document.get("success") is False:
        return True
    return "message" in document and set(document) <= _ERROR_KEYS


def _named(media_type: str) -> str:
    return f"of type {media_type}" if MEDIA_TYPE.fullmatch(media_type) else "of no known type"
