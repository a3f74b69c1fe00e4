"""What a sink was given, as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tests.support.patience import PATIENCE
from tests.support.sink import Sink


class Delivered:
    """Reads a sink's requests as events, each once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._read = 0
        self.events: list[dict[str, Any]] = []
        self.ids: dict[str, set[str]] = {}
        """Event ids by the job id that the provider gave."""
        self.arrived: dict[str, float] = {}
        """When the first of them came, by the monotonic clock."""
        self.ends: dict[str, set[str]] = {}
        """The same without events that only tell of progress."""

    def look(self) -> None:
        """Read what has come since."""
        for request in self._sink.received[self._read :]:
            body = json.loads(request.body)
            self.events.append(body)
            job, event_id = body["data"]["job_id"], body["data"]["event_id"]
            self.ids.setdefault(job, set()).add(event_id)
            self.arrived.setdefault(job, request.at)
            if not body["type"].endswith(".processing"):
                self.ends.setdefault(job, set()).add(event_id)
            assert request.headers["webhook-id"] == body["data"]["event_id"]
        self._read = len(self._sink.received)

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until `condition` holds, looking at each request that comes."""
        async with asyncio.timeout(seconds):
            while True:
                count = len(self._sink.received)
                self.look()
                if condition():
                    return
                await self._sink.until(count + 1)
