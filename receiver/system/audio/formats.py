"""Audio formats: one table of how their bytes begin, of their media types, extensions and codecs."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import Body
from receiver.system.audio.flac import flac
from receiver.system.audio.matroska import matroska
from receiver.system.audio.mp3_aac import find_frames, frames, id3_size
from receiver.system.audio.mp4 import mp4
from receiver.system.audio.ogg import ogg
from receiver.system.audio.reading import Found, Source
from receiver.system.audio.wav import wav


class Format(Struct, frozen=True):
    """One audio format, as far as bytes or a media type tell it."""

    walk: Callable[[Source, int, Found], None] | None
    """Reads its facts from a place on; None where only the type is known."""
    content_type: str
    extension: str
    """Without the dot."""
    codec: str | None = None
    magic: bytes = rb"(?!)"
    """A pattern of the first bytes; MPEG audio and AAC have none, and are known by their frames."""
    also: str = ""
    """Other subtypes of audio/ by which it goes."""
    video: str | None = None
    """Extension of the same container when it holds video."""
    certain: bool = True
    """False for a lone frame header, and for frames behind other bytes: raw samples can look like both by chance."""


_EBML = rb"\x1a\x45\xdf\xa3.{,56}?"
# `mp3` and `acc` are misspellings that are in use: Deepgram's API description of 2025 has the latter.
_FORMATS = (
    Format(wav, "audio/wav", "wav", None, rb"(?:RIFF|RF64|BW64)....WAVE", "x-wav wave vnd.wave"),
    Format(frames, "audio/mpeg", "mp3", "mp3", also="mp3 x-mp3"),
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


class RawCodec(NamedTuple):
    """Samples without a container: the bytes tell neither the codec nor the rate."""

    media_type: str
    bytes_per_sample: int
    kinds: str
    """The subtypes of audio/ by which it goes."""


RAW_CODECS = {
    "linear16": RawCodec("audio/l16", 2, "l16 pcm"),
    "mulaw": RawCodec("audio/mulaw", 1, "mulaw x-mulaw pcmu basic"),
    "alaw": RawCodec("audio/alaw", 1, "alaw x-alaw pcma"),
}
"""By the names Deepgram gives them (https://developers.deepgram.com/docs/tts-media-output-settings)."""
RAW_MEDIA_TYPES = {f"audio/{kind}": codec for codec, raw in RAW_CODECS.items() for kind in raw.kinds.split()}
BY_EXTENSION = {form.extension: form for form in reversed(_FORMATS)}
MEDIA_TYPES = {"application/ogg": BY_EXTENSION["ogg"]} | {
    media_type: form
    for form in reversed(_FORMATS)  # of two with the same type the first counts
    for media_type in (form.content_type, *(f"audio/{kind}" for kind in form.also.split()))
    if media_type not in RAW_MEDIA_TYPES
}
"""Media types in lower case."""


def beginning(body: Body) -> bytes:
    """Return the first bytes of what a body holds: `body.prefix`, or as many behind an ID3 tag that is longer than it."""
    prefix = body.prefix
    end = id3_size(prefix)
    if not end or end + 16 <= len(prefix) or body.size <= end:
        return prefix
    if body.path is None:
        return body.load()[end : end + len(prefix)]
    with open(body.path, "rb") as file:
        file.seek(end)
        return file.read(len(prefix))


@lru_cache(maxsize=16)
def sniff(prefix: bytes) -> Format | None:
    """Return the format that the first bytes (4096 are plenty) show, None when they show none.

    A callback's body is asked about several times: by what proves it, by what names its type, and by what reads its length.
    """
    if match := _MAGIC.match(prefix):
        return _FORMATS[(match.lastindex or 1) - 1]
    if size := id3_size(prefix):
        return sniff(prefix[size:]) or BY_EXTENSION["mp3"]
    found = find_frames(prefix)
    if found is None:
        return None
    place, stream, count = found
    form = BY_EXTENSION[stream[0]]
    return replace(form, certain=False) if place or count < 2 else form
