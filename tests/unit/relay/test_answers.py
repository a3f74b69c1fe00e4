"""What a destination answers is kept for a person, and never brings our own secrets into the store."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from receiver.core.errors import ConfigError
from receiver.core.retry import policy
from receiver.core.webhook import new_webhook_secret
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.outbound.client import RESPONSE_LIMIT
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.model import DestinationSettings
from tests.contract.store_suite import T0
from tests.support.relaying import FaultyStore, Heard, Now, only, record, render
from tests.support.sink import Answer, Sink
from tests.support.stepping import step

KEY, TOKEN, SESSION = "k3y/of+the=destination", "bearer-token-0123456789", "session-0123456789"
PAIR = "user:hunter2-and-more"
BASIC = base64.b64encode(PAIR.encode()).decode()
SECRET = new_webhook_secret()


async def _kept(store: FaultyStore, sink: Sink, answer: Answer, url: str = "", **more: Any) -> bytes:
    """Return what the store has of one answer."""
    sink.default = answer
    headers = {"X-Api-Key": KEY, "X-Token": f"Bearer {TOKEN}", "X-Session": SESSION}
    settings = {
        "name": "app",
        "url": url or f"http://{PAIR}@127.0.0.1:{sink.port}/hooks/a1b2c3d4e5f6a7b8?key=query-key",
        "allow": ["127.0.0.0/8"],
        "headers": headers,
        "secrets": [SECRET],
    }
    await record(store)
    destination = HttpDestination(DestinationSettings.model_validate(settings | more))
    await destination.open()
    try:
        lane = DeliveryTerms(destination, policy("deepgram"), 1, 5)
        await step(Relay(store, {"app": lane}, Heard(), render, Now(T0), "w"), T0)
    finally:
        await destination.close()
    (attempt,) = await store.attempts((await only(store)).id)
    return attempt.response


@pytest.mark.parametrize("status", [200, 302, 410, 500])
async def test_an_answer_that_shows_the_request_is_kept_without_its_secrets(
    store: FaultyStore, sink: Sink, status: int
) -> None:
    echoed = {
        "url": f"http://127.0.0.1:{sink.port}/hooks/a1b2c3d4e5f6a7b8?key=query-key",
        "args": {"key": "query-key"},
        "headers": {"x-api-key": KEY, "x-token": f"Bearer {TOKEN}", "authorization": f"Basic {BASIC}"},
        "seen": ["x", TOKEN, BASIC, PAIR, "hunter2-and-more", SECRET, SECRET[6:], "a1b2c3d4e5f6a7b8"],
        "quoted": "k3y%2fof%2Bthe%3Ddestination",
    }
    body = json.dumps(echoed).replace("/", "\\/").encode()
    kept = json.loads(await _kept(store, sink, Answer(status=status, body=body)))
    assert kept == {
        "url": f"http://127.0.0.1:{sink.port}[redacted]?[redacted]",
        "args": {"key": "[redacted]"},
        "headers": dict.fromkeys(echoed["headers"], "[redacted]"),
        "seen": ["x", *["[redacted]"] * 7],
        "quoted": "[redacted]",
    }


@pytest.mark.parametrize("left", [6, 12])
async def test_a_secret_that_the_end_of_what_is_kept_cuts_through_is_taken_out(
    store: FaultyStore, sink: Sink, left: int
) -> None:
    body = b"x" * (RESPONSE_LIMIT - left) + SESSION.encode() + b"more"
    assert (
        await _kept(store, sink, Answer(status=500, body=body))
        == b"x" * (RESPONSE_LIMIT - left) + b"[redacted]"
    )


async def test_credentials_written_as_a_header_are_known_as_such(store: FaultyStore, sink: Sink) -> None:
    answer = Answer(status=401, body=f"user has no password {PAIR[5:]}; {BASIC}".encode())
    kept = await _kept(store, sink, answer, sink.url, headers={"Authorization": f"Basic {BASIC}"}, secrets=[])
    assert kept == b"user has no password [redacted]; [redacted]"


async def test_other_answers_are_kept_as_they_came(store: FaultyStore, sink: Sink) -> None:
    body = rb'{"ok": true, "said": "\u00e4 100 %41 bearer \/ basic"}'
    assert await _kept(store, sink, Answer(body=body)) == body


def test_a_header_that_is_no_text_is_refused_with_its_name() -> None:
    """As an environment gives it whose bytes are not UTF-8."""
    given = {"name": "app", "url": "http://127.0.0.1:1/", "headers": {"x-key": "k\udcff-0123456"}}
    with pytest.raises(ConfigError, match=r"headers\.x-key: a header's value is text"):
        HttpDestination(DestinationSettings.model_validate(given))
