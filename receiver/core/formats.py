"""What is known of audio formats: their magic bytes, media types and names. Pure; opens nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Format:
    """One audio format, as far as bytes or a media type tell it."""

    name: str
    """`wav`, `mp3`, `ogg`, `flac`, `aac`, `mp4`, `webm`, `aiff`."""
    content_type: str
    extension: str
    """Without the dot."""
    codec: str | None = None
    certain: bool = True
    """False for a single MPEG or ADTS frame header: raw samples can look like one by chance."""


WAV = Format("wav", "audio/wav", "wav")
MP3 = Format("mp3", "audio/mpeg", "mp3", "mp3")
OGG = Format("ogg", "audio/ogg", "ogg")
OPUS = Format("ogg", "audio/ogg;codecs=opus", "ogg", "opus")
VORBIS = Format("ogg", "audio/ogg;codecs=vorbis", "ogg", "vorbis")
FLAC = Format("flac", "audio/flac", "flac", "flac")
AAC = Format("aac", "audio/aac", "aac", "aac")
MP4 = Format("mp4", "audio/mp4", "m4a")
WEBM = Format("webm", "audio/webm", "webm")
AIFF = Format("aiff", "audio/aiff", "aiff")

MEDIA_TYPES = {
    "audio/wav": WAV,
    "audio/x-wav": WAV,
    "audio/wave": WAV,
    "audio/vnd.wave": WAV,
    "audio/mpeg": MP3,
    "audio/mp3": MP3,
    "audio/ogg": OGG,
    "application/ogg": OGG,
    "audio/opus": OPUS,
    "audio/flac": FLAC,
    "audio/x-flac": FLAC,
    "audio/aac": AAC,
    "audio/aacp": AAC,
    "audio/acc": AAC,
    "audio/mp4": MP4,
    "audio/m4a": MP4,
    "audio/x-m4a": MP4,
    "audio/webm": WEBM,
    "audio/aiff": AIFF,
    "audio/x-aiff": AIFF,
}
"""Media types in lower case. `audio/mp3` and `audio/acc` are misspellings that are in use: Deepgram's API description
of 2025 has the latter."""

BY_NAME = {form.name: form for form in (WAV, MP3, OGG, FLAC, AAC, MP4, WEBM, AIFF)}


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


def sniff(prefix: bytes) -> Format | None:
    """Return the format that the first bytes (4096 are plenty) show by their magic, None when they show none."""
    tag, kind = prefix[:4], prefix[8:12]
    if tag in (b"RIFF", b"RF64", b"BW64"):
        return WAV if kind == b"WAVE" else None
    if tag == b"OggS":
        return OPUS if b"OpusHead" in prefix[:256] else VORBIS if b"\x01vorbis" in prefix[:256] else OGG
    if tag == b"fLaC":
        return FLAC
    if tag == b"FORM":
        return AIFF if kind in (b"AIFF", b"AIFC") else None
    if tag == b"\x1a\x45\xdf\xa3":
        return WEBM if b"webm" in prefix[:64] else None
    if prefix[4:8] == b"ftyp":
        return MP4
    if tag[:3] == b"ID3":
        return MP3 if _is_id3(prefix) else None
    return _frames(prefix)


def _is_id3(prefix: bytes) -> bool:
    return len(prefix) >= 10 and max(prefix[3:5]) < 0xFF and max(prefix[6:10]) < 0x80


def _frames(prefix: bytes) -> Format | None:
    """Recognize MPEG or ADTS frames: the first header, and the second one where the prefix reaches it."""
    for form, length_of, mask in (
        (MP3, mpeg_frame_length, b"\xff\xfe\x0c"),
        (AAC, adts_frame_length, b"\xff\xf0\xfc"),
    ):
        length = length_of(prefix)
        if length is None:
            continue
        following = prefix[length:]
        if len(following) < 7:
            return replace(form, certain=False)
        if length_of(following) is None or _masked(following, mask) != _masked(prefix, mask):
            return None
        return form
    return None


def _masked(header: bytes, mask: bytes) -> bytes:
    """Return the bits of a frame header that stay the same in a whole stream."""
    return bytes(byte & bits for byte, bits in zip(header, mask, strict=False))


_MPEG1_RATES = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
}
_MPEG2_RATES = {
    1: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
}
_MPEG_HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def mpeg_frame_length(header: bytes) -> int | None:
    """Return the length in bytes of the MPEG audio frame that begins here, None when none does (ISO 11172-3, 13818-3)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate, hertz, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 0 or bitrate in (0, 15) or hertz == 3 or header[3] & 3 == 2:
        return None
    kbits = (_MPEG1_RATES if version == 3 else _MPEG2_RATES)[layer][bitrate - 1]
    rate = _MPEG_HERTZ[version][hertz]
    if layer == 3:
        return (12_000 * kbits // rate + padding) * 4
    samples = 72_000 if layer == 1 and version != 3 else 144_000
    return samples * kbits // rate + padding


def adts_frame_length(header: bytes) -> int | None:
    """Return the length in bytes of the ADTS frame (AAC) that begins here, None when none does (ISO 13818-7)."""
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0 or header[2] >> 2 & 15 > 12:
        return None
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return length if length >= 7 else None
