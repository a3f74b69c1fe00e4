"""Load shedding: how many callbacks are under way, and when one more is refused.

Two bounds. `limit` keeps memory bounded. The other keeps answers early: while many callbacks are at work, no more are admitted
than were answered within the last second, however long the one that makes them wait is (the event loop, a disk, a small object
store). What waits longer is answered in vain, since its provider hung up, or goes to the journal, which is more work than storing it.
Past either bound a source that has less than its share under way is admitted all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from receiver.core.errors import BodyTooSlow

TARGET_SECONDS = 1.0
"""How long admitted callbacks take while load is shed: a tenth of what providers wait for an answer."""
ALWAYS_ADMITTED = 64
"""Callbacks that may be at work however slowly they are answered. During an outage without errors these reach the journal."""
_LOOK_SECONDS = 0.05
"""Seconds between two looks at what is under way."""
_WINDOW_SECONDS = 0.25
"""For how long answers are counted before the bound is set anew."""
_ARRIVAL_SECONDS = 0.5
"""A body that has not arrived by then waits for its sender: it is no work meanwhile."""


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


class UnderWay:
    """A proved callback without an answer yet. The `LoadShedder` counts it from `enter` to `leave`."""

    began = 0.0
    whole = False
    """Its body has arrived, so that all that it waits for is receiver."""
    at_work = False
    """Its body has arrived, or is expected at any moment."""
    storing: Storing | None = None

    def __init__(self, source: str) -> None:
        self.source = source


class Storing:
    """The time limit of one callback's storing, until the `with` block ends. Leaving raises `TimeoutError` past the limit.

    One timer checks all callbacks: a timer for each would cost too much on the hot path.
    """

    def __init__(self, load: LoadShedder, callback: UnderWay, seconds: float) -> None:
        """`seconds` is the time limit. Create it within a task."""
        self._callback = callback
        self.until = load.clock() + seconds
        self._task = asyncio.current_task()
        self._cancelled_before = self._task.cancelling() if self._task else 0
        self._overdue = False

    def __enter__(self) -> None:
        self._callback.storing = self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._callback.storing = None
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
        self.under_way: dict[UnderWay, None] = {}
        self._of_sources: Counter[str] = Counter()
        """How many each source has under way, if it has any."""
        self.clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._at_work = self._whole = 0
        self._allowed = limit
        """How many callbacks may be at work; set anew after each window."""
        self._window_began = 0.0
        self._answered = 0
        """Callbacks that were answered within this window."""

    def refusal(self, source: str) -> str:
        """Return why the next callback of this source ("" if there is none of that name) is refused; "" if it is admitted."""
        if len(self.under_way) >= self.limit:
            bound, reason = self.limit, f"{self.limit} callbacks are under way (server.max_callbacks)"
        elif self._at_work >= self._allowed:
            bound = self._allowed
            reason = f"callbacks come faster than they are stored ({bound} at once would take {TARGET_SECONDS:g} s)"
        else:
            return ""
        share = max(1, bound // len(self._of_sources.keys() | {source}))
        return "" if source and self._of_sources[source] < share else reason

    def enter(self, callback: UnderWay, *, whole: bool) -> None:
        """Count a callback whose body arrives, or has arrived and is `whole`. It may be counted already."""
        if callback not in self.under_way:
            callback.began = self.clock()
            if not self.under_way:
                self._allowed = self.limit
                self._begin_window(callback.began)
            self.under_way[callback] = None
            self._of_sources[callback.source] += 1
            if self._timer is None:
                self._watch()
        self._note(callback, at_work=True, whole=whole)

    def leave(self, callback: UnderWay) -> None:
        """Count a callback no more; harmless if it is not counted."""
        if self.under_way.pop(callback, 0) is None:
            self._of_sources[callback.source] -= 1
            if not self._of_sources[callback.source]:
                del self._of_sources[callback.source]
            self._answered += callback.whole
            self._note(callback, at_work=False, whole=False)

    def _note(self, callback: UnderWay, *, at_work: bool, whole: bool) -> None:
        self._at_work += at_work - callback.at_work
        self._whole += whole - callback.whole
        callback.at_work, callback.whole = at_work, whole

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self.look)

    def look(self) -> None:
        """Stop what is past its time limit, and set the bound after each window. Runs until nothing is under way."""
        self._timer, now = None, self.clock()
        for one in self.under_way:
            if not one.whole and now - one.began > _ARRIVAL_SECONDS:
                self._note(one, at_work=False, whole=False)
            elif one.storing is not None and one.storing.until <= now:
                one.storing.stop()
        seconds = now - self._window_began
        if self._whole < ALWAYS_ADMITTED // 2:  # too few to tell what this process is able to do
            self._allowed = min(2 * self._allowed, self.limit)
            self._begin_window(now)
        elif seconds >= _WINDOW_SECONDS:
            self._allowed = max(int(self._answered * TARGET_SECONDS / seconds), ALWAYS_ADMITTED)
            self._begin_window(now)
        if self.under_way:
            self._watch()

    def _begin_window(self, now: float) -> None:
        self._window_began, self._answered = now, 0
