"""Deepgram's own package submits jobs; a stand-in of its API takes them and calls receiver back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.core import urls
from receiver.core.clock import wall_clock
from receiver.demo import deepgram
from receiver.demo.serving import Callback, open_client, send, served
from tests.support.running import BASIC, Running, running, settings_text
from tests.support.senders import SPEECH
from tests.support.sink import Sink

pytestmark = pytest.mark.filterwarnings(
    "ignore:websockets:DeprecationWarning"
)  # the package's own, as it is imported
KEY = "deepgram-api-key-0123456789"
TOKEN = "rcvsub" + "a" * 40
PUBLIC = "hooks.example.com"
AUDIO = SPEECH.read_bytes()


class Api:
    """`/v1/speak`, `/v1/listen` and `/v1/read` with a callback: an id at once, the result to the callback URL."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.statuses: list[int | None] = []
        self.hooks = ""
        """Where this machine has what is public as `PUBLIC`."""
        self._lock = threading.Lock()
        products = ("speak", "listen", "read")
        self.app = Starlette(routes=[Route(f"/v1/{name}", self._take, methods=["POST"]) for name in products])

    async def _take(self, request: Request) -> Response:
        if request.headers.get("authorization", "").lower() not in (f"token {KEY}", f"bearer {KEY}"):
            return JSONResponse({"err_code": "INVALID_AUTH"}, status_code=401)
        query = request.query_params
        product = request.url.path.rpartition("/")[2]
        request_id = f"{product}-{len(self.accepted)}"
        self.accepted.append(request_id)
        method = query.get("callback_method", "POST")
        url = query["callback"].replace(PUBLIC, self.hooks)
        call = self._result(product, request_id, url, method)
        return JSONResponse({"request_id": request_id}, background=BackgroundTask(self._call, call))

    def _result(self, product: str, request_id: str, url: str, method: str) -> Callback:
        if product == "speak":
            return deepgram.speech(url, AUDIO, content_type="audio/mpeg", method=method)
        now = wall_clock()
        fields = (
            deepgram.transcript("Good morning.", now=now)
            if product == "listen"
            else deepgram.analysis("A greeting.", now=now)
        )
        metadata = fields["metadata"]
        metadata.get("metadata", metadata)["request_id"] = request_id
        return deepgram.document(url, fields, method=method)

    def _call(self, callback: Callback) -> None:
        with open_client() as client, self._lock:
            self.statuses.append(send(client, callback, label="result").status)


@pytest.fixture
def api() -> Iterator[tuple[Api, DeepgramClient]]:
    made = Api()
    with served(made.app) as base, httpx.Client() as http:
        there = DeepgramClientEnvironment(base=base, production=base, agent=base, agent_rest=base)
        yield made, DeepgramClient(api_key=KEY, environment=there, httpx_client=http)


def _url(up: Running, ref: str, product: str) -> str:
    token = up.receiver.tokens.issue("deepgram", ref=ref, format={"product": product})
    return urls.compose(up.base, "deepgram", token=token, basic=BASIC)


def _named(made: Api, product: str) -> str:
    return next(one for one in made.accepted if one.startswith(product))


async def test_speech_transcript_and_analysis_submitted_by_the_package_come_back_as_events(
    api: tuple[Api, DeepgramClient], tmp_path: Path
) -> None:
    made, client = api

    def submit(up: Running) -> dict[str, str]:
        speak = client.speak.v1.audio.generate(
            text="Hello", model="aura-2-thalia-en", callback=_url(up, "a", "speak"), callback_method="PUT"
        )
        listen: Any = client.listen.v1.media.transcribe_url(
            url="https://audio.example.test/a.wav", callback=_url(up, "b", "listen")
        )
        read = client.read.v1.text.with_raw_response.analyze(
            request={"text": "Good morning."}, callback=_url(up, "c", "read"), summarize="v2", language="en"
        )
        # The package types speech as bytes, so its acknowledgement comes through the audio's iterator.
        spoken = json.loads(b"".join(speak))["request_id"]
        return {"a": spoken, "b": listen.request_id, "c": _named(made, "read") if read else ""}

    async with Sink() as sink, running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
        ids = await asyncio.to_thread(submit, up)
        await sink.until(3)
        events = {event["data"]["ref"]: event for event in (json.loads(r.body) for r in sink.received)}
        assert {ref: event["type"] for ref, event in events.items()} == {
            "a": "speech.completed",
            "b": "transcript.completed",
            "c": "analysis.completed",
        }
        assert (events["b"]["data"]["job_id"], events["c"]["data"]["job_id"]) == (ids["b"], ids["c"])
        assert events["a"]["data"]["audio"]["sha256"] == hashlib.sha256(AUDIO).hexdigest()
    assert made.statuses == [200, 200, 200]


def _text(folder: Path, upstream: str, sink: str) -> str:
    """Return settings by which Deepgram's jobs go through receiver."""
    submit = f'submit = true\napi_key = "{KEY}"\nbase_url = "{upstream}"\nallow = ["127.0.0.0/8"]\n'
    token = f'[[submit.tokens]]\nname = "crm"\nsecrets = ["{TOKEN}"]\nsources = ["deepgram"]\n'
    text = settings_text(folder, destination=sink, extra=token)
    return f'public_url = "http://{PUBLIC}"\n' + text.replace(
        "[sources.deepgram]\n", f"[sources.deepgram]\n{submit}"
    )


async def test_the_package_unchanged_submits_through_receiver_by_url_by_file_and_by_stream(
    tmp_path: Path,
) -> None:
    """Its key is a token of receiver's, and it names no callback: the events come with their refs."""
    made = Api()
    with served(made.app) as upstream:
        async with Sink() as sink, running(tmp_path, _text(tmp_path, upstream, sink.url)) as up:
            made.hooks = up.base.removeprefix("http://")
            ids = await asyncio.to_thread(_submit_through, f"{up.base}/submit/deepgram")
            await sink.until(4)
            events = {e["data"]["ref"]: e for e in (json.loads(r.body) for r in sink.received)}
    assert {ref: event["type"] for ref, event in events.items()} == {
        "url": "transcript.completed",
        "file": "transcript.completed",
        "stream": "transcript.completed",
        "speech": "speech.completed",
    }
    assert {ref: event["data"]["job_id"] for ref, event in events.items() if ref in ids} == ids
    assert made.statuses == [200] * 4


def _submit_through(base: str) -> dict[str, str]:
    there = DeepgramClientEnvironment(base=base, production=base, agent=base, agent_rest=base)
    with httpx.Client() as http:
        client = DeepgramClient(api_key=TOKEN, environment=there, httpx_client=http)
        media: Any = client.listen.v1.media

        def options(ref: str) -> Any:
            return {"additional_headers": {"x-receiver-ref": ref}}

        by_url = media.transcribe_url(url="https://audio.example.test/a.wav", request_options=options("url"))
        by_file = media.transcribe_file(request=AUDIO, request_options=options("file"))
        pieces = (AUDIO[start : start + 4096] for start in range(0, len(AUDIO), 4096))
        by_stream = media.transcribe_file(request=pieces, request_options=options("stream"))
        b"".join(client.speak.v1.audio.generate(text="Hello", request_options=options("speech")))
    return {
        "url": by_url.request_id,
        "file": by_file.request_id,
        "stream": by_stream.request_id,
    }
