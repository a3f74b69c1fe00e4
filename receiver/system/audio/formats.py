"""Audio formats: one table of how their bytes begin, of their media types, extensions and codecs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from receiver.core.callback import Body
from receiver.system.audio.frames import find_frames, id3_size


@dataclass(frozen=True, slots=True)
class Format:
    """One audio format, as far as bytes or a media type tell it."""

    walk: str
    """The function that reads its facts; "" where only the type is known."""
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
    Format("wav", "audio/wav", "wav", None, rb"(?:RIFF|RF64|BW64)....WAVE", "x-wav wave vnd.wave"),
    Format("frames", "audio/mpeg", "mp3", "mp3", also="mp3 x-mp3"),
    Format("frames", "audio/mpeg", "mp2", "mp2"),
    Format("frames", "audio/aac", "aac", "aac", also="aacp x-aac acc"),
    Format("flac", "audio/flac", "flac", "flac", rb"fLaC", "x-flac"),
    Format("ogg", "audio/ogg;codecs=opus", "ogg", "opus", rb"OggS.{,244}?OpusHead", "opus"),
    Format("ogg", "audio/ogg;codecs=vorbis", "ogg", "vorbis", rb"OggS.{,245}?\x01vorbis"),
    Format("ogg", "audio/ogg;codecs=flac", "ogg", "flac", rb"OggS.{,247}?\x7fFLAC"),
    Format("ogg", "audio/ogg;codecs=speex", "ogg", "speex", rb"OggS.{,244}?Speex   "),
    Format("ogg", "audio/ogg", "ogg", None, rb"OggS"),
    Format("mp4", "audio/mp4", "m4a", None, rb"....ftyp|\0...(?:moov|mdat|wide|styp)", "m4a x-m4a", "mp4"),
    Format("matroska", "audio/webm", "webm", None, _EBML + b"webm", video="webm"),
    Format("matroska", "audio/matroska", "mka", None, _EBML + b"matroska", "x-matroska", "mkv"),
    Format("aiff", "audio/aiff", "aiff", None, rb"FORM....AIF[FC]", "x-aiff"),
    Format("caf", "audio/x-caf", "caf", None, rb"caff"),
    Format("wav", "audio/x-w64", "w64", None, rb"riff\x2e\x91\xcf\x11"),
    Format("au", "audio/basic", "au", None, rb"\.snd\0\0(?:\0[\x18-\xff]|[^\0].)", "x-au"),
    Format("amr", "audio/amr", "amr", "amr-nb", rb"#!AMR\n"),
    Format("amr", "audio/amr-wb", "awb", "amr-wb", rb"#!AMR-WB\n"),
    Format("", "audio/ac3", "ac3", "ac3", rb"\x0b\x77...[\0-\x57]", "vnd.dolby.dd-raw", certain=False),
    Format("", "audio/eac3", "eac3", "eac3", rb"\x0b\x77....", certain=False),
    Format("", "video/mp2t", "ts", None, rb"G.{187}G.{187}G", video="ts"),
)
_MAGIC = re.compile(b"|".join(b"(%b)" % form.magic for form in _FORMATS), re.DOTALL)


class RawCodec(NamedTuple):
    """Samples without a container: the bytes tell neither the codec nor the rate."""

    codec: str
    media_type: str
    bytes_per_sample: int


RAW_CODECS = {
    "linear16": RawCodec("linear16", "audio/l16", 2),
    "mulaw": RawCodec("mulaw", "audio/mulaw", 1),
    "alaw": RawCodec("alaw", "audio/alaw", 1),
}
"""By the names Deepgram gives them (https://developers.deepgram.com/docs/tts-media-output-settings)."""
_RAW = {"linear16": "l16 pcm", "mulaw": "mulaw x-mulaw pcmu basic", "alaw": "alaw x-alaw pcma"}
RAW_MEDIA_TYPES = {f"audio/{kind}": codec for codec, kinds in _RAW.items() for kind in kinds.split()}
BY_EXTENSION = {form.extension: form for form in reversed(_FORMATS)}
MEDIA_TYPES = {"application/ogg": BY_EXTENSION["ogg"]} | {
    media_type: form
    for form in reversed(_FORMATS)  # of two with the same type the first counts
    for media_type in (form.content_type, *(f"audio/{kind}" for kind in form.also.split()))
    if media_type not in RAW_MEDIA_TYPES
}
"""Media types in lower case."""

_CODECS = {
    "linear": (b"NONE", b"sowt", b"twos", b"lpcm", b"ipcm", b"raw ", b"A_PCM/INT/LIT", b"A_PCM/INT/BIG"),
    "linear24": (b"in24",),
    "linear32": (b"in32",),
    "float": (b"fl32", b"FL32", b"fl64", b"FL64", b"A_PCM/FLOAT/IEEE"),
    "mulaw": (b"ulaw", b"ULAW"),
    "alaw": (b"alaw", b"ALAW"),
    "adpcm": (b"ima4",),
    "mp3": (b".mp3", b"ms\0\x55", b"A_MPEG/L3"),
    "mp2": (b"A_MPEG/L2",),
    "aac": (b"aac ", b"A_AAC"),
    "alac": (b"alac", b"A_ALAC"),
    "flac": (b"flac", b"fLaC", b"A_FLAC"),
    "opus": (b"opus", b"Opus", b"A_OPUS"),
    "vorbis": (b"A_VORBIS",),
    "ac3": (b"ac-3", b"A_AC3"),
    "eac3": (b"ec-3", b"A_EAC3"),
    "amr-nb": (b"samr",),
    "amr-wb": (b"sawb",),
}
CODECS = {name: codec for codec, names in _CODECS.items() for name in names}
"""By what AIFF, CAF, MP4 and Matroska call them; `linear` goes on with the bits of a sample."""

LOSSLESS = ("alac", "flac", "linear", "float", "mulaw", "alaw")
"""How the codecs begin whose last frame has no padding."""


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


def sniff(prefix: bytes) -> Format | None:
    """Return the format that the first bytes (4096 are plenty) show, None when they show none."""
    if match := _MAGIC.match(prefix):
        return _FORMATS[(match.lastindex or 1) - 1]
    if size := id3_size(prefix):
        return sniff(prefix[size:]) or BY_EXTENSION["mp3"]
    found = find_frames(prefix)
    if found is None:
        return None
    place, stream, count = found
    form = BY_EXTENSION.get(stream.codec) or BY_EXTENSION["mp2"]
    return replace(form, certain=False) if place or count < 2 else form
