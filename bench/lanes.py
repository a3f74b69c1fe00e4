"""What destinations cost each other: one that hangs beside one that works, and the rules that a claim follows beside none."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from msgspec.structs import replace

from bench.engine import AtOnce
from bench.measures import Row
from bench.processes import sink
from bench.relay import Counting, clock, destination, recording
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
WITH_ALL = SendingRules(rate=rate("1000000/s"), order="job", dead_block=True)


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


async def _recorded(store: Store, name: str, count: int, of_job: int = 3) -> None:
    """Record events for a destination, `of_job` of each job, which come in turns."""
    for start in range(0, count, 500):
        made = []
        for number in range(start, min(count, start + 500)):
            one = recording(number)
            event = replace(one.event, job_id=f"job-{number % (count // of_job)}")
            made.append(store.record(replace(one, event=event, destinations=(name,))))
        await asyncio.gather(*made)


async def _delay(path: Path, due: int, count: int) -> float:
    """Return the median milliseconds from recording an event to its attempt, beside `due` deliveries to one that hangs."""
    store = SqliteStore(str(path))
    await store.migrate()
    await store.open()
    await _recorded(store, "hung", due)
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


@dataclass
class _Drain:
    """A backlog that is delivered over HTTP to a destination that answers at once."""

    store: Store
    used: Callable[[], float]
    """Gives the processor seconds that were used."""
    port: int
    count: int
    rules: SendingRules
    failures: int
    """In a row, that open the breaker; 0 for none."""
    of_job: int = 3
    held: int = 0
    """Deliveries of one job that wait before the backlog, behind its dead letter."""

    async def cost(self) -> tuple[float, float]:
        """Return the processor microseconds of a delivery, and how many came in a second."""
        store, rules, count = self.store, self.rules, self.count
        await store.migrate()
        await store.open()
        now = clock()
        await store.claim("app", worker="w", limit=1, now=now, lease_until=now, rules=rules)  # sets the order
        if self.held:
            await _held(store, self.held, rules)
        await _recorded(store, "app", count, self.of_job)
        place, seen = destination(f"http://127.0.0.1:{self.port}/hooks", 64), Counting()
        await place.open()
        seen.wanted = count
        terms = DeliveryTerms(place, policy("deepgram"), 64, 15, breaker_failures=self.failures, rules=rules)
        relay = Relay(store, {"app": terms}, seen, lambda event: event.data, clock, "bench")
        began, since = self.used(), time.perf_counter()
        relay.start()
        await seen.done.wait()
        took, seconds = self.used() - began, time.perf_counter() - since
        await relay.stop(5)
        await place.close()
        await store.close()
        return took / count * 1e6, count / seconds


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
    rows = []
    with _stores(folder) as stores, sink(folder) as place:
        for kind, (made, used) in stores.items():
            rows += _rules_of(kind, rounds, partial(_Drain, used=used, port=place.port, count=count), made)
    return rows


def _rules_of(
    kind: str, rounds: int, drain: Callable[..., _Drain], made: Callable[[str], Store]
) -> list[Row]:
    """Measure with one kind of store."""
    numbers = itertools.count()

    def cost(rules: SendingRules, failures: int, **more: int) -> tuple[float, float]:
        store = made(f"{next(numbers)}")
        return asyncio.run(drain(store=store, rules=rules, failures=failures, **more).cost())

    none, every = (PLAIN, 0), (WITH_ALL, 10)
    rows = []
    for of_job in (3, 20):
        times = max(rounds, 5) if of_job == 3 else rounds
        pairs = [(cost(*none, of_job=of_job), cost(*every, of_job=of_job)) for _ in range(times)]
        what = f"a delivery with breaker, rate and order, {of_job} events a job, {kind}"
        rows.append(_compared(what, pairs, "without", 0.95))
    crowds = [(cost(*every, held=10), cost(*every, held=10_000)) for _ in range(rounds)]
    what = f"a delivery beside 10,000 held back by their job's dead letter, {kind}"
    return [*rows, _compared(what, crowds, "10", 0.8)]


def _compared(
    what: str, pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]], other: str, goal: float
) -> Row:
    """Return the row that compares processor times and rates, the other one first in each pair."""
    costs = [(before, after) for (before, _), (after, _) in pairs]
    before, after = (median(side) for side in zip(*costs, strict=True))
    ratio = median(a / b for a, b in costs)
    rates = median(b / a for (_, a), (_, b) in pairs)
    figure = f"{after:,.0f} µs of processor each ({other}: {before:,.0f} µs); {rates:.2f} of the rate"
    return Row(what, figure, ratio, f"{goal:.2f} of {other}", ratio >= goal)
