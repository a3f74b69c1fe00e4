"""Rates of the SQLite store on this machine: records, claims and settles a second, and what a claim costs.

    python bench/store_rates.py --small

64 callers at once, each of which also burns some Python per operation, as a request handler does: the event loop is
busy, and the writer has to share the interpreter with it. The last lines compare a claim beside 1,000 delivered rows
with one beside 1,000,000 (20,000 with --small).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import apsw

from receiver.core.event import CallbackRow, Event, Recording, Stage, new_id
from receiver.core.work import Claimed, DeliveryState, Outcome, OutcomeKind, Settlement
from receiver.storage.store.sqlite import SqliteStore

CALLERS = 64
NOW = 1_800_000_000_000


def recording(number: int) -> Recording:
    """A recording of ordinary size with one delivery."""
    event = Event(
        id=new_id("evt", NOW + number),
        type="speech.completed",
        source="deepgram",
        provider="deepgram",
        job_id=f"job-{number}-{os.urandom(4).hex()}",
        ref=None,
        stage=Stage.FINAL,
        occurred_at=NOW,
        recorded_at=NOW,
        data=b"{" + b"x" * 600 + b"}",
    )
    callback = CallbackRow(
        id=new_id("cbk", NOW + number),
        source="deepgram",
        idempotency_key=f"key-{number}-{os.urandom(8).hex()}",
        second_key=None,
        method="POST",
        content_type="audio/mpeg",
        received_at=NOW,
        body_size=50_000,
        body_sha256="0" * 64,
        body=None,
        proofs="basic,token",
    )
    return Recording(callback=callback, event=event, destinations=("app",))


def burn(seconds: float) -> None:
    """Be busy in Python, as the rest of a request is."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def rate(name: str, total: int, busy: float, one: Callable[[int], Awaitable[object]]) -> None:
    """Run `one` for 0 … total from the callers; print the rate and how long each took."""
    took: list[float] = []
    numbers = iter(range(total))

    async def caller() -> None:
        for number in numbers:
            burn(busy)
            began = time.perf_counter()
            await one(number)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    seconds = time.perf_counter() - began
    took.sort()
    print(
        f"{name:<28} {total / seconds:>9,.0f}/s   p50 {took[total // 2] * 1000:6.2f} ms"
        f"   p99 {took[total * 99 // 100] * 1000:6.2f} ms"
    )


def settlement(claim: Claimed) -> Settlement:
    """The claim was delivered."""
    outcome = Outcome(kind=OutcomeKind.DELIVERED, status=200, response=b"ok")
    return Settlement(
        claim=claim,
        started_at=NOW,
        seconds=0.02,
        outcome=outcome,
        state=DeliveryState.DELIVERED,
        due_at=None,
    )


async def flow(folder: Path, total: int, busy: float) -> None:
    """Record, claim and settle `total` rows."""
    store = SqliteStore(str(folder / "rates.db"))
    await store.open()
    await store.migrate()
    fresh = [recording(number) for number in range(total)]
    label = f"busy {busy * 1e6:.0f} µs"
    await rate(f"record, {label}", total, busy, lambda number: store.record(fresh[number]))
    began = time.perf_counter()
    claims: list[Claimed] = []
    while batch := await store.claim("app", worker="w", limit=64, now=NOW + 1, lease_until=NOW + 60_000):
        claims += batch
    print(f"{'claim, 64 at a time':<28} {len(claims) / (time.perf_counter() - began):>9,.0f}/s")
    await rate(f"settle, {label}", total, busy, lambda number: store.settle(settlement(claims[number])))
    await store.close()


async def claim_cost(folder: Path, delivered: int) -> float:
    """Return the median time of a claim of 32 beside `delivered` finished deliveries."""
    path = folder / f"cost{delivered}.db"
    store = SqliteStore(str(path))
    await store.migrate()
    connection = apsw.Connection(str(path))
    connection.execute(
        """
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)
        INSERT INTO deliveries (id, event_id, destination, state, attempts, due_at, created_at, updated_at)
        SELECT printf('dlv_%020d', i), 'evt_gone', 'app', 'delivered', 1, NULL, 1, 1 FROM n
        """,
        {"rows": delivered},
    )
    connection.close()
    await store.open()
    await asyncio.gather(*(store.record(recording(number)) for number in range(2_000)))
    took = []
    for _ in range(60):
        began = time.perf_counter()
        await store.claim("app", worker="w", limit=32, now=NOW + 1, lease_until=NOW + 60_000)
        took.append(time.perf_counter() - began)
    await store.close()
    return median(took)


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Rates of the SQLite store.")
    parser.add_argument("--small", action="store_true", help="fewer rows: about 10 seconds")
    parser.add_argument("--folder", help="where the files go (the disk that is measured)")
    parser.add_argument(
        "--switch", type=float, default=sys.getswitchinterval(), help="interpreter switch interval, s"
    )
    args = parser.parse_args()
    sys.setswitchinterval(args.switch)
    total, many = (10_000, 20_000) if args.small else (40_000, 1_000_000)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for busy in (0.0, 100e-6):
            await flow(folder, total, busy)
        few_cost, many_cost = await claim_cost(folder, 1_000), await claim_cost(folder, many)
    print(
        f"claim of 32 beside {1_000:,} delivered: {few_cost * 1000:.2f} ms; beside {many:,}: {many_cost * 1000:.2f} ms"
    )
    print(f"ratio: {many_cost / few_cost:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
