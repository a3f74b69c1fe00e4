"""The event loop of a serving process: few events in a turn, and none forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from receiver.system.event_loop import EVENTS, short_turns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loop is asyncio's own")
MANY = 5 * EVENTS


@contextlib.contextmanager
def waiting(count: int) -> Iterator[list[socket.socket]]:
    """Give sockets with a byte to read each."""
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(count)]
        for pair in pairs:
            for sock in pair:
                stack.enter_context(contextlib.closing(sock))
            pair[0].send(b"x")
        yield [theirs for _, theirs in pairs]


def counted(socks: list[socket.socket], turns: int, *, consume: bool) -> list[Counter[int]]:
    """Return how often each socket was told to be readable, turn by turn."""

    async def main() -> list[Counter[int]]:
        loop, seen, all_turns = asyncio.get_running_loop(), Counter[int](), []

        def readable(number: int) -> None:
            seen[number] += 1
            if consume:
                socks[number].recv(1)

        for number, sock in enumerate(socks):
            loop.add_reader(sock, readable, number)
        for _ in range(turns):
            await asyncio.sleep(0)
            all_turns.append(Counter(seen))
            seen.clear()
        for sock in socks:
            loop.remove_reader(sock)
        return all_turns

    with asyncio.Runner(loop_factory=short_turns) as runner:
        return runner.run(main())


def test_a_turn_handles_few_events_and_the_next_turns_handle_the_rest() -> None:
    with waiting(MANY) as socks:
        turns = counted(socks, 8, consume=True)
    assert max(turn.total() for turn in turns) <= EVENTS
    assert sum(turns, Counter()) == Counter(range(MANY))


def test_sockets_that_are_always_ready_keep_no_other_waiting() -> None:
    with waiting(MANY) as socks:
        turns = counted(socks, 30, consume=False)
    times = sum(turns, Counter[int]())
    assert set(times) == set(range(MANY))
    assert max(times.values()) - min(times.values()) <= 1


def test_timers_and_what_other_threads_call_are_on_time() -> None:
    async def main() -> None:
        await asyncio.wait_for(asyncio.to_thread(int), 5)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.001)

    with asyncio.Runner(loop_factory=short_turns) as runner:
        runner.run(main())
