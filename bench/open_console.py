"""`python -m bench.open_console [rounds] [seconds]`: what an open console, whose list follows, costs callbacks.

One receiver takes 2 KB JSON callbacks at its full rate, in turn with and without a console. The console does what a
browser does: it reads the stream, and takes the list's page anew, one at a time, when it is told of newer events. Printed are the
ratios of each pair of rounds, of the rate and of the receiver's processor time for a callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import httpx2

from bench import processes as p
from bench.measures import cpu, load

_APART_SECONDS = 2.0
"""As live.js has it."""
TOKEN = "admin-token-of-some-length"
SOURCE = f"""
[[api.tokens]]
name = "bench"
secret = "{TOKEN}"
scopes = ["read", "operate", "admin"]
"""


@contextlib.asynccontextmanager
async def following(port: int) -> AsyncIterator[list[int]]:
    """Follow the list while the block lasts; give the sizes of the pages that were taken."""
    taken: list[int] = []
    base = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient(base_url=base, headers={"origin": base}, timeout=30) as client:
        await client.post("/console/login", data={"token": TOKEN})
        page = (await client.get("/console/events")).text
        found = re.search(r'data-live="([^"]+)"', page)
        assert found, page[:500]

        async def follow() -> None:
            async with client.stream("GET", html.unescape(found[1])) as stream:
                async for line in stream.aiter_lines():
                    if line.startswith("data:"):
                        taken.append(len((await client.get("/console/events")).content))
                        await asyncio.sleep(_APART_SECONDS)

        reading = asyncio.create_task(follow())
        try:
            yield taken
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading


async def round_of(port: int, pid: int, seconds: float, *, console: bool) -> tuple[float, float]:
    """Return callbacks in a second, and the receiver's processor seconds for each."""
    async with contextlib.AsyncExitStack() as stack:
        taken = await stack.enter_async_context(following(port)) if console else []
        before = cpu(pid)
        told = await asyncio.to_thread(load, [port], "/callbacks/deepgram", "listen", seconds)
        used = cpu(pid) - before
        assert len(taken) >= seconds / 3 * console, f"the list was taken {len(taken)} times only"
    return told["requests"] / told["seconds"], used / told["requests"]


async def compare(rounds: int, seconds: float) -> None:
    """Print the ratios."""
    rates, costs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with p.receiver(folder, p.config(folder, source=SOURCE)) as (port, pid):
            await round_of(port, pid, 2.0, console=False)  # nothing of its start is measured
            for number in range(rounds):
                found = {
                    console: await round_of(port, pid, seconds, console=console)
                    for console in ((True, False) if number % 2 else (False, True))
                }
                rates.append(found[True][0] / found[False][0])
                costs.append(found[True][1] / found[False][1])
                print(
                    f"round {number + 1}: {found[False][0]:.0f} a second alone, {found[True][0]:.0f} with a console"
                )
    print(f"rate {median(rates):.3f} of alone ({min(rates):.3f} to {max(rates):.3f})")
    print(f"processor for a callback {median(costs):.3f} of alone ({min(costs):.3f} to {max(costs):.3f})")


if __name__ == "__main__":
    given = [float(text) for text in sys.argv[1:]]
    asyncio.run(compare(int(given[0]) if given else 12, given[1] if len(given) > 1 else 8.0))
