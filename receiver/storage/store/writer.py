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
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from receiver.core.errors import ReceiverError, StoreUnavailable
from receiver.storage.store.statements import Session

Q = TypeVar("Q")
R = TypeVar("R")

BATCH_LIMIT = 512
"""Operations in one transaction, at most."""

TRIES = 5
"""Tries of one transaction that fails by chance."""

IDLE_SECONDS = 0.2
"""Without work for this long, the thread does its housekeeping."""


class Trouble(NamedTuple):
    """The meaning of an error for the transaction's callers."""

    error: Exception
    """The error for the callers."""
    of_all: bool
    """The error concerns every caller of the transaction; else only some, and the others may succeed in a retry."""
    again: bool = False
    """The transaction may be retried at once: nothing was committed, and chance made it fail."""


class Backend(ABC):
    """One connection, made when it is first needed and again after a failure; used by one thread only."""

    @abstractmethod
    def begin(self, lock_seconds: float | None = None) -> Session:
        """Begin a transaction, (re)connecting first where needed; wait less long for locks, if given."""

    @abstractmethod
    def commit(self) -> None:
        """Make it durable."""

    @abstractmethod
    def rollback(self) -> None:
        """Undo it. Must not raise."""

    @abstractmethod
    def trouble(self, error: Exception) -> Trouble:
        """Say what an error means; drop a connection that is not to be trusted after it."""

    @abstractmethod
    def housekeeping(self, *, idle: bool) -> None:
        """Do maintenance that can wait until no caller does. Must not raise."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect. Must not raise."""

    def abandon(self) -> None:  # noqa: B027 - where no wait is long, there is nothing to do
        """Make the running call of the backend's thread fail soon, and start no other. Called from another thread."""


class Waits(Struct, frozen=True, kw_only=True):
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


WAITS = Waits()
Operation = Callable[[Session, Sequence[Any]], Sequence[Any]]
"""Handles several callers' requests in one transaction; returns a result for each request."""


class _Call(Struct):
    operation: Operation
    request: Any
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Groups the operations of concurrent callers into transactions."""

    def __init__(
        self,
        backend: Backend,
        operations: Sequence[Operation],
        urgent: Collection[Operation] = (),
        waits: Waits = WAITS,
    ) -> None:
        """`operations` are run in this order; `urgent` ones come first when those of a failed transaction are retried."""
        self._backend = backend
        self._operations = operations
        self._retry_order = sorted(operations, key=lambda operation: operation not in urgent)
        self._waits = waits
        self._contended_until = 0.0
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] | None = None
        # A daemon: a caller that forgets to close must not keep the process from ending; what was answered is on disk.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(
        self, operation: Callable[[Session, Sequence[Q]], Sequence[R]], request: Q
    ) -> asyncio.Future[R]:
        """Queue the operation for the next transaction; the request's result comes once that is committed."""
        if self._closed is not None:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[R] = self._loop.create_future()
        self._queue.put(_Call(operation, request, future))
        return future

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
        try:
            while (batch := self._take()) is not None:
                contended = time.monotonic() < self._contended_until
                if not self._transact(batch, self._waits.contended if contended else None):
                    self._retry_individually(batch)
                self._wake(_resolve, batch)
                self._backend.housekeeping(idle=False)
        finally:
            try:
                self._backend.close()
            finally:
                self._wake(_end, self._closed)

    def _take(self) -> list[_Call] | None:
        """Return the queued calls (after housekeeping, when idle for a while); None at the end."""
        try:
            call = self._queue.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            self._backend.housekeeping(idle=True)
            call = self._queue.get()
        batch: list[_Call] = []
        while call is not None:
            if not call.future.cancelled():  # else its caller no longer wants it
                batch.append(call)
            if len(batch) == BATCH_LIMIT or self._queue.empty():
                return batch
            call = self._queue.get()
        if not batch:
            return None
        self._queue.put(None)  # the end comes after this batch
        return batch

    def _retry_individually(self, batch: list[_Call]) -> None:
        """Retry the calls of a failed transaction by operation, and one by one where an operation fails again."""
        groups = [[call for call in batch if call.operation == operation] for operation in self._retry_order]
        several = sum(map(bool, groups)) > 1
        lost = 0.0
        for group in filter(None, groups):
            parts = [[call] for call in group]
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
                    self._wake(_resolve, part)
                    if part is group:  # also when its commit got no answer: one by one would write it twice
                        break

    def _transact(self, batch: list[_Call], lock_seconds: float | None) -> bool:
        """Run the calls in one transaction; return False if only some calls made it fail, so that the others may succeed."""
        if not batch:
            return True
        tries = 0
        while True:
            tries, began = tries + 1, time.monotonic()
            try:
                self._execute(batch, lock_seconds)
                return True
            except Exception as error:
                trouble = self._backend.trouble(error)
                # Only after `trouble` has dropped a connection that does not answer: a rollback would wait for it again.
                self._backend.rollback()
                if trouble.again and tries < TRIES:
                    continue
                for call in batch:
                    call.error = trouble.error
                if not trouble.of_all and time.monotonic() - began >= self._waits.contended:
                    self._contended_until = time.monotonic() + self._waits.contention
                return trouble.of_all or len(batch) == 1

    def _execute(self, batch: list[_Call], lock_seconds: float | None) -> None:
        session = self._backend.begin(lock_seconds)
        calls: dict[Operation, list[_Call]] = {}
        for call in batch:
            calls.setdefault(call.operation, []).append(call)
        for operation in self._operations:
            if operation in calls:
                results = operation(session, [call.request for call in calls[operation]])
                for call, result in zip(calls[operation], results, strict=True):
                    call.result, call.error = result, None
        self._backend.commit()

    def _wake(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for the answer
            self._loop.call_soon_threadsafe(function, *args)


def _resolve(batch: list[_Call]) -> None:
    for call in batch:
        if call.future.done():
            continue
        if call.error is None:
            call.future.set_result(call.result)
        else:
            call.future.set_exception(_own(call.error))


def _own(error: BaseException) -> BaseException:
    """Return an exception for one caller: a shared one would collect the tracebacks of all."""
    return type(error)(str(error)) if isinstance(error, ReceiverError) else error


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
