"""One attempt of a pickup in a test: a real adapter, a real fetcher, a provider's stand-in on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.core.callback import HeldBody
from receiver.core.event import EventDraft
from receiver.core.work import Pickup, PickupKind
from receiver.demo.serving import served
from receiver.outbound.fetcher import Fetcher
from receiver.providers.pickups import Collected, Result
from receiver.settings.model import SourceSettings
from receiver.system.body_buffer import BodyBuffer

NOW = 1795222923456
"""2026-11-21T01:02:03.456Z"""


class Place:
    """An address that is served for a whole module; what answers there changes from test to test."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)


@contextmanager
def placed() -> Iterator[Place]:
    """Serve a place."""
    place = Place()
    with served(place) as url:
        place.url = url
        yield place


@asynccontextmanager
async def fetching(settings: SourceSettings, folder: Path) -> AsyncIterator[Fetcher]:
    """Yield the fetcher of a source; downloads go to `folder`."""
    bodies = BodyBuffer(str(folder))
    bodies.open()
    fetcher = Fetcher.create(settings, bodies)
    await fetcher.open()
    try:
        yield fetcher
    finally:
        await fetcher.close()


def pickup_of(
    key: str,
    *,
    job_id: str | None = None,
    target: str | None = None,
    draft: EventDraft | None = None,
    format: Mapping[str, Any] | None = None,
    attempts: int = 0,
) -> Pickup:
    """Return a pickup as the store would hand it out."""
    return Pickup(
        id="pku_0",
        source="src",
        kind=PickupKind.RESULT,
        key=key,
        job_id=job_id,
        ref="order-7",
        target=target,
        event_id="evt_0",
        draft=draft,
        format=format or {},
        deadline_at=NOW + 86_400_000,
        attempts=attempts,
        due_at=NOW,
        created_at=NOW,
        updated_at=NOW,
    )


def collected(result: Result) -> Collected:
    """Return a result that came home."""
    assert isinstance(result, Collected), result
    return result


def body_of(result: Result) -> HeldBody:
    """Return the bytes of a result that came home."""
    body = collected(result).body
    assert body is not None
    return body
