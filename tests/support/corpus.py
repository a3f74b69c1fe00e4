"""Audio files as encoders write them, the damaged and joined ones made of them, and what decoding each gives.

`tests/corpus/` holds the encoders' files, and in `decoded.json` what decoding gives of every file of the corpus. `python -m tests.support.corpus` makes the files that are not there, this table, and the one in
`docs/audio.md`; it needs ffmpeg, sox, lame, flac, opus-tools, vorbis-tools, speex,
twolame, mkvtoolnix and espeak-ng, which the tests do not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from receiver.core.callback import MemoryBody
from receiver.core.event import AudioDraft, AudioFacts
from receiver.providers.toolkit import audio_draft
from receiver.system.audio.formats import beginning, facts

FOLDER = Path(__file__).parent.parent / "corpus"
TABLE = FOLDER / "decoded.json"
PAGE = FOLDER.parent.parent / "docs" / "audio.md"
TOOLS = (
    *("ffmpeg", "ffprobe", "sox", "lame", "flac", "opusenc"),
    *("oggenc", "speexenc", "twolame", "mkvmerge", "espeak-ng"),
)

_SAY = (
    ("say.wav", 'espeak-ng -v en -s 165 -w $o "Your order is ready"'),
    ("mono.wav", "ffmpeg -i say.wav -t 1.4 -ar 22050 -ac 1 $o"),
    ("m8.wav", "ffmpeg -i say.wav -t 1.2 -ar 8000 -ac 1 $o"),
    ("m16.wav", "ffmpeg -i say.wav -t 1.3 -ar 16000 -ac 1 $o"),
    ("m24.wav", "ffmpeg -i say.wav -t 1.25 -ar 24000 -ac 1 $o"),
    ("s44.wav", "ffmpeg -i say.wav -t 1.1 -af aecho=0.8:0.8:40:0.5 -ar 44100 -ac 2 $o"),
    ("s48.wav", "ffmpeg -i say.wav -t 1.15 -ar 48000 -ac 2 $o"),
    ("six.wav", "ffmpeg -f lavfi -i sine=f=300:r=8000:d=0.7 -ac 6 $o"),
    # Speech with long silences: what a variable bit rate makes most of.
    ("vary.wav", "sox mono.wav $o pad 1.2 2.4"),
    ("m16.raw", "ffmpeg -i m16.wav -f s16le $o"),
    ("cover.png", "ffmpeg -f lavfi -i testsrc=size=160x120 -frames:v 1 $o"),
)
"""What is encoded; not part of the corpus."""

RECIPES: dict[str, str] = {
    # ---- MPEG audio
    "lame-cbr.mp3": "lame --quiet -b 32 mono.wav $o",
    "lame-cbr-stereo.mp3": "lame --quiet -b 96 s44.wav $o",
    "lame-320.mp3": "lame --quiet -b 320 s48.wav $o",
    "lame-v2.mp3": "lame --quiet -V 2 s44.wav $o",
    "lame-v9.mp3": "lame --quiet -V 9 vary.wav $o",
    "lame-abr.mp3": "lame --quiet --abr 40 vary.wav $o",
    "lame-8khz.mp3": "lame --quiet -b 16 m8.wav $o",
    "lame-no-xing.mp3": "lame --quiet -t -b 32 mono.wav $o",
    "lame-vbr-no-xing.mp3": "lame --quiet -t -V 6 vary.wav $o",
    "lame-abr-no-xing.mp3": "lame --quiet -t --abr 32 vary.wav $o",
    "lame-vbr-pipe.mp3": "lame --quiet -V 6 vary.wav - | cat > $o",
    "lame-vbr-stdin.mp3": "lame --quiet -V 6 - - < vary.wav | cat > $o",
    "lame-abr-stdin.mp3": "lame --quiet --abr 40 - - < vary.wav | cat > $o",
    "lame-cbr-stdin.mp3": "lame --quiet -b 48 - - < m24.wav | cat > $o",
    "lame-crc.mp3": "lame --quiet -p -b 48 m24.wav $o",
    "lame-id3v2.mp3": "lame --quiet -b 32 --add-id3v2 --tt Order --ta receiver mono.wav $o",
    "lame-id3v1.mp3": "lame --quiet -b 32 --id3v1-only --tt Order mono.wav $o",
    "lame-free-format.mp3": "lame --quiet --freeformat -b 50 mono.wav $o",
    "lame-replaygain.mp3": "lame --quiet -V 4 --replaygain-accurate m16.wav $o",
    "ffmpeg-cbr.mp3": "ffmpeg -i mono.wav -c:a libmp3lame -b:a 48k $o",
    "ffmpeg-vbr.mp3": "ffmpeg -i vary.wav -c:a libmp3lame -q:a 7 $o",
    "ffmpeg-vbr-pipe.mp3": "ffmpeg -i vary.wav -c:a libmp3lame -q:a 7 -f mp3 - | cat > $o",
    "ffmpeg-abr-pipe.mp3": "ffmpeg -i vary.wav -c:a libmp3lame -abr 1 -b:a 40k -f mp3 - | cat > $o",
    "ffmpeg-vbr-no-xing.mp3": "ffmpeg -i vary.wav -c:a libmp3lame -q:a 7 -write_xing 0 $o",
    "ffmpeg-bare.mp3": "ffmpeg -i m24.wav -c:a libmp3lame -b:a 48k -write_xing 0 -id3v2_version 0 $o",
    "ffmpeg-cover.mp3": "ffmpeg -i mono.wav -i cover.png -map 0 -map 1 -c:a libmp3lame -b:a 32k -c:v copy $o",
    "ffmpeg-shine.mp3": "ffmpeg -i s44.wav -c:a libshine -b:a 128k $o",
    "sox.mp3": "sox mono.wav -C 32 $o",
    "sox-vbr.mp3": "sox vary.wav -C -6.2 $o",
    "sox.mp2": "ffmpeg -i s48.wav -f s16le - | sox -t s16 -r 48000 -c 2 - -C 96 $o",
    "ffmpeg.mp2": "ffmpeg -i s44.wav -c:a mp2 -b:a 96k $o",
    "twolame.mp2": "twolame --quiet -b 64 m24.wav $o",
    "twolame-vbr.mp2": "twolame --quiet --vbr-level 2 s48.wav $o",
    # ---- AAC
    "ffmpeg.aac": "ffmpeg -i mono.wav -c:a aac -b:a 40k $o",
    "ffmpeg-stereo.aac": "ffmpeg -i s44.wav -c:a aac -b:a 80k $o",
    "ffmpeg-vary.aac": "ffmpeg -i vary.wav -c:a aac -q:a 0.5 $o",
    "ffmpeg-8khz.aac": "ffmpeg -i m8.wav -c:a aac $o",
    "ffmpeg-id3.aac": "ffmpeg -i mono.wav -c:a aac -b:a 40k -metadata title=Order -write_id3v2 1 $o",
    "ffmpeg-six.aac": "ffmpeg -i six.wav -c:a aac -b:a 64k $o",
    # ---- MP4
    "ffmpeg.m4a": "ffmpeg -i s44.wav -c:a aac -b:a 80k $o",
    "ffmpeg-mono.m4a": "ffmpeg -i mono.wav -c:a aac -b:a 40k $o",
    "ffmpeg-24khz.mp4": "ffmpeg -i m24.wav -c:a aac -b:a 40k $o",
    "ffmpeg-faststart.m4a": "ffmpeg -i vary.wav -c:a aac -b:a 40k -movflags +faststart $o",
    "ffmpeg-fragmented.mp4": "ffmpeg -i vary.wav -c:a aac -b:a 40k -movflags frag_keyframe+empty_moov -frag_duration 500000 -f mp4 - | cat > $o",
    "ffmpeg-fragmented-moof.mp4": "ffmpeg -i mono.wav -c:a aac -b:a 40k -movflags empty_moov+default_base_moof -frag_duration 300000 $o",
    "ffmpeg-cmaf.mp4": "ffmpeg -i s44.wav -c:a aac -b:a 64k -movflags cmaf -frag_duration 300000 $o",
    "ffmpeg-hybrid.mp4": "ffmpeg -i mono.wav -c:a aac -b:a 40k -movflags frag_keyframe -frag_duration 400000 $o",
    "ffmpeg-dash.mp4": "ffmpeg -i mono.wav -c:a aac -b:a 40k -movflags +dash+global_sidx -frag_duration 400000 $o",
    "ffmpeg-mp3.mp4": "ffmpeg -i mono.wav -c:a libmp3lame -b:a 32k $o",
    "ffmpeg-mp3-stereo.mp4": "ffmpeg -i s44.wav -c:a libmp3lame -b:a 96k $o",
    "ffmpeg-alac.m4a": "ffmpeg -i m16.wav -c:a alac $o",
    "ffmpeg-alac-stereo.m4a": "ffmpeg -i s48.wav -c:a alac $o",
    "ffmpeg-opus.mp4": "ffmpeg -i mono.wav -c:a libopus -b:a 24k $o",
    "ffmpeg-flac.mp4": "ffmpeg -i m8.wav -c:a flac -strict -2 $o",
    "ffmpeg-ac3.mp4": "ffmpeg -i s48.wav -c:a ac3 -b:a 96k $o",
    "ffmpeg-eac3.mp4": "ffmpeg -i s48.wav -c:a eac3 -b:a 96k $o",
    "ffmpeg-video.mp4": "ffmpeg -f lavfi -i color=size=16x16:rate=5:d=1.4 -i mono.wav -c:v mpeg4 -c:a aac -b:a 40k $o",
    "ffmpeg.mov": "ffmpeg -i m8.wav -c:a pcm_s16le $o",
    "ffmpeg-be24.mov": "ffmpeg -i m8.wav -c:a pcm_s24be $o",
    "ffmpeg-float.mov": "ffmpeg -i m8.wav -c:a pcm_f32le $o",
    "ffmpeg-mulaw.mov": "ffmpeg -i m8.wav -c:a pcm_mulaw $o",
    "ffmpeg-alaw.mov": "ffmpeg -i m8.wav -c:a pcm_alaw $o",
    "ffmpeg-aac.mov": "ffmpeg -i mono.wav -c:a aac -b:a 40k $o",
    "ffmpeg-mp3.mov": "ffmpeg -i s44.wav -c:a libmp3lame -b:a 96k $o",
    "ffmpeg.3gp": "sox m8.wav amr.amr-nb && ffmpeg -f amr -i amr.amr-nb -c copy $o",
    # ---- Ogg
    "opusenc.opus": "opusenc --quiet --bitrate 24 m16.wav $o",
    "opusenc-stereo.opus": "opusenc --quiet --bitrate 48 s48.wav $o",
    "opusenc-60ms.opus": "opusenc --quiet --bitrate 16 --framesize 60 m24.wav $o",
    "opusenc-2.5ms.opus": "opusenc --quiet --bitrate 64 --framesize 2.5 m24.wav $o",
    "opusenc-vary.opus": "opusenc --quiet --bitrate 24 vary.wav $o",
    "opusenc-pipe.opus": "opusenc --quiet --bitrate 24 - - < mono.wav | cat > $o",
    "opusenc-long-pages.opus": "opusenc --quiet --bitrate 24 --max-delay 1000 vary.wav $o",
    "opusenc-six.opus": "opusenc --quiet --bitrate 64 six.wav $o",
    "ffmpeg.opus": "ffmpeg -i mono.wav -c:a libopus -b:a 24k $o",
    "ffmpeg-opus.ogg": "ffmpeg -i mono.wav -c:a libopus -b:a 24k -f ogg - | cat > $o",
    "ffmpeg-opus-120ms.ogg": "ffmpeg -i m24.wav -c:a libopus -b:a 16k -frame_duration 120 -application voip $o",
    "ffmpeg-late-opus.ogg": "ffmpeg -i vary.wav -c:a libopus -b:a 24k x.ogg && ffmpeg -ss 2 -i x.ogg -c copy -copyts -avoid_negative_ts disabled $o",
    "oggenc.ogg": "oggenc -Q -q 0 mono.wav -o $o",
    "oggenc-stereo.ogg": "oggenc -Q -q 1 s44.wav -o $o",
    "oggenc-vary.ogg": "oggenc -Q -q -1 vary.wav -o $o",
    "oggenc-pipe.ogg": "oggenc -Q -q 0 - -o - < m16.wav | cat > $o",
    "ffmpeg-vorbis.ogg": "ffmpeg -i s48.wav -c:a libvorbis -q:a 0 $o",
    "sox-vorbis.ogg": "sox m24.wav -C 0 $o",
    "speexenc.spx": "speexenc --quiet m8.wav $o",
    "speexenc-wide.spx": "speexenc --quiet -w m16.wav $o",
    "speexenc-vbr.spx": "speexenc --quiet --vbr --nframes 5 m16.wav $o",
    "ffmpeg-speex.ogg": "ffmpeg -i m16.wav -c:a libspeex $o",
    "flac-in-ogg.oga": "flac --totally-silent --ogg m8.wav -o $o",
    "ffmpeg-flac.ogg": "ffmpeg -i m16.wav -c:a flac $o",
    "ffmpeg-video.ogg": "ffmpeg -f lavfi -i testsrc=size=32x32:rate=5:d=1.4 -i mono.wav -c:v libtheora -c:a libvorbis -q:a 0 $o",
    # ---- FLAC
    "flac.flac": "flac --totally-silent m8.wav -o $o",
    "flac-stereo.flac": "flac --totally-silent s44.wav -o $o",
    "flac-pipe.flac": "flac --totally-silent --force-raw-format --endian=little --sign=signed --channels=1 --bps=16 --sample-rate=16000 - < m16.raw | cat > $o",
    "flac-blocksize.flac": "flac --totally-silent -b 576 m16.wav -o $o",
    "flac-24bit.flac": "sox m8.wav -b 24 x24.wav && flac --totally-silent x24.wav -o $o",
    "ffmpeg.flac": "ffmpeg -i m16.wav -c:a flac $o",
    "ffmpeg-pipe.flac": "ffmpeg -i m16.wav -c:a flac -f flac - | cat > $o",
    "sox.flac": "sox m8.wav $o",
    "sox-pipe.flac": "sox m8.wav -t flac - | cat > $o",
    # ---- WAV and its kin
    "espeak.wav": "espeak-ng -v en -s 450 --stdout 'Ready' > $o",
    "sox.wav": "sox m8.wav $o",
    "sox-pipe.wav": "cat m8.wav | sox -t wav - -t wav - | cat > $o",
    "sox-float.wav": "sox m8.wav -e floating-point -b 32 $o",
    "sox-24bit.wav": "sox m8.wav -b 24 $o",
    "sox-mulaw.wav": "sox m8.wav -e mu-law $o",
    "sox-ima.wav": "sox m8.wav -e ima-adpcm $o",
    "sox-ms-adpcm.wav": "sox m8.wav -e ms-adpcm $o",
    "sox-gsm.wav": "sox m8.wav -e gsm-full-rate $o",
    "ffmpeg-u8.wav": "ffmpeg -i m8.wav -c:a pcm_u8 $o",
    "ffmpeg-16.wav": "ffmpeg -i m16.wav $o",
    "ffmpeg-24.wav": "ffmpeg -i m8.wav -c:a pcm_s24le $o",
    "ffmpeg-32.wav": "ffmpeg -i m8.wav -c:a pcm_s32le $o",
    "ffmpeg-float64.wav": "ffmpeg -i m8.wav -c:a pcm_f64le $o",
    "ffmpeg-alaw.wav": "ffmpeg -i m8.wav -c:a pcm_alaw $o",
    "ffmpeg-six.wav": "ffmpeg -i six.wav $o",
    "ffmpeg-pipe.wav": "ffmpeg -i m8.wav -f wav - | cat > $o",
    "ffmpeg-rf64.wav": "ffmpeg -i m8.wav -rf64 always $o",
    "ffmpeg-ima.wav": "ffmpeg -i m16.wav -c:a adpcm_ima_wav $o",
    "ffmpeg-ms-adpcm.wav": "ffmpeg -i m16.wav -c:a adpcm_ms $o",
    "ffmpeg-g722.wav": "ffmpeg -i m16.wav -c:a g722 $o",
    "ffmpeg-g726.wav": "ffmpeg -i m8.wav -c:a g726 -b:a 32k $o",
    "ffmpeg-gsm.wav": "ffmpeg -i m8.wav -c:a libgsm_ms $o",
    "ffmpeg-mp3.wav": "ffmpeg -i mono.wav -c:a libmp3lame -b:a 32k $o",
    "ffmpeg-mp3-vbr.wav": "ffmpeg -i vary.wav -c:a libmp3lame -q:a 7 $o",
    "ffmpeg-aac.wav": "ffmpeg -i mono.wav -c:a aac -b:a 40k $o",
    "ffmpeg.w64": "ffmpeg -i m8.wav $o",
    "sox.w64": "sox m8.wav $o",
    "ffmpeg.aiff": "ffmpeg -i m8.wav $o",
    "ffmpeg-24.aiff": "ffmpeg -i m8.wav -c:a pcm_s24be $o",
    "sox.aiff": "sox m8.wav $o",
    "sox-pipe.aiff": "sox m8.wav -t aiff - | cat > $o",
    "sox.aifc": "sox m8.wav $o",
    "ffmpeg-mulaw.aifc": "ffmpeg -i m8.wav -c:a pcm_mulaw -f aiff $o",
    "ffmpeg-le.aifc": "ffmpeg -i m8.wav -c:a pcm_s16le -f aiff $o",
    "sox.au": "sox m8.wav $o",
    "sox-mulaw.au": "sox m8.wav -e mu-law $o",
    "sox-pipe.au": "cat m8.wav | sox -t wav - -e a-law -t au - | cat > $o",
    "ffmpeg.au": "ffmpeg -i m8.wav $o",
    "ffmpeg-pipe.au": "ffmpeg -i m8.wav -f au - | cat > $o",
    "ffmpeg-float.au": "ffmpeg -i m8.wav -c:a pcm_f32be $o",
    "ffmpeg.caf": "ffmpeg -i m8.wav -c:a pcm_s16be $o",
    "sox.caf": "sox m8.wav $o",
    "ffmpeg-float.caf": "ffmpeg -i m8.wav -c:a pcm_f32le $o",
    "ffmpeg-alac.caf": "ffmpeg -i m16.wav -c:a alac $o",
    "ffmpeg-opus.caf": "ffmpeg -i m24.wav -c:a libopus -b:a 24k $o",
    "ffmpeg-mulaw.caf": "ffmpeg -i m8.wav -c:a pcm_mulaw $o",
    "ffmpeg-ima.caf": "ffmpeg -i m8.wav -c:a adpcm_ima_qt $o",
    # ---- frames of other kinds
    "sox.amr": "sox m8.wav x.amr-nb && cp x.amr-nb $o",
    "ffmpeg.ac3": "ffmpeg -i s48.wav -c:a ac3 -b:a 96k $o",
    "ffmpeg-mono.ac3": "ffmpeg -i s44.wav -ac 1 -c:a ac3 -b:a 64k $o",
    "ffmpeg-six.ac3": "ffmpeg -i six.wav -ar 48000 -c:a ac3 -b:a 192k $o",
    "ffmpeg.eac3": "ffmpeg -i s48.wav -c:a eac3 -b:a 64k $o",
    # ---- MPEG-TS
    "ffmpeg-aac.ts": "ffmpeg -i mono.wav -c:a aac -b:a 40k $o",
    "ffmpeg-mp3.ts": "ffmpeg -i mono.wav -c:a libmp3lame -b:a 32k $o",
    "ffmpeg-mp2.ts": "ffmpeg -i s44.wav -c:a mp2 -b:a 96k $o",
    "ffmpeg-ac3.ts": "ffmpeg -i s48.wav -c:a ac3 -b:a 96k $o",
    "ffmpeg-opus.ts": "ffmpeg -i mono.wav -c:a libopus -b:a 24k $o",
    "ffmpeg-video.ts": "ffmpeg -f lavfi -i color=size=16x16:rate=5:d=1.4 -i mono.wav -c:v mpeg2video -r 25 -c:a aac -b:a 40k $o",
    # ---- Matroska
    "ffmpeg-opus.webm": "ffmpeg -i mono.wav -c:a libopus -b:a 24k $o",
    "ffmpeg-opus-pipe.webm": "ffmpeg -i mono.wav -c:a libopus -b:a 24k -f webm - | cat > $o",
    "ffmpeg-opus-live.webm": "ffmpeg -i vary.wav -c:a libopus -b:a 24k -f webm -live 1 -cluster_time_limit 500 - | cat > $o",
    "ffmpeg-vorbis.webm": "ffmpeg -i s44.wav -c:a libvorbis -q:a 0 $o",
    "ffmpeg-vorbis-pipe.webm": "ffmpeg -i vary.wav -c:a libvorbis -q:a 0 -f webm - | cat > $o",
    "ffmpeg-video.webm": "ffmpeg -f lavfi -i color=size=16x16:rate=5:d=1.4 -i mono.wav -c:v libvpx -c:a libopus -b:a 24k $o",
    "ffmpeg-aac.mka": "ffmpeg -i mono.wav -c:a aac -b:a 40k $o",
    "ffmpeg-mp3.mka": "ffmpeg -i mono.wav -c:a libmp3lame -b:a 32k $o",
    "ffmpeg-mp3-pipe.mka": "ffmpeg -i vary.wav -c:a libmp3lame -q:a 7 -f matroska - | cat > $o",
    "ffmpeg-flac.mka": "ffmpeg -i m8.wav -c:a flac $o",
    "ffmpeg-ac3.mka": "ffmpeg -i s48.wav -c:a ac3 -b:a 96k $o",
    "ffmpeg-pcm.mka": "ffmpeg -i m8.wav -c:a pcm_s16le $o",
    "ffmpeg-aac-pipe.mka": "ffmpeg -i mono.wav -c:a aac -b:a 40k -f matroska - | cat > $o",
    "mkvmerge-opus.webm": "opusenc --quiet --bitrate 24 m16.wav x.opus && mkvmerge -q -w -o $o x.opus",
    "mkvmerge-mp3.mka": "lame --quiet -V 6 vary.wav x.mp3 && mkvmerge -q -o $o x.mp3",
    "mkvmerge-flac.mka": "flac --totally-silent m8.wav -f -o x.flac && mkvmerge -q -o $o x.flac",
    # ---- samples without a container
    "raw.mulaw": "ffmpeg -i m8.wav -f mulaw $o",
    "raw.alaw": "ffmpeg -i m8.wav -f alaw $o",
    "raw.l16": "ffmpeg -i m8.wav -f s16le $o",
}
"""How each file is made, `$o` being its name."""

RAW = {"raw.mulaw": "mulaw", "raw.alaw": "alaw", "raw.l16": "s16le"}
"""Files that only the job's request explains, and what ffmpeg calls them."""
_ASKED = {"raw.mulaw": "mulaw", "raw.alaw": "alaw", "raw.l16": "linear16"}

