"""The writer: one thread that owns the connection which writes, and commits what many callers want at once.

Callers submit and await. The thread takes everything that has queued, begins one transaction, hands each kind of
operation to its function, commits, and wakes all callers by one call into their event loop. Under load the batches
grow by themselves, because the queue fills while a commit is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from receiver.core.errors import ReceiverError, StoreUnavailable
from receiver.storage.store.sql import Session

BATCH_LIMIT = 512
"""Operations in one transaction, at most."""

TRIES = 5
"""Of one transaction, when it fails by chance."""

IDLE_SECONDS = 0.2
"""Without work for this long, the thread does its housekeeping."""

SHARED_LOCK_SECONDS = 0.5
"""How long transactions of many wait for a lock while it is known that somebody keeps one."""
WARY_SECONDS = 10.0
"""How long that is believed: by then the server has ended whoever slept in a transaction."""
ALONE_LOCK_SECONDS = 0.04
"""How long each operation waits for a lock when all are tried apart: those that wait for nothing are behind it."""
VAIN_SECONDS = 2.0
"""How long trying them apart may take for those that fail; then whoever is left is refused like them."""

ABANDON_SECONDS = 0.2
"""How long an abandoned thread may take to tell those who wait for it."""

Handler = Callable[[Session, Sequence[Any]], Sequence[Any]]


class Backend(Protocol):
    """A database as the writer sees it; used by the writer's thread only."""

    def begin(self, lock_seconds: float | None = None) -> Session:
        """Begin a transaction that may write, (re)connecting first where needed; wait less long for locks, if given."""

    def commit(self) -> None:
        """Make it durable."""

    def rollback(self) -> None:
        """Undo it. Must not raise."""

    def trouble(self, error: Exception) -> tuple[Exception, bool]:
        """Return what callers are told, and whether all of them are affected. Drops a connection not to be trusted."""

    def again(self, error: Exception) -> bool:
        """Whether the same may be tried again at once: nothing of it was done, and chance made it fail."""

    def housekeeping(self, *, idle: bool) -> None:
        """Do what need not be done while callers wait. Must not raise."""

    def close(self) -> None:
        """Disconnect. Must not raise."""

    def abandon(self) -> None:
        """Have what is under way in the backend's own thread fail soon, and nothing begin. Called from another thread."""


@dataclass(slots=True)
class _Operation:
    kind: str
    wanted: Any
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Groups the operations of concurrent callers into transactions. `handlers` are run in their order."""

    def __init__(
        self, backend: Backend, handlers: Mapping[str, Handler], urgent: Collection[str] = ()
    ) -> None:
        """`urgent` kinds are done first when a transaction has failed and its operations are tried apart."""
        self._backend = backend
        self._handlers = handlers
        self._apart = sorted(handlers, key=lambda kind: kind not in urgent)
        self._wary_until = 0.0
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] | None = None
        # A daemon: a caller that forgets to close must not keep the process from ending; what was answered is on disk.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, kind: str, wanted: Any) -> Any:
        """Run `wanted` in the next transaction; return its result once that is committed."""
        if self._closed is not None:
            raise StoreUnavailable("the store is closed")
        operation = _Operation(kind, wanted, self._loop.create_future())
        self._queue.put(operation)
        return await operation.future

    async def close(self, seconds: float | None = None) -> None:
        """Finish what is queued, then disconnect; when that takes longer than `seconds`, leave the thread to itself."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._queue.put(None)
        await asyncio.wait([self._closed], timeout=seconds)
        if not self._closed.done():
            self._backend.abandon()
            await asyncio.wait([self._closed], timeout=ABANDON_SECONDS)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        last = False
        try:
            while not last:
                batch, last = self._take()
                if batch:
                    self._work(batch)
                    self._backend.housekeeping(idle=False)
        finally:
            try:
                self._backend.close()
            finally:
                self._call(_wake, self._closed)

    def _take(self) -> tuple[list[_Operation], bool]:
        """Return what has queued (nothing when idle for a while, after housekeeping), and whether it was the last."""
        try:
            first = self._queue.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            self._backend.housekeeping(idle=True)
            first = self._queue.get()
        batch: list[_Operation] = []
        while first is not None:
            batch.append(first)
            if len(batch) == BATCH_LIMIT or self._queue.empty():
                return batch, False
            first = self._queue.get()
        return batch, True

    def _work(self, batch: list[_Operation]) -> None:
        # Whoever was cancelled while waiting wants nothing any more.
        batch = [operation for operation in batch if not operation.future.cancelled()]
        wary = time.monotonic() < self._wary_until
        if not self._transact(batch, SHARED_LOCK_SECONDS if wary else None):
            self._part(batch)
        self._call(_resolve, batch)

    def _part(self, batch: list[_Operation]) -> None:
        """Try operations apart, of which some made a transaction fail: kind by kind, and one by one where need be."""
        groups = [[one for one in batch if one.kind == kind] for kind in self._apart]
        several = sum(map(bool, groups)) > 1
        vain = 0.0
        for group in filter(None, groups):
            parts = [[one] for one in group]
            if several and len(group) > 1:
                parts.insert(0, group)
            for part in parts:
                began = time.monotonic()
                finished = self._transact(part, ALONE_LOCK_SECONDS)
                if part[0].error is not None:
                    vain += time.monotonic() - began
                    if vain > VAIN_SECONDS:
                        return
                if finished:
                    self._call(_resolve, part)
                    if part is group:  # also when its commit is in doubt: one by one would do it again
                        break

    def _transact(self, batch: list[_Operation], lock_seconds: float | None) -> bool:
        """Run the operations in one transaction; False when some of them made it fail, and apart others may succeed."""
        if not batch:
            return True
        for left in reversed(range(TRIES)):
            began = time.monotonic()
            try:
                self._execute(batch, lock_seconds)
                break
            except Exception as error:
                again = self._backend.again(error)
                told, all_affected = self._backend.trouble(error)
                self._backend.rollback()  # after a connection that says nothing was dropped: it would wait once more
                if left and again:
                    continue
                for operation in batch:
                    operation.error = told
                if not all_affected and time.monotonic() - began >= SHARED_LOCK_SECONDS:
                    self._wary_until = time.monotonic() + WARY_SECONDS
                return all_affected or len(batch) == 1
        for operation in batch:
            operation.error = None
        return True

    def _execute(self, batch: list[_Operation], lock_seconds: float | None) -> None:
        session = self._backend.begin(lock_seconds)
        for kind, handler in self._handlers.items():
            chosen = [operation for operation in batch if operation.kind == kind]
            if chosen:
                results = handler(session, [operation.wanted for operation in chosen])
                for operation, result in zip(chosen, results, strict=True):
                    operation.result = result
        self._backend.commit()

    def _call(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for the answer
            self._loop.call_soon_threadsafe(function, *args)


def _resolve(batch: list[_Operation]) -> None:
    for operation in batch:
        if operation.future.done():
            continue
        if operation.error is None:
            operation.future.set_result(operation.result)
        else:
            operation.future.set_exception(_own(operation.error))


def _own(error: BaseException) -> BaseException:
    """Return an exception for one caller: a shared one would gather the tracebacks of all."""
    return type(error)(str(error)) if isinstance(error, ReceiverError) else error


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
