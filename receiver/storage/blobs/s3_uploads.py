"""How bodies get into a bucket, by which tries: whole or in parts, first from the event loop or at once in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from receiver.core.callback import Body
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs.s3_client import Calls
from receiver.storage.blobs.s3_objects import Objects, proves
from receiver.storage.blobs.s3_options import S3Options

_MIB = 1024 * 1024
_WHOLE_LIMIT = 16 * _MIB
"""Bytes up to which a body goes in one request."""
_PART_BYTES = 8 * _MIB
_PARTS_LIMIT = 10_000
_AT_ONCE = 3
"""Parts of one body under way at once."""
_SLOWEST = 256 * 1024
"""Bytes a second: a request may take a quarter of a minute and this in addition."""
_SECONDS = 15.0
T = TypeVar("T")


class Uploads:
    """Puts bodies under whole keys."""

    def __init__(self, options: S3Options, calls: Calls) -> None:
        self._options = options
        self._calls = calls
        self._objects = Objects(options)
        self._slots = asyncio.Semaphore(max(1, options.connections // 2))
        """Half of the threads at most send parts, so that large bodies never stop small ones."""
        self._aborting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until uploads that failed are aborted, as far as that works."""
        ending = list(self._aborting)
        if ending:
            await asyncio.wait(ending, timeout=2 * self._options.timeout_seconds)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def put(self, key: str, body: Body, content_type: str) -> None:
        """Store `body`. Raises `BlobsUnavailable`."""
        about = self._objects.about(body, content_type)
        if body.size > _WHOLE_LIMIT:
            await self._put_parts(key, body, about)
            return
        about |= self._objects.checksum(bytes.fromhex(body.sha256))
        tries, first = self._calls.first_tries, None
        if tries is not None and tries.takes(body):
            seconds = self._options.timeout_seconds + body.size / _SLOWEST
            first = await tries.put(key, body, about | self._objects.condition, seconds)
            if isinstance(first, dict) and proves(first, body):
                return
        await self._run(lambda client: self._objects.put(client, key, body, about, first), body.size)
        if tries is not None and isinstance(first, Exception):
            tries.stored_by_boto3(first)

    async def _put_parts(self, key: str, body: Body, about: dict[str, Any]) -> None:
        objects, under_way = self._objects, set[Future[Any]]()
        size = max(_PART_BYTES, -(-body.size // _PARTS_LIMIT))
        numbers = iter(range(1, -(-body.size // size) + 1))
        done: list[dict[str, Any]] = []
        tasks: list[asyncio.Task[None]] = []
        upload: dict[str, str] = {}

        def begin(client: Any) -> bool:
            if objects.is_there(client, key, body):
                return False
            upload.update(objects.begin(client, key, about))
            return True

        async def send() -> None:
            for number in numbers:
                part = partial(objects.send_part, upload=upload, body=body, number=number, size=size)
                async with self._slots:
                    done.append(await self._run(part, size, under_way))

        def complete(client: Any) -> None:
            done.sort(key=lambda part: int(part["PartNumber"]))
            if objects.complete(client, upload, body, done):
                upload.clear()

        try:
            if await self._run(begin, body.size, under_way):
                tasks = [asyncio.create_task(send()) for _ in range(_AT_ONCE)]
                await asyncio.gather(*tasks)
                await self._run(complete, body.size, under_way)
        finally:
            for task in tasks:
                task.cancel()
            ending = asyncio.create_task(self._end(upload, under_way))
            self._aborting.add(ending)
            ending.add_done_callback(self._aborting.discard)

    async def _end(self, upload: dict[str, str], under_way: set[Future[Any]]) -> None:
        """Wait for the threads that still send, and abort what did not become an object."""
        pending = [asyncio.wrap_future(future) for future in under_way if not future.done()]
        await asyncio.gather(*pending, return_exceptions=True)
        if upload:
            with suppress(BlobsUnavailable):  # the janitor finds it later
                await self._calls.run(
                    lambda client: client.abort_multipart_upload(**upload),
                    doing="aborting an upload in",
                    seconds=_SECONDS,
                    permission="s3:AbortMultipartUpload",
                )

    async def _run(self, work: Callable[[Any], T], size: int, under_way: set[Future[Any]] | None = None) -> T:
        seconds = _SECONDS + size / _SLOWEST
        permission = "s3:PutObject" if under_way is None else "s3:PutObject and s3:GetObject"
        return await self._calls.run(
            work, doing="storing in", permission=permission, seconds=seconds, under_way=under_way
        )
