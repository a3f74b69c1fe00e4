"""What the statements cost as the tables grow: 1,000, 100,000 and 1,000,000 delivered rows, and after real churn.

Everything goes through the port. The databases are of one server, and the rounds go through all of them in turn.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median
from typing import TypeVar

from bench.fleet import SECTION, Figures
from bench.measures import Row
from bench.servers import Servers, delivered, execute, servers
from bench.store_rates import settlement
from receiver.core.event import CallbackRow, Event, Recording, Stage, new_id
from receiver.core.work import Claimed
from receiver.storage.store.postgres import PostgresStore

T = TypeVar("T")
CALLERS = 64
CLAIMED = 32
_AT_ONCE = 2_048
"""Rows that one round records, claims and settles in each database."""
_OPERATIONS = {"record": "row, 64 callers", "claim": "claim of 32", "settle": "row, 64 callers"}
_LEFT = """
SELECT c.relname, pg_total_relation_size(c.oid), s.n_dead_tup
FROM pg_class AS c JOIN pg_stat_user_tables AS s ON s.relid = c.oid
WHERE c.relname IN ('callbacks', 'events', 'deliveries', 'attempts')
"""


def growth(rounds: int, most: int) -> list[Row]:
    """Rows about a claim, a record and a settle beside ever more delivered rows; then beside rows delivered just now."""
    sizes = sorted({1_000, most // 10, most})
    churned = most // 10
    with servers() as up:
        urls = {size: up.new_database() for size in sizes}
        for size, url in urls.items():
            delivered(url, size)
        found = asyncio.run(_turns(rounds, {str(size): url for size, url in urls.items()}))
        after = asyncio.run(_churn(up, rounds, churned))
        each = _bytes_each(urls[most], most)
    rows = [_row(found, operation, sizes) for operation in _OPERATIONS]
    rows.append(_churn_row(after, churned))
    rows.append(
        Row(
            "bytes of a delivered callback in the database, its indexes included",
            ", ".join(f"{name} {value:,.0f}" for name, value in each.items())
            + "; without the kept body, with 0.3 KB of event data",
            section=SECTION,
            numbers={f"bytes.{name}": value for name, value in each.items()},
        )
    )
    return rows


def _bytes_each(url: str, count: int) -> dict[str, float]:
    found = {str(name): int(str(size)) / count for name, size, _ in execute(url, _LEFT)}
    return {name: found[name] for name in ("callbacks", "events", "deliveries", "attempts")}


async def _turns(rounds: int, urls: dict[str, str]) -> Figures:
    found = Figures()
    for url in urls.values():
        await _turn(Figures(), "", url)
    for _ in range(rounds):
        for name, url in urls.items():
            await _turn(found, name, url)
    return found


async def _churn(up: Servers, rounds: int, count: int) -> Figures:
    """Measure in a small database, deliver `count` rows in it through the port, measure again at once and ever after."""
    url, still = up.new_database(), up.new_database()
    delivered(url, 1_000)
    delivered(still, 1_000)
    await _turn(Figures(), "", url)
    await _turn(Figures(), "", still)
    store = PostgresStore(url)
    await store.open()
    for _ in range(0, count, 4_096):
        await _deliver(store, 4_096)
    await store.close()
    found = Figures()
    for _ in range(rounds):
        await _turn(found, "churned", url)
        await _turn(found, "still", still)
    dead = {str(name): float(str(left)) for name, _, left in execute(url, _LEFT)}
    found.add("dead", dead["deliveries"])
    return found


async def _deliver(store: PostgresStore, count: int) -> None:
    await _by_callers(_recordings(count), store.record)
    while claims := await _claim(store):
        await _by_callers(iter(claims), lambda one: store.settle(settlement(one)))


def _recordings(count: int) -> Iterator[Recording]:
    for _ in range(count):
        now = int(time.time() * 1000)
        key = os.urandom(12).hex()
        event = Event(
            id=new_id("evt", now),
            type="transcript.completed",
            source="deepgram",
            provider="deepgram",
            job_id=key,
            ref=None,
            stage=Stage.FINAL,
            occurred_at=now,
            recorded_at=now,
            data=b'{"text": "' + b"x" * 256 + b'"}',
        )
        callback = CallbackRow(
            id=new_id("cbk", now),
            source="deepgram",
            idempotency_key=key,
            second_key=None,
            method="POST",
            content_type="application/json",
            received_at=now,
            body_size=2000,
            body_sha256="0" * 64,
            body=None,
            proofs="basic",
        )
        yield Recording(callback=callback, event=event, destinations=("app",))


async def _by_callers(items: Iterator[T], one: Callable[[T], Awaitable[object]]) -> None:
    async def caller() -> None:
        for item in items:
            await one(item)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _claim(store: PostgresStore) -> list[Claimed]:
    now = int(time.time() * 1000)
    return await store.claim("app", worker="bench", limit=CLAIMED, now=now, lease_until=now + 60_000)


async def _turn(found: Figures, name: str, url: str) -> None:
    """Record rows, claim all of them, settle all of them; note microseconds: of a row, of a claim of 32, of a row."""
    store = PostgresStore(url)
    await store.open()
    fresh = list(_recordings(_AT_ONCE))
    began = time.perf_counter()
    await _by_callers(iter(fresh), store.record)
    found.add(f"{name} record", 1e6 * (time.perf_counter() - began) / _AT_ONCE)
    took, claims = [], []
    while True:
        began = time.perf_counter()
        taken = await _claim(store)
        if len(taken) < CLAIMED:
            break
        took.append(time.perf_counter() - began)
        claims += taken
    found.add(f"{name} claim", 1e6 * median(took))
    began = time.perf_counter()
    await _by_callers(iter(claims), lambda one: store.settle(settlement(one)))
    found.add(f"{name} settle", 1e6 * (time.perf_counter() - began) / len(claims))
    await store.close()


def _row(found: Figures, operation: str, sizes: list[int]) -> Row:
    costs = [f"{found.of(f'{size} {operation}'):,.0f} µs beside {size:,}" for size in sizes]
    ratio = found.ratio(f"{sizes[-1]} {operation}", f"{sizes[0]} {operation}")
    return Row(
        f"{operation} ({_OPERATIONS[operation]}) beside delivered rows",
        ", ".join(costs),
        ratio,
        "within 1.3" if operation == "claim" else "",
        ratio <= 1.3 if operation == "claim" else None,
        SECTION,
        {f"growth.{operation}.{size}_us": found.of(f"{size} {operation}") for size in sizes},
    )


def _churn_row(found: Figures, count: int) -> Row:
    ratio = found.ratio("churned claim", "still claim")
    others = ", ".join(
        f"{operation} {found.ratio(f'churned {operation}', f'still {operation}'):.2f}"
        for operation in ("record", "settle")
    )
    return Row(
        f"claim of 32 just after {count:,} rows were delivered through the port, autovacuum as it comes",
        f"{found.of('churned claim'):,.0f} µs, without that {found.of('still claim'):,.0f} µs ({others} times; "
        f"{found.of('dead'):,.0f} dead rows left in deliveries)",
        ratio,
        "within 1.3",
        ratio <= 1.3,
        SECTION,
        {"growth.churned_ratio": ratio},
    )
