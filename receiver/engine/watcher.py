"""The watcher: polls providers for the state of their webhooks, and makes one event for each change. Sees ports only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from receiver.core.errors import Unavailable
from receiver.core.event import Event, EventSearch, RecordStatus
from receiver.core.fetch import Fetch
from receiver.core.observe import Observer
from receiver.core.own_events import SOURCE_FAILING, SOURCE_RECOVERED, Routed, source_event
from receiver.core.page import filled
from receiver.engine.worker import Clock
from receiver.providers import PullProvider
from receiver.storage.store.store import Store
from receiver.system.background import BackgroundPart

_FIRST_SECONDS = 10.0
"""The first poll comes within this time after the start, at random, so that processes do not poll together."""


class Watched(Struct, frozen=True, kw_only=True):
    """A source whose provider can be asked for the state of its webhook."""

    adapter: PullProvider
    fetch: Fetch
    every: float
    """Seconds between two questions."""


class Watcher(BackgroundPart):
    """One for each process that works."""

    def __init__(
        self,
        store: Store,
        sources: Mapping[str, Watched],
        *,
        routed: Routed,
        wake: Callable[[Iterable[str]], None],
        observer: Observer,
        clock: Clock,
    ) -> None:
        """`routed` returns the destinations of an event; `wake` gets those of a new one."""
        super().__init__()
        self._store, self._sources = store, sources
        self._routed, self._wake, self._observer, self._clock = routed, wake, observer, clock

    @property
    def names(self) -> tuple[str, ...]:
        """The sources that are asked about."""
        return tuple(self._sources)

    async def _run(self) -> None:
        await asyncio.gather(*map(self._keep_asking, self._sources))

    async def _keep_asking(self, name: str) -> None:
        await asyncio.sleep(random.uniform(0.1, 1) * _FIRST_SECONDS)
        while True:
            try:
                await self.ask(name)
            except Unavailable:  # the store is out: others tell that
                pass
            except Exception as error:  # a bug of ours must not end the watching
                self._observer.note("error", "watcher.failed", source=name, error=type(error).__name__)
            await asyncio.sleep(self._sources[name].every * random.uniform(0.9, 1.1))

    async def ask(self, name: str) -> None:
        """Poll once; record an event if the state changed. Raises `Unavailable`."""
        watched = self._sources[name]
        state = await watched.adapter.sender_state(watched.fetch)
        if state is None:
            self._observer.note("warning", "watcher.no_answer", source=name)
            return
        last = await self._last(name)
        if state.failing == (last is not None and last.type == SOURCE_FAILING):
            return
        recording = source_event(
            name,
            watched.adapter.provider,
            failing=state.failing,
            detail=state.detail,
            after=last.id if last else "",
            now=self._clock(),
            routed=self._routed,
        )
        recorded = await self._store.record(recording)
        if recorded.status is not RecordStatus.RECORDED:
            return
        if state.failing:
            self._observer.note("error", "watcher.source_failing", source=name, detail=state.detail)
        else:
            self._observer.note("info", "watcher.source_recovered", source=name)
        self._wake(recording.destinations)

    async def _last(self, name: str) -> Event | None:
        """Return the last event about a source's webhook."""
        wanted = EventSearch(
            source=name, types=(SOURCE_FAILING, SOURCE_RECOVERED), newest_first=True, limit=1
        )
        found = await filled(self._store.search, wanted, 1)
        return found[0].event if found else None
