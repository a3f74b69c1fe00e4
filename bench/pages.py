"""What a page of events costs through the API beside 1,000 and beside a million of them, by each filter, on both stores.

    nice python -m bench.pages [--most 1000000] [--rounds 15]

The two databases of a store are asked in turn, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from statistics import median

import httpx2

from bench.servers import execute, servers
from receiver.app.wiring import build, build_store, open_receiver
from receiver.settings.load import parse
from receiver.web.app import create_app

TOKEN = "a-token-of-some-length"
PAGES = {
    "all": "",
    "oldest first": "order=oldest",
    "source": "source=s1",
    "type glob": "type=speech.*",
    "state": "state=dead",
    "destination": "destination=d1",
    "state and destination": "state=delivered&destination=d1",
    "all of them": "source=s1&type=speech.*&state=delivered&destination=d1",
    "a job": "job_id=job-77",
    "a source that has nothing": "source=none",
    "sources of a pattern": "source=s*",
    "types that nothing has": "type=media.*",
    "what goes wrong, but never did": "type=*.failed",
    "a size that nothing has": "min_bytes=1",
    "a destination that has nothing": "destination=none",
}
_NUMBERS = {
    "sqlite": "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n) AS n",
    "postgresql": "(SELECT i FROM generate_series(1, {count}) AS i) AS n",
}
_BYTES = {"sqlite": "CAST({text} AS BLOB)", "postgresql": "convert_to({text}, 'UTF8')"}
_ID = "CAST(1000000000 + i AS TEXT)"
_EVENTS = """
INSERT INTO events (id, type, source, provider, job_id, stage, occurred_at, recorded_at, data, position)
SELECT 'evt_' || {id}, CASE i % 3 WHEN 0 THEN 'speech.completed' ELSE 'transcript.completed' END,
    's' || CAST(i % 4 AS TEXT), 'deepgram', 'job-' || CAST(i AS TEXT), 'final', {at} + i, {at} + i, {data}, i / 4000
FROM {numbers}
"""
_DELIVERIES = """
INSERT INTO deliveries (id, event_id, destination, state, attempts, created_at, updated_at)
SELECT 'dlv_' || {id}, 'evt_' || {id}, 'd' || CAST(i % 2 AS TEXT),
    CASE i % 50 WHEN 0 THEN 'dead' ELSE 'delivered' END, 1, {at} + i, {at} + i
FROM {numbers}
"""


def fill(url: str, count: int) -> None:
    """Put `count` events with a delivery each into a database that has its tables."""
    kind = url.partition(":")[0]
    text = '\'{"event_id": "evt_\' || {id} || \'", "error": null, "provider_data": {}}\''.replace("{id}", _ID)
    given = {"id": _ID, "at": 1_700_000_000_000, "numbers": _NUMBERS[kind].format(count=count)}
    given |= {"data": _BYTES[kind].format(text=text)}
    statements = [_EVENTS.format(**given), _DELIVERIES.format(**given)]
    if kind == "postgresql":
        execute(url, *statements, "VACUUM (ANALYZE)", "CHECKPOINT")
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
        for statement in statements:
            database.execute(statement)
        database.execute("ANALYZE")


@asynccontextmanager
async def serving(folder: str, url: str, count: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of a receiver whose store has so many events."""
    settings = parse(
        f'data = "{folder}"\n[store]\nurl = "{url}"\n[tokens]\nsecrets = ["{TOKEN}"]\n'
        f'[[api.tokens]]\nname = "bench"\nsecret = "{TOKEN}"\n',
        {},
        lambda name: "",
    )
    store = build_store(settings)
    await store.migrate()
    await asyncio.to_thread(fill, url, count)
    receiver = build(settings, observers=[])
    async with open_receiver(receiver, work=False):
        transport = httpx2.ASGITransport(create_app(receiver))
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            yield client


async def compare(kind: str, urls: dict[int, str], rounds: int) -> None:
    """Print a line for each page: milliseconds beside few and many, and their ratio."""
    async with AsyncExitStack() as stack:
        clients = {}
        for count, url in urls.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            clients[count] = await stack.enter_async_context(serving(folder, url, count))
        for name, query in PAGES.items():
            took: dict[int, list[float]] = {count: [] for count in urls}
            for _ in range(rounds):
                for count, client in clients.items():
                    began = time.perf_counter()
                    answer = await client.get(f"/api/v1/events?limit=20&{query}")
                    took[count].append(1000 * (time.perf_counter() - began))
                    assert answer.status_code == 200, answer.text
            few, many = (sorted(times) for times in took.values())
            print(
                f"{kind:10} {name:27} {median(few):8.2f} {median(many):8.2f} ms, "
                f"{median(many) / median(few):5.2f} times; at best {few[0]:7.2f} {many[0]:7.2f}, {many[0] / few[0]:5.2f}"
            )


def main() -> None:
    """Fill, ask, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--most", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args()
    counts = (1_000, given.most)
    with tempfile.TemporaryDirectory() as folder:
        files = {count: f"sqlite:///{Path(folder, f'{count}.db')}" for count in counts}
        asyncio.run(compare("sqlite", files, given.rounds))
    with servers() as up:
        asyncio.run(compare("postgresql", {count: up.new_database() for count in counts}, given.rounds))


if __name__ == "__main__":
    main()
