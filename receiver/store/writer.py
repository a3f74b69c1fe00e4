"""The writer: one thread that owns the connection which writes, and commits what many callers want at once (floor 3).

Callers submit and await. The thread takes everything that has queued, begins one transaction, hands each kind of
operation to its function, commits, and wakes all callers by one call into their event loop. Under load the batches
grow by themselves, because the queue fills while a commit is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from receiver.errors import ReceiverError, StoreUnavailable
from receiver.store.sql import Session

BATCH_LIMIT = 512
"""Operations in one transaction, at most."""

TRIES = 5
"""Of one transaction, when it fails by chance."""

IDLE_SECONDS = 0.2
"""Without work for this long, the thread does its housekeeping."""

Handler = Callable[[Session, Sequence[Any]], Sequence[Any]]


class Backend(Protocol):
    """A database as the writer sees it; used by the writer's thread only."""

    def begin(self) -> Session:
        """Begin a transaction that may write, (re)connecting first where needed."""

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


@dataclass(slots=True)
class _Operation:
    kind: str
    wanted: Any
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Groups the operations of concurrent callers into transactions. `handlers` are run in their order."""

    def __init__(self, backend: Backend, handlers: Mapping[str, Handler]) -> None:
        self._backend = backend
        self._handlers = handlers
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

    async def close(self) -> None:
        """Finish what is queued, then disconnect."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._queue.put(None)
        await asyncio.shield(self._closed)

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
        if not self._transact(batch):
            # One of them cannot be done: alone, each of the others can.
            for operation in batch:
                self._transact([operation])
        self._call(_resolve, batch)

    def _transact(self, batch: list[_Operation]) -> bool:
        """Run the operations in one transaction; False when one alone made it fail."""
        if not batch:
            return True
        for left in reversed(range(TRIES)):
            try:
                self._execute(batch)
                break
            except Exception as error:
                self._backend.rollback()
                again = self._backend.again(error)
                told, all_affected = self._backend.trouble(error)
                if left and again:
                    continue
                for operation in batch:
                    operation.error = told
                return all_affected or len(batch) == 1
        for operation in batch:
            operation.error = None
        return True

    def _execute(self, batch: list[_Operation]) -> None:
        session = self._backend.begin()
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
