"""What receiver adds to a submission: the same call to a provider's API on loopback, straight and through receiver, in turn.

    python bench/submissions.py [--calls 200] [--rounds 5] [--megabytes 512]

Prints p50 and p99 of both ways and of what receiver adds, its processor time for one call, and how much its memory grows while an
upload passes through. API, receiver (over SQLite) and caller are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.ports import free_port
from tests.support.submitting import DEEPGRAM_KEY, TOKEN, api, settings

BODY = b'{"url": "https://audio.example.com/a.wav"}'
MIB = 1 << 20


def serve(told: Connection) -> None:
    """Run the API in this process; tell its address."""

    async def run() -> None:
        async with api() as there:
            there.keep_bodies = False
            told.send(there.base)
            await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def started(folder: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """Yield the addresses of API and receiver, and receiver's process."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    child.start()
    base, port = here.recv(), free_port()
    config = folder / "receiver.toml"
    config.write_text(settings(folder, base).replace("per_minute = 1000", "per_minute = 1000000"))
    environ = os.environ | {"RECEIVER__SERVER__PORT": str(port), "RECEIVER__SERVER__LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "receiver", "--config", str(config), "serve"]
    receiver = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield base, f"http://127.0.0.1:{port}", psutil.Process(receiver.pid)
    finally:
        receiver.terminate()
        receiver.wait()
        child.kill()


async def ready(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until receiver answers."""
    for _ in range(300):
        try:
            async with session.get(f"{url}/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise SystemExit("receiver does not start")


async def call(
    session: aiohttp.ClientSession, url: str, key: str, data: bytes | AsyncIterator[bytes]
) -> float:
    """Submit one job; return the seconds that it took."""
    headers = {"authorization": f"Token {key}", "content-type": "application/json"}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/listen", data=data, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()
    return time.perf_counter() - began


async def latency(base: str, url: str, process: psutil.Process, calls: int, rounds: int) -> None:
    """Print what receiver adds to a call, one at a time."""
    ways: dict[str, list[float]] = {"straight": [], "through receiver": []}
    spent = 0.0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        await ready(session, url)
        for _ in range(rounds + 1):  # the first warms up
            before = sum(process.cpu_times()[:2])
            for number in range(calls):
                one = BODY[:-1] + b', "n": %d}' % number
                ways["straight"].append(await call(session, base, DEEPGRAM_KEY, one))
                ways["through receiver"].append(await call(session, f"{url}/submit/deepgram", TOKEN, one))
            spent = sum(process.cpu_times()[:2]) - before
    found = {}
    for way, all_times in ways.items():
        times = sorted(all_times[calls:])
        found[way] = statistics.median(times), times[int(len(times) * 0.99)]
        print(f"{way:>18}: p50 {found[way][0] * 1000:6.2f} ms, p99 {found[way][1] * 1000:6.2f} ms")
    for place, name in enumerate(("p50", "p99")):
        straight, through = found["straight"][place], found["through receiver"][place]
        print(
            f"{'added to ' + name:>18}: {(through - straight) * 1000:.2f} ms ({through / straight:.1f} times)"
        )
    print(f"{'processor':>18}: {spent / calls * 1000:.2f} ms a call in receiver")


async def memory(url: str, process: psutil.Process, megabytes: int) -> None:
    """Print how much receiver grows while an upload passes through."""
    before, most = process.memory_info().rss, 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal most
        for number in range(megabytes * 4):
            yield number.to_bytes(4, "big") + bytes(MIB // 4 - 4)
            most = max(most, process.memory_info().rss)

    used = sum(process.cpu_times()[:2])
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await call(session, f"{url}/submit/deepgram", TOKEN, pieces())
    used = sum(process.cpu_times()[:2]) - used
    print(
        f"{f'{megabytes} MiB upload':>18}: memory grows by {(most - before) / MIB:.1f} MiB; {used:.1f} s of processor"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as (base, url, process):
        asyncio.run(latency(base, url, process, asked.calls, asked.rounds))
        asyncio.run(memory(url, process, asked.megabytes))


if __name__ == "__main__":
    main()
