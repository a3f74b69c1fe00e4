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
from typing import Any

from receiver.core.errors import ReceiverError, StoreUnavailable
from receiver.storage.store.database import Backend, Session

BATCH_LIMIT = 512
"""Operations in one transaction, at most."""

TRIES = 5
"""Of one transaction, when it fails by chance."""

IDLE_SECONDS = 0.2
"""Without work for this long, the thread does its housekeeping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long the writer waits for locks that other processes hold, in seconds."""

    contended: float = 0.5
    """The wait of a whole batch while a lock is known to be held elsewhere."""
    contention: float = 10.0
    """How long after a lock wait that is taken for known: by then the server has ended a session that sleeps."""
    single: float = 0.04
    """The wait of each operation that is retried individually: operations that need no lock queue behind it."""
    retry_budget: float = 2.0
    """The time that a failed batch's individual retries may lose by failing; then the rest fail with the same error."""
    abandon: float = 0.2
    """How long an abandoned thread may take to end."""


Handler = Callable[[Session, Sequence[Any]], Sequence[Any]]


@dataclass(slots=True)
class _Operation:
    kind: str
    request: Any
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


WAITS = Waits()


class Writer:
    """Groups the operations of concurrent callers into transactions. `handlers` are run in their order."""

    def __init__(
        self,
        backend: Backend,
        handlers: Mapping[str, Handler],
        urgent: Collection[str] = (),
        waits: Waits = WAITS,
    ) -> None:
        """`urgent` kinds come first when a transaction has failed and its operations are retried individually."""
        self._backend = backend
        self._handlers = handlers
        self._retry_order = sorted(handlers, key=lambda kind: kind not in urgent)
        self._waits = waits
        self._contended_until = 0.0
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] | None = None
        # A daemon: a caller that forgets to close must not keep the process from ending; what was answered is on disk.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, kind: str, request: Any) -> Any:
        """Run the operation in the next transaction; return its result once that is committed."""
        if self._closed is not None:
            raise StoreUnavailable("the store is closed")
        operation = _Operation(kind, request, self._loop.create_future())
        self._queue.put(operation)
        return await operation.future

    async def close(self, seconds: float | None = None) -> None:
        """Finish what is queued, then disconnect; abandon the thread when that takes longer than `seconds`."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._queue.put(None)
        await asyncio.wait([self._closed], timeout=seconds)
        if not self._closed.done():
            self._backend.abandon()
            await asyncio.wait([self._closed], timeout=self._waits.abandon)

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
        # A caller that was cancelled while its operation queued no longer wants it.
        batch = [operation for operation in batch if not operation.future.cancelled()]
        contended = time.monotonic() < self._contended_until
        if not self._transact(batch, self._waits.contended if contended else None):
            self._retry_individually(batch)
        self._call(_resolve, batch)

    def _retry_individually(self, batch: list[_Operation]) -> None:
        """Retry the operations of a failed transaction by kind, and one by one where a kind fails again."""
        groups = [[operation for operation in batch if operation.kind == kind] for kind in self._retry_order]
        several = sum(map(bool, groups)) > 1
        lost = 0.0
        for group in filter(None, groups):
            parts = [[operation] for operation in group]
            if several and len(group) > 1:
                parts.insert(0, group)
            for part in parts:
                began = time.monotonic()
                finished = self._transact(part, self._waits.single)
                if part[0].error is not None:
                    lost += time.monotonic() - began
                    if lost > self._waits.retry_budget:
                        return
                if finished:
                    self._call(_resolve, part)
                    if part is group:  # also when its commit got no answer: one by one would write it twice
                        break

    def _transact(self, batch: list[_Operation], lock_seconds: float | None) -> bool:
        """Run the operations in one transaction; False when it failed by some of them, and the others may succeed."""
        if not batch:
            return True
        for left in reversed(range(TRIES)):
            began = time.monotonic()
            try:
                self._execute(batch, lock_seconds)
                break
            except Exception as error:
                again = self._backend.again(error)
                translated, all_affected = self._backend.trouble(error)
                # Only after `trouble` has dropped a connection that does not answer: a rollback would wait for it again.
                self._backend.rollback()
                if left and again:
                    continue
                for operation in batch:
                    operation.error = translated
                if not all_affected and time.monotonic() - began >= self._waits.contended:
                    self._contended_until = time.monotonic() + self._waits.contention
                return all_affected or len(batch) == 1
        for operation in batch:
            operation.error = None
        return True

    def _execute(self, batch: list[_Operation], lock_seconds: float | None) -> None:
        session = self._backend.begin(lock_seconds)
        by_kind: dict[str, list[_Operation]] = {}
        for operation in batch:
            by_kind.setdefault(operation.kind, []).append(operation)
        for kind, handler in self._handlers.items():
            chosen = by_kind.get(kind)
            if chosen:
                results = handler(session, [operation.request for operation in chosen])
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
    """Return an exception for one caller: a shared one would collect the tracebacks of all."""
    return type(error)(str(error)) if isinstance(error, ReceiverError) else error


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
