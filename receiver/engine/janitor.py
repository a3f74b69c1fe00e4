"""Retention: removes data older than its class allows, in small batches. Sees ports only.

Any number of processes may sweep at once: batches are harmless to repeat. Objects are deleted after the commit that removed
their last link; a crash in between leaves an orphan, which a later sweep finds. Deletion cannot be undone, so in doubt
nothing is deleted: while the clock is suspect, or the store knows too few of the objects in the blob store.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.clock import DAY
from receiver.core.errors import BlobsUnavailable, ReceiverError, StoreUnavailable
from receiver.core.observe import Observer
from receiver.core.retention import (
    KEYS_SECONDS,
    ORPHAN_SECONDS,
    REPEAT_SECONDS,
    REQUESTS_SECONDS,
    Prune,
    Retention,
    Walk,
)
from receiver.engine.worker import Clock, StoreWatch
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.keys import owner_of, with_outlines
from receiver.storage.store.store import Store
from receiver.system.background import BackgroundPart

SKEW_MS = 600_000
"""A difference between two clocks from which one of them must be wrong, so that ages are unknown."""
ORPHANS, UPLOADS = "orphans", "uploads"


class Limits(Struct, frozen=True, kw_only=True):
    """Limits of one sweep."""

    batch: int = 200
    """Rows that one batch looks at: the transaction that removes them holds up a callback for some milliseconds at most."""
    budget_seconds: float = 5.0
    """How long one sweep works; what is left then waits for the next."""
    rest: float = 4.0
    """Rest after each batch, as a multiple of the time that it took."""
    behind_seconds: float = 5.0
    """Pause before the next sweep when this one did not finish."""
    page: int = 1000
    pages: int = 10
    """Pages of the blob store's listing that one sweep looks at: each is a request that costs money."""
    many: int = 100
    """More orphans than this in a page, and more than known objects, mean that the store is new or the wrong one."""


_LIMITS = Limits()


Rest = Callable[[float], Awaitable[None]]


def uptime() -> float:
    """Return seconds since the machine started, sleep included where the system counts it. Nobody can set this clock."""
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if kind is None else time.clock_gettime(kind)