ID3 = b"ID3\x04\0\0\0\0\x01\x00TIT2\0\0\0\x07\0\0\x03Order!" + b"\0" * 111
BIG_ID3 = b"ID3\x04\0\0\0\0\x3f\x76" + b"\0" * 8182
_NOISE = bytes((i * i * 31 + i * 7 + 13) % 251 for i in range(1000))


def _read(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def _part(name: str, share: float) -> bytes:
    whole = _read(name)
    return whole[: int(len(whole) * share)]


def _hole(name: str, size: int) -> bytes:
    whole = _read(name)
    return whole[: len(whole) // 2] + whole[len(whole) // 2 + size :]


def _streamed_wav(size: bytes) -> bytes:
    wav = bytearray(_read("ffmpeg-16.wav"))
    wav[4:8] = size
    place = wav.index(b"data") + 4
    wav[place : place + 4] = size
    return bytes(wav)


SPLICED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "id3-before-aac.aac": ("ID3 + ffmpeg.aac", lambda: ID3 + _read("ffmpeg.aac")),
    "big-id3-before-aac.aac": ("8 KB of ID3 + ffmpeg.aac", lambda: BIG_ID3 + _read("ffmpeg.aac")),
    "id3-before-flac.flac": ("ID3 + flac.flac", lambda: ID3 + _read("flac.flac")),
    "big-id3-before-flac.flac": ("8 KB of ID3 + flac.flac", lambda: BIG_ID3 + _read("flac.flac")),
    "id3-twice.mp3": ("ID3 + ID3 + lame-cbr.mp3", lambda: ID3 + ID3 + _read("lame-cbr.mp3")),
    "big-id3.mp3": ("8 KB of ID3 + lame-vbr-no-xing.mp3", lambda: BIG_ID3 + _read("lame-vbr-no-xing.mp3")),
    "within-frame.mp3": ("lame-no-xing.mp3 from byte 57", lambda: _read("lame-no-xing.mp3")[57:]),
    "within-frame-cbr.mp3": (
        "ffmpeg-bare.mp3 from its middle",
        lambda: _read("ffmpeg-bare.mp3")[len(_read("ffmpeg-bare.mp3")) // 3 + 11 :],
    ),
    "behind-zeros.mp3": ("700 zeros + lame-cbr.mp3", lambda: bytes(700) + _read("lame-cbr.mp3")),
    "behind-noise.mp3": ("1,000 bytes of noise + lame-no-xing.mp3", lambda: _NOISE + _read("lame-no-xing.mp3")),
    "zeros-behind.mp3": ("lame-no-xing.mp3 + 3,000 zeros", lambda: _read("lame-no-xing.mp3") + bytes(3000)),
    "joined.mp3": ("lame-v9.mp3 + lame-v9.mp3", lambda: _read("lame-v9.mp3") * 2),
    "joined-no-xing.mp3": ("lame-vbr-no-xing.mp3 three times", lambda: _read("lame-vbr-no-xing.mp3") * 3),
    "joined-id3.mp3": (
        "lame-id3v2.mp3 + lame-id3v2.mp3 + lame-id3v1.mp3",
        lambda: _read("lame-id3v2.mp3") * 2 + _read("lame-id3v1.mp3"),
    ),
    "joined-vbr-after-cbr.mp3": (
        "lame-no-xing.mp3 + lame-v9.mp3",
        lambda: _read("lame-no-xing.mp3") + _read("lame-v9.mp3"),
    ),
    "cut.mp3": ("lame-v9.mp3, its first 60 %", lambda: _part("lame-v9.mp3", 0.6)),
    "cut-cbr.mp3": ("lame-cbr.mp3, its first 45 %", lambda: _part("lame-cbr.mp3", 0.45)),
    "cut-no-xing.mp3": ("lame-vbr-no-xing.mp3, its first 70 %", lambda: _part("lame-vbr-no-xing.mp3", 0.7)),
    "hole.mp3": (
        "lame-vbr-no-xing.mp3 without 500 bytes of its middle",
        lambda: _read("lame-vbr-no-xing.mp3")[:4000] + _read("lame-vbr-no-xing.mp3")[4500:],
    ),
    "hole.aac": ("ffmpeg-vary.aac without 900 bytes of its middle", lambda: _hole("ffmpeg-vary.aac", 900)),
    "hole.opus": ("opusenc-vary.opus without 3,000 bytes of its middle", lambda: _hole("opusenc-vary.opus", 3000)),
    "hole.ogg": ("oggenc-vary.ogg without 2,000 bytes of its middle", lambda: _hole("oggenc-vary.ogg", 2000)),
    "hole.webm": ("ffmpeg-opus-live.webm without 700 bytes of its middle", lambda: _hole("ffmpeg-opus-live.webm", 700)),
    "hole.mp4": ("ffmpeg-fragmented.mp4 without 700 bytes of its middle", lambda: _hole("ffmpeg-fragmented.mp4", 700)),
    "ape-tag.mp3": (
        "lame-no-xing.mp3 + APEv2 tag",
        lambda: _read("lame-no-xing.mp3") + b"APETAGEX\xd0\x07\0\0\x20\0\0\0\0\0\0\0\0\0\0\x80" + bytes(8)
        + b"APETAGEX\xd0\x07\0\0\x20\0\0\0\0\0\0\0\0\0\0\0" + bytes(8),
    ),
    "joined.aac": ("ffmpeg.aac + ffmpeg.aac", lambda: _read("ffmpeg.aac") * 2),
    "cut.aac": ("ffmpeg-vary.aac, its first 55 %", lambda: _part("ffmpeg-vary.aac", 0.55)),
    "within-frame.aac": ("ffmpeg.aac from byte 33", lambda: _read("ffmpeg.aac")[33:]),
    "cut-moov-first.m4a": ("ffmpeg-faststart.m4a, its first 70 %", lambda: _part("ffmpeg-faststart.m4a", 0.7)),
    "cut-moov-last.m4a": ("ffmpeg.m4a, its first 70 %", lambda: _part("ffmpeg.m4a", 0.7)),
    "cut-fragmented.mp4": ("ffmpeg-fragmented.mp4, its first 60 %", lambda: _part("ffmpeg-fragmented.mp4", 0.6)),
    "chained.opus": ("opusenc.opus + opusenc-vary.opus", lambda: _read("opusenc.opus") + _read("opusenc-vary.opus")),
    "chained-pipe.opus": ("opusenc-pipe.opus three times", lambda: _read("opusenc-pipe.opus") * 3),
    "chained.ogg": ("oggenc.ogg + oggenc-vary.ogg", lambda: _read("oggenc.ogg") + _read("oggenc-vary.ogg")),
    "chained.oga": ("flac-in-ogg.oga + flac-in-ogg.oga", lambda: _read("flac-in-ogg.oga") * 2),
    "chained.spx": ("speexenc.spx + speexenc.spx", lambda: _read("speexenc.spx") * 2),
    "cut.opus": ("opusenc-vary.opus, its first 60 %", lambda: _part("opusenc-vary.opus", 0.6)),
    "cut.ogg": ("oggenc-vary.ogg, its first 60 %", lambda: _part("oggenc-vary.ogg", 0.6)),
    "cut.flac": ("flac-blocksize.flac, its first 60 %", lambda: _part("flac-blocksize.flac", 0.6)),
    "cut-last-frame.flac": ("flac-blocksize.flac without its last 40 bytes", lambda: _read("flac-blocksize.flac")[:-40]),
    "cut-pipe.flac": ("ffmpeg-pipe.flac, its first 60 %", lambda: _part("ffmpeg-pipe.flac", 0.6)),
    "cut.wav": ("ffmpeg-16.wav, its first 60 %", lambda: _part("ffmpeg-16.wav", 0.6)),
    "cut-ima.wav": ("sox-ima.wav, its first 60 %", lambda: _part("sox-ima.wav", 0.6)),
    "size-0.wav": ("ffmpeg-16.wav with sizes of 0", lambda: _streamed_wav(b"\0\0\0\0")),
    "size-7fffffff.wav": ("ffmpeg-16.wav with sizes of 0x7FFFFFFF", lambda: _streamed_wav(b"\xff\xff\xff\x7f")),
    "size-7ffff000.wav": ("ffmpeg-16.wav with sizes of 0x7FFFF000", lambda: _streamed_wav(b"\x00\xf0\xff\x7f")),
    "cut.w64": ("ffmpeg.w64, its first 60 %", lambda: _part("ffmpeg.w64", 0.6)),
    "cut.aiff": ("ffmpeg.aiff, its first 60 %", lambda: _part("ffmpeg.aiff", 0.6)),
    "cut.au": ("ffmpeg.au, its first 60 %", lambda: _part("ffmpeg.au", 0.6)),
    "cut.caf": ("ffmpeg.caf, its first 60 %", lambda: _part("ffmpeg.caf", 0.6)),
    "cut-alac.caf": ("ffmpeg-alac.caf, its first 60 %", lambda: _part("ffmpeg-alac.caf", 0.6)),
    "cut.amr": ("sox.amr, its first 60 %", lambda: _part("sox.amr", 0.6)),
    "silence.awb": ("60 frames of AMR-WB", lambda: b"#!AMR-WB\n" + (b"\x04" + bytes(17)) * 60),
    "cut.ac3": ("ffmpeg.ac3, its first 60 %", lambda: _part("ffmpeg.ac3", 0.6)),
    "joined.ac3": ("ffmpeg.ac3 + ffmpeg.ac3", lambda: _read("ffmpeg.ac3") * 2),
    "cut.ts": ("ffmpeg-aac.ts, its first 60 %", lambda: _part("ffmpeg-aac.ts", 0.6)),
    "cut.webm": ("ffmpeg-opus.webm, its first 60 %", lambda: _part("ffmpeg-opus.webm", 0.6)),
    "cut-vorbis.webm": ("ffmpeg-vorbis.webm, its first 60 %", lambda: _part("ffmpeg-vorbis.webm", 0.6)),
    "cut-mp3.mka": ("mkvmerge-mp3.mka, its first 60 %", lambda: _part("mkvmerge-mp3.mka", 0.6)),
    "cut-flac.mka": ("mkvmerge-flac.mka, its first 80 %", lambda: _part("mkvmerge-flac.mka", 0.8)),
    "one-frame.mp3": ("lame-no-xing.mp3, its first frame", lambda: _read("lame-no-xing.mp3")[:104]),
}  # fmt: skip
"""What senders, proxies and cut connections make of the encoders' files: what it is, and its bytes."""


def names() -> list[str]:
    """Return the names of all files of the corpus."""
    return [*RECIPES, *SPLICED]


def content(name: str) -> bytes:
    """Return the bytes of one file of the corpus."""
    return SPLICED[name][1]() if name in SPLICED else _read(name)


def table() -> dict[str, dict[str, Any]]:
    """Return what decoding gives of each file, as it was recorded."""
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text("utf-8"))
    return found


# ---------------------------------------------------------------- what the event says, and whether it is so

_NAMES = {"gsm_ms": "gsm", "adpcm_g722": "g722", "adpcm_g726": "g726", "amr_nb": "amr-nb", "amr_wb": "amr-wb"}
_NAMES |= {"pcm_mulaw": "mulaw", "pcm_alaw": "alaw", "pcm_u8": "linear8"}


def codec_name(decoder: str) -> str:
    """Return what events call the codec that ffmpeg calls `decoder`."""
    if decoder in _NAMES:
        return _NAMES[decoder]
    if decoder.startswith("pcm_f"):
        return "float"
    if decoder.startswith("pcm_s"):
        return "linear" + decoder[5:].rstrip("bel")
    return "adpcm" if decoder.startswith("adpcm_") else decoder


def draft(name: str, media_type: str = "") -> AudioDraft:
    """Return what is known of a file of the corpus by its bytes and, for raw samples, by the job's request."""
    asked = {"encoding": _ASKED[name], "sample_rate": 8000} if name in RAW else {}
    return audio_draft(media_type, {}, beginning(MemoryBody(content(name))), asked)


def told(audio: bytes, path: Path | None = None) -> AudioFacts:
    """Return the facts of a body of which the sender said nothing, from memory or from a file that holds it."""
    drafted = audio_draft("", {}, beginning(MemoryBody(audio)), {})
    return facts(audio if path is None else str(path), drafted)


def errors(name: str, said: AudioFacts, row: Mapping[str, Any]) -> list[str]:
    """Return which facts are wrong: a certain length by more than 1 % of what decoding gives, an estimate by more than 5 %."""
    if row["codec"] is None:  # no decoder takes it: only a length would be wrong
        return ["a length"] if said.duration_seconds is not None else []
    known = {
        "codec": codec_name(row["codec"]),
        "sample_rate_hz": row["sample_rate_hz"],
        "channels": row["channels"],
    }
    found = [
        f"{fact} {value}, not {known[fact]}"
        for fact in known
        if (value := getattr(said, fact)) not in (None, known[fact])
    ]
    if said.duration_seconds is not None:
        off, allowed = abs(said.duration_seconds - row["seconds"]), 0.05 if said.duration_estimated else 0.01
        if off > allowed * row["seconds"] + 1e-4:
            found.append(f"length {said.duration_seconds:.4f}, not {row['seconds']}")
    return found


def page() -> str:
    """Return the table of `docs/audio.md`."""
    lines = ["| file | made by | decoding gives | the event says |", "|---|---|---|---|"]
    for name, row in table().items():
        said = facts(content(name), draft(name))
        made = (
            SPLICED[name][0]
            if name in SPLICED
            else f"`{RECIPES[name].replace('$o', name).replace('|', chr(92) + '|')}`"
        )
        given = (
            "nothing"
            if row["codec"] is None
            else _line(codec_name(row["codec"]), row, f"{row['seconds']:.3f} s")
        )
        length = said.duration_seconds
        told = "no length" if length is None else f"{'about ' * said.duration_estimated}{length:.3f} s"
        event = {"sample_rate_hz": said.sample_rate_hz, "channels": said.channels}
        lines.append(f"| {name} | {made} | {given} | {_line(said.codec, event, told)} |")
    return "\n".join(lines) + "\n"


def _line(codec: str | None, row: Mapping[str, Any], length: str) -> str:
    rate, channels = row["sample_rate_hz"], row["channels"]
    return ", ".join(
        (codec or "no codec", f"{rate} Hz" if rate else "no rate", f"{channels or 'no'} ch", length)
    )


# ---------------------------------------------------------------- making it again


def missing_tools() -> list[str]:
    """Return which of the encoders and decoders this machine has not."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def make(folder: Path, recipes: Mapping[str, str] = RECIPES) -> list[str]:
    """Make files in `folder`; return the names of those that this machine's encoders cannot make."""
    failed, needed = [], " ".join(recipes.values())
    said: list[tuple[str, str]] = []
    for name, command in reversed(_SAY):
        if name in needed:
            said.insert(0, (name, command))
            needed += command
    for name, command in (*said, *recipes.items()):
        line = command.replace("$o", name).replace("ffmpeg ", "ffmpeg -nostdin -v error -y ")
        done = subprocess.run(  # noqa: S602 - pipes, as people write them
            line, shell=True, cwd=folder, capture_output=True, check=False
        )
        path = folder / name
        if done.returncode or not path.exists() or not path.stat().st_size:
            failed.append(name)
            sys.stderr.write(f"{name}: {done.stderr.decode(errors='replace')[-400:]}\n")
    return failed


def decoded(path: Path) -> dict[str, Any]:
    """Return what ffmpeg makes of a file's first stream of sound: codec, rate, channels, and the seconds it decodes to."""
    raw = RAW.get(path.name)
    given = ["-f", raw, "-ar", "8000"] if raw else []
    probed = subprocess.run(
        [
            *("ffprobe", "-v", "error", *given, "-select_streams", "a:0", "-of", "json"),
            *("-show_entries", "stream=codec_name,sample_rate,channels", str(path)),
        ],
        capture_output=True,
        check=False,
    )
    streams = json.loads(probed.stdout or b"{}").get("streams") or [{}]
    rate, channels = int(streams[0].get("sample_rate") or 0), int(streams[0].get("channels") or 0)
    if not rate or not channels:
        return {"codec": None, "sample_rate_hz": None, "channels": None, "seconds": None}
    seconds = _reference(path, rate, channels)
    if seconds is not None:
        return {
            "codec": streams[0].get("codec_name"),
            "sample_rate_hz": rate,
            "channels": channels,
            "seconds": seconds,
        }
    sound = subprocess.run(
        [
            *("ffmpeg", "-nostdin", "-v", "error", *given, "-i", str(path), "-map", "0:a:0"),
            *("-ac", "1", "-ar", str(rate), "-f", "s16le", "-"),
        ],
        capture_output=True,
        check=False,
    ).stdout
    return {
        "codec": streams[0].get("codec_name"),
        "sample_rate_hz": rate,
        "channels": channels,
        "seconds": round(len(sound) / 2 / rate, 4),
    }


def _reference(path: Path, rate: int, channels: int) -> float | None:
    """Return the seconds that a codec's own decoder gives, where ffmpeg's leaves frames out; None for other files."""
    if path.suffix == ".flac":
        command = f"flac -dcF --totally-silent --force-raw-format --endian=little --sign=signed {path}"
        bits = 3 if "24bit" in path.name else 2
    elif path.suffix in (".amr", ".3gp"):
        command = f"ffmpeg -v error -i {path} -c copy -f amr - | sox -t amr-nb - -t s16 -"
        bits = 2
    else:
        return None
    sound = subprocess.run(  # noqa: S602 - pipes, as people write them
        command, shell=True, capture_output=True, check=False
    ).stdout
    return round(len(sound) / bits / channels / rate, 4)


def main() -> None:
    """Make what is missing, and both tables."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        FOLDER.mkdir(exist_ok=True)
        wanted = {name: line for name, line in RECIPES.items() if not (FOLDER / name).exists()}
        failed = make(folder, wanted)
        for name in wanted:
            if name not in failed:
                shutil.copyfile(folder / name, FOLDER / name)
        rows = {}
        for name in names():
            path = folder / name
            if name not in failed:
                path.write_bytes(content(name))
                rows[name] = decoded(path)
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    write_page()


def write_page() -> None:
    """Put the table into its page."""
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text[: text.index("| file |")] + page(), "utf-8")


if __name__ == "__main__":
    main()
