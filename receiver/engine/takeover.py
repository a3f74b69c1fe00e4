"""Takes over the claims of killed processes, so that their deliveries and pickups continue at once. Sees ports only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from receiver.core.errors import StoreUnavailable
from receiver.core.observe import Observer
from receiver.engine.worker import Clock
from receiver.storage.store.store import Store
from receiver.system.background import BackgroundPart

EVERY_SECONDS = 1.0

Wake = Callable[[Iterable[str]], None]


class Takeover(BackgroundPart):
    """Checks every second for claims of processes that have ended, and releases them. One for each process that works."""

    def __init__(
        self, store: Store, observer: Observer, clock: Clock, wake: Wake, wake_pickups: Wake
    ) -> None:
        """`wake` gets the destinations of deliveries that are due again, `wake_pickups` the sources of pickups."""
        super().__init__()
        self._store = store
        self._observer = observer
        self._clock = clock
        self._wake = wake
        self._wake_pickups = wake_pickups

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Check once. Claims that are made later carry this process's lock."""
        try:
            taken = await self._store.take_over(now=self._clock())
        except StoreUnavailable:
            return  # the lanes say so
        except Exception as error:  # a bug of ours must not end the looking
            self._observer.note("error", "claims.takeover_failed", error=type(error).__name__)
            return
        if taken.destinations or taken.sources:
            self._wake(set(taken.destinations))
            self._wake_pickups(set(taken.sources))
            counts = {"deliveries": len(taken.destinations), "pickups": len(taken.sources)}
            self._observer.note("warning", "claims.taken_over", **counts)