class Janitor(BackgroundPart):
    """One for each process that works. `rest` waits for some seconds between batches."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        retention: Retention,
        observer: Observer,
        clock: Clock,
        *,
        limits: Limits = _LIMITS,
        rest: Rest = asyncio.sleep,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        super().__init__()
        self._store = store
        self._blobs = blobs
        self._retention = retention
        self._observer = observer
        self._clock = clock
        self._limits = limits
        self._rest = rest
        self._watch = StoreWatch(observer, "janitor")
        self._uptime = uptime
        self._lead = clock() - int(uptime() * 1000) if store.skew_ms is None else None
        """The machine's start by the last trusted clock; None before that."""
        self._warned_at: dict[str, float] = {}
        """Uptime at the last warning of each kind."""
        self._after: dict[str, str] = {}
        """For each unfinished walk, the row after which it continues."""
        self._left: list[Walk] = []
        """Walks that an earlier sweep had no time for."""

    async def _run(self) -> None:
        pause = self._retention.sweep_seconds * random.uniform(0.05, 1.0)  # processes started together part
        while True:
            await asyncio.sleep(pause)
            done = await self.sweep()
            seconds = self._retention.sweep_seconds
            pause = (seconds if done else min(seconds, self._limits.behind_seconds)) * random.uniform(
                0.8, 1.2
            )

    async def sweep(self) -> bool:
        """Sweep once as of now and report it; False when there is more to do. Never raises but for cancellation."""
        counts: Counter[str] = Counter()
        done = True
        try:
            now = await self._trusted_time()
            if now is not None:
                done = await self._sweep(now, counts)
            self._watch.worked()
        except BlobsUnavailable as error:
            self._watch.worked()
            self._blobs_failed(error)
        except StoreUnavailable as error:
            self._watch.failed(error)
        except Exception as error:  # a bug of ours must not end the sweeping
            self._observer.note("error", "janitor.failed", error=type(error).__name__)
        if +counts:
            self._observer.note("info", "janitor.swept", finished=done, **+counts)
        return done

    async def step(self, now: int) -> Mapping[str, int]:
        """Sweep once as of `now`; return how much of each kind was removed.

        Raises `StoreUnavailable`, `BlobsUnavailable`, and `ReceiverError` when the database's clock is far from ours.
        """
        counts: Counter[str] = Counter()
        skew = await self._skew()
        if abs(skew) >= SKEW_MS:
            raise ReceiverError(f"nothing is removed: {_skewed(skew)}")
        await self._sweep(now + skew, counts)
        return +counts

    @property
    def behind(self) -> bool:
        """Whether the last sweep left something for the next."""
        return bool(self._left or self._after)

    # ------------------------------------------------------------ the time

    async def _skew(self) -> int:
        """Return how far the database's clock is ahead of ours now, 0 where it has none of its own."""
        if self._store.skew_ms is None:
            return 0
        await self._store.ping()  # our clock may have been set since the last transaction
        return self._store.skew_ms or 0

    async def _trusted_time(self) -> int | None:
        """Return the database's time, or this machine's where the database has no clock; None, with a warning, when it is wrong.

        A clock that jumps ahead of the machine's uptime is wrong until it is set back, or this process starts again.
        """
        skew = await self._skew()
        now = self._clock() + skew
        lead = now - int(self._uptime() * 1000)
        before = lead if self._lead is None else self._lead
        jump = lead - before
        if abs(skew) < SKEW_MS and jump < SKEW_MS:
            self._lead = max(before, lead)
            return now
        error = f"the clock jumped {jump / 1000:.0f} s ahead; if it is right now, restart receiver"
        if self._warns("clock"):
            error = _skewed(skew) if abs(skew) >= SKEW_MS else error
            self._observer.note("warning", "janitor.clock_astray", error=error)
        return None

    def _warns(self, kind: str) -> bool:
        """Tell whether a warning of this kind is due: once a day while its cause lasts."""
        at = self._uptime()
        if at - self._warned_at.get(kind, -DAY) < DAY:
            return False
        self._warned_at[kind] = at
        return True

    # ------------------------------------------------------------ one sweep

    async def _sweep(self, now: int, counts: Counter[str]) -> bool:
        until = time.monotonic() + self._limits.budget_seconds
        walks = self._walks(now)
        self._left = self._left or list(walks)
        while self._left:
            if not await self._walk(walks[self._left[0]], counts, until):
                return False
            self._left.pop(0)
        if self._retention.audio is not None:
            await self._orphans(now - ORPHAN_SECONDS * 1000, counts, until)
        return True  # looking through all objects may take days; it is no reason to hurry

    def _walks(self, now: int) -> dict[Walk, Prune]:
        kept = self._retention
        events = _longest(
            kept.events, REPEAT_SECONDS, kept.audio or 0
        )  # without audio's age, it holds no event
        dead = kept.dead_letters
        ages: list[tuple[Walk, int | None]] = [
            (Walk.BODIES, kept.bodies),
            (Walk.ATTEMPTS, kept.attempts),
            (Walk.PICKUP_ATTEMPTS, kept.attempts),
            (Walk.AUDIO, kept.audio),
            (Walk.DEAD_LETTERS, dead),
            (Walk.EVENTS, events),
            (Walk.CALLBACKS, events),
            (Walk.PICKUPS, events),
            (Walk.KEYS, KEYS_SECONDS),
            (Walk.TOKENS, 0),
            (Walk.SUBMISSIONS, events),
            (Walk.OPERATIONS, events),
            (Walk.REJECTED_REQUESTS, REQUESTS_SECONDS),
        ]
        return {
            walk: Prune(
                walk=walk,
                before=now - seconds * 1000,
                limit=self._limits.batch,
                dead_before=0 if dead is None else now - dead * 1000,
            )
            for walk, seconds in ages
            if seconds is not None
        }

    async def _walk(self, prune: Prune, counts: Counter[str], until: float) -> bool:
        """Do one walk to its end; return False if the time was up first. The next sweep continues it."""
        name = prune.walk.value
        after = self._after.pop(name, "")
        while True:
            began = time.monotonic()
            done = await self._store.prune(replace(prune, after=after))
            counts[name] += done.count
            if done.blob_keys and self._retention.audio is not None:
                if done.after is not None:
                    self._after[name] = done.after
                await self._delete(done.blob_keys, counts)
                self._after.pop(name, None)
            if done.after is None:
                return True
            after = done.after
            if time.monotonic() >= until:
                self._after[name] = after
                return False
            await self._rest((time.monotonic() - began) * self._limits.rest)

    async def _delete(self, keys: tuple[str, ...], counts: Counter[str]) -> None:
        """Delete objects that nothing links to. One that cannot be deleted now is an orphan for a later sweep.

        Raises `BlobsUnavailable`, which ends the sweep: each further batch would make more orphans.
        """
        await self._blobs.delete(with_outlines(keys))
        counts["blobs"] += len(keys)

    async def _orphans(self, before: int, counts: Counter[str], until: float) -> None:
        """Delete old objects that no event links to, page by page through the whole blob store, over many sweeps."""
        after = self._after.get(ORPHANS, "")
        if not after:
            await self._uploads(before, counts)
        for _ in range(self._limits.pages):
            page = await self._blobs.entries(after=after, limit=self._limits.page)
            if not page:
                self._after.pop(ORPHANS, None)
                break
            ours = {entry.key: entry.modified_at for entry in page if self._blobs.is_ours(entry.key)}
            known = await self._store.known_blobs(list({owner_of(key) for key in ours}))
            old = (key for key, modified_at in ours.items() if modified_at < before)
            orphans = [key for key in old if owner_of(key) not in known]
            if orphans:
                await self._remove(orphans, known, counts)
            after = self._after[ORPHANS] = page[-1].key
            if time.monotonic() >= until:
                break

    async def _uploads(self, before: int, counts: Counter[str]) -> None:
        try:
            counts[UPLOADS] += await self._blobs.abort_abandoned(before=before)
        # One file that may not be removed is no reason to leave all orphans.
        except BlobsUnavailable as error:
            self._blobs_failed(error)

    async def _remove(self, orphans: list[str], known: set[str], counts: Counter[str]) -> None:
        """Delete orphans, unless the store knows so few objects that it cannot be the one they belong to."""
        few = len(orphans) <= self._limits.many or len(known) >= len(orphans)
        if not few or (await self._store.positions()).oldest is None:
            if self._warns("orphans"):
                first, last = orphans[0], orphans[-1]
                self._observer.note(
                    "warning", "janitor.orphans_left", count=len(orphans), first=first, last=last
                )
            return
        try:
            await self._blobs.delete(orphans)
        except BlobsUnavailable as error:  # of one that may not be deleted, perhaps; behind it are others
            self._blobs_failed(error)
        else:
            counts[ORPHANS] += len(orphans)

    def _blobs_failed(self, error: BlobsUnavailable) -> None:
        if self._warns(f"blobs {error.message}"):
            self._observer.note("warning", "janitor.blobs_unavailable", error=error.message)


def _skewed(skew: int) -> str:
    side = "behind" if skew > 0 else "ahead of"
    return f"this machine's clock is {abs(skew) / 1000:.0f} s {side} the database's; set it, or the database server's (NTP)"


def _longest(*ages: int | None) -> int | None:
    """Return the longest of these ages; None is for ever."""
    return None if None in ages else max(age for age in ages if age is not None)
