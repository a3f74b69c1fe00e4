"""PlayHT's own Python package (pyht 0.1.14) against the stand-in, as far as it goes.

pyht has no call for a v2 job: it neither posts to `/v2/tts` nor asks for `/v2/tts/{id}`, and it knows nothing of callbacks.
What it has over HTTP is the authorization of its inference (`/v4/sdk-auth`, `/v2/leases`) and speech that is answered at
once. So what is tested with it is the proof: the headers that PlayHT's package sends are let in by the stand-in's own check,
and the adapter's are the same. The job itself is driven as the documentation has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyht
import pytest
from pyht import inference_coordinates as coordinates
from pyht import lease
from pyht.client import http_prepare_dict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.demo.playht import API_KEY, USER_ID, WHOLE_STREAM, Playht, error
from receiver.demo.serving import served
from tests.support.clients import local_client
from tests.support.playht_asking import asking, collected

MODELS = ("Play3.0-mini", "PlayDialog", "PlayDialogMultilingual", "PlayDialogArabic")
SPOKEN = "/speech/stream"


@dataclass
class House:
    """A stand-in with the routes that only pyht asks for."""

    standin: Playht
    base: str
    spoken: list[dict[str, Any]]
    audio: bytes


@pytest.fixture
def house() -> Iterator[House]:
    """Serve the stand-in; pyht's own routes check the proof as the job's do."""
    standin, spoken = Playht(), list[dict[str, Any]]()
    audio = standin.add().audio

    async def authorize(request: Request) -> Response:
        urls = {"http_streaming_url": f"{request.base_url}speech/stream", "websocket_url": "ws://127.0.0.1:9"}
        models = dict.fromkeys(MODELS, urls)
        return JSONResponse({"expires_at": "2099-01-01T00:00:00.000Z", **models})

    async def issue_lease(_: Request) -> Response:
        made = (2_000_000_000 - lease.EPOCH).to_bytes(4, "big") + (3600).to_bytes(4, "big")
        return Response(bytes(64) + made + b'{"inference_address":"x:1"}')

    async def speak(request: Request) -> Response:
        spoken.append({"accept": request.headers["accept"], **await request.json()})
        return Response(audio, media_type="audio/mpeg")

    routes = [
        standin.route("/api/v4/sdk-auth", authorize, method="POST"),
        standin.route("/api/v2/leases", issue_lease, method="POST"),
        Route(SPOKEN, speak, methods=["POST"]),
        Route(SPOKEN.removesuffix("stream"), speak, methods=["POST"]),
    ]
    with served(Starlette(routes=[*routes, *standin.routes])) as base:
        yield House(standin, base, spoken, audio)


def _client(house: House, key: str = API_KEY) -> Any:
    """Return pyht's client; it connects when it is first used."""
    where = coordinates.InferenceCoordinatesOptions(
        api_url=f"{house.base}/api/v4", coordinates_get_api_call_max_retries=1
    )
    advanced = pyht.Client.AdvancedOptions(
        api_url=f"{house.base}/api", inference_coordinates_options=where, disable_lease_disk_cache=True
    )
    return pyht.Client(user_id=USER_ID, api_key=key, auto_connect=False, advanced=advanced)


@pytest.mark.parametrize("streaming", [True, False])
def test_pyht_speaks_by_way_of_the_standin(house: House, streaming: bool) -> None:
    """Its authorization passes the stand-in's check; its speech is answered at once, without a job."""
    options = pyht.TTSOptions(voice="s3://voice", format=pyht.Format.FORMAT_MP3)
    client = _client(house)
    pieces = client.tts("Good morning.", options, "Play3.0-mini", "http", streaming)
    assert b"".join(pieces) == house.audio
    assert [request.path for request in house.standin.requests] == ["/api/v4/sdk-auth"]
    assert house.spoken[0]["output_format"] == "mp3"
    assert house.spoken[0]["accept"] == "audio/mpeg"
    client.close()


def test_pyht_with_another_key_is_refused(house: House) -> None:
    """The check that lets it in is a check."""
    client = _client(house, key="somebody-elses-key")
    with pytest.raises(RuntimeError, match="403"):
        list(client.tts("x", pyht.TTSOptions(voice="v"), "Play3.0-mini", "http"))
    client.close()


def test_pyht_takes_a_lease_with_the_same_proof(house: House) -> None:
    taken = lease.LeaseFactory(USER_ID, API_KEY, f"{house.base}/api")()
    assert taken.metadata == {"inference_address": "x:1"}
    assert [request.path for request in house.standin.requests] == ["/api/v2/leases"]


async def test_the_adapter_proves_itself_as_pyht_does(house: House, tmp_path: Path) -> None:
    """The same header names and values, down to `Bearer`."""
    lease.LeaseFactory(USER_ID, API_KEY, f"{house.base}/api")()
    async with asking(tmp_path, "sse") as ask:
        ask.job(WHOLE_STREAM)
        assert collected(await ask()).draft.audio
        ours, theirs = ask.standin.requests[0].headers, house.standin.requests[0].headers
    proof = ("authorization", "x-user-id")
    assert [ours[name] for name in proof] == [theirs[name] for name in proof]


async def test_a_job_made_with_pyhts_words_comes_home(house: House, tmp_path: Path) -> None:
    """The JSON that pyht makes of its options is a job's as documented; posted to `/v2/tts`, its result is picked up."""
    options = pyht.TTSOptions(voice="s3://voice", format=pyht.Format.FORMAT_MP3)
    wanted = http_prepare_dict("Good morning.", options, "PlayHT2.0-turbo")
    async with asking(tmp_path, "json") as ask:
        async with local_client() as client:
            proof = {"authorization": f"Bearer {API_KEY}", "x-user-id": USER_ID, "accept": "application/json"}
            answer = await client.post(f"{ask.base}/api/v2/tts", json=wanted, headers=proof)
        order = ask.source.lookup(answer.headers["location"], {})
        draft = collected(await ask(job_id=order.job_id, key=order.key)).draft
    assert draft.idempotency_key == order.key
    assert draft.audio


def test_pyht_has_no_call_for_a_job() -> None:
    """What the module's first sentence says; when this fails, there is more to drive."""
    folder = Path(pyht.__file__).parent
    text = "".join(path.read_text("utf-8") for path in sorted(folder.glob("*.py")))
    assert "/v2/tts/stream" in text
    assert not [word for word in ("event-stream", '/v2/tts"', "/v2/tts'", "/v2/tts/{") if word in text]


def test_the_standins_error_is_worded_as_playhts() -> None:
    assert error(400, "no").body == b'{"error_message":"no"}'
