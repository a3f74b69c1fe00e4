"""Finds an audio's facts in its bytes: length, rate, channels and codec, each exact, marked as an estimate, or unknown."""

from __future__ import annotations

import struct
import time

from receiver.core.event import AudioDraft, AudioFacts
from receiver.system.audio.formats import BY_EXTENSION, sniff
from receiver.system.audio.mp3_aac import id3_size
from receiver.system.audio.reading import Found, OutOfTime, Source

_PREFIX = 4096
_LONGEST = 7 * 86400.0  # a length past a week is damage
_DAMAGE = (OutOfTime, OSError, struct.error, LookupError, ValueError, OverflowError, ZeroDivisionError)
SECONDS = 0.5
"""Time limit for reading; the facts known by then are returned."""


def facts(
    audio: str | bytes, draft: AudioDraft, *, deadline_seconds: float = SECONDS, found: Found | None = None
) -> AudioFacts:
    """Return the audio's length, rate, channels and codec, from a file's path or from its bytes.

    `draft` has the rate and codec of raw samples; `found` is told how the length was had. Reads for `deadline_seconds` at most
    and never raises: a fact that cannot be read is None. Blocks; meant for a thread.
    """
    deadline, found = time.monotonic() + deadline_seconds, found or Found()
    try:
        if isinstance(audio, bytes):
            _read(Source(audio, deadline), draft, found)
        else:
            with open(audio, "rb", buffering=0) as file:
                _read(Source(file.fileno(), deadline), draft, found)
    except _DAMAGE:
        pass  # what was known before stays
    seconds = found.seconds if found.seconds is not None and found.seconds <= _LONGEST else None
    return AudioFacts(
        duration_seconds=seconds,
        duration_estimated=found.estimated and seconds is not None,
        sample_rate_hz=found.rate or draft.sample_rate_hz,
        channels=found.channels or draft.channels,
        codec=found.codec or draft.codec,
    )


def _read(source: Source, draft: AudioDraft, found: Found) -> None:
    if draft.bytes_per_frame:
        if draft.sample_rate_hz:
            seconds = source.size // draft.bytes_per_frame / draft.sample_rate_hz
            found.length(seconds, "the number of bytes, and the stated rate")
        return
    start = 0
    while size := id3_size(source.at(start, 10)):
        start += size
    form = sniff(source.at(0 if start + 16 <= _PREFIX else start, _PREFIX)) or BY_EXTENSION.get(
        draft.extension
    )
    if form is not None:
        found.codec = form.codec
        if form.walk:
            form.walk(source, start, found)
