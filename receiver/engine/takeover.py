"""Takes over the claims of killed processes, so that their deliveries and pickups continue at once. Sees ports only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from receiver.core.errors import StoreUnavailable
from receiver.core.observe import Observer
from receiver.engine.worker import Clock
from receiver.storage.store.store import Store
from receiver.system.background import Background

EVERY_SECONDS = 1.0

Wake = Callable[[Iterable[str]], None]


class Takeover:
    """Checks every second for claims of processes that have ended, and releases them. One for each process that works."""

    def __init__(
        self, store: Store, observer: Observer, clock: Clock, wake: Wake, wake_pickups: Wake
    ) -> None:
        """`wake` gets the destinations of deliveries that are due again, `wake_pickups` the sources of pickups."""
        self._store = store
        self._observer = observer
        self._clock = clock
        self._wake = wake
        self._wake_pickups = wake_pickups
        self._background = Background()

    async def start(self) -> None:
        """Check once now, so that new claims carry this process's lock; then every second in a task of the running loop."""
        await self._look()
        self._background.start(self._run())

    async def stop(self) -> None:
        """Stop at once."""
        await self._background.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self._look()

    async def _look(self) -> None:
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
