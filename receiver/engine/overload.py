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

from receiver.core.errors import BodyTooSlow

SLOW_SECONDS = 2.0
"""Storing that takes longer is slow: a third of what a source allows for it by default."""
ALWAYS_STORED = 128
"""Callbacks that may be stored at once however long it takes: during a silent outage these are what reaches the journal."""
_LOOK_SECONDS = 0.05
"""Between two looks for callbacks that were stored for too long."""
_NTH_OLDEST = 16
"""Which of the callbacks being stored is timed: a few that hang are no sign of overload."""


class Place:
    """Where a callback waits for its body while nothing proves it, until the `with` block ends.

    Leaving raises `BodyTooSlow` in a callback that had to give way.
    """

    def __init__(self, room: WaitingRoom, peer: str | None) -> None:
        self._room = room
        self.peer = peer
        self.gave_way = False
        self.task = asyncio.current_task()

    def __enter__(self) -> None:
        self._room.enter(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._room.leave(self)
        if self.gave_way and self.task is not None and kind is asyncio.CancelledError:
            self.task.uncancel()
            raise BodyTooSlow from None


class WaitingRoom:
    """The callbacks that nothing proves yet, while their bodies come in.

    They take no room from callbacks that are proved. When there are too many, or too many of one peer, the oldest gives way:
    a real callback is here for milliseconds, one that does not end is soon the oldest.
    """

    PLACES = 512
    PLACES_OF_A_PEER = 128
    SECONDS = 15.0
    """How long the body of a callback that nothing proves may take, in all."""

    def __init__(self) -> None:
        self._places: dict[Place, None] = {}
        self._of_peers: dict[str | None, dict[Place, None]] = {}

    def enter(self, place: Place) -> None:
        """Take a place; the oldest of the peer, or of all, gives way if there are too many."""
        self._places[place] = None
        same = self._of_peers.setdefault(place.peer, {})
        same[place] = None
        crowded = same if len(same) > self.PLACES_OF_A_PEER else self._places
        if crowded is same or len(self._places) > self.PLACES:
            oldest = next(iter(crowded))
            self.leave(oldest)
            oldest.gave_way = True
            if oldest.task is not None:
                oldest.task.cancel()

    def leave(self, place: Place) -> None:
        """Give a place back; harmless to repeat."""
        self._places.pop(place, None)
        same = self._of_peers.get(place.peer)
        if same is not None:
            same.pop(place, None)
            if not same:
                del self._of_peers[place.peer]


class Storing:
    """A callback while it is stored, until the `with` block ends. Leaving raises `TimeoutError` in one that took too long.

    One timer looks at all of them: one for each callback would cost as much as all the rest that is counted here.
    """

    def __init__(self, load: LoadShedder, seconds: float) -> None:
        """It may take so many seconds. Made within a task."""
        self._load, self.began = load, load.clock()
        self.until = self.began + seconds
        self._task = asyncio.current_task()
        self._cancelled_before = self._task.cancelling() if self._task else 0
        self._overdue = False

    def __enter__(self) -> None:
        self._load.storing[self] = None
        if len(self._load.storing) == 1:
            self._load.watch()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        del self._load.storing[self]
        ended = self._overdue and self._task and self._task.uncancel() <= self._cancelled_before
        if ended and kind is asyncio.CancelledError:
            raise TimeoutError from None

    def stop(self) -> None:
        """End the wait: it took too long."""
        if self._task and not self._overdue:
            self._overdue = True
            self._task.cancel()


class LoadShedder:
    """Counts the callbacks of one process, and decides whether one more is admitted."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit` callbacks may be under way at once; `clock` gives seconds."""
        self.limit = limit
        self.waiting_room = WaitingRoom()
        self.under_way = 0
        """Callbacks between their proof and their answer."""
        self.clock = clock
        self.storing: dict[Storing, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def refusal(self) -> str:
        """Return why one callback more is refused, "" when it is not."""
        if self.under_way >= self.limit:
            return f"{self.limit} callbacks are under way (server.max_callbacks)"
        if len(self.storing) >= ALWAYS_STORED:
            nth = next(itertools.islice(self.storing, _NTH_OLDEST - 1, None))
            if self.clock() - nth.began > SLOW_SECONDS:
                return f"storing takes more than {SLOW_SECONDS:g} s (store or blobs are slower than callbacks come)"
        return ""

    def watch(self) -> None:
        """Look, from now until none is left, for callbacks that are stored for too long."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer, now = None, self.clock()
        for one in self.storing:
            if one.until <= now:
                one.stop()
        if self.storing:
            self.watch()
