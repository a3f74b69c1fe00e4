"""What destinations cost each other: one that hangs beside one that works, and the rules that a claim follows beside none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from msgspec.structs import replace

from bench.engine import AtOnce
from bench.measures import Row
from bench.relay import Counting, clock, recording
from bench.servers import database_cpu
from receiver.core.destinations import PLAIN, SendingRules, rate
from receiver.core.retry import policy
from receiver.core.work import DeliveryState, Outcome, OutcomeKind, Settlement
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store
from tests.support import postgres

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
        super().__init__()
        self.came: asyncio.Queue[float] = asyncio.Queue()

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Acknowledge."""
        self.came.put_nowait(time.perf_counter())
        return await super().send(event_id, body, timestamp=timestamp)


async def _recorded(store: Store, names: Sequence[str], count: int) -> None:
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


async def _cost(
    store: Store, rules: SendingRules, failures: int, count: int, used: Callable[[], float], held: int = 0
) -> float:
    """Return the processor microseconds of a delivery, from a backlog to a destination that answers at once.

    Before the backlog are `held` deliveries of one job behind its dead letter.
    """
    await store.migrate()
    await store.open()
    now = clock()
    await store.claim("app", worker="w", limit=1, now=now, lease_until=now, rules=rules)  # sets the order
    if held:
        await _held(store, held, rules)
    await _recorded(store, ["app"], count)
    seen = Counting()
    seen.wanted = count
    terms = DeliveryTerms(AtOnce(), policy("deepgram"), 64, 15, breaker_failures=failures, rules=rules)
    relay = Relay(store, {"app": terms}, seen, lambda event: event.data, clock, "bench")
    began = used()
    relay.start()
    await seen.done.wait()
    took = used() - began
    await relay.stop(5)
    await store.close()
    return took / count * 1e6


async def _held(store: Store, count: int, rules: SendingRules) -> None:
    """Record events of one job, whose first one is a dead letter."""
    held = [recording(number) for number in range(count + 1)]
    jobs = [replace(one, event=replace(one.event, job_id="held")) for one in held]
    await store.record(jobs[0])
    until = clock() + 60_000
    (dead,) = await store.claim("app", worker="w", limit=1, now=clock(), lease_until=until, rules=rules)
    outcome = Outcome(kind=OutcomeKind.REFUSED, status=500)
    ended = Settlement(
        claim=dead, started_at=clock(), seconds=0, outcome=outcome, state=DeliveryState.DEAD, due_at=None
    )
    await store.settle(ended)
    await asyncio.gather(*map(store.record, jobs[1:]))


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


@contextmanager
def _stores(folder: Path) -> Iterator[dict[str, tuple[Callable[[str], Store], Callable[[], float]]]]:
    """Yield what makes a new store of each kind, and the processor seconds that it has used, those of its server included."""
    with postgres.server(durable=True) as server:
        yield {
            "SQLite": (lambda name: SqliteStore(str(folder / f"{name}.db")), time.process_time),
            "PostgreSQL": (
                lambda _: PostgresStore(server.url(server.new_database())),
                lambda: time.process_time() + database_cpu(server),
            ),
        }


def rules(folder: Path, rounds: int, count: int) -> list[Row]:
    """What breaker, rate and order cost: processor time without them to that with them, in pairs."""
    with_all = SendingRules(rate=rate("1000000/s"), order="job", dead_block=True)
    rows = []
    with _stores(folder) as stores:
        for kind, (made, used) in stores.items():
            pairs, crowds = [], []
            for number in range(max(rounds, 5)):
                none = asyncio.run(_cost(made(f"none-{number}"), PLAIN, 0, count, used))
                pairs.append((none, asyncio.run(_cost(made(f"all-{number}"), with_all, 10, count, used))))
            for number in range(rounds):
                few, many = (
                    asyncio.run(_cost(made(f"held-{held}-{number}"), with_all, 10, count, used, held))
                    for held in (10, 10_000)
                )
                crowds.append((few, many))
            rows += [
                _compared(f"a delivery with breaker, rate and order, {kind}", pairs, "without", 0.95),
                _compared(
                    f"a delivery beside 10,000 held back by their job's dead letter, {kind}",
                    crowds,
                    "10",
                    0.8,
                ),
            ]
    return rows


def _compared(what: str, pairs: Sequence[tuple[float, float]], other: str, goal: float) -> Row:
    """Return the row that compares processor times, the other one first in each pair."""
    before, after = (median(side) for side in zip(*pairs, strict=True))
    ratio = median(a / b for a, b in pairs)
    figure = f"{after:,.0f} µs of processor each ({other}: {before:,.0f} µs)"
    return Row(what, figure, ratio, f"{goal:.2f} of {other}", ratio >= goal)
