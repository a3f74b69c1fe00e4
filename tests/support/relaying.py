"""What relay tests share: a clock that a test turns, an observer that can be awaited, a store that can be put out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from receiver.core.destinations import PLAIN, DestinationState, SendingRules
from receiver.core.errors import StoreUnavailable
from receiver.core.event import Event
from receiver.core.observe import AttemptReport, CallbackReport, PickupReport, SubmissionReport
from receiver.core.retry import RetryPolicy, policy
from receiver.core.work import Claimed, Delivery, DeliveryFilter, Outcome, OutcomeKind, Settlement
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.outbound.destinations import Destination
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.model import DestinationSettings
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0, recording
from tests.support.memory import MemoryStore
from tests.support.sink import Sink


class Now:
    """The time in epoch milliseconds; stands still until it is moved."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


class Heard:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.attempts: list[AttemptReport] = []
        self.notes: list[tuple[str, str, dict[str, Any]]] = []
        self._news = asyncio.Event()

    def callback(self, report: CallbackReport) -> None:
        """Not kept: the road in is not under test."""

    def attempt(self, report: AttemptReport) -> None:
        """Keep a report."""
        self.attempts.append(report)
        self._news.set()

    def pickup(self, report: PickupReport) -> None:
        """Not kept: the pull road is not under test."""

    def submission(self, report: SubmissionReport) -> None:
        pass

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Not kept."""

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Keep a note."""
        self.notes.append((level, event, fields))
        self._news.set()

    def events(self) -> list[tuple[str, str]]:
        """Return (level, event) of every note."""
        return [(level, event) for level, event, _ in self.notes]

    async def until(self, attempts: int = 0, notes: int = 0) -> None:
        """Return when so many attempts and notes were heard."""
        while len(self.attempts) < attempts or len(self.notes) < notes:
            self._news.clear()
            await self._news.wait()


class FaultyStore(MemoryStore):
    """A store that is out for the next so many calls of a method, and can hold a claim or a settle open."""

    def __init__(self) -> None:
        super().__init__()
        self.out: Counter[str] = Counter()
        self.bug: Counter[str] = Counter()
        self.claims: list[int] = []
        """How many deliveries each claim took."""
        self.released: list[str] = []
        self.looks = 0
        """How often the destinations' states were asked for."""
        self.asked = 0
        """How often a lane asked when the next row is due."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.claimed = asyncio.Event()
        """Set when a claim has taken something and stands at the gate."""

    def _fail(self, method: str) -> None:
        if self.bug[method] > 0:
            self.bug[method] -= 1
            raise RuntimeError("a bug")
        if self.out[method] > 0:
            self.out[method] -= 1
            raise StoreUnavailable

    async def claim(
        self,
        destination: str,
        *,
        worker: str,
        limit: int,
        now: int,
        lease_until: int,
        rules: SendingRules = PLAIN,
    ) -> list[Claimed]:
        """Claim, unless out."""
        self._fail("claim")
        found = await super().claim(
            destination, worker=worker, limit=limit, now=now, lease_until=lease_until, rules=rules
        )
        self.claims.append(len(found))
        if found:
            self.claimed.set()
            await self.gate.wait()
        return found

    async def next_due(self, destination: str) -> int | None:
        """Tell when the next row is due."""
        self.asked += 1
        return await super().next_due(destination)

    async def destinations(self, now: int) -> dict[str, DestinationState]:
        """Tell their states, unless out."""
        self.looks += 1
        self._fail("destinations")
        return await super().destinations(now)

    async def settle(self, settlement: Settlement) -> bool:
        """Settle, unless out."""
        self._fail("settle")
        return await super().settle(settlement)

    async def release(self, claims: Sequence[Claimed], *, now: int) -> int:
        """Release, unless out."""
        self._fail("release")
        self.released += [claim.id for claim in claims]
        return await super().release(claims, now=now)


def render(event: Event) -> bytes:
    return b'{"type":"%b","data":%b}' % (event.type.encode(), event.data)


class Scripted(Destination):
    """A destination without a network, for what no far side can bring about."""

    def __init__(self, send: Callable[[], Outcome], name: str = "app") -> None:
        self.name = name
        self._send = send

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Answer by the script."""
        return self._send()


class Gated(Scripted):
    """A destination that delivers one event for each permit."""

    def __init__(self) -> None:
        super().__init__(lambda: Outcome(kind=OutcomeKind.DELIVERED))
        self.permits = asyncio.Semaphore(0)
        self.begun = 0
        self._began = asyncio.Condition()

    async def until(self, begun: int) -> None:
        """Return when so many attempts have begun."""
        async with self._began:
            await self._began.wait_for(lambda: self.begun >= begun)

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Answer by the script."""
        async with self._began:
            self.begun += 1
            self._began.notify_all()
        await self.permits.acquire()
        return self._send()


@asynccontextmanager
async def http_lane(
    sink: Sink,
    *,
    path: str = "/hooks",
    retry: RetryPolicy | None = None,
    concurrency: int = 4,
    timeout_seconds: float = 5.0,
) -> AsyncIterator[DeliveryTerms]:
    settings: dict[str, Any] = {
        "name": "app",
        "url": f"http://127.0.0.1:{sink.port}{path}",
        "allow": ["127.0.0.0/8"],
        "timeout_seconds": timeout_seconds,
    }
    destination = HttpDestination(DestinationSettings.model_validate(settings))
    await destination.open()
    try:
        yield DeliveryTerms(destination, retry or policy("deepgram"), concurrency, timeout_seconds)
    finally:
        await destination.close()


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    relay.start()
    try:
        yield
    finally:
        await relay.stop(5)


async def record(store: Store, *destinations: str, count: int = 1, at: int = T0) -> list[str]:
    """Record events; return their ids."""
    recorded = [await store.record(recording(*(destinations or ("app",)), at=at)) for _ in range(count)]
    return [one.event_id for one in recorded]


async def deliveries(store: Store, destination: str = "app") -> list[Delivery]:
    return await store.deliveries(DeliveryFilter(destination=destination, limit=1000))


async def only(store: Store, destination: str = "app") -> Delivery:
    (found,) = await deliveries(store, destination)
    return found
