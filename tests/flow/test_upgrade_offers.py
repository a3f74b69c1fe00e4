"""Offers to change the protocol: Java's HTTP client makes one with every request over plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.kept_events import kept_events
from tests.support.raw import exchange, head
from tests.support.running import Running, api_token, running, settings_text
from tests.support.senders import transcript

ADMIN = "api-token-of-this-test-0123456789"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Running]:
    text = settings_text(tmp_path, extra=api_token("app", ADMIN))
    async with running(tmp_path, text, work=False) as up:
        yield up


OFFERS = [
    {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA",
    },
    {"connection": "keep-alive, Upgrade", "upgrade": "websocket", "sec-websocket-key": "AAAA"},
    {"upgrade": "h2c"},
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("cut", [0, 9, 300, 700])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_offer_to_upgrade_is_ignored_and_the_body_taken(
    live: Running, offer: dict[str, str], cut: int, chunked: bool
) -> None:
    """Some clients offer HTTP/2 so over plain HTTP, with the whole request, and with the next one on the connection."""
    requests = b""
    for name in ("first", "second"):
        sent = transcript(name)
        size = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(len(sent.body))}
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent.body), sent.body) if chunked else sent.body
        requests = head(sent.path, sent.headers | offer | size) + body
        status, _, answer = await exchange(
            urlsplit(live.base).port or 0, [requests[:cut], requests[cut:]] if cut else [requests]
        )
        assert (status, json.loads(answer)["status"]) == (200, "recorded")
    kept = {event.job_id: event.type for event in await kept_events(live.receiver.store)}
    assert kept == {"first": "transcript.completed", "second": "transcript.completed"}


async def test_an_offer_to_upgrade_is_ignored_by_the_api_and_on_an_open_connection(live: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(live.base).port or 0)
    body = b'{"source": "nobody"}'
    wanted = {"content-length": str(len(body)), "authorization": "Bearer " + ADMIN}
    for offer in OFFERS:
        writer.write(head("/api/v1/callback-urls", wanted | offer) + body)
        answer = await reader.readuntil(b"}")
        assert b"there is no source 'nobody'" in answer
    writer.close()


async def test_connect_is_not_for_here(live: Running) -> None:
    """Its parser sees an offer too, and there is nothing to read anew."""
    status, _, _ = await exchange(
        urlsplit(live.base).port or 0, [head("example.com:443", {}, method="CONNECT")]
    )
    assert status in (0, 400, 404, 405)
    assert (await live.client.get("/healthz")).status_code == 200
