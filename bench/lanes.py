"""What destinations cost each other: one that hangs beside one that works, and the rules that a claim follows beside none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from msgspec.structs import replace

from bench.engine import AtOnce
from bench.measures import Row
from bench.relay import Counting, clock, recording
from receiver.core.retry import policy
from receiver.core.sending import PLAIN, SendingRules, rate
from receiver.core.work import Outcome
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.storage.store.sqlite import SqliteStore

HELD = 15.0
"""Seconds that the hung destination keeps each attempt."""


class Hung(AtOnce):
    """A destination that takes what comes and never answers."""

    name = "hung"

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Hang."""
        await asyncio.sleep(HELD)
        raise TimeoutError


class Noted(AtOnce):
    """A destination that works, and tells when each event came."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[float] = asyncio.Queue()

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Acknowledge."""
        self.came.put_nowait(time.perf_counter())
        return await super().send(event_id, body, timestamp=timestamp)


async def _recorded(store: SqliteStore, names: Sequence[str], count: int) -> None:
    for start in range(0, count, 500):
        wanted = [recording(number) for number in range(start, min(count, start + 500))]
        jobs = (replace(one, event=replace(one.event, job_id=one.event.id[-4:-2])) for one in wanted)
        await asyncio.gather(*(store.record(replace(one, destinations=tuple(names))) for one in jobs))


async def _delay(path: Path, due: int, count: int) -> float:
    """Return the median milliseconds from recording an event to its attempt, beside `due` deliveries to one that hangs."""
    store = SqliteStore(str(path))
    await store.migrate()
    await store.open()
    await _recorded(store, ["hung"], due)
    place, seen = Noted(), Counting()
    seen.wanted = 1_000_000
    lanes = {
        one.name: DeliveryTerms(one, policy("deepgram"), 64, HELD, breaker_failures=10)
        for one in (place, Hung())
    }
    relay = Relay(store, lanes, seen, lambda event: event.data, clock, "bench")
    relay.start()
    await asyncio.sleep(0.5)  # until the hung one has all that it gets at once
    delays = []
    for number in range(count):
        began = time.perf_counter()
        await store.record(replace(recording(number), destinations=("app",)))
        relay.wake(["app"])
        delays.append((await place.came.get() - began) * 1000)
        await asyncio.sleep(0.02)
    await relay.stop(0.1)
    await store.close()
    return median(delays)


async def _cost(path: Path, rules: SendingRules, failures: int, count: int) -> float:
    """Return the processor microseconds of a delivery, from a backlog to a destination that answers at once."""
    store = SqliteStore(str(path))
    await store.migrate()
    await store.open()
    await _recorded(store, ["app"], count)
    seen = Counting()
    seen.wanted = count
    terms = DeliveryTerms(AtOnce(), policy("deepgram"), 64, 15, breaker_failures=failures, rules=rules)
    relay = Relay(store, {"app": terms}, seen, lambda event: event.data, clock, "bench")
    began = time.process_time()
    relay.start()
    await seen.done.wait()
    took = time.process_time() - began
    await relay.stop(5)
    await store.close()
    return took / count * 1e6


def hung(folder: Path, rounds: int, due: int) -> list[Row]:
    """How long an event waits for its attempt while another destination hangs with a backlog."""
    found: dict[int, list[float]] = {0: [], due: []}
    for number in range(rounds):
        for many, delays in found.items():
            delays.append(asyncio.run(_delay(folder / f"hung-{number}-{many}.db", many, 100)))
    alone, beside = (median(delays) for delays in found.values())
    figure = f"{beside:.1f} ms to the attempt (alone {alone:.1f} ms)"
    goal = "less than 50 ms more"
    return [
        Row(
            f"an event beside a destination that hangs with {due:,} due",
            figure,
            None,
            goal,
            beside - alone < 50,
        )
    ]


def rules(folder: Path, rounds: int, count: int) -> list[Row]:
    """What breaker, rate and order cost: processor time without them to that with them."""
    with_all = SendingRules(rate=rate("1000000/s"), order="job")
    costs: dict[str, list[float]] = {"none": [], "all": []}
    for number in range(rounds):
        costs["none"].append(asyncio.run(_cost(folder / f"none-{number}.db", PLAIN, 0, count)))
        costs["all"].append(asyncio.run(_cost(folder / f"all-{number}.db", with_all, 10, count)))
    ratio = median(a / b for a, b in zip(costs["none"], costs["all"], strict=True))
    figure = f"{median(costs['all']):,.0f} µs of processor each (without {median(costs['none']):,.0f} µs)"
    return [Row("a delivery with breaker, rate and order", figure, ratio, "0.95 of without", ratio >= 0.95)]
