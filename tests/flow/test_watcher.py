"""What a provider says of its own webhook becomes one event for each change, in all processes and after a restart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from receiver.providers.custom import CustomProvider
from receiver.providers.custom.language import CustomSettings
from receiver.settings.model import SourceSettings
from tests.support.golden import tokens
from tests.support.provider_host import ProviderHost, Talk, reply
from tests.support.running import running
from tests.support.sink import Sink

KEY = "provider-key-0123456789abcdef"
OURS = "https://hooks.example.com/callbacks/x"
FIRST = {
    "values": [{"webUrl": "https://example.com/other", "status": "Succeeded"}],
    "@nextLink": "more?skip=1",
}
SECOND = {
    "values": [
        {
            "webUrl": "https://hooks.example.com/callbacks/y",
            "status": "Failed",
            "properties": {"error": {"code": "x", "message": "too many failures"}},
        },
    ]
}
"""After https://learn.microsoft.com/rest/api/speechtotext/web-hooks/list."""


def listed(*webhooks: tuple[str, bool]) -> bytes:
    """Return ElevenLabs' list: URL, and whether it was switched off."""
    found = [
        {"webhook_url": url, "is_auto_disabled": off, "most_recent_failure_error_code": 503}
        for url, off in webhooks
    ]
    return json.dumps({"webhooks": found}).encode()


def settings(folder: Path, host: str, sink: str) -> str:
    return f"""data = "{folder / "data"}"
[destinations.app]
url = "{sink}"
allow = ["127.0.0.0/8"]
events = ["source.*"]
[sources.x]
recipe = "elevenlabs"
secrets = ["example-secret-0123456789abcdef"]
api_key = "{KEY}"
allow = ["127.0.0.0/8"]
[sources.x.watch]
url = "{host}/v1/workspace/webhooks"
hosts = ["127.0.0.1"]
[sources.y]
recipe = "azure-speech"
secrets = ["example-secret-0123456789abcdef"]
api_key = "{KEY}"
region = "westus"
allow = ["127.0.0.0/8"]
[sources.y.watch]
url = "{host}/{{region}}/webhooks"
hosts = ["127.0.0.1"]
"""


async def test_each_change_of_the_providers_webhook_is_one_event(tmp_path: Path) -> None:
    async with ProviderHost() as host, Sink() as sink:
        now: list[bytes] = [b""]

        async def tell(talk: Talk) -> None:
            await talk.send(now[0])

        host.scripts["/v1/workspace/webhooks"] = tell
        text = settings(tmp_path, host.url(""), sink.url)
        on = reply(200, listed(("https://example.com/other", True), (f"{OURS}/token", False)))
        off = reply(200, listed((OURS, True), ("https://example.com/other", False)))
        async with running(tmp_path, text) as up:
            for now[0] in (on, off, off, reply(500), reply(200, b"<html>"), reply(200, b'{"webhooks":{}}')):
                await asyncio.gather(up.receiver.watcher.ask("x"), up.receiver.watcher.ask("x"))
            await sink.until(1)
        async with running(tmp_path, text) as up:  # a restart is no change
            for now[0] in (off, on, on, off):
                await up.receiver.watcher.ask("x")
            await sink.until(3)
            host.scripts["/westus/webhooks"] = reply(200, json.dumps(FIRST).encode())
            for host.scripts["/westus/more"] in (
                reply(500),  # half a list is no answer
                reply(200, json.dumps(FIRST).encode()),  # a list without end: its first pages are read
                reply(200, json.dumps(SECOND).encode()),
            ):
                await up.receiver.watcher.ask("y")
            await sink.until(4)
            assert [r.path for r in host.requests].count("/westus/more") == 1 + 19 + 1
        events = [json.loads(request.body) for request in sink.received]
        azure = events.pop()
        assert [event["type"] for event in events] == ["source.failing", "source.recovered", "source.failing"]
        assert (azure["type"], azure["data"]["source"]) == ("source.failing", "y")
        assert azure["data"]["provider_data"] == {"detail": "status is Failed, too many failures"}
        assert (events[0]["data"]["source"], events[0]["data"]["error"]["code"]) == ("x", "failing")
        assert events[0]["data"]["provider_data"] == {"detail": "is_auto_disabled is true, 503"}
        keys = [r.headers.get("xi-api-key") or r.headers["ocp-apim-subscription-key"] for r in host.requests]
        assert set(keys) == {KEY}


@pytest.mark.parametrize("lacking", ["api_key", "region"])
def test_without_a_key_or_the_region_nothing_is_asked(lacking: str) -> None:
    own = {"name": "y", "recipe": "azure-speech", "secrets": [KEY], "api_key": KEY, "region": "westus"}
    whole, short = (SourceSettings.model_validate(table) for table in (own, own | {lacking: ""}))
    assert CustomProvider.create(whole, tokens()).watch_seconds == 900
    assert CustomProvider.create(short, tokens()).watch_seconds is None
    assert ["W907" for found in CustomProvider.findings(short) if found.code == "W907"] == ["W907"] * (
        lacking == "region"
    )


def test_a_webhook_is_asked_about_once_a_minute_at_most() -> None:
    with pytest.raises(ValidationError, match="every"):
        CustomSettings.model_validate({"recipe": "elevenlabs", "watch": {"every": 59}})
