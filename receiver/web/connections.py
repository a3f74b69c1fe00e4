"""The open connections of one process: which one is closed when there are too many, and which one goes on when many cost too much."""

from __future__ import annotations

from asyncio import get_running_loop
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from receiver.web.protocol import Protocol

DEFAULT_CONNECTIONS = 10_000
"""The default limit of open connections of one process, if it has that many file descriptors."""
_TURN_SECONDS = 0.005
"""Seconds between two turns."""


class Connections:
    """The open connections of one process, ordered by their last activity.

    Each takes a file descriptor, of which a process has few. Past `limit` one is closed: the oldest that never sent a byte,
    if most never did; else the one with the oldest activity that receiver owes no answer. So a client that opens
    connections and stays silent keeps nobody out.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._silent: dict[Protocol, None] = {}
        """Connections on which nothing came yet."""
        self._used: dict[Protocol, None] = {}

    def add(self, connection: Protocol) -> None:
        """Add a connection, and close one if there are too many; none whose peer waits for an answer."""
        self._silent[connection] = None
        if len(self._silent) + len(self._used) > self.limit:
            closed = next(iter(self._silent))
            if len(self._silent) <= len(self._used):
                closed = next((other for other in self._used if other.waits_for_peer), closed)
            self.remove(closed)
            closed.transport.abort()

    def touch(self, connection: Protocol) -> None:
        """Note that something came on a connection."""
        if self._silent.pop(connection, 0) is None or self._used.pop(connection, 0) is None:
            self._used[connection] = None

    def remove(self, connection: Protocol) -> None:
        """Forget a connection."""
        self._silent.pop(connection, None)
        self._used.pop(connection, None)


class Turns:
    """Connections that send in tiny parts, each of which costs as much processor time as a large one.

    One at a time goes on, for one slice, so that a client with many such connections leaves time for all others.
    """

    def __init__(self) -> None:
        self._waiting: deque[Protocol] = deque()

    def add(self, connection: Protocol) -> None:
        """Let a connection go on when its turn comes."""
        if not self._waiting:
            get_running_loop().call_later(_TURN_SECONDS, self._next)
        self._waiting.append(connection)

    def _next(self) -> None:
        connection = self._waiting.popleft()
        if self._waiting:
            get_running_loop().call_later(_TURN_SECONDS, self._next)
        connection.go_on()
