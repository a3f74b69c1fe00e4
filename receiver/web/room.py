"""Whether one callback more may begin: asked for each head, before anything is made of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver


class Room:
    """Asks the intake's crowd, and counts those whose heads came in this turn of the event loop.

    The task of a callback begins in the turn after its head was read; until then the intake does not know of it.
    """

    def __init__(self, receiver: Receiver) -> None:
        """Make room for one process."""
        self.receiver = receiver
        self._crowd = receiver.intake.crowd
        self._coming = 0

    def take(self) -> str:
        """Return why one callback more is refused; "" when it may begin, and is counted."""
        reason = self._crowd.refusal(self._coming)
        if reason:
            return reason
        if not self._coming:
            # Runs before the tasks of this turn's heads, and so before the next heads are read.
            asyncio.get_running_loop().call_soon(self._begin)
        self._coming += 1
        return ""

    def _begin(self) -> None:
        self._coming = 0
