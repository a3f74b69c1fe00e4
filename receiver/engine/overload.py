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
"""Storing that takes longer than this counts as slow. It is a third of a source's default time limit."""
ALWAYS_STORED = 128
"""Callbacks that may be in storing however slow it is. During an outage without errors these reach the journal."""
_LOOK_SECONDS = 0.05
"""Seconds between two checks for callbacks past their time limit."""
_NTH_OLDEST = 16
"""Storing is slow if the 16th oldest callback in it is: a few that hang are no sign of overload."""


class Place:
    """The place of one unproved callback in the waiting room, until the `with` block ends.

    Leaving raises `BodyTooSlow` if the callback was evicted.
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
    """Unproved callbacks whose bodies are still arriving.

    They do not count against the limit of proved callbacks. Past the limit in all, or for one peer, the oldest is evicted:
    a real callback stays here for milliseconds, so an attacker's slow one is soon the oldest.
    """

    PLACES = 512
    PLACES_OF_A_PEER = 128
    SECONDS = 15.0
    """Time limit for the whole body of an unproved callback."""

    def __init__(self) -> None:
        self._places: dict[Place, None] = {}
        self._of_peers: dict[str | None, dict[Place, None]] = {}

    def enter(self, place: Place) -> None:
        """Take a place. Past a limit, evict the oldest callback of this peer, or of all peers."""
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
    """The time limit of one callback's storing, until the `with` block ends. Leaving raises `TimeoutError` past the limit.

    One timer checks all callbacks: a timer for each would cost too much on the hot path.
    """

    def __init__(self, load: LoadShedder, seconds: float) -> None:
        """`seconds` is the time limit. Create it within a task."""
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
        """Cancel the task: its time is over."""
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
        """Proved callbacks without an answer yet."""
        self.clock = clock
        self.storing: dict[Storing, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def refusal(self) -> str:
        """Return why the next callback is refused; "" if it is admitted."""
        if self.under_way >= self.limit:
            return f"{self.limit} callbacks are under way (server.max_callbacks)"
        if len(self.storing) >= ALWAYS_STORED:
            nth = next(itertools.islice(self.storing, _NTH_OLDEST - 1, None))
            if self.clock() - nth.began > SLOW_SECONDS:
                return f"storing takes more than {SLOW_SECONDS:g} s (store or blobs are slower than callbacks come)"
        return ""

    def watch(self) -> None:
        """Start the timer that checks for callbacks past their time limit; it runs until none is left."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer, now = None, self.clock()
        for one in self.storing:
            if one.until <= now:
                one.stop()
        if self.storing:
            self.watch()
