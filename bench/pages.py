"""What a page of each list costs through the API beside 1,000 and beside a million rows, by each filter, on both stores.

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
    "events": "events?",
    "oldest first": "events?order=oldest",
    "source": "events?source=s1",
    "type glob": "events?type=speech.*",
    "state": "events?state=dead",
    "destination": "events?destination=d1",
    "state and destination": "events?state=delivered&destination=d1",
    "all of them": "events?source=s1&type=speech.*&state=delivered&destination=d1",
    "a job": "events?job_id=job-77",
    "a source that has nothing": "events?source=none",
    "sources of a pattern": "events?source=s*",
    "types that nothing has": "events?type=media.*",
    "what goes wrong, but never did": "events?type=*.failed",
    "a size that nothing has": "events?min_bytes=1",
    "a destination that has nothing": "events?destination=none",
    "deliveries": "deliveries?",
    "of a destination": "deliveries?destination=d1",
    "of a state": "deliveries?state=dead",
    "of a source and a type": "deliveries?source=s1&type=speech.*",
    "to nowhere": "deliveries?destination=none",
    "pickups": "pickups?",
    "pickups of a source": "pickups?source=s1",
    "pickups of none": "pickups?source=none",
    "pickups that failed": "pickups?state=gone",
    "submissions": "submissions?",
    "of an application": "submissions?application=a1",
    "submissions of none": "submissions?application=none",
    "acts": "audit?",
    "acts of nobody": "audit?token=none",
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
_PICKUPS = """
INSERT INTO pickups (id, source, kind, key, job_id, event_id, format, deadline_at, state, created_at, updated_at)
SELECT 'pku_' || {id}, 's' || CAST(i % 4 AS TEXT), 'result', {id}, 'job-' || CAST(i AS TEXT), 'evt_' || {id}, '{{}}', {at} + i,
    'collected', {at} + i, {at} + i
FROM {numbers}
"""
_SUBMISSIONS = """
INSERT INTO submissions (id, application, source, request, state, delivered, created_at, updated_at)
SELECT 'sub_' || {id}, 'a' || CAST(i % 4 AS TEXT), 's1', 'POST /v1/speak', 'accepted', 1, {at} + i, {at} + i
FROM {numbers}
"""
_ACTS = """
INSERT INTO acts (id, at, token, action, subject, detail, digest, status)
SELECT 'act_' || {id}, {at} + i, 'bench', 'POST /replays', '/api/v1/replays', '{{}}', '', 200
FROM {numbers}
"""


def fill(url: str, count: int) -> None:
    """Put `count` events, each with a delivery, and as many pickups, submissions and acts into a database that has its tables."""
    kind = url.partition(":")[0]
    text = '\'{"event_id": "evt_\' || {id} || \'", "error": null, "provider_data": {}}\''.replace("{id}", _ID)
    given = {"id": _ID, "at": 1_700_000_000_000, "numbers": _NUMBERS[kind].format(count=count)}
    given |= {"data": _BYTES[kind].format(text=text)}
    statements = [text.format(**given) for text in (_EVENTS, _DELIVERIES, _PICKUPS, _SUBMISSIONS, _ACTS)]
    if kind == "postgresql":
        execute(url, *statements, "VACUUM (ANALYZE)", "CHECKPOINT")
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
        for statement in statements:
            database.execute(statement)
        database.execute("ANALYZE")


@asynccontextmanager
async def serving(folder: str, url: str, count: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of a receiver whose store has so many rows of each kind."""
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
                    answer = await client.get(f"/api/v1/{query}&limit=20")
                    took[count].append(1000 * (time.perf_counter() - began))
                    assert answer.status_code == 200, answer.text
            few, many = (sorted(times) for times in took.values())
            print(
                f"{kind:10} {name:30} {median(few):8.2f} {median(many):8.2f} ms, "
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
