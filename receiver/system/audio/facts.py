"""What audio says of itself: length, rate, channels and codec, each right, marked as an estimate, or unknown."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from msgspec import Struct

from receiver.core.event import AudioDraft, AudioFacts
from receiver.system.audio import chunked
from receiver.system.audio.flac import flac
from receiver.system.audio.formats import BY_EXTENSION, Format, sniff
from receiver.system.audio.frames import amr, amr_wb, frames, id3_size
from receiver.system.audio.matroska import matroska
from receiver.system.audio.mp4 import mp4
from receiver.system.audio.ogg import ogg
from receiver.system.audio.reading import Found, OutOfTime, Source

_PREFIX = 4096
_LONGEST = 7 * 86400.0
"""A length past a week is damage."""
_DAMAGE = (OutOfTime, OSError, struct.error, IndexError, ValueError, OverflowError, ZeroDivisionError)
"""What reading a damaged file may end with."""
SECONDS = 0.5
"""How long reading may take; what is known by then is told."""


class Examined(Struct, frozen=True, kw_only=True):
    """What was found out, and how."""

    facts: AudioFacts
    form: Format | None
    """By the bytes; None when they show no format."""
    how: str
    """How the length was had."""


def facts(audio: str | bytes, draft: AudioDraft, *, deadline_seconds: float = SECONDS) -> AudioFacts:
    """Return the audio's length, rate, channels and codec, from a file's path or from its bytes.

    `draft` has the rate and codec of raw samples. Reads for `deadline_seconds` at most and never raises: a fact that cannot
    be read is None. Blocks; meant for a thread.
    """
    return examine(audio, draft, deadline_seconds=deadline_seconds).facts


def examine(audio: str | bytes, draft: AudioDraft, *, deadline_seconds: float = SECONDS) -> Examined:
    """Do the same, and tell how the length was had."""
    deadline = time.monotonic() + deadline_seconds
    if isinstance(audio, bytes):
        return _examine(Source(audio, deadline), draft)
    try:
        descriptor = os.open(audio, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _told(Found(), draft, None)
    try:
        return _examine(Source(descriptor, deadline), draft)
    finally:
        os.close(descriptor)


def _examine(source: Source, draft: AudioDraft) -> Examined:
    found, form = Found(), None
    if draft.bytes_per_frame:
        if draft.sample_rate_hz:
            found.length(
                source.size // draft.bytes_per_frame / draft.sample_rate_hz,
                "the number of bytes, and the stated rate",
            )
        return _told(found, draft, None)
    try:
        start = 0
        while size := id3_size(source.at(start, 10)):
            start += size
        form = sniff(source.at(start, _PREFIX))
        walked = form or BY_EXTENSION.get(draft.extension)
        if walked is not None:
            found.codec = walked.codec
            walk = _WALKS.get(walked.name)
            if walk is not None:
                walk(source, start, found)
    except _DAMAGE:
        pass
    return _told(found, draft, form)


def _told(found: Found, draft: AudioDraft, form: Format | None) -> Examined:
    seconds = found.seconds if found.seconds is not None and 0 <= found.seconds <= _LONGEST else None
    told = AudioFacts(
        duration_seconds=seconds,
        duration_estimated=found.estimated and seconds is not None,
        sample_rate_hz=found.rate or draft.sample_rate_hz,
        channels=found.channels or draft.channels,
        codec=found.codec or draft.codec,
    )
    return Examined(facts=told, form=form, how=found.how)


_WALKS: dict[str, Callable[[Source, int, Found], None]] = {
    "wav": chunked.wav,
    "w64": chunked.w64,
    "aiff": chunked.aiff,
    "au": chunked.au,
    "caf": chunked.caf,
    "mp3": frames,
    "aac": frames,
    "amr-nb": amr,
    "amr-wb": amr_wb,
    "flac": flac,
    "ogg": ogg,
    "mp4": mp4,
    "matroska": matroska,
}
"""Of AC-3 and MPEG-TS only the type is known."""
