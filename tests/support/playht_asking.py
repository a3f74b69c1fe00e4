"""One PlayHT source that asks the stand-in: real HTTP, the real fetcher, a real folder for bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from receiver.core.fetch import Failed
from receiver.core.work import Pickup, PickupKind
from receiver.demo.playht import API_KEY, USER_ID, Job, Playht, Step
from receiver.demo.serving import served
from receiver.outbound.fetcher import Fetcher
from receiver.providers import playht
from receiver.providers.pickups import Collected, NotYet, Result
from receiver.system.body_buffer import BodyBuffer
from tests.support.callbacks import NOW
from tests.support.golden import source_settings, tokens

JOB = "BxMcwDjy0tHZVC4LYz"
QUICK = {"progress_seconds": 0.05, "silence_seconds": 10}


@dataclass
class Asking:
    """One source that asks the stand-in."""

    standin: Playht
    base: str
    source: playht.PlayhtProvider
    fetch: Fetcher

    async def __call__(self, **known: Any) -> Result:
        """Make one attempt."""
        return await self.source.collect(_pickup(**known), self.fetch, now=NOW)

    def job(self, *streams: tuple[Step, ...], **options: Any) -> Job:
        """Return the job, with what its event stream does each time."""
        return self.standin.add(JOB, **({"streams": list(streams)} if streams else {}), **options)

    @property
    def at(self) -> str:
        """Host and port of the stand-in."""
        return self.base.removeprefix("http://")


@asynccontextmanager
async def asking(folder: Path, mode: str, **options: Any) -> AsyncIterator[Asking]:
    """Serve a stand-in and make a source that asks it; `options` are settings of the source."""
    standin = Playht()
    with served(standin.app) as base:
        table: dict[str, Any] = {"provider": "playht", "api_key": API_KEY, "user_id": USER_ID, "mode": mode}
        table |= {"base_url": f"{base}/api/v2", "result_hosts": ["127.0.0.1"], "allow": ["127.0.0.0/8"]}
        settings = source_settings("ph", table | QUICK | options)
        bodies = BodyBuffer(str(folder / "spool"))
        bodies.open()
        fetch = Fetcher.create(settings, bodies)
        await fetch.open()
        try:
            yield Asking(standin, base, playht.PlayhtProvider.create(settings, tokens()), fetch)
        finally:
            await fetch.close()


def _pickup(**known: Any) -> Pickup:
    fields: dict[str, Any] = {"job_id": JOB, "key": f"job:{JOB}:complete", "ref": "order-42"} | known
    return Pickup(
        id="pku_1",
        source="ph",
        kind=PickupKind.RESULT,
        event_id="evt_1",
        deadline_at=NOW + 60_000,
        due_at=NOW,
        created_at=NOW,
        updated_at=NOW,
        **fields,
    )


def collected(result: Result) -> Collected:
    """Return the result, which must be the audio."""
    assert isinstance(result, Collected), result
    return result


def not_yet(result: Result) -> NotYet:
    """Return the result, which must be that it is under way."""
    assert isinstance(result, NotYet), result
    return result


def failed(result: Result) -> Failed:
    """Return the result, which must be a failure."""
    assert isinstance(result, Failed), result
    return result
