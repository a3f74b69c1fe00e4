"""Audio formats: one table of how their bytes begin, of their media types, extensions and codecs; and the facts that bytes tell."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import Body
from receiver.core.event import AudioDraft, AudioFacts
from receiver.system.audio.flac import flac
from receiver.system.audio.matroska import matroska
from receiver.system.audio.mp3_aac import find_frames, frames
from receiver.system.audio.mp4 import mp4
from receiver.system.audio.ogg import ogg
from receiver.system.audio.reading import ID3, Source, note_length, opened
from receiver.system.audio.wav import wav


class Format(Struct, frozen=True):
    """One audio format, as far as bytes or a media type tell it."""

    walk: Callable[[Source, int, AudioFacts], None] | None
    """Reads its facts from a place on; None where only the type is known."""
    content_type: str
    extension: str
    codec: str | None = None
    magic: bytes = rb"(?!)"
    """A pattern of the first bytes; MPEG audio and AAC have none, and are known by their frames."""
    also: str = ""
    """Other subtypes of audio/ by which it goes."""
    video: str | None = None
    """Extension of the same container when it holds video."""
    bytes_per_sample: int = 0
    """Of raw samples, whose bytes tell neither the codec nor the rate; 0 for other formats."""
    certain: bool = True
    """False for a lone frame header, and for frames behind other bytes: raw samples can look like both by chance."""


_EBML = rb"\x1a\x45\xdf\xa3.{,56}?"
# `mp3` and `acc` are misspellings that are in use: Deepgram's API description of 2025 has the latter.
_FORMATS = (
    Format(wav, "audio/wav", "wav", None, rb"(?:RIFF|RF64|BW64)....WAVE", "x-wav wave vnd.wave"),
    Format(frames, "audio/mpeg", "mp3", "mp3", ID3, "mp3 x-mp3"),
    Format(frames, "audio/mpeg", "mp2", "mp2"),
    Format(frames, "audio/aac", "aac", "aac", also="aacp x-aac acc"),
    Format(flac, "audio/flac", "flac", "flac", rb"fLaC", "x-flac"),
    Format(ogg, "audio/ogg;codecs=opus", "ogg", "opus", rb"OggS.{,244}?OpusHead", "opus"),
    Format(ogg, "audio/ogg;codecs=vorbis", "ogg", "vorbis", rb"OggS.{,245}?\x01vorbis"),
    Format(ogg, "audio/ogg;codecs=flac", "ogg", "flac", rb"OggS.{,247}?\x7fFLAC"),
    Format(ogg, "audio/ogg;codecs=speex", "ogg", "speex", rb"OggS.{,244}?Speex   "),
    Format(ogg, "audio/ogg", "ogg", None, rb"OggS"),
    Format(mp4, "audio/mp4", "m4a", None, rb"....ftyp|\0...(?:moov|mdat|wide|styp)", "m4a x-m4a", "mp4"),
    Format(matroska, "audio/webm", "webm", None, _EBML + b"webm", video="webm"),
    Format(matroska, "audio/matroska", "mka", None, _EBML + b"matroska", "x-matroska", "mkv"),
    Format(None, "audio/l16", "raw", "linear16", also="pcm", bytes_per_sample=2),
    Format(None, "audio/mulaw", "raw", "mulaw", also="x-mulaw pcmu basic", bytes_per_sample=1),
    Format(None, "audio/alaw", "raw", "alaw", also="x-alaw pcma", bytes_per_sample=1),
    Format(None, "audio/aiff", "aiff", None, rb"FORM....AIF[FC]", "x-aiff"),
    Format(None, "audio/x-caf", "caf", None, rb"caff"),
    Format(None, "audio/x-w64", "w64", None, rb"riff\x2e\x91\xcf\x11"),
    Format(None, "audio/basic", "au", None, rb"\.snd\0\0(?:\0[\x18-\xff]|[^\0].)", "x-au"),
    Format(None, "audio/amr", "amr", "amr-nb", rb"#!AMR\n"),
    Format(None, "audio/amr-wb", "awb", "amr-wb", rb"#!AMR-WB\n"),
    Format(None, "audio/ac3", "ac3", "ac3", rb"\x0b\x77...[\0-\x57]", "vnd.dolby.dd-raw", certain=False),
    Format(None, "audio/eac3", "eac3", "eac3", rb"\x0b\x77....", certain=False),
    Format(None, "video/mp2t", "ts", None, rb"G.{187}G.{187}G", video="ts"),
)
_MAGIC = re.compile(b"|".join(b"(%b)" % form.magic for form in _FORMATS), re.DOTALL)

RAW_CODECS = {form.codec: form for form in _FORMATS if form.bytes_per_sample and form.codec}
"""By the names Deepgram gives them (https://developers.deepgram.com/docs/tts-media-output-settings)."""
BY_EXTENSION = {form.extension: form for form in reversed(_FORMATS)}
MEDIA_TYPES = {
    media_type: form
    for form in reversed(_FORMATS)  # of two with the same type the first counts
    for media_type in (form.content_type, *(f"audio/{kind}" for kind in form.also.split()))
} | {"application/ogg": BY_EXTENSION["ogg"]}
"""Media types in lower case."""
RAW_MEDIA_TYPES = {media_type for media_type, form in MEDIA_TYPES.items() if form.bytes_per_sample}


def beginning(body: Body) -> bytes:
    """Return the first bytes of what a body holds, which begins behind ID3 tags when it is known there."""
    if not body.prefix.startswith(b"ID3"):
        return body.prefix
    with opened(body.path or body.load()) as file:
        source = Source(file)
        behind = source.at(source.behind_tags(), len(body.prefix))
    return behind if sniff(behind) else body.prefix


@lru_cache(maxsize=16)  # a body is asked about by what proves it, and by what names its type
def sniff(prefix: bytes) -> Format | None:
    """Return the format that the first bytes (4096 are plenty) show, None when they show none."""
    if match := _MAGIC.match(prefix):
        return _FORMATS[(match.lastindex or 1) - 1]
    found = find_frames(prefix) if b"\xff" in prefix else None  # in no text
    return replace(BY_EXTENSION[found[1][0]], certain=found[2]) if found else None


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
