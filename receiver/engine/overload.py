"""Load shedding: how many callbacks are under way, and when one more is refused.

Two bounds. The count keeps memory bounded. The time keeps answers early enough: when storing is slow (a small object store, a
database that pauses), answers reach the provider's timeout long before the count is reached, and what is stored too late goes
to the journal, which is more work than storing it. So while storing is slow, no more callbacks are admitted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

SLOW_SECONDS = 2.0
"""Storing that takes longer is slow: a third of what a source allows for it by default."""
ALWAYS_STORED = 128
"""Callbacks that may be stored at once however long it takes: during a silent outage these are what reaches the journal."""
_NTH_OLDEST = 16
"""Which of the callbacks being stored is timed: a few that hang are no sign of overload."""


class LoadShedder:
    """Counts the callbacks of one process, and decides whether one more is admitted."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit` callbacks may be under way at once; `clock` gives seconds."""
        self.limit = limit
        self.under_way = 0
        """Callbacks between their head and their answer."""
        self._admitted = 0
        """Callbacks whose head was read in this turn of the event loop: their tasks begin in the next one."""
        self._clock = clock
        self._storing: dict[int, float] = {}
        self._numbers = itertools.count()

    def admit(self) -> str:
        """Decide on a callback whose head was just read: return why it is refused, "" when its task may begin."""
        reason = self.refusal(self._admitted)
        if reason:
            return reason
        if not self._admitted:
            # Runs before the tasks of this turn's heads, and so before the next heads are read.
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._admitted += 1
        return ""

    def _begin_turn(self) -> None:
        self._admitted = 0

    def refusal(self, admitted: int = 0) -> str:
        """Return why one callback more is refused, "" when it is not; `admitted` callbacks have not begun yet."""
        if self.under_way + admitted >= self.limit:
            return f"{self.limit} callbacks are under way (server.max_callbacks)"
        if len(self._storing) >= ALWAYS_STORED:
            since = next(itertools.islice(self._storing.values(), _NTH_OLDEST - 1, None))
            if self._clock() - since > SLOW_SECONDS:
                return f"storing takes more than {SLOW_SECONDS:g} s (store or blobs are slower than callbacks come)"
        return ""

    def begin_storing(self) -> int:
        """Note that a callback is being stored; return the number that ends it."""
        number = next(self._numbers)
        self._storing[number] = self._clock()
        return number

    def end_storing(self, number: int) -> None:
        """Note that a callback was stored, or will not be."""
        del self._storing[number]
