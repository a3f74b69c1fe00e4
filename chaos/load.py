"""The providers: a steady mixture of callbacks over all intakes, each sent again by its provider's own rule."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence

import aiohttp

from chaos.oracle import Oracle
from receiver.demo.deapi import WAITS, ApiJob, Deapi
from receiver.demo.serving import waits_of
from tests.support.senders import SPEECH, Sent, deapi, speech, transcript

SCALE = 30
"""Seconds of the providers' time in one of ours."""
DEEPGRAM = [30 / SCALE] * 10
DEAPI = waits_of(WAITS, scale=1 / SCALE)
_LIMIT = aiohttp.ClientTimeout(total=20)
_LONG = 3000
"""Sentences that make a transcript an object of its own."""


class Load:
    """Begins `rate` callbacks a second until told to stop; then waits for those under way."""

    def __init__(
        self,
        cell: str,
        rate: float,
        ports: Callable[[], Sequence[int]],
        oracle: Oracle,
        api: Deapi,
        api_base: str,
    ) -> None:
        self._cell, self._rate, self._ports, self._oracle = cell, rate, ports, oracle
        self._api, self._api_base = api, api_base
        self._turns = itertools.count()
        self._under_way: set[asyncio.Task[None]] = set()
        self.tries = 0
        self.given_up: list[str] = []
        """Jobs whose provider stopped trying: nothing was promised."""
        self.refused: list[str] = []
        """Answers that are neither 2xx nor 503; there should be none."""

    async def run(self, over: asyncio.Event) -> None:
        """Send until `over`, and then until every provider has its answer or has given up."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=_LIMIT, trust_env=False) as session:
            for number in itertools.count():
                if over.is_set():
                    break
                task = asyncio.create_task(self._provide(session, number))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                await asyncio.sleep(max(0.0, began + (number + 1) / self._rate - loop.time()))
            await asyncio.gather(*self._under_way)

    def _make(self, number: int) -> Callable[[], Sent]:
        name = f"{self._cell}-{number}"
        match number % 16:
            case 0 | 4 | 8 | 12:
                # One in sixteen of those is long enough to be spooled to disk.
                return lambda: speech(name, times=20 if number % 64 == 0 else 1)
            case 2:
                return lambda: transcript(name, text=f"This is {name}. " * _LONG)
            case 5 | 13:
                self._api.jobs[name] = ApiJob(result=SPEECH.read_bytes())
                link = self._api.link(self._api_base, name)
                return lambda: deapi(name, result_url=link)
            case 9:
                return lambda: deapi(name, event="job.failed")
        return lambda: transcript(name)

    async def _provide(self, session: aiohttp.ClientSession, number: int) -> None:
        make = self._make(number)
        waits = DEAPI if make().path.endswith("deapi") else DEEPGRAM
        for wait in (*waits, None):
            if await self._try(session, make()):
                return
            if wait is not None:
                await asyncio.sleep(wait)
        self.given_up.append(make().name)

    async def _try(self, session: aiohttp.ClientSession, sent: Sent) -> bool:
        """Send once, as a load balancer passes it on: whoever cannot be connected is passed over. True if acknowledged."""
        ports = self._ports()
        self.tries += 1
        for _ in ports:
            port = ports[next(self._turns) % len(ports)]
            try:
                async with session.request(
                    sent.method, f"http://127.0.0.1:{port}{sent.path}", data=sent.body, headers=sent.headers
                ) as answer:
                    told = await answer.read()
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError):
                return False  # it may have been taken, but nobody was told
            if answer.ok:
                self._oracle.acknowledge(sent.name, json.loads(told).get("event_id"))
                return True
            if answer.status != 503:
                self.refused.append(f"{answer.status} {told[:200]!r}")
            return False
        return False
