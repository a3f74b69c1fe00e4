"""No key, no signed link and no token leaves the store: not in the log, not in an attempt's detail, not in an event."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from starlette.responses import Response

from receiver.app.log import LogObserver
from receiver.core.observe import Observers
from receiver.core.work import PickupFilter
from receiver.demo.deapi import ApiJob
from receiver.engine.pickups import new_pickup
from tests.support.house import receiver
from tests.support.provider_host import ProviderHost, reply
from tests.support.pulling import AUDIO, KEY, Providers, asked_providers
from tests.support.running import DEAPI_SECRET, Running, running
from tests.support.senders import deapi
from tests.support.sink import Sink

SIGNED = "X-Amz-Signature=c0ffee00c0ffee00c0ffee00c0ffee00"


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with asked_providers() as found:
        yield found


@dataclass
class Told:
    """All that was told to anybody, and what must not be in it."""

    log: str
    details: str
    listed: str
    """What `receiver pickups` says of all of them and of each."""
    events: dict[str, bytes]
    """Bodies as delivered, by the source."""
    secrets: dict[str, str]

    def leaks(self, text: str) -> list[str]:
        return [name for name, secret in self.secrets.items() if secret in text]


@pytest.fixture(scope="module")
def told(providers: Providers, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("secrets")
    made = asyncio.run(_tell(providers, folder))
    listed = _receiver(folder, "pickups", "--json")
    ids = set(re.findall(r"pku_\w+", listed))
    assert len(ids) == 12
    return replace(
        made, listed=listed + "".join(_receiver(folder, "pickups", one) for one in sorted(ids)[:4])
    )


def _receiver(folder: Path, *words: str) -> str:
    said = receiver("--config", folder / "receiver.toml", *words)
    assert said.status == 0, said.err
    return said.out + said.err


async def _tell(providers: Providers, folder: Path) -> Told:
    """Have results that come, links that have expired, web pages, strange hosts, broken links; return what was told of them."""
    log, text = io.StringIO(), providers.text(folder, "http://127.0.0.1:9/", more="deadline_seconds = 3600")
    bad = {
        "/page": reply(200, b"<html>no</html>", {"content-type": "text/html"}),
        "/away": reply(302, b"", {"location": f"https://elsewhere.example/x?{SIGNED}"}),
        "/denied": reply(500, f"<Error>{SIGNED} {KEY}</Error>".encode(), {"content-type": "text/xml"}),
        "/cut": reply(200, AUDIO[:99], {"content-type": "audio/mpeg"}, length=999),
    }
    (folder / "receiver.toml").write_text(text)
    async with (
        Sink() as sink,
        ProviderHost(scripts=dict(bad)) as host,
        running(folder, text.replace("http://127.0.0.1:9/", sink.url)) as up,
    ):
        listener = LogObserver(style="json", level="debug", stream=log)
        Observers.__init__(up.receiver.observer, [up.seen, listener])
        token = up.receiver.tokens.issue("deapi", ref="order-7")
        good, stale = providers.deapi_job(), providers.deapi_job()
        old = providers.deapi.link(providers.deapi_base, stale)
        providers.deapi.expire()
        fresh = providers.deapi.link(providers.deapi_base, good)
        links = {good: fresh, stale: old} | {path: f"{host.url(path)}?{SIGNED}" for path in bad}
        links["nobody"] = f"http://127.0.0.1:9/x?{SIGNED}"
        for job, link in links.items():
            sent = replace(deapi(job.strip("/"), result_url=link), path=f"/callbacks/deapi/{token}")
            answer = await up.client.post(sent.path, headers=sent.headers, content=sent.body)
            assert answer.status_code == 200
        played = providers.playht.add(audio=AUDIO, result_query=f"?{SIGNED}")
        denied = providers.playht.add(audio=AUDIO, result_query=f"?{SIGNED}", result=_denied())
        failed = providers.deapi.add(
            ApiJob(statuses=("error",), error_code=f"no {KEY} at https://x.example/?{SIGNED}")
        )
        handed = {"playht": [played.id, denied.id], "deepdub": [providers.deepdub.submit(), "unknown"]}
        handed["deapi"] = [failed]
        for source, jobs in handed.items():
            await _hand_over(up, source, jobs)
        await up.seen.until(lambda: len({r.pickup_id for r in up.seen.pickups}) == len(links) + 5)
        await sink.until(5)
        await up.seen.until(lambda: sum(r.state == "delivered" for r in up.seen.attempts) >= 5)
        pickups = await up.receiver.store.pickups(PickupFilter())
        attempts = [await up.receiver.store.pickup_attempts(one.id) for one in pickups]
        details = f"{attempts} {[one.last_detail for one in pickups]} {up.seen.notes} {up.seen.pickups}"
    events: dict[str, bytes] = {}
    for request in sink.received:
        source = json.loads(request.body)["data"]["source"]
        events[source] = events.get(source, b"") + request.body
    secrets = {"API key": KEY, "webhook secret": DEAPI_SECRET, "token": token, "signature": SIGNED}
    secrets |= {"fresh link": fresh.partition("?")[2], "old link": old.partition("?")[2]}
    return Told(log.getvalue(), details, "", events, secrets)


def _denied() -> Response:
    return Response(f"<Error>{SIGNED}</Error>", 403, media_type="application/xml")


async def _hand_over(up: Running, source: str, jobs: list[str]) -> None:
    for job in jobs:
        pickup = new_pickup(up.receiver.ports.pulls[source], job, now=up.receiver.clock())
        await up.receiver.store.add_pickup(pickup)
    up.receiver.collector.wake([source])


def test_the_log_tells_of_every_pickup_and_of_no_secret(told: Told) -> None:
    lines = [json.loads(line) for line in told.log.splitlines()]
    assert {line["event"] for line in lines} >= {"pickup.collected", "pickup.unusable", "pickup.refused"}
    assert told.leaks(told.log) == []


def test_no_attempt_and_no_note_tells_a_secret(told: Told) -> None:
    assert "is not one of the hosts" in told.details
    assert told.leaks(told.details) == []


def test_the_list_of_pickups_tells_no_secret(told: Told) -> None:
    assert "is not one of the hosts" in told.listed
    assert told.leaks(told.listed) == []


@pytest.mark.parametrize("source", ["deapi", "deepdub", "playht"])
def test_no_event_tells_a_secret(told: Told, source: str) -> None:
    """A link that still works is one: whoever has it has the result."""
    assert told.leaks(told.events[source].decode()) == []


def test_a_job_that_failed_is_told_in_words_that_give_nothing_away(told: Told) -> None:
    assert b'"code":"no [redacted] at https://x.example/?[redacted]"' in told.events["deapi"]
