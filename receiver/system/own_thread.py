"""A thread of its own for calls that wait."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class OwnThread:
    """Makes calls in their turn. A daemon: one that never ends must not keep the process from ending, as an executor's does."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns in the thread, or raise what it raises."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((future, function))
        return await future

    async def end(self, last: Callable[[], None], seconds: float | None) -> bool:
        """Make one last call and end; False when that took longer than `seconds`, and the thread is left to itself."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((future, last))
        self._queue.put(None)
        await asyncio.wait([future], timeout=seconds)
        return future.done()

    def _run(self) -> None:
        while (asked := self._queue.get()) is not None:
            future, function = asked
            if future.cancelled():  # nobody waits for it any more
                continue
            result, failed = None, None
            try:
                result = function()
            except BaseException as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_resolve, future, result, failed)
            del asked, future, function, result, failed


def _resolve(future: asyncio.Future[Any], result: object, failed: BaseException | None) -> None:
    if future.done():
        return
    if failed is None:
        future.set_result(result)
    else:
        future.set_exception(failed)
