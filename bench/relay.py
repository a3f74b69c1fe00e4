"""The relay against a bare aiohttp loop: the same 2 KB bodies, to the same sink in another process on loopback.

    python bench/relay.py [--deliveries 6000] [--in-flight 64] [--rounds 3] [--profile]

Prints deliveries a second and the ratio to the bare loop, for the destination alone and for the whole relay over SQLite
(claim, sign, send, settle, each attempt recorded), then the time from a wake of an idle lane to the settled delivery.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import os
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.http_clients import BODY, bare_aiohttp, drive, serve
from receiver.core.event import CallbackRow, Event, Recording, Stage, new_id
from receiver.core.observe import AttemptReport, CallbackReport
from receiver.core.retry import policy
from receiver.core.webhook import new_webhook_secret
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.model import DestinationSettings
from receiver.storage.store.sqlite import SqliteStore


def clock() -> int:
    """The time in epoch milliseconds."""
    return time.time_ns() // 1_000_000


def recording(number: int) -> Recording:
    """An event of 2 KB for `app`."""
    now = clock()
    event = Event(
        id=new_id("evt", now),
        type="speech.completed",
        source="deepgram",
        provider="deepgram",
        job_id=None,
        ref=None,
        stage=Stage.OPEN,
        occurred_at=now,
        recorded_at=now,
        data=BODY,
    )
    callback = CallbackRow(
        id=new_id("cbk", now),
        source="deepgram",
        idempotency_key=event.id,
        second_key=None,
        method="POST",
        content_type="",
        received_at=now,
        body_size=0,
        body_sha256="",
        body=None,
        proofs="",
    )
    return Recording(callback=callback, event=event, destinations=("app",))


class Counting:
    """An observer that counts settled attempts."""

    def __init__(self) -> None:
        self.wanted = 0
        self.done = asyncio.Event()

    def callback(self, report: CallbackReport) -> None:
        """Nothing."""

    def attempt(self, report: AttemptReport) -> None:
        """Count."""
        assert report.state == "delivered", report
        self.wanted -= 1
        if self.wanted == 0:
            self.done.set()

    def pickup(self, report: object) -> None:
        pass

    def submission(self, report: object) -> None:
        pass

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Nothing."""

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Show."""
        print(level, event, fields)


def destination(url: str, in_flight: int) -> HttpDestination:
    """The destination `app`, allowed on loopback, with one secret."""
    return HttpDestination(
        DestinationSettings.model_validate(
            {
                "name": "app",
                "url": url,
                "allow": ["127.0.0.0/8"],
                "secrets": [new_webhook_secret()],
                "concurrency": in_flight,
            }
        )
    )


async def bare(url: str, count: int, in_flight: int) -> float:
    """Deliveries a second of a bare loop."""
    async with bare_aiohttp(url, in_flight) as post:
        await drive(post, in_flight * 2, in_flight)
        wall, _ = await drive(post, count, in_flight)
    return count / wall


async def alone(url: str, count: int, in_flight: int) -> float:
    """Deliveries a second of the destination, without a store."""
    place = destination(url, in_flight)
    await place.open()

    async def post() -> int:
        return (await place.send("evt_1", BODY, timestamp=clock())).status or 0

    await drive(post, in_flight * 2, in_flight)
    wall, _ = await drive(post, count, in_flight)
    await place.close()
    return count / wall


async def whole(
    url: str, count: int, in_flight: int, profile: cProfile.Profile | None
) -> tuple[float, float]:
    """Deliveries a second of the relay with a backlog, and the median milliseconds from a wake to a settled delivery."""
    place = destination(url, in_flight)
    await place.open()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(os.path.join(folder, "bench.db"))
        await store.open()
        await store.migrate()
        for start in range(0, count, 500):
            await asyncio.gather(
                *(store.record(recording(start + n)) for n in range(min(500, count - start)))
            )
        seen = Counting()
        lane = DeliveryTerms(place, policy("deepgram"), in_flight, 15)
        relay = Relay(store, {"app": lane}, seen, lambda event: event.data, clock, "bench")
        seen.wanted = count
        if profile:
            profile.enable()
        began = time.perf_counter()
        relay.start()
        await seen.done.wait()
        wall = time.perf_counter() - began
        if profile:
            profile.disable()
        delays = []
        for number in range(20):
            await asyncio.sleep(0.02)
            seen.wanted = 1
            seen.done.clear()
            await store.record(recording(count + number))
            began = time.perf_counter()
            relay.wake(["app"])
            await seen.done.wait()
            delays.append((time.perf_counter() - began) * 1000)
        await relay.stop(5)
        await store.close()
    await place.close()
    return count / wall, statistics.median(delays)


async def measure(url: str, chosen: argparse.Namespace) -> None:
    """Measure in interleaved rounds and print the best of each."""
    best = {"bare aiohttp loop": 0.0, "destination alone": 0.0, "relay over SQLite": 0.0}
    naps = []
    profile = cProfile.Profile() if chosen.profile else None
    for _ in range(chosen.rounds):
        rates = (
            await bare(url, chosen.deliveries, chosen.in_flight),
            await alone(url, chosen.deliveries, chosen.in_flight),
        )
        rate, nap = await whole(url, chosen.deliveries, chosen.in_flight, profile)
        naps.append(nap)
        for name, found in zip(best, (*rates, rate), strict=True):
            best[name] = max(best[name], found)
    base = best["bare aiohttp loop"]
    print(f"{'':24}{'deliveries/s':>14}{'ratio':>8}")
    for name, rate in best.items():
        print(f"{name:24}{rate:14.0f}{rate / base:8.2f}")
    print(f"idle lane: {min(naps):.1f} ms from wake to settled (median of 20)")
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def main() -> None:
    """Start the sink and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deliveries", type=int, default=6000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    sink = context.Process(target=serve, args=(theirs,), daemon=True)
    sink.start()
    try:
        asyncio.run(measure(f"http://127.0.0.1:{ours.recv()}/hooks", chosen))
    finally:
        sink.terminate()
        sink.join()


if __name__ == "__main__":
    main()
