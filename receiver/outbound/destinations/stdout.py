"""A destination that is the program's own standard output: one event on each line, as JSON. The log goes to standard error."""

from __future__ import annotations

import asyncio
import os
import select
import time

from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.destinations import Destination
from receiver.settings.model import DestinationSettings, Section

_STDOUT = 1
_PIECE = select.PIPE_BUF
"""Bytes that a pipe which says it can be written takes without waiting."""


class StdoutSettings(Section):
    """[destinations.NAME] of kind `stdout`."""


class StdoutDestination(Destination):
    """Writes to standard output, for a program that reads receiver's lines."""

    kind = "stdout"
    Settings = StdoutSettings

    def __init__(self, settings: DestinationSettings) -> None:
        super().__init__(settings)
        self._seconds = settings.timeout_seconds
        self._one = asyncio.Lock()
        self._cut = False
        """A line was begun and not ended: the next event begins on a new one."""

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Write the event as one line. A reader that takes nothing for the whole timeout is a `TIMEOUT`."""
        async with self._one:
            line = (b"\n" if self._cut else b"") + body + b"\n"
            try:
                left = await asyncio.to_thread(_write, line, time.monotonic() + self._seconds)
            except OSError as error:
                reason = (error.strerror or type(error).__name__).lower()
                return Outcome(
                    kind=OutcomeKind.UNREACHABLE, detail=f"standard output cannot be written: {reason}"
                )
            self._cut = 0 < left < len(line)
        if left:
            return Outcome(kind=OutcomeKind.TIMEOUT, detail="whoever reads standard output takes nothing")
        return Outcome(kind=OutcomeKind.DELIVERED)


def _write(line: bytes, until: float) -> int:
    """Write until a monotonic time; return how many bytes are left. Raises `OSError`."""
    ready = select.poll()
    ready.register(_STDOUT, select.POLLOUT)
    while line and (seconds := until - time.monotonic()) > 0:
        if ready.poll(seconds * 1000):
            line = line[os.write(_STDOUT, line[:_PIECE]) :]
    return len(line)
