"""A broker's connection: one for all messages, given up once it broke, and made again for the next message."""

from __future__ import annotations

import asyncio

import pytest

from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.queues import Broker, BrokerSettings, Message
from receiver.settings.model import DestinationSettings


class _Settings(BrokerSettings):
    schemes = ("test",)


class _Numbered(Broker[int]):
    """Connects to nothing; its connections are numbers."""

    Settings = _Settings

    def __init__(self) -> None:
        super().__init__(DestinationSettings(name="app", options={"url": "test://broker"}))
        self.made = 0
        self.ended: list[int] = []

    async def _connect(self) -> int:
        self.made += 1
        return self.made

    async def _hang_up(self, link: int) -> None:
        self.ended.append(link)

    def _broken(self, error: Exception) -> Outcome | None:
        return self._unreached(error) if isinstance(error, OSError) else None

    async def _put(self, message: Message) -> Outcome:
        raise NotImplementedError


async def _works(link: int) -> None:
    pass


async def _breaks(link: int) -> None:
    raise ConnectionResetError


async def _has_a_bug(link: int) -> None:
    raise KeyError


async def test_messages_share_a_connection_until_it_breaks_and_the_next_one_connects_anew() -> None:
    broker = _Numbered()
    kinds = [(await broker._work(work)).kind for work in (_works, _works, _breaks, _works)]
    assert kinds == [*[OutcomeKind.DELIVERED] * 2, OutcomeKind.UNREACHABLE, OutcomeKind.DELIVERED]
    assert broker.made == 2
    with pytest.raises(KeyError):
        await broker._work(_has_a_bug)
    await broker._work(_works)
    assert broker.made == 3, "who knows what a bug left behind"
    await broker.close()
    assert broker.ended == [1, 2, 3]


async def test_what_fails_late_over_a_broken_connection_leaves_the_new_one_alone() -> None:
    broker, late = _Numbered(), asyncio.Event()

    async def fails_late(link: int) -> None:
        await late.wait()
        raise ConnectionResetError

    failing = asyncio.create_task(broker._work(fails_late))
    while broker.made < 1:
        await asyncio.sleep(0)
    await broker._work(_breaks)
    await broker._work(_works)
    late.set()
    assert (await failing).kind is OutcomeKind.UNREACHABLE
    await broker._work(_works)
    await broker.close()
    assert (broker.made, broker.ended) == (2, [1, 2])
