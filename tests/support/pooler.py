"""A pooler before PostgreSQL that lends a server's connection for one transaction, as PgBouncer's pool_mode = transaction does."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_NO_TLS = (80877103, 80877104)
"""The codes with which a client asks for TLS or GSSAPI."""


class _Wire:
    """One connection of PostgreSQL's protocol, in messages."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._file = end, end.makefile("rb")

    def startup(self) -> bytes:
        """Return the first message of a client that is no request for encryption."""
        while True:
            size = struct.unpack("!I", self._file.read(4))[0]
            body = self._file.read(size - 4)
            if struct.unpack("!I", body[:4])[0] not in _NO_TLS:
                return struct.pack("!I", size) + body
            self._end.sendall(b"N")

    def message(self) -> bytes:
        head = self._file.read(5)
        return head + self._file.read(struct.unpack("!I", head[1:])[0] - 4) if len(head) == 5 else b""

    def send(self, data: bytes) -> None:
        self._end.sendall(data)


class _Pooler:
    def __init__(self, place: tuple[str, int]) -> None:
        self._place = place
        self._idle: list[_Wire] = []
        self.ends = contextlib.ExitStack()
        self._greeting = b""

    def _server(self, startup: bytes) -> _Wire:
        if self._idle:
            return self._idle.pop()
        wire = _Wire(self.ends.enter_context(socket.create_connection(self._place)))
        wire.send(startup)
        told = b""
        while (message := wire.message())[:1] != b"Z":
            told += message if message[:1] in b"RS" else b""
        self._greeting = told
        return wire

    def serve(self, client: socket.socket) -> None:
        wire = _Wire(self.ends.enter_context(client))
        with contextlib.suppress(OSError, struct.error):
            startup = wire.startup()
            self._idle.append(self._server(startup))
            wire.send(self._greeting + struct.pack("!cIII", b"K", 12, 1, 1) + b"Z\0\0\0\5I")
            held: _Wire | None = None
            while (message := wire.message()) and message[:1] != b"X":
                held = held or self._server(startup)
                held.send(message)
                while message[:1] in b"QS":
                    answer = held.message()
                    wire.send(answer)
                    if answer[:1] == b"Z":
                        if answer[5:] == b"I":
                            self._idle.append(held)
                            held = None
                        break


@contextlib.contextmanager
def pooled(url: str) -> Iterator[str]:
    """Give the URL of a database as it is reached through the pooler."""
    parts = urlsplit(url)
    pooler = _Pooler((str(parts.hostname), parts.port or 5432))
    with pooler.ends, socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=pooler.serve, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        port = listening.getsockname()[1]
        yield parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
        listening.shutdown(socket.SHUT_RDWR)
