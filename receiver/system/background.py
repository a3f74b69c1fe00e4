"""What runs beside the event loop's requests: background tasks, daemon threads, and processes for a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


class NoThread(RuntimeError):
    """No thread can be started: this process has too many, or too little memory."""


class Threads:
    """At most `count` daemon threads, started when they are needed. `submit` and `close` are for one thread.

    `concurrent.futures` joins its threads when the process ends, so a hanging one would block that for good.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Call `work` in a thread. Raises `NoThread` when there is none and none can be started, `RuntimeError` when closed."""
        if self._closed:
            raise RuntimeError("closed")
        future: Future[T] = Future()
        self._jobs.put((future, work))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._count:
            self._start()
        return future

    def close(self) -> None:
        """Cancel the work that has not begun, and end each thread after its current work."""
        self._cancel()
        self.finish()

    def finish(self) -> None:
        """Take no more work, and end each thread when what was submitted is done."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the threads' end, at most so long."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _start(self) -> None:
        """Start one more thread; if the system refuses, the running ones do the work."""
        thread = threading.Thread(target=self._run, name=f"{self._name}_{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            if not self._threads:
                self._cancel()  # or it would be done when nobody waits for it any more
                raise NoThread("no thread can be started") from None
        else:
            self._threads.append(thread)

    def _cancel(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[0].cancel()

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                self._idle.release()
                job = self._jobs.get()
            if job is None:
                return
            _do(*job)
            del job  # or what it holds would live until the next one comes


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # it is the caller's
        future.set_exception(error)
    else:
        future.set_result(result)


class OwnThread:
    """One daemon thread that makes calls in their order, for an event loop."""

    def __init__(self, name: str) -> None:
        self._threads = Threads(1, name)

    async def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns in the thread, or raise what it raises. Raises `NoThread`."""
        return await asyncio.wrap_future(self._threads.submit(function))

    async def end(self, last: Callable[[], None], seconds: float | None) -> bool:
        """Make one last call and end; return False when that took longer than `seconds`, and the thread is abandoned."""
        future = asyncio.wrap_future(self._threads.submit(last))
        self._threads.finish()
        await asyncio.wait([future], timeout=seconds)
        return future.done()


class Background:
    """Coroutines that run as tasks of the running loop. To start and to stop again is harmless."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> bool:
        """Whether something was started and not yet told to stop."""
        return bool(self._tasks)

    def start(self, *works: Coroutine[Any, Any, None]) -> None:
        """Run these from now on."""
        self._tasks += [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        """Cancel them all, and return when they have ended."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class BackgroundPart(ABC):
    """A part that works by itself, in a task of the running loop."""

    def __init__(self) -> None:
        self._background = Background()

    def start(self) -> None:
        """Work from now on."""
        self._background.start(self._run())

    async def stop(self) -> None:
        """Stop at once: what the store was asked for is done whole or not at all."""
        await self._background.stop()

    @abstractmethod
    async def _run(self) -> None:
        """Work until cancelled."""


async def printed_by(module: str, *args: str, seconds: float) -> tuple[int | None, bytes]:
    """Return its exit status and what it printed, its errors too. Raises `TimeoutError`; the process has ended then as well."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *args),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            printed, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return child.returncode, printed
