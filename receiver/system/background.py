"""Background tasks of a process, which run until they are stopped."""

from __future__ import annotations

import asyncio
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
