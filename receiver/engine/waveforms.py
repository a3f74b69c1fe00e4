"""Waveforms for the console: computed once, on the first request, by a limited child process, and stored beside the audio."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

import msgspec

from receiver.core.callback import MemoryBody
from receiver.core.errors import NotFound
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.keys import outline_of

_SECONDS = 60.0
_WAITING = 8
_FETCHED_BYTES = 64 * 1024 * 1024
"""The largest object that is downloaded from S3 for its waveform, in bytes."""
_OUTLINE_BYTES = 64 * 1024


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """The highest and lowest samples of an audio, or why there are none."""

    v: int = 1
    seconds: float | None = None
    buckets: int = 0
    peaks: tuple[str, ...] = ()
    """For each channel, base64 of `buckets` pairs of int8: lowest, highest."""
    error: str | None = None


class Waveforms:
    """Computes waveforms, one at a time. No callback waits for them."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._one = asyncio.Semaphore(1)
        self._waiting = 0

    async def of(self, key: str, *, size: int) -> Outline:
        """Return the outline of the audio `key` with `size` bytes. Raises `NotFound` without it, `BlobsUnavailable`.

        What cannot be decoded is remembered as that, and not tried at each view.
        """
        with contextlib.suppress(NotFound):
            return msgspec.json.decode(await self._blobs.get(outline_of(key)), type=Outline)
        if self._waiting >= _WAITING:
            return Outline(error="others are drawn first: load the page again in a moment")
        self._waiting += 1
        try:
            async with self._one:
                outline = await self._make(key, size)
        finally:
            self._waiting -= 1
        body = MemoryBody(msgspec.json.encode(outline))
        await self._blobs.put(outline_of(key), body, content_type="application/json")
        return outline

    async def _make(self, key: str, size: int) -> Outline:
        found = await asyncio.to_thread(self._blobs.local, key)
        if found is not None:
            return await _outline(found.path)
        if size > _FETCHED_BYTES:
            return Outline(error=f"only files up to {_FETCHED_BYTES >> 20} MiB are fetched for drawing")
        content = await self._blobs.get(key)
        with tempfile.TemporaryDirectory(prefix="receiver-") as folder:
            path = Path(folder, "audio")
            await asyncio.to_thread(path.write_bytes, content)
            return await _outline(str(path))


async def _outline(path: str) -> Outline:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "receiver.system.audio.peaks",
        path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            printed, _ = await child.communicate()
    except TimeoutError:
        return Outline(error=f"it took longer than {_SECONDS:.0f} s")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    try:
        return msgspec.json.decode(printed[:_OUTLINE_BYTES], type=Outline)
    except msgspec.DecodeError:
        return Outline(error="the decoder ended early: it needed too much time or memory")
