"""PostgreSQL and an S3 server for a benchmark: PostgreSQL waits for its disk, as it does in earnest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from bench import processes as p
from bench.measures import cpu
from receiver.storage.store.postgres import PostgresStore
from tests.support import postgres
from tests.support.s3 import BUCKET, Weed, credentials


@dataclass
class Servers:
    """Both servers, and the template of a migrated database."""

    database: postgres.Server
    weed: Weed
    template: str

    def new_database(self) -> str:
        """Make a migrated database; return its URL."""
        return self.database.url(self.database.new_database(self.template))

    def config(self, folder: Path, url: str, *, destination: int | None = None) -> Path:
        """Write the receiver.toml of one process over these servers, with a journal of its own in `folder`."""
        shared = f"""
[store]
url = "{url}"
[blobs]
url = "s3://{BUCKET}/{uuid.uuid4().hex}/"
endpoint_url = "{self.weed.http}"
region = "us-east-1"
"""
        folder.mkdir()
        return p.config(folder, destination=destination, source=shared)

    def database_cpu(self) -> float:
        """Seconds of processor time that all of PostgreSQL has used."""
        return database_cpu(self.database)

    def weed_cpu(self) -> float:
        """Seconds of processor time that the S3 server has used."""
        assert self.weed.child is not None
        return cpu(self.weed.child.pid)


def database_cpu(database: postgres.Server) -> float:
    """Return the seconds of processor time that all of a PostgreSQL server has used."""
    assert database.child is not None
    main = psutil.Process(database.child.pid)
    own = main.cpu_times()
    ended: float = own.children_user + own.children_system
    return cpu(main.pid, *(child.pid for child in main.children())) + ended


def execute(url: str, *texts: str) -> list[tuple[object, ...]]:
    """Run statements, each by itself; return the rows of the last."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = None
        for text in texts:
            cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor is not None and cursor.description else []


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """Run both until the block ends."""
    os.environ.update(credentials())
    weed = Weed()
    try:
        weed.start()
        with postgres.server(durable=True) as database:
            template = database.new_database()
            asyncio.run(PostgresStore(database.url(template)).migrate())
            yield Servers(database, weed, template)
    finally:
        weed.close()


_SUFFIX = "'_00' || lpad(to_hex(i), 10, '0') || substr(md5(i::text), 1, 14)"
"""What an id has after its kind: older than any id that is made now, and in order."""
_CALLBACKS = """
INSERT INTO callbacks (
    id, event_id, source, idempotency_key, method, content_type, received_at, body_size, body_sha256, proofs
)
SELECT 'cbk' || {suffix}, 'evt' || {suffix}, 'deepgram', 'job:' || md5(i::text), 'POST', 'application/json',
    {at}, 2000, md5(i::text) || md5(i::text), 'basic'
FROM generate_series(1, {count}) AS i
"""
_EVENTS = """
INSERT INTO events (id, type, source, provider, job_id, stage, occurred_at, recorded_at, data)
SELECT 'evt' || {suffix}, 'transcript.completed', 'deepgram', 'deepgram', md5(i::text), 'final', {at}, {at},
    convert_to('{{"text": "' || repeat(md5(i::text), {width} / 32) || '"}}', 'UTF8')
FROM generate_series(1, {count}) AS i
"""
_DELIVERIES = """
INSERT INTO deliveries (id, event_id, destination, state, attempts, due_at, created_at, updated_at, last_outcome)
SELECT 'dlv' || {suffix}, 'evt' || {suffix}, 'app', {state}, {attempts}, {due}, {at}, {at}, {outcome}
FROM generate_series(1, {count}) AS i
"""
_ATTEMPTS = """
INSERT INTO attempts (delivery_id, number, started_at, duration_ms, outcome, status, detail, response)
SELECT 'dlv' || {suffix}, 1, {at}, 20, 'delivered', 200, '', 'ok' FROM generate_series(1, {count}) AS i
"""


def preload(url: str, count: int, due_at: int) -> None:
    """Put `count` events of 2 KB into an empty database, each owed to `app` from `due_at` on."""
    asked = {"suffix": _SUFFIX, "count": count, "at": due_at, "width": 1800}
    pending = {"state": "'pending'", "attempts": 0, "due": due_at, "outcome": "NULL"}
    execute(url, _EVENTS.format(**asked), _DELIVERIES.format(**asked, **pending))


def delivered(url: str, count: int) -> None:
    """Put `count` callbacks with a delivered event each into an empty database, and let it settle."""
    asked = {"suffix": _SUFFIX, "count": count, "at": 1_700_000_000_000, "width": 256}
    done = {"state": "'delivered'", "attempts": 1, "due": "NULL", "outcome": "'delivered'"}
    texts = (_CALLBACKS, _EVENTS, _DELIVERIES, _ATTEMPTS)
    execute(url, *(text.format(**asked, **done) for text in texts), "VACUUM (ANALYZE)", "CHECKPOINT")
