"""The outline of an audio file, for drawing: `python -m receiver.system.audio.peaks FILE` prints it as JSON.

A program of its own, since it reads bytes of strangers with a decoder: it bounds its own memory and processor time, runs at
a low priority, and may be killed at any moment.
"""

from __future__ import annotations

import array
import base64
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

import msgspec
from msgspec import Struct

BUCKETS = 1000
"""Pairs of lowest and highest sample for each channel, whatever the length."""
NEEDS_AV = "only WAV, MP3, FLAC and Ogg Vorbis are drawn: Opus, AAC, MP4 and WebM need receiver’s extra [av]"
_CHANNELS = 2
_CPU_SECONDS = 60
_MEMORY_BYTES = 512 * 1024 * 1024
_BLOCK_FRAMES = 65_536
_FILES_ALONE = {
    "format_whitelist": "aac,ac3,aiff,amr,au,caf,eac3,matroska,mov,mp3,mpegts,ogg,w64,wav",
    "protocol_whitelist": "file",
}
"""What FFmpeg may open: no playlist, which could name other files."""
Lane = list[tuple[int, int]]
"""The lowest and the highest sample of each part of a channel."""


class Outline(Struct, frozen=True, kw_only=True):
    """The highest and lowest samples of an audio, or why there are none."""

    seconds: float | None = None
    buckets: int = 0
    peaks: tuple[str, ...] = ()
    """For each channel, base64 of `buckets` pairs of int8: lowest, highest."""
    error: str | None = None


class Undecodable(Exception):
    """The file's bytes are no audio that can be decoded here; the message says why, for a person."""


def outline(blocks: Iterable[array.array[int]], rate: int, channels: int) -> Outline:
    """Return the outline of interleaved 16-bit samples. Their number is counted: what a file states may be wrong."""
    lanes: list[Lane] = [[] for _ in range(channels)]
    step, frames, held = 1, 0, array.array("h")
    for block in chain(blocks, (None,)):
        held += block or held[:0]
        frames += len(block or ()) // channels
        size = step * channels
        end = len(held) // size * size if block else len(held)
        for at in range(0, end, size):
            for number, lane in enumerate(lanes):
                part = held[at + number : min(at + size, end) : channels]
                lane.append((min(part), max(part)))
        held = held[end:]
        while len(lanes[0]) > 4 * BUCKETS:
            lanes, step = [_merged(lane, len(lane) // 2) for lane in lanes], 2 * step
    if not frames:
        raise Undecodable("the file holds no audio")
    buckets = min(BUCKETS, len(lanes[0]))
    peaks = tuple(_packed(_merged(lane, buckets)) for lane in lanes)
    return Outline(seconds=round(frames / rate, 3), buckets=buckets, peaks=peaks)


def _merged(lane: Lane, count: int) -> Lane:
    """Return the lane in so many parts."""
    parts = [lane[a:b] for a, b in pairwise(number * len(lane) // count for number in range(count + 1))]
    return [(min(low for low, _ in part), max(high for _, high in part)) for part in parts]


def _packed(lane: Lane) -> str:
    values = [value >> 8 for low, high in lane for value in (min(0, low), max(0, high))]
    return base64.b64encode(array.array("b", values).tobytes()).decode()


def _decoded(path: str) -> tuple[Iterator[array.array[int]], int, int]:
    """Return blocks of interleaved samples, frames in a second, and channels; by miniaudio, else by PyAV. Raises `Undecodable`."""
    import miniaudio

    try:
        info = miniaudio.get_file_info(path)
    except miniaudio.DecodeError:
        return _decoded_by_av(path)
    channels, rate = min(info.nchannels, _CHANNELS), info.sample_rate
    blocks = miniaudio.stream_file(path, nchannels=channels, sample_rate=rate, frames_to_read=_BLOCK_FRAMES)
    return blocks, rate, channels


def _decoded_by_av(path: str) -> tuple[Iterator[array.array[int]], int, int]:
    try:
        import av
    except ImportError:
        raise Undecodable(NEEDS_AV) from None
    try:
        container = av.open(path, options=_FILES_ALONE)
    except av.FFmpegError:
        raise Undecodable("the decoder does not know this format") from None
    if not container.streams.audio:
        raise Undecodable("the file holds no audio")
    stream = container.streams.audio[0]
    channels = min(stream.channels, _CHANNELS)
    resampler = av.AudioResampler(format="s16", layout=("mono", "stereo")[channels - 1], rate=stream.rate)

    def blocks() -> Iterator[array.array[int]]:
        for frame in chain(container.decode(stream), (None,)):
            for made in resampler.resample(frame):
                yield array.array("h", bytes(made.planes[0])[: 2 * channels * made.samples])

    return blocks(), stream.rate, channels


def view(path: str) -> Outline:
    """Return the outline of an audio file, or why there is none."""
    try:
        return outline(*_decoded(path))
    except Undecodable as error:
        return Outline(error=str(error))
    except Exception as error:  # whatever a decoder does with bytes of strangers ends here
        return Outline(error=f"the decoder gave up ({type(error).__name__})")


def main() -> None:
    """Print the outline of the file that is named."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    print(msgspec.json.encode(view(sys.argv[1])).decode())  # noqa: T201  # this is what the program is for


if __name__ == "__main__":
    main()
