"""The body of a refused callback: read and thrown away at hardly any cost, since load is shed when there is no time to spare."""

from __future__ import annotations

from asyncio import BufferedProtocol
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from receiver.web.protocol import Protocol

_WASTE = memoryview(bytearray(256 * 1024))
"""What was read last, of all connections: nobody looks at it."""


class RefusedBody(BufferedProtocol):
    """Has a connection for the next `left` bytes, without a parser and without memory of its own, then gives it back."""

    def __init__(self, connection: Protocol, left: int) -> None:
        self._connection = connection
        self._left = left
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]  # the connection has the timers
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]  # as above

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: no byte after the body is among them."""
        return _WASTE[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """Count what came, and end with the last byte of the body."""
        self._left -= nbytes
        if not self._left:
            self._connection.transport.set_protocol(self._connection)
            self._connection.end_refused_body()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection."""
        self._connection.connection_lost(exc)
