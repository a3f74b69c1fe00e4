"""Deepdub's stand-in keeps to the contract, and its server begins and ends cleanly."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from receiver.demo.deepdub import BASE_PATH, Deepdub
from receiver.demo.serving import served
from tests.support.clients import NO_AUTHORITIES
from tests.support.collecting import Place, placed

TLS = Path(__file__).parents[1] / "support" / "tls"
KEY = "dd-0123456789abcdef"
BODY = {"targetText": "Good morning.", "model": "dd-etts-3.2", "voicePromptId": "v1", "locale": "en-US"}


@pytest.fixture
def provider() -> Deepdub:
    return Deepdub(KEY)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with placed() as place:
        yield place


@pytest.fixture(scope="module")
def open_http(place: Place) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=place.url + BASE_PATH, verify=NO_AUTHORITIES, trust_env=False) as client:
        yield client


@pytest.fixture
def client(provider: Deepdub, place: Place, open_http: httpx2.Client) -> httpx2.Client:
    place.app = provider.app
    open_http.headers["x-api-key"] = KEY
    return open_http


def test_a_job_is_404_until_it_is_ready_then_mp3_with_or_without_an_extension(
    provider: Deepdub, client: httpx2.Client
) -> None:
    provider.not_ready = 2
    url = client.post("/tts/retroactive", json=BODY).json()["url"]
    assert url.startswith(f"{client.base_url}tts/retroactive/")
    answers = [client.get(url + end) for end in ("", ".mp3", "", ".mp3", "")]
    assert [answer.status_code for answer in answers] == [404, 404, 200, 200, 200]
    assert {answer.headers["content-type"] for answer in answers[2:]} == {"audio/mpeg"}
    assert {answer.content for answer in answers[2:]} == {provider.audio}
    assert [request.method for request in provider.requests] == ["POST", *["GET"] * 5]


@pytest.mark.parametrize("missing", sorted(BODY))
def test_a_body_without_a_field_is_refused_naming_it(client: httpx2.Client, missing: str) -> None:
    answer = client.post("/tts/retroactive", json={k: v for k, v in BODY.items() if k != missing})
    assert (answer.status_code, answer.json()) == (
        400,
        {"success": False, "message": f"{missing} is required"},
    )


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_body_that_is_no_object_is_refused(client: httpx2.Client, content: bytes) -> None:
    assert client.post("/tts/retroactive", content=content).status_code == 400


def test_an_unknown_format_and_an_impossible_id_are_refused(client: httpx2.Client) -> None:
    assert client.post("/tts/retroactive", json=BODY | {"format": "wma"}).status_code == 400
    answer = client.get("/tts/retroactive/x")
    assert (answer.status_code, answer.json()["message"]) == (400, "Invalid generation ID")


@pytest.mark.parametrize("key", [None, "", "dd-another"])
def test_without_the_key_nothing_is_told(provider: Deepdub, client: httpx2.Client, key: str | None) -> None:
    del client.headers["x-api-key"]
    headers = {} if key is None else {"x-api-key": key}
    job_id = provider.submit()
    assert client.post("/tts/retroactive", json=BODY, headers=headers).status_code == 401
    assert client.get(f"/tts/retroactive/{job_id}", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("wanted", "stated", "content_type"),
    [
        ("opus", "asked", "audio/ogg"),
        ("mulaw", "asked", "audio/mulaw"),
        ("headerless-wav", "asked", None),
        ("mp3", None, None),
        ("mp3", "application/octet-stream", "application/octet-stream"),
    ],
)
def test_audio_comes_with_the_type_of_its_format_another_or_none(
    provider: Deepdub, client: httpx2.Client, wanted: str, stated: str | None, content_type: str | None
) -> None:
    provider.content_type = stated
    answer = client.get(f"/tts/retroactive/{provider.submit(wanted)}")
    assert answer.headers.get("content-type") == content_type


def test_the_server_is_gone_when_its_block_ends(provider: Deepdub) -> None:
    with served(provider.app) as url:
        port = int(url.rpartition(":")[2])
        assert (
            httpx2.get(
                f"{url}{BASE_PATH}/tts/retroactive/x", verify=NO_AUTHORITIES, trust_env=False
            ).status_code
            == 401
        )
    assert not [thread for thread in threading.enumerate() if thread.name == f"provider-{port}"]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_it_can_be_served_over_tls(provider: Deepdub) -> None:
    trusting = ssl.create_default_context(cafile=TLS / "cert.pem")
    with (
        served(provider.app, ssl_certfile=str(TLS / "cert.pem"), ssl_keyfile=str(TLS / "key.pem")) as url,
        httpx2.Client(verify=trusting, trust_env=False) as client,
    ):
        assert url.startswith("https://127.0.0.1:")
        named = {"sni_hostname": "app.test"}
        answer = client.get(f"{url}{BASE_PATH}/tts/retroactive/x", extensions=named)
        assert answer.status_code == 401


def test_a_port_that_is_taken_is_an_error() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError),
        served(Deepdub(KEY).app, port=taken.getsockname()[1]),
    ):
        pass
