"""The bare loop over PostgreSQL: the statements of receiver, 64 rows at a time over psycopg's pipeline, and nothing of its engine.

python -m bench.bare_store record URL COUNT
python -m bench.bare_store deliver URL START_MS [PORT]

`record` writes callbacks and events. `deliver` waits for START_MS (epoch milliseconds), then claims, with a PORT posts each body
there by bare aiohttp, settles, and ends when nothing is due. Prints one JSON line: how many, and the perf_counter times of the
beginning and the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import aiohttp

from bench.load import listen
from receiver.core.event import new_id
from receiver.storage.store.postgres_connection import Connection, connect, parse
from receiver.storage.store.postgres_session import named, numbered

BATCH = 64
LEASE_MS = 60_000
_PLANNER = "SELECT set_config('enable_sort', $1, true), set_config('enable_bitmapscan', $1, true)"
_HEADERS = {"content-type": "application/json", "webhook-id": "evt_1", "webhook-timestamp": "1"}
Rows = Sequence[Sequence[Any]]


def rows(connection: Connection, name: str, given: Rows) -> Any:
    """Run a statement with rows of parameters."""
    flat = [str(value) if isinstance(value, int) else value for value in chain.from_iterable(given)]
    return connection.execute(numbered(name, len(given)), flat, binary=True)


def record(connection: Connection, number: int) -> None:
    """Record 64 callbacks in one transaction."""
    now = int(time.time() * 1000)
    _, body = listen(str(number))
    event_ids = [new_id("evt", now) for _ in range(BATCH)]
    callbacks = [
        (
            new_id("cbk", now),
            "deepgram",
            one,
            None,
            "POST",
            "",
            now,
            len(body),
            "0" * 64,
            body,
            "basic",
            b"{}",
            one,
            0,
        )
        for one in event_ids
    ]
    events = [
        (
            event_id,
            "transcript.completed",
            "deepgram",
            "deepgram",
            event_id,
            None,
            "final",
            now,
            now,
            body,
            *(None, None, None, b"[]"),
        )
        for event_id in event_ids
    ]
    with connection.pipeline():
        connection.execute("BEGIN")
        rows(connection, "insert_callbacks", callbacks).fetchall()
        rows(connection, "insert_events", events)
        connection.execute("COMMIT")


def claim(connection: Connection, token: str) -> list[Any]:
    """Claim up to 64 deliveries in one transaction."""
    now = int(time.time() * 1000)
    text, names = named("due_deliveries")
    asked = {"queue": "app", "now": str(now), "limit": str(BATCH), "apart": "0", "full": "0", "held": "app"}
    with connection.pipeline():
        connection.execute("BEGIN")
        connection.execute(_PLANNER, ["off"])
        found = connection.execute(text, [asked[name] for name in names], binary=True).fetchall()
        connection.execute(_PLANNER, ["on"])
        if found:
            rows(connection, "claim_deliveries", [(one[0], token, now + LEASE_MS, now) for one in found])
        connection.execute("COMMIT")
    return found


def settle(connection: Connection, token: str, taken: list[Any]) -> None:
    """Settle them as delivered in one transaction."""
    now = int(time.time() * 1000)
    ended = [(one[0], token, "delivered", None, "delivered", now, one[2]) for one in taken]
    made = [(one[0], one[1] + 1, now, 1, "delivered", 200, "", b"ok") for one in taken]
    with connection.pipeline():
        connection.execute("BEGIN")
        held = rows(connection, "settle_deliveries", ended).fetchall()
        rows(connection, "log_deliveries", made)
        connection.execute("COMMIT")
    assert len(held) == len(taken), "a claim was lost"


async def deliver(connection: Connection, port: int | None) -> int:
    """Claim, post, settle until nothing is due; return how many."""
    done = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post(body: bytes) -> None:
            async with session.post(f"http://127.0.0.1:{port}/hooks", data=body, headers=_HEADERS) as answer:
                await answer.read()

        while True:
            token = os.urandom(8).hex()
            taken = claim(connection, token)
            if not taken:
                return done
            if port is not None:
                await asyncio.gather(*(post(one[12]) for one in taken))
            settle(connection, token, taken)
            done += len(taken)


def main(kind: str, url: str, number: int, port: int | None) -> None:
    """Run one of the loops and print."""
    connection = connect(parse(url), writes=True)
    if kind == "deliver":
        time.sleep(max(0.0, number / 1000 - time.time()))
    began = time.perf_counter()
    if kind == "deliver":
        count = asyncio.run(deliver(connection, port))
    else:
        count = number - number % BATCH
        for at in range(0, count, BATCH):
            record(connection, at)
    ended = time.perf_counter()
    connection.close()
    print(json.dumps({"count": count, "first": began, "last": ended}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else None)
