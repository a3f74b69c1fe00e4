"""Threads that can be let go (floor 3): daemons, and connections whose sockets another thread may shut down.

`concurrent.futures` joins its threads when the process ends, so one that hangs would hold it for good.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from receiver.blobs.s3_errors import GaveUp

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """At most `count` daemon threads, started when they are needed. `submit` and `close` are for one thread."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` called. Raises `RuntimeError` when closed."""
        if self._closed:
            raise RuntimeError("closed")
        future: Future[T] = Future()
        self._jobs.put((future, work))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._count:
            name = f"{self._name}_{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
            self._threads[-1].start()
        return future

    def close(self) -> None:
        """Cancel what has not begun, and have the threads end after what they do."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the threads' end, at most so long."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

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


class Ticket:
    """What the thread of one call may still do."""

    def __init__(self) -> None:
        self.wanted = True
        self.sent = 0
        self.until = 0.0
        self.last: Any = None
        self._lock = threading.Lock()
        self._socket: Any = None

    def hold(self, sock: Any) -> None:
        """Know the socket that the thread will read from or write to. Raises `GaveUp` when nobody waits any more."""
        with self._lock:
            if not self.wanted:
                raise GaveUp
            self._socket = sock

    def done(self) -> None:
        """The thread uses no socket any more: another call may have it."""
        with self._lock:
            self._socket = None

    def give_up(self) -> None:
        """Let the thread do nothing more: whatever it waits for on its socket ends now."""
        with self._lock:
            self.wanted = False
            if self._socket is not None:
                # Not a TLS socket's own method, which would have the thread read the rest as plain text.
                with contextlib.suppress(OSError, TypeError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def hold_sockets(client: Any, held: Callable[[Any], None], let_go: Callable[[], None]) -> None:
    """Have `held(socket)` called in a client's threads before a socket is used: when it is connected, and for each request.

    `let_go()` is called before a connection goes back to its pool, where the next thread that takes it may have it.
    """
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    pools = getattr(session, "_pool_classes_by_scheme", None)
    if not isinstance(
        pools, dict
    ):  # another botocore: calls end in time all the same, threads when their store lets them
        return
    for scheme, pool in pools.items():
        pools[scheme] = _letting_go(pool, _holding(pool.ConnectionCls, held), let_go)


def _letting_go(kind: Any, connection: Any, let_go: Callable[[], None]) -> Any:
    class LettingGo(kind):  # type: ignore[misc]  # botocore's, known when it runs
        ConnectionCls = connection

        def _put_conn(self, conn: Any) -> None:
            let_go()
            super()._put_conn(conn)

    return LettingGo


def _holding(kind: Any, held: Callable[[Any], None]) -> Any:
    class Holding(kind):  # type: ignore[misc]  # urllib3's, likewise
        def _new_conn(self) -> Any:
            made = super()._new_conn()
            try:
                held(made)
            except GaveUp:
                made.close()
                raise
            return made

        def request(self, *args: Any, **more: Any) -> Any:
            if self.sock is not None:  # with TLS another one than was connected; or kept from a call before
                held(self.sock)
            return super().request(*args, **more)

    return Holding
