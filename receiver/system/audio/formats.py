"""Audio formats: by their first bytes, by media type, and by the name of a raw encoding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from receiver.core.callback import Body
from receiver.system.audio.frames import find_frames, id3_size


@dataclass(frozen=True, slots=True)
class Format:
    """One audio format, as far as bytes or a media type tell it."""

    name: str
    """What walks it: `wav`, `w64`, `aiff`, `au`, `caf`, `mp3`, `aac`, `ac3`, `amr-nb`, `amr-wb`, `flac`, `ogg`, `mp4`, `matroska`, `ts`."""
    content_type: str
    extension: str
    """Without the dot."""
    codec: str | None = None
    certain: bool = True
    """False for a lone frame header, and for frames behind other bytes: raw samples can look like both by chance."""
    video: tuple[str, str] | None = None
    """Content type and extension of the same container when it holds video."""


WAV = Format("wav", "audio/wav", "wav")
W64 = Format("w64", "audio/x-w64", "w64")
AIFF = Format("aiff", "audio/aiff", "aiff")
AU = Format("au", "audio/basic", "au")
CAF = Format("caf", "audio/x-caf", "caf")
MP3 = Format("mp3", "audio/mpeg", "mp3", "mp3")
MP2 = Format("mp3", "audio/mpeg", "mp2", "mp2")
AAC = Format("aac", "audio/aac", "aac", "aac")
AC3 = Format("ac3", "audio/ac3", "ac3", "ac3")
EAC3 = Format("ac3", "audio/eac3", "eac3", "eac3")
AMR = Format("amr-nb", "audio/amr", "amr", "amr-nb")
AMR_WB = Format("amr-wb", "audio/amr-wb", "awb", "amr-wb")
FLAC = Format("flac", "audio/flac", "flac", "flac")
OGG = Format("ogg", "audio/ogg", "ogg")
OPUS = Format("ogg", "audio/ogg;codecs=opus", "ogg", "opus")
MP4 = Format("mp4", "audio/mp4", "m4a", video=("video/mp4", "mp4"))
WEBM = Format("matroska", "audio/webm", "webm", video=("video/webm", "webm"))
MATROSKA = Format("matroska", "audio/matroska", "mka", video=("video/matroska", "mkv"))
MPEG_TS = Format("ts", "video/mp2t", "ts", video=("video/mp2t", "ts"))

_OGG_CODECS = (
    (b"OpusHead", "opus"),
    (b"\x01vorbis", "vorbis"),
    (b"\x7fFLAC", "flac"),
    (b"Speex   ", "speex"),
)
_BY_CODEC = {"mp3": MP3, "mp2": MP2, "mp1": MP2, "aac": AAC}
_FORMS = (
    WAV,
    W64,
    AIFF,
    AU,
    CAF,
    MP3,
    MP2,
    AAC,
    AC3,
    EAC3,
    AMR,
    AMR_WB,
    FLAC,
    OGG,
    MP4,
    WEBM,
    MATROSKA,
    MPEG_TS,
)
BY_EXTENSION = {form.extension: form for form in _FORMS}

MEDIA_TYPES = {form.content_type: form for form in _FORMS if form not in (MP2, AU)} | {
    "audio/x-wav": WAV,
    "audio/wave": WAV,
    "audio/vnd.wave": WAV,
    "audio/mp3": MP3,
    "audio/x-mp3": MP3,
    "application/ogg": OGG,
    "audio/opus": OPUS,
    "audio/x-flac": FLAC,
    "audio/aacp": AAC,
    "audio/x-aac": AAC,
    "audio/acc": AAC,
    "audio/m4a": MP4,
    "audio/x-m4a": MP4,
    "audio/x-matroska": MATROSKA,
    "audio/x-aiff": AIFF,
    "audio/x-au": AU,
    "audio/vnd.dolby.dd-raw": AC3,
}
"""Media types in lower case. `audio/mp3` and `audio/acc` are misspellings that are in use: Deepgram's API description
of 2025 has the latter."""


@dataclass(frozen=True, slots=True)
class RawCodec:
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

RAW_MEDIA_TYPES = {
    "audio/l16": "linear16",
    "audio/pcm": "linear16",
    "audio/mulaw": "mulaw",
    "audio/x-mulaw": "mulaw",
    "audio/pcmu": "mulaw",
    "audio/basic": "mulaw",
    "audio/alaw": "alaw",
    "audio/x-alaw": "alaw",
    "audio/pcma": "alaw",
}


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
    tag, kind = prefix[:4], prefix[8:12]
    if tag in (b"RIFF", b"RF64", b"BW64"):
        return WAV if kind == b"WAVE" else None
    if tag == b"OggS":
        return _ogg(prefix)
    if tag == b"fLaC":
        return FLAC
    if tag == b"FORM":
        return AIFF if kind in (b"AIFF", b"AIFC") else None
    if tag == b"\x1a\x45\xdf\xa3":
        return WEBM if b"webm" in prefix[:64] else MATROSKA if b"matroska" in prefix[:64] else None
    if prefix[4:8] == b"ftyp" or (tag[:1] == b"\0" and prefix[4:8] in (b"moov", b"mdat", b"wide", b"styp")):
        return MP4
    if tag == b".snd":
        return AU if 24 <= int.from_bytes(prefix[4:8], "big") < 65_536 else None
    if tag == b"caff":
        return CAF
    if tag == b"riff":
        return W64 if prefix[4:8] == b"\x2e\x91\xcf\x11" else None
    if tag == b"#!AM":
        return AMR_WB if prefix[:9] == b"#!AMR-WB\n" else AMR if prefix[:6] == b"#!AMR\n" else None
    if tag[:1] == b"G" and prefix[188:189] == b"G" and prefix[376:377] == b"G":
        return MPEG_TS
    if tag[:3] == b"ID3":
        return (sniff(prefix[size:]) or MP3) if (size := id3_size(prefix)) else None
    if tag[:2] == b"\x0b\x77" and len(prefix) > 5:
        return replace(AC3 if prefix[5] >> 3 <= 10 else EAC3, certain=False)
    found = find_frames(prefix)
    if found is None:
        return None
    place, stream, count = found
    form = _BY_CODEC[stream.codec]
    return replace(form, certain=False) if place or count < 2 else form


def _ogg(prefix: bytes) -> Format:
    for mark, codec in _OGG_CODECS:
        if mark in prefix[:256]:
            return replace(OGG, content_type=f"audio/ogg;codecs={codec}", codec=codec)
    return OGG
