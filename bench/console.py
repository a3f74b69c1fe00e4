"""`python -m bench.console [events]`: the console's pages over many events, as ratios to the same pages over 1,000.

Both stores are filled by direct inserts: everything delivered once, but for some that are rare, evenly spread and as many in each store.
Pages are asked for in turn, over loopback; ratios are of medians.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import apsw
import psycopg

from bench.servers import servers
from receiver.core.event import TIME_CHARS, new_id
from tests.support.running import Running, api_token, running, settings_text

TOKEN = "admin-token-of-some-length"
RARE = 60
ROUNDS = 7
_FIRST_MS = 12 * 3600 * 1000
_ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
_TYPE = "CASE WHEN i % {every} = 0 THEN 'callback.parked' WHEN i % {every} = 1 THEN 'analysis.completed' ELSE 'transcript.completed' END"
_DATA = """'{{"event_id":"evt_' || ({base} + i) || '","schema":1,"late":false,"audio":null,"media":null,"document":null,"error":' || CASE i % {every} WHEN 0 THEN '{{"code":"parked","message":"no"}}' ELSE 'null' END || ',"transcript":{{"text":"' ||
'nobody said a thing worth a search, and then said it over and over again ' || i || '","language":null,"confidence":null}},"provider_data":{{}}}}'"""
_FILL = (
    """INSERT INTO events (id, type, source, provider, job_id, ref, stage, occurred_at, recorded_at, data, position)
    {rows} SELECT 'evt_' || {id} || ({base} + i), {type}, CASE WHEN i % {every} = 2 THEN 'deepgram' ELSE 'speech' END, 'deepgram', 'job-' || i, 'ref-' || i, 'final',
    {began} + i, {began} + i, {bytes_of_data}, i FROM n""",
    """INSERT INTO callbacks (id, event_id, source, idempotency_key, method, content_type, received_at, body_size, body_sha256, body, proofs)
    {rows} SELECT 'cb_' || {id} || ({base} + i), 'evt_' || {id} || ({base} + i), 'speech', 'key-' || i, 'POST', 'application/json', {began} + i, 2, '00', {bytes_of_body}, 'token' FROM n""",
    """INSERT INTO deliveries (id, event_id, destination, state, attempts, created_at, updated_at, last_outcome)
    {rows} SELECT 'dlv_' || {id} || ({base} + i), 'evt_' || {id} || ({base} + i), 'app', CASE WHEN i % {every} = 3 THEN 'dead' ELSE 'delivered' END, 1, {began} + i, {began} + i, 'delivered' FROM n""",
    """INSERT INTO attempts (delivery_id, number, started_at, duration_ms, outcome, status, detail, response)
    {rows} SELECT 'dlv_' || {id} || ({base} + i), 1, {began} + i, 5, 'delivered', 200, '', {bytes_of_body} FROM n""",
)
BASE = 10**15
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = " || ".join(
    f"substr('{_ALPHABET}', CAST(((({{began}} + i) >> {5 * digit}) & 31) + 1 AS INTEGER), 1)"
    for digit in range(9, -1, -1)
)
"""The time in an id, as SQL: what belongs to an event is looked for near its time."""
PAGES = {
    "overview": "/",
    "event": "/events/{middle}",
    "events": "/events",
    "events of a rare source": "/events?source=deepgram",
    "events of a rare type": "/events?type=analysis.completed",
    "events of a ref": "/events?ref=ref-{half}",
    "an old page of events": "/events?after={place}",
    "job": "/jobs?ref=ref-{half}",
    "jobs": "/jobs",
    "parked": "/parked",
    "deliveries": "/deliveries",
    "dead letters": "/deliveries?state=dead",
    "destination": "/destinations/app",
    "sources": "/sources",
}


def fill(count: int, began: int, url: str | Path) -> None:
    """Put `count` delivered events into a migrated store that nobody uses."""
    postgres = isinstance(url, str)
    as_bytes = "convert_to({}, 'UTF8')" if postgres else "CAST({} AS BLOB)"
    words: dict[str, str | int] = {"type": _TYPE.format(every=count // RARE)}
    words |= {
        "id": _ID.format(began=began),
        "rows": _ROWS.format(count=count),
        "every": count // RARE,
        "base": BASE,
        "began": began,
    }
    words |= {
        "bytes_of_data": as_bytes.format(_DATA.format(base=BASE, every=count // RARE)),
        "bytes_of_body": as_bytes.format("'{}'"),
    }
    statements = [statement.format(**words) for statement in _FILL]
    if isinstance(url, str):
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in [*statements, "VACUUM ANALYZE"]:
                connection.execute(statement.encode())
        return
    database = apsw.Connection(str(url))
    for statement in ["BEGIN", *statements, "COMMIT", "PRAGMA wal_checkpoint(TRUNCATE)"]:
        database.execute(statement)
    database.close()


@contextlib.asynccontextmanager
async def console(count: int, url: str | None) -> AsyncIterator[Running]:
    """Run a receiver over `count` events, logged in to its console."""
    with tempfile.TemporaryDirectory() as name:
        text = settings_text(
            Path(name), destination="http://127.0.0.1:9/hooks", extra=api_token("ops", TOKEN)
        ) + (f'[store]\nurl = "{url}"\n' if url else "")
        async with running(Path(name), text, work=False):
            pass  # makes the tables
        began = int(time.time() * 1000) - _FIRST_MS
        await asyncio.to_thread(fill, count, began, url or next(Path(name, "data").glob("*.db")))
        async with running(Path(name), text, work=False) as run:
            form = {"token": TOKEN}
            await run.client.post("/console/login", data=form, headers={"origin": run.base})
            half = count // 2
            middle = f"{new_id('evt', began + half)[: 4 + TIME_CHARS]}{BASE + half}"
            run.headers = {"middle": middle, "place": f"{half}.{middle}"}
            yield run


async def page_seconds(run: Running, count: int, path: str) -> float:
    """Return how long a page took."""
    whole = path.format(half=count // 2, **run.headers)
    began = time.perf_counter()
    answer = await run.client.get(f"/console{whole}")
    taken = time.perf_counter() - began
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[-600:]}"
    return taken


async def compared(store: str, few: str | None, many: str | None, count: int) -> None:
    """Print each page's milliseconds over many events, and their ratio to 1,000."""
    async with console(1000, few) as small, console(count, many) as large:
        for name, path in PAGES.items():
            times: dict[int, list[float]] = {1000: [], count: []}
            for _ in range(ROUNDS):
                for size, run in ((1000, small), (count, large)):
                    times[size].append(await page_seconds(run, size, path))
            a, b = median(times[1000]), median(times[count])
            print(f"{store:10} {name:26} {b * 1000:7.1f} ms  {b / a:5.2f}", flush=True)
        if few is None:
            await _looked(large)


async def _looked(run: Running) -> None:
    """Print what one look through transcripts costs that finds nothing."""
    began = time.process_time()
    page = (await run.client.get("/console/events?text=never-said")).text
    looked = page.partition("No transcript of ")[2].partition(",")[0]
    print(f"a look through {looked} transcripts: {time.process_time() - began:.2f} s of processor")


def main() -> None:
    """Measure both stores."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    asyncio.run(compared("SQLite", None, None, count))
    with servers() as up:
        asyncio.run(compared("PostgreSQL", up.new_database(), up.new_database(), count))


if __name__ == "__main__":
    main()
