"""Finds an audio's facts in its bytes: length, rate, channels and codec, each exact, marked as an estimate, or unknown."""

from __future__ import annotations

import struct
import time

from receiver.core.event import AudioDraft, AudioFacts
from receiver.system.audio.formats import BY_EXTENSION
from receiver.system.audio.reading import Source, note_length, opened

_DAMAGE = (OSError, struct.error, LookupError, ValueError, ArithmeticError)


def facts(audio: str | bytes, draft: AudioDraft, *, deadline_seconds: float = 0.5) -> AudioFacts:
    """Return the audio's length, rate, channels and codec, from a file's path or from its bytes.

    `draft` has the format, and the rate and codec of raw samples. Takes `deadline_seconds` of processor time at most and never raises: a
    fact that cannot be read is None. Blocks; meant for a thread.
    """
    found = AudioFacts(sample_rate_hz=draft.sample_rate_hz, channels=draft.channels, codec=draft.codec)
    form = BY_EXTENSION.get(draft.extension)
    try:
        with opened(audio) as file:
            source = Source(file, time.thread_time() + deadline_seconds)
            if draft.bytes_per_frame and draft.sample_rate_hz:
                seconds = source.size // draft.bytes_per_frame / draft.sample_rate_hz
                note_length(found, seconds, "the number of bytes, and the stated rate")
            elif form and form.walk:
                form.walk(source, source.behind_tags(), found)
    except _DAMAGE:
        pass  # what was known before stays
    found.sample_rate_hz, found.channels = found.sample_rate_hz or None, found.channels or None  # 0 is damage
    return found
