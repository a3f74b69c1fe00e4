"""Background tasks of a process, which run until they are stopped."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any


class Background:
    """Coroutines that run as tasks of the running loop. To start and to stop again is harmless."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> bool:
        """Whether something was started and not yet told to stop."""
        return bool(self._tasks)

    def start(self, *works: Coroutine[Any, Any, None]) -> None:
        """Run these from now on."""
        self._tasks += [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        """Cancel them all, and return when they have ended."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class BackgroundPart(ABC):
    """A part that works by itself, in a task of the running loop."""

    def __init__(self) -> None:
        self._background = Background()

    def start(self) -> None:
        """Work from now on."""
        self._background.start(self._run())

    async def stop(self) -> None:
        """Stop at once: what the store was asked for is done whole or not at all."""
        await self._background.stop()

    @abstractmethod
    async def _run(self) -> None:
        """Work until cancelled."""
