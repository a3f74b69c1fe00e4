"""The relay over PostgreSQL with a destination that answers at once: what the engine adds to the statements, without HTTP.

python -m bench.engine URL COUNT START_MS [--profile]

Waits for START_MS (epoch milliseconds), empties the backlog of COUNT, prints the line that bench.bare_store prints.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import sys
import time

from bench.relay import Counting, clock
from receiver.core.retry import policy
from receiver.core.work import Outcome, OutcomeKind
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.outbound.destinations import Destination
from receiver.storage.store.postgres import PostgresStore


class AtOnce(Destination):
    """A destination that has already acknowledged."""

    name = "app"

    def __init__(self) -> None:
        """No settings are behind it."""

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Acknowledge."""
        return Outcome(kind=OutcomeKind.DELIVERED, status=200, response=b"ok")


async def main(url: str, count: int, start: int, profile: cProfile.Profile | None) -> None:
    """Empty the backlog and print."""
    store = PostgresStore(url)
    await store.open()
    seen = Counting()
    lane = DeliveryTerms(AtOnce(), policy("deepgram"), 64, 15)
    relay = Relay(store, {"app": lane}, seen, lambda event: event.data, clock, "bench")
    seen.wanted = count
    await asyncio.sleep(max(0.0, start / 1000 - time.time()))
    if profile:
        profile.enable()
    began = time.perf_counter()
    relay.start()
    await seen.done.wait()
    ended = time.perf_counter()
    if profile:
        profile.disable()
    await relay.stop(5)
    await store.close()
    print(json.dumps({"count": count, "first": began, "last": ended}))
    if profile:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    wanted = cProfile.Profile() if "--profile" in sys.argv else None
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), wanted))
