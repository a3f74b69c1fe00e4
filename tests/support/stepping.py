"""Lanes in model time: what is due at a moment is claimed, attempted once as of that moment, and settled."""

from __future__ import annotations

import asyncio
from typing import Any

from receiver.engine.relay import Relay
from receiver.engine.worker import Lane, Lanes


async def step(lanes: Lanes[Any, Any], now: int) -> int:
    """Attempt all that is due at `now`; return how many rows were claimed. The lanes are not started."""
    if isinstance(lanes, Relay):
        await lanes._look(now)
    counts = await asyncio.gather(*(_lane(lane, now) for lane in lanes._lanes.values()))
    return sum(counts)


async def _lane(lane: Lane[Any, Any], now: int) -> int:
    claims: list[Any] = []
    while batch := await lane._claim(now, 256):
        claims += batch
    left = iter(claims)

    async def some() -> None:
        for claim in left:
            if not lane._gate.lets(claim, 0, now):
                await lane._queue.release([claim], now=now)
                continue
            settlement = await lane._work.make(claim, now, lambda: now)
            await lane._work.settle(settlement, lambda: now)

    await asyncio.gather(*(some() for _ in range(min(len(claims), lane._concurrency))))
    return len(claims)
