"""How many callbacks are under way, and when one more is refused. Pure but for the clock it is given.

Two bounds. The count keeps memory bounded. The wait keeps answers in time: a road that is slow (a small object store, a
database that pauses) reaches its provider's patience long before the count, and what is stored too late is journaled, which
is more work than storing it. So when those that are being stored fall behind, no more are let in until they have caught up.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

BEHIND_SECONDS = 2.0
"""How long storing may take before no more are let in: a third of what a source allows for it by default."""
FEW = 128
"""So many may be stored at once however long it takes: during a silent outage they are what comes to the journal."""
_NTH = 16
"""Which of the oldest is looked at: one that hangs is no sign of a crowd."""


class Crowd:
    """The callbacks under way in one process."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` may be under way at once; `clock` gives seconds."""
        self.most = most
        self.under_way = 0
        """Callbacks between their head and their answer."""
        self._clock = clock
        self._storing: dict[int, float] = {}
        self._numbers = itertools.count()

    def begin(self) -> int:
        """Note that the body of a callback is here and that it is being stored; return what ends that."""
        number = next(self._numbers)
        self._storing[number] = self._clock()
        return number

    def end(self, number: int) -> None:
        """Note that it is stored, or will not be."""
        del self._storing[number]

    def refusal(self, coming: int = 0) -> str:
        """Return why one callback more is refused, "" when it is not; `coming` were let in and have not begun."""
        if self.under_way + coming >= self.most:
            return f"{self.most} callbacks are under way (server.max_callbacks)"
        if len(self._storing) >= FEW:
            since = next(itertools.islice(self._storing.values(), _NTH - 1, None))
            if self._clock() - since > BEHIND_SECONDS:
                return f"storing takes more than {BEHIND_SECONDS:g} s (store or blobs are slower than callbacks come)"
        return ""
