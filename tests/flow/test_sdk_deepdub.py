"""Deepdub's own Python package submits a job, and what it answers is all that the adapter needs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from receiver.demo.deepdub import BASE_PATH, Deepdub
from receiver.demo.serving import served
from receiver.providers import deepdub
from receiver.providers.pickups import NotYet
from tests.support.collecting import NOW, body_of, collected, fetching, pickup_of
from tests.support.golden import source_settings, tokens

client_module = importlib.import_module("deepdub.client")

KEY = "dd-0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package reads its address and key from the environment, and `requests` its proxies."""
    for name in (
        "DEEPDUB_BASE_URL",
        "DEEPDUB_API_KEY",
        "DD_EU",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


def _submit(base: str) -> Any:
    client = client_module.DeepdubClient(base_url=base, api_key=KEY)
    return client.tts_retro(text="Good morning.", voice_prompt_id="voice-1", locale="en-US")


async def test_the_url_that_the_package_returns_is_picked_up(tmp_path: Path) -> None:
    provider = Deepdub(KEY, not_ready=1)
    with served(provider.app) as url:
        base = url + BASE_PATH
        answer = _submit(base)
        table = {"provider": "deepdub", "api_key": KEY, "base_url": base, "allow": ["127.0.0.0/8"]}
        settings = source_settings("dd", table)
        source = deepdub.DeepdubProvider.create(settings, tokens())
        order = source.lookup(answer["url"], {})
        pickup = pickup_of(order.key, job_id=order.job_id, target=order.target)
        async with fetching(settings, tmp_path) as fetch:
            assert isinstance(await source.collect(pickup, fetch, now=NOW), NotYet)
            result = await source.collect(pickup, fetch, now=NOW)
    assert collected(result).draft.type == "speech.completed"
    assert body_of(result).load() == provider.audio
    assert {request.headers["x-api-key"] for request in provider.requests} == {KEY}


def test_the_package_is_answered_as_it_expects(tmp_path: Path) -> None:
    """It posts what its caller gave, and takes the answer for JSON by its type."""
    provider = Deepdub(KEY)
    with served(provider.app) as url:
        answer = _submit(url + BASE_PATH)
    assert list(answer) == ["url"]
    assert provider.requests[0].path == f"{BASE_PATH}/tts/retroactive"
    assert b'"targetText": "Good morning."' in provider.requests[0].body
