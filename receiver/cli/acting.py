"""What a command changes is written into the audit before it is done, as what the API and the console do is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from receiver.core.audit import COMMAND_LINE, new_act
from receiver.core.clock import wall_clock
from receiver.core.errors import ReceiverError, StoreUnavailable

if TYPE_CHECKING:
    from receiver.storage.store.store import Store


@contextlib.asynccontextmanager
async def acting(store: Store, command: str, subject: str = "", **details: object) -> AsyncIterator[None]:
    """Note what a person does by a command, and after that how it ended: 200, or 422 where it was refused."""
    act = new_act(f"receiver {command}", COMMAND_LINE, at=wall_clock(), subject=subject, details=details)
    await store.begin_act(act)
    status = 200
    try:
        yield
    except ReceiverError:
        status = 422
        raise
    finally:
        with contextlib.suppress(StoreUnavailable):
            await store.end_act(act.id, status=status, answer=None)
