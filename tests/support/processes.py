"""Receiver in a process of its own, so that it can be killed, and a provider that keeps sending until it is acknowledged."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from receiver.core.clock import wall_clock
from tests.support import forking
from tests.support.forking import Forked
from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SINCE = wall_clock()
os.environ["CRASHING_SINCE"] = str(SINCE)


_started: list[Forked] = []


async def end_all() -> None:
    """Kill what a failed test left running, by its id."""
    while _started:
        child = _started.pop()
        if child.returncode is None:
            child.kill()
        await child.wait()


@dataclass
class Process:
    """`tests.support.crashing` as a child; `port` is known once it listens."""

    config: Path
    step: str = "none.none"
    when: str = "never"
    port: int = 0
    since: int = field(default_factory=lambda: SINCE)
    child: Forked | None = None
    environ: dict[str, str] = field(default_factory=dict)
    """More for its environment, see `tests.support.crashing`."""

    async def start(self) -> None:
        """Start and wait until it listens, or until it died trying."""
        self.child = await forking.start(
            "tests.support.crashing",
            [self.step, self.when, str(self.config)],
            os.environ | {"CRASHING_SINCE": str(self.since)} | self.environ,
        )
        _started.append(self.child)
        async with asyncio.timeout(PATIENCE):
            line = await self.child.stdout.readline()
        self.port = int(line.split()[1]) if line.startswith(b"ready") else 0

    async def died(self) -> int:
        """Wait until it is gone; return its exit code (negative: the signal)."""
        assert self.child is not None
        async with asyncio.timeout(PATIENCE):
            return await self.child.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.child is not None
        if self.child.returncode is None:
            self.child.kill()
        await self.died()

    async def stop(self) -> int:
        """SIGTERM, and wait until it is gone."""
        assert self.child is not None
        if self.child.returncode is None:
            os.kill(self.child.pid, signal.SIGTERM)
        return await self.died()


@dataclass
class Acknowledged:
    """The oracle outside receiver: which callback was answered 2xx, and with which event id."""

    events: dict[str, set[str]] = field(default_factory=dict)

    def note(self, name: str, event_id: str | None) -> None:
        """Remember a 2xx answer."""
        ids = self.events.setdefault(name, set())
        if event_id:
            ids.add(event_id)


async def send_once(
    client: httpx2.AsyncClient,
    port: int,
    path: str,
    headers: dict[str, str],
    body: bytes,
    method: str = "POST",
) -> httpx2.Response | None:
    """Send one callback; None when the connection failed or broke."""
    try:
        return await client.request(
            method, f"http://127.0.0.1:{port}{path}", headers=headers, content=body, timeout=20
        )
    except httpx2.HTTPError:
        return None
