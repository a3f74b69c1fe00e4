"""Waveforms for the console: computed once, on the first request, by a limited child process, and stored beside the audio."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import msgspec

from receiver.core.callback import MemoryBody
from receiver.core.errors import NotFound
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.keys import outline_of
from receiver.system.audio.peaks import NEEDS_AV, Outline
from receiver.system.background import printed_by

_SECONDS = 60.0
_WAITING = 8
_FETCHED_BYTES = 64 * 1024 * 1024
"""The largest object that is downloaded from S3 for its waveform, in bytes."""


class Waveforms:
    """Computes waveforms, one at a time. No callback waits for them."""

    def __init__(self, blobs: Blobs, *, answer_seconds: float = 5.0) -> None:
        self._blobs, self._answer_seconds = blobs, answer_seconds
        self._one = asyncio.Semaphore(1)
        self._made: dict[str, asyncio.Task[Outline]] = {}

    async def of(self, key: str, *, size: int) -> Outline | None:
        """Return the outline of the audio `key` with `size` bytes; None while it is computed, so that one asks again.

        What cannot be decoded is remembered as that, and not tried at each view. Raises `NotFound` without the audio,
        `BlobsUnavailable`.
        """
        if key not in self._made:
            with contextlib.suppress(NotFound):
                return msgspec.json.decode(await self._blobs.get(outline_of(key)), type=Outline)
        if key not in self._made:
            if len(self._made) >= _WAITING:
                return None
            self._made[key] = asyncio.create_task(self._stored(key, size))
            self._made[key].add_done_callback(lambda task: self._ended(key, task))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._answer_seconds):
                return await asyncio.shield(self._made[key])
        return None

    def _ended(self, key: str, task: asyncio.Task[Outline]) -> None:
        del self._made[key]
        if not task.cancelled():
            task.exception()  # whoever asks next tries again, and is told of a failure then

    async def _stored(self, key: str, size: int) -> Outline:
        async with self._one:
            outline = await self._make(key, size)
        if outline.error != NEEDS_AV:  # the extra may be installed later
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
    try:
        _, printed = await printed_by("receiver.system.audio.peaks", path, seconds=_SECONDS)
        return msgspec.json.decode(printed, type=Outline)
    except TimeoutError:
        return Outline(error=f"it took longer than {_SECONDS:.0f} s")
    except msgspec.DecodeError:
        return Outline(error="the decoder ended early: it needed too much time or memory")
