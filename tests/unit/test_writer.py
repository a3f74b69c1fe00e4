"""When the writer begins a transaction: at once, or a moment later if more operations are coming."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from receiver.storage.store.statements import Session
from receiver.storage.store.writer import Backend, Trouble, Waits, Writer


class Noting(Backend):
    """Notes when each transaction began."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def begin(self, lock_seconds: float | None = None) -> Session:
        self.began.append(time.monotonic())
        return cast("Session", None)

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def trouble(self, error: Exception) -> Trouble:
        return Trouble(error, of_all=True)

    def housekeeping(self, *, idle: bool) -> None: ...

    def close(self) -> None: ...


def _echo(session: Session, requests: Sequence[Any]) -> Sequence[Any]:
    return requests


@contextmanager
def _coming(writer: Writer) -> Iterator[None]:
    writer.coming += 1
    yield
    writer.coming -= 1


async def test_a_transaction_waits_for_operations_that_are_coming() -> None:
    backend = Noting()
    writer = Writer(backend, [_echo], waits=Waits(company=0.1))
    assert await writer.submit(_echo, 1) == 1
    with _coming(writer):
        assert await writer.submit(_echo, 2) == 2
    await writer.close()
    first, second = backend.began
    assert second - first >= 0.1


async def test_a_transaction_waits_for_nobody_when_nothing_is_coming() -> None:
    writer = Writer(Noting(), [_echo], waits=Waits(company=60))
    assert [await writer.submit(_echo, number) for number in range(3)] == [0, 1, 2]
    await writer.close()
