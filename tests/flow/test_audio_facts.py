"""The corpus sent through a whole receiver: what each event says of its audio is what decoding gives."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from receiver.app.wiring import Ports
from receiver.core.clock import wall_clock
from receiver.core.event import AudioFacts
from receiver.demo.deepdub import BASE_PATH, Deepdub
from receiver.demo.serving import served
from receiver.engine.pickups import new_pickup
from receiver.storage.blobs.s3 import S3Blobs
from tests.support import corpus, s3
from tests.support.running import Running, running, settings_text
from tests.support.s3 import Weed
from tests.support.senders import speech

weed, s3_credentials = s3.weed, s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")

KEY = "provider-key-0123456789abcdef"
DECODED = corpus.table()
RAW = {
    "raw.mulaw": "audio/mulaw;rate=8000",
    "raw.alaw": "audio/alaw;rate=8000",
    "raw.l16": "audio/l16;rate=8000",
}
KINDS = sorted({name.rpartition(".")[2]: name for name in corpus.names()}.values())
"""One file of each kind, the last in the list: a joined, cut or chained one where there is one."""


@pytest.fixture(params=["folder", "S3"])
def shape(request: pytest.FixtureRequest) -> Callable[[Ports], Ports]:
    """Audio lies in a folder, or in a bucket."""
    if request.param == "folder":
        return lambda ports: ports
    weed: Weed = request.getfixturevalue("weed")

    def bucket(ports: Ports) -> Ports:
        ports.blobs = S3Blobs(weed.options(f"{uuid.uuid4().hex}/"))
        return ports

    return bucket


async def _errors(up: Running, event_id: str, name: str) -> list[str]:
    event = await up.receiver.store.event(event_id)
    audio: dict[str, Any] = json.loads(event.data)["audio"]
    fields = ("duration_seconds", "duration_estimated", "sample_rate_hz", "channels", "codec")
    found = corpus.errors(name, AudioFacts(**{field: audio[field] for field in fields}), DECODED[name])
    draft = corpus.draft(name)
    stored = (urlsplit(audio["uri"]).path.rpartition(".")[2], audio["content_type"])
    if name != "lame-free-format.mp3" and stored != (draft.extension, draft.content_type):
        found.append(f"stored as {stored}")
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "names", [KINDS, pytest.param(corpus.names(), marks=pytest.mark.soak)], ids=["kinds", "all"]
)
async def test_callbacks(shape: Callable[[Ports], Ports], names: list[str], tmp_path: Path) -> None:
    """Whatever type the sender names; all files of the corpus in the soak."""
    async with running(tmp_path, shape=shape, work=False) as up:
        wrong = {}
        for name in names:
            sent = speech(name, content_type=RAW.get(name, "audio/mpeg"))
            answer = await up.client.put(sent.path, headers=sent.headers, content=corpus.content(name))
            assert answer.status_code == 200, name
            if found := await _errors(up, answer.json()["event_id"], name):
                wrong[name] = found
        assert wrong == {}


@pytest.mark.timeout(180)
async def test_fetched_results(shape: Callable[[Ports], Ports], tmp_path: Path) -> None:
    """One of each kind, of no stated type."""
    deepdub = Deepdub(KEY)
    deepdub.content_type = None
    with served(deepdub.app) as base:
        source = f'[sources.deepdub]\nprovider = "deepdub"\napi_key = "{KEY}"\nbase_url = "{base}{BASE_PATH}"\nallow = ["127.0.0.0/8"]\n'
        async with running(tmp_path, settings_text(tmp_path, extra=source), shape=shape) as up:
            wrong = {}
            for number, name in enumerate(KINDS, start=1):
                deepdub.audio = corpus.content(name)
                deepdub.content_type = RAW.get(name)
                url = f"{base}{BASE_PATH}/tts/retroactive/{deepdub.submit()}"
                pickup = new_pickup(up.receiver.ports.pulls["deepdub"], url, format={}, now=wall_clock())
                await up.receiver.store.add_pickup(pickup)
                up.receiver.collector.wake(["deepdub"])
                await up.seen.until(lambda number=number: len(up.seen.pickups) == number)  # type: ignore[misc]
                assert up.seen.pickups[-1].state == "collected", name
                if found := await _errors(up, pickup.event_id, name):
                    wrong[name] = found
            assert wrong == {}
