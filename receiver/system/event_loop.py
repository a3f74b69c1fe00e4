"""The event loop of a serving process. In one turn it handles few events, however many connections have some.

asyncio handles all events that wait before it goes on with the callbacks that it has begun. When thousands of connections send
at once, such a turn takes a second, and a callback that was admitted needs several turns for its answer.
"""

from __future__ import annotations

import asyncio
import math
import select
import selectors
import sys

EVENTS = 64
"""Events that are handled in one turn: some ten milliseconds of work. The kernel gives those that wait longest first."""

if sys.platform == "linux":
    _IN, _OUT = select.EPOLLIN, select.EPOLLOUT

    class _ShortTurns(selectors.EpollSelector):
        """Gives at most `EVENTS` at a time."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait up to `timeout` seconds (None: for ever) and return what is ready, as any selector does."""
            # In whole milliseconds, as epoll counts, and never fewer: asyncio would ask again at once.
            wait = -1.0 if timeout is None else math.ceil(max(timeout, 0) * 1000) / 1000
            epoll, keys = self._selector, self.get_map()  # type: ignore[attr-defined] # typeshed does not know it
            ready = []
            for fd, event in epoll.poll(wait, EVENTS):
                mask = (event & ~_OUT and selectors.EVENT_READ) | (event & ~_IN and selectors.EVENT_WRITE)
                if (key := keys.get(fd)) is not None and mask & key.events:
                    ready.append((key, mask & key.events))
            return ready


def short_turns() -> asyncio.AbstractEventLoop:
    """Return a new event loop; on systems without epoll one as asyncio makes it."""
    return asyncio.SelectorEventLoop(_ShortTurns()) if sys.platform == "linux" else asyncio.new_event_loop()
