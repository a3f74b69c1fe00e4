"""The outline of an audio file, for drawing: `python -m receiver.system.audio.peaks FILE` prints it as JSON.

A program of its own, since it reads bytes of strangers with a decoder: it bounds its own memory and processor time, runs at
a low priority, and may be killed at any moment.
"""

from __future__ import annotations

import array
import base64
import json
import os
import resource
import sys
from collections.abc import Iterable, Iterator

BUCKETS = 1000
"""Pairs of lowest and highest sample for each channel, whatever the length."""
_CHANNELS = 2
_CPU_SECONDS = 60
_MEMORY_BYTES = 512 * 1024 * 1024
_BLOCK_FRAMES = 65_536


class Undecodable(Exception):
    """The file's bytes are no audio that can be decoded here; the message says why, for a person."""


def outline(blocks: Iterable[array.array[int]], frames: int, channels: int) -> list[str]:
    """Return each channel's peaks as base64 of int8 pairs (lowest, highest); `blocks` hold interleaved 16-bit samples."""
    buckets = max(1, min(BUCKETS, frames))
    lows = [[0] * buckets for _ in range(channels)]
    highs = [[0] * buckets for _ in range(channels)]
    at = 0
    for block in blocks:
        count = len(block) // channels
        begin = 0
        while begin < count:
            bucket = min(buckets - 1, (at + begin) * buckets // frames)
            end = min(count, max(begin + 1, -((bucket + 1) * -frames // buckets) - at))
            end = count if bucket == buckets - 1 else end
            for channel in range(channels):
                part = block[begin * channels + channel : end * channels : channels]
                low, high = min(part), max(part)
                lows[channel][bucket] = min(lows[channel][bucket], low)
                highs[channel][bucket] = max(highs[channel][bucket], high)
            begin = end
        at += count
    return [_packed(lows[channel], highs[channel]) for channel in range(channels)]


def _packed(lows: list[int], highs: list[int]) -> str:
    pairs = array.array(
        "b", [value for pair in zip(lows, highs, strict=True) for value in (pair[0] >> 8, pair[1] >> 8)]
    )
    return base64.b64encode(pairs.tobytes()).decode()


def _decoded(path: str) -> tuple[Iterator[array.array[int]], int, int, float]:
    """Return blocks of samples, frames in all, channels and seconds. Raises `Undecodable`."""
    import miniaudio

    try:
        info = miniaudio.get_file_info(path)
    except miniaudio.DecodeError:
        raise Undecodable("the decoder does not know this format") from None
    if not info.num_frames or not info.nchannels:
        raise Undecodable("the file says that it holds no audio")
    channels = min(info.nchannels, _CHANNELS)

    def blocks() -> Iterator[array.array[int]]:
        yield from miniaudio.stream_file(
            path, nchannels=channels, sample_rate=info.sample_rate, frames_to_read=_BLOCK_FRAMES
        )

    return blocks(), info.num_frames, channels, info.duration


def view(path: str) -> dict[str, object]:
    """Return the outline of an audio file, or why there is none."""
    try:
        blocks, frames, channels, seconds = _decoded(path)
        return {
            "v": 1,
            "seconds": round(seconds, 3),
            "buckets": max(1, min(BUCKETS, frames)),
            "peaks": outline(blocks, frames, channels),
        }
    except Undecodable as error:
        return {"v": 1, "error": str(error)}
    except Exception as error:  # whatever a decoder does with bytes of strangers ends here
        return {"v": 1, "error": f"the decoder gave up ({type(error).__name__})"}


def main() -> None:
    """Print the outline of the file that is named."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    print(json.dumps(view(sys.argv[1])))  # noqa: T201  # this is what the program is for


if __name__ == "__main__":
    main()
