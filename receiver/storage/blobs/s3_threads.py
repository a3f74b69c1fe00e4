"""What a thread of one call may still do, and connections whose sockets another thread may shut down."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from receiver.storage.blobs.s3_errors import GaveUp


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
    class LettingGo(kind):  # type: ignore[misc]  # the base is botocore's pool, a class that is known only when it runs
        ConnectionCls = connection

        def _put_conn(self, conn: Any) -> None:
            let_go()
            super()._put_conn(conn)

    return LettingGo


def _holding(kind: Any, held: Callable[[Any], None]) -> Any:
    class Holding(kind):  # type: ignore[misc]  # the base is urllib3's connection, a class that is known only when it runs
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
