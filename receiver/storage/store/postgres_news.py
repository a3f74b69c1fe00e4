"""What processes tell each other through the database: something is due for this destination, this source.

Only hints: each lane looks once a second in any case, so one that is lost costs that second and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Collection

import msgspec

from receiver.storage.store.postgres_connect import Connection
from receiver.storage.store.postgres_session import News

Heard = Callable[[Collection[str], Collection[str]], None]
"""Called with destinations and sources."""

CHANNEL = "receiver"
PAUSE_SECONDS = 0.02
"""Between two announcements of one process; what comes meanwhile goes with the next."""
_LIMIT = 7_500
"""Bytes of one announcement; PostgreSQL takes less than 8,000."""
_PROBE_SECONDS = 30.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds between tries to listen, doubled each time."""


class Note(msgspec.Struct, frozen=True):
    """One announcement."""

    by: str
    destinations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


class Announcer:
    """Tells other processes, after the commit and not within it.

    NOTIFY takes a lock that all of the server's databases share and holds it until the commit is on disk; a transaction that
    does nothing else holds it for no time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._news = News()
        self._last = 0.0

    def add(self, news: News) -> None:
        """Note what was committed."""
        self._news.add(news)

    def flush(self, connection: Connection, *, idle: bool) -> None:
        """Announce, unless that was done just now and more is coming. Raises `psycopg.Error`."""
        now = time.monotonic()
        if not self._news or (not idle and now - self._last < PAUSE_SECONDS):
            return
        news, self._news, self._last = self._news, News(), now
        note = Note(self._name, tuple(sorted(news.destinations)), tuple(sorted(news.sources)))
        payload = msgspec.json.encode(note).decode()
        if len(payload.encode()) <= _LIMIT:  # beyond that, the others find it when they look
            connection.execute("SELECT pg_notify($1, $2)", [CHANNEL, payload])


class Listener:
    """Hears other processes: a thread with a connection of its own."""

    def __init__(
        self,
        connected: Callable[[], Connection],
        name: str,
        heard: Heard,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._connected = connected
        self._name = name
        self._heard = heard
        self._loop = loop
        self._pause = _FIRST_PAUSE
        # Closing one end is what the thread sees at the other.
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Stop listening, and wait until it has, `seconds` at most: the thread ends when the server lets go of it."""
        os.close(self._stop)
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while not self._listened():
                if self._ready(self._stopped, within=self._pause):
                    return
                self._pause = min(2 * self._pause, _LAST_PAUSE)
        finally:
            os.close(self._stopped)

    def _listened(self) -> bool:
        """Listen until told to stop; False when that went wrong, whatever it was: without hints, lanes would be slow for good."""
        try:
            with contextlib.closing(self._connected()) as connection:
                return self._listen(connection)
        except Exception:
            return False

    def _listen(self, connection: Connection) -> bool:
        """Pass on what is heard; True when it was told to stop. Raises `psycopg.Error` when the connection is lost."""
        connection.execute(f"LISTEN {CHANNEL}", prepare=False)
        self._pause = _FIRST_PAUSE
        while True:
            # What came with the answer to LISTEN or to a probe is taken before waiting for more.
            for note in connection.notifies(timeout=0):
                self._pass_on(note.payload)
            ready = self._ready(self._stopped, connection.fileno(), within=_PROBE_SECONDS)
            if self._stopped in ready:
                return True
            if not ready:
                connection.execute("SELECT 1", prepare=False)

    @staticmethod
    def _ready(*descriptors: int, within: float) -> set[int]:
        """Return those of which there is something to read, or that were closed. `select` refuses those beyond 1023."""
        waiting = select.poll()
        for descriptor in descriptors:
            waiting.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in waiting.poll(within * 1000)}

    def _pass_on(self, payload: str) -> None:
        try:
            note = msgspec.json.decode(payload, type=Note)
        except msgspec.DecodeError:
            return
        if note.by != self._name:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._heard, note.destinations, note.sources)
