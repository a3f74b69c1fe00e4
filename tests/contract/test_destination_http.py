"""HTTP keeps the destination contract, signs by Standard Webhooks, and reads what the far side answers."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from standardwebhooks import Webhook, WebhookVerificationError

from receiver import __version__
from receiver.core.errors import ConfigError, SettingsError
from receiver.core.webhook import new_webhook_secret, public_key, verify
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import AddrInfo
from receiver.outbound.destinations import Destination
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.model import DestinationSettings
from tests.contract.destination_suite import BODY, T0, DestinationSuite, Place
from tests.support.sink import Answer, Sink

TLS = Path(__file__).parents[1] / "support" / "tls"


def settings(url: str, **fields: Any) -> DestinationSettings:
    return DestinationSettings.model_validate(
        {"name": "app", "url": url, "allow": ["127.0.0.0/8"], "timeout_seconds": 5} | fields
    )


@asynccontextmanager
async def opened(url: str, **fields: Any) -> AsyncIterator[HttpDestination]:
    destination = HttpDestination(settings(url, **fields))
    await destination.open()
    try:
        yield destination
    finally:
        await destination.close()


async def send(url: str, **fields: Any) -> Outcome:
    async with opened(url, **fields) as destination:
        return await destination.send("evt_1", BODY, timestamp=T0)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as running:
        yield running


class HttpPlace:
    """A sink, and a destination whose URL carries a password and a key."""

    once = False
    secrets: Sequence[str] = ("hunter2", "k3y", "/hooks")

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        url = f"http://user:hunter2@127.0.0.1:{sink.port}/hooks?key=k3y"
        self.destination: Destination = HttpDestination(settings(url, timeout_seconds=1.0))

    async def arrived(self, count: int) -> list[tuple[str, bytes]]:
        return [(came.headers["webhook-id"], came.body) for came in self.sink.received]

    async def refuse(self) -> None:
        self.sink.default = Answer(status=500)

    def hang(self) -> None:
        self.sink.default = Answer(manner="hang")

    async def vanish(self) -> None:
        await self.sink.stop()

    async def come_back(self) -> None:
        await self.sink.__aenter__()


@pytest.fixture
async def place(sink: Sink) -> AsyncIterator[Place]:
    place = HttpPlace(sink)
    await place.destination.open()
    yield place
    await place.destination.close()


class TestHttpDestination(DestinationSuite):
    """The shared behaviour over HTTP."""


async def test_a_refusals_reply_is_kept_up_to_16_kib(sink: Sink) -> None:
    sink.default = Answer(status=500, body=b"no such tenant " + b"x" * 100_000)
    outcome = await send(sink.url)
    assert outcome.response.startswith(b"no such tenant")
    assert len(outcome.response) == 16 * 1024


# ---------------------------------------------------------------- what is sent


async def test_the_public_library_accepts_the_signature_of_every_secret(sink: Sink) -> None:
    secrets = [new_webhook_secret(), new_webhook_secret()]
    await send(sink.url, secrets=secrets)
    came = sink.received[0]
    with time_machine.travel(T0 / 1000, tick=False):
        for secret in secrets:
            assert Webhook(secret).verify(came.body, dict(came.headers)) == json.loads(BODY)
        with pytest.raises(WebhookVerificationError):
            Webhook(new_webhook_secret()).verify(came.body, dict(came.headers))
        with pytest.raises(WebhookVerificationError):
            Webhook(secrets[0]).verify(came.body + b" ", dict(came.headers))


async def test_each_attempt_is_signed_as_of_its_own_time(sink: Sink) -> None:
    secret = new_webhook_secret()
    async with opened(sink.url, secrets=[secret]) as destination:
        for seconds in (0, 3600):
            await destination.send("evt_1", BODY, timestamp=T0 + seconds * 1000)
    first, second = sink.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "evt_1"
    assert first.headers["webhook-timestamp"] == str(T0 // 1000)
    with time_machine.travel(T0 / 1000 + 3600, tick=False):
        Webhook(secret).verify(second.body, dict(second.headers))


async def test_without_a_secret_nothing_claims_to_be_a_signature(sink: Sink) -> None:
    await send(sink.url)
    headers = sink.received[0].headers
    assert "webhook-signature" not in headers
    assert headers["webhook-id"] == "evt_1"


async def test_the_request_is_a_plain_json_post(sink: Sink) -> None:
    await send(f"{sink.url}?a=1%202")
    came = sink.received[0]
    assert (came.method, came.path) == ("POST", "/hooks")
    assert came.headers["content-type"] == "application/json"
    assert came.headers["content-length"] == str(len(BODY))
    assert came.headers["accept-encoding"] == "identity"


async def test_the_user_agent_names_this_version(sink: Sink) -> None:
    await send(sink.url)
    assert sink.received[0].headers["user-agent"] == f"receiver/{__version__}"


async def test_configured_headers_are_sent_and_win_over_ours(sink: Sink) -> None:
    await send(sink.url, headers={"X-Tenant": "a", "User-Agent": "mine"})
    headers = sink.received[0].headers
    assert (headers["x-tenant"], headers["user-agent"]) == ("a", "mine")


async def test_credentials_in_the_url_are_sent_as_basic(sink: Sink) -> None:
    await send(f"http://us%40er:p%3Aw@127.0.0.1:{sink.port}/hooks")
    expected = "Basic " + base64.b64encode(b"us@er:p:w").decode()
    assert sink.received[0].headers["authorization"] == expected


async def test_a_secret_signs_only_in_its_time(sink: Sink) -> None:
    old, new, later = (new_webhook_secret() for _ in range(3))
    at = datetime.fromtimestamp(T0 / 1000, UTC)
    secrets = [
        {"secret": old, "until": at + timedelta(hours=1)},
        new,
        {"secret": later, "from": at + timedelta(hours=2)},
    ]
    async with opened(sink.url, secrets=secrets) as destination:
        for hours in (0, 1, 2):
            await destination.send("evt_1", BODY, timestamp=T0 + hours * 3_600_000)
    for hours, came in enumerate(sink.received):
        holds = [verify(s, came.headers, came.body, now=T0 / 1000 + hours * 3600) for s in (old, new, later)]
        assert holds == [hours < 1, True, hours == 2]


async def test_a_key_pair_signs_beside_a_shared_secret_and_the_public_library_takes_both(sink: Sink) -> None:
    shared, private = new_webhook_secret(), new_webhook_secret(pair=True)
    await send(sink.url, secrets=[private, shared])
    came = sink.received[0]
    forms = [one.partition(",")[0] for one in came.headers["webhook-signature"].split()]
    assert forms == ["v1a", "v1"]
    assert verify(public_key(private), came.headers, came.body, now=T0 / 1000)
    assert not verify(public_key(new_webhook_secret(pair=True)), came.headers, came.body, now=T0 / 1000)
    assert not verify(public_key(private), came.headers, came.body + b" ", now=T0 / 1000)
    with time_machine.travel(T0 / 1000, tick=False):
        Webhook(shared).verify(came.body, dict(came.headers))


EVENT = json.dumps(
    {
        "type": "speech.completed",
        "timestamp": "2026-11-21T01:02:03.456Z",
        "data": {"source": "deep gram", "job_id": "job Ö%", "ref": "Straße"},
    }
).encode()


async def test_a_cloud_event_in_structured_mode_is_one_signed_document(sink: Sink) -> None:
    secret = new_webhook_secret()
    async with opened(sink.url, secrets=[secret], format="cloudevents") as destination:
        await destination.send("evt_1", EVENT, timestamp=T0)
    came = sink.received[0]
    assert came.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(came.body) == {
        "specversion": "1.0",
        "id": "evt_1",
        "source": "/sources/deep%20gram",
        "type": "speech.completed",
        "time": "2026-11-21T01:02:03.456Z",
        "subject": "job Ö%",
        "datacontenttype": "application/json",
        "data": json.loads(EVENT)["data"],
    }
    assert verify(secret, came.headers, came.body, now=T0 / 1000)


async def test_a_cloud_event_in_binary_mode_has_its_attributes_in_headers(sink: Sink) -> None:
    async with opened(sink.url, format="cloudevents-binary") as destination:
        await destination.send("evt_1", EVENT, timestamp=T0)
    came = sink.received[0]
    assert came.headers["content-type"] == "application/json"
    assert {
        name.lower(): value for name, value in came.headers.items() if name.lower().startswith("ce-")
    } == {
        "ce-specversion": "1.0",
        "ce-id": "evt_1",
        "ce-source": "/sources/deep%2520gram",
        "ce-type": "speech.completed",
        "ce-time": "2026-11-21T01:02:03.456Z",
        "ce-subject": "job%20%C3%96%25",
    }
    assert json.loads(came.body) == json.loads(EVENT)["data"]


async def test_method_and_success_are_the_destinations_own(sink: Sink) -> None:
    for status, kind in (
        (204, OutcomeKind.REFUSED),
        (409, OutcomeKind.DELIVERED),
        (303, OutcomeKind.DELIVERED),
    ):
        sink.default = Answer(status=status, body=b"")
        outcome = await send(sink.url, method="PUT", success=[200, "3xx", "409"])
        assert (outcome.kind, outcome.status) == (kind, status)
    assert {came.method for came in sink.received} == {"PUT"}


@pytest.mark.parametrize("success", [["1xx"], [99], [], ["2x"], ["600"]])
def test_what_is_no_status_is_named(success: list[Any]) -> None:
    with pytest.raises(SettingsError, match=r"destinations\.app\.success"):
        HttpDestination(settings("https://app.example.com/", success=success))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"webhook-id": "x"}, "sets this header itself"),
        ({"Content-Length": "1"}, "sets this header itself"),
        ({"CE-Type": "x"}, "sets this header itself"),
        ({"x-a": "one\r\nx-b: two"}, "one line"),
        ({"x a": "1"}, "letters, digits"),
        ({"": "1"}, "letters, digits"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named_at_the_start(headers: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"destinations.app.headers.*{said}"):
        HttpDestination(settings("https://app.example.com/", headers=headers))


# ---------------------------------------------------------------- what is answered


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_delivered(sink: Sink, status: int) -> None:
    sink.default = Answer(status=status, body=b"")
    assert (await send(sink.url)).kind is OutcomeKind.DELIVERED


@pytest.mark.parametrize("status", [300, 301, 304, 307, 400, 401, 404, 409, 422, 429, 500, 502, 503, 504])
async def test_any_other_status_is_refused(sink: Sink, status: int) -> None:
    sink.default = Answer(status=status, body=b"", headers={"Location": "/elsewhere"})
    outcome = await send(sink.url)
    assert (outcome.kind, outcome.status) == (OutcomeKind.REFUSED, status)
    assert outcome.detail == ("redirects are not followed" if status < 400 else "")
    assert len(sink.received) == 1


async def test_410_is_gone(sink: Sink) -> None:
    sink.default = Answer(status=410, body=b"moved out")
    outcome = await send(sink.url)
    assert (outcome.kind, outcome.status, outcome.response) == (OutcomeKind.GONE, 410, b"moved out")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("Sat, 21 Nov 2026 01:03:03 GMT", 60.0),
        ("Sat, 21 Nov 2026 01:00:00 GMT", 0.0),
        ("9" * 400, 86400.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("nan", None),
        ("Sat, 99 Nov 2026 99:99:99 GMT", None),
        ("", None),
    ],
)
async def test_retry_after_is_read_as_seconds_or_a_date(sink: Sink, text: str, seconds: float | None) -> None:
    sink.default = Answer(status=503, headers={"Retry-After": text})
    outcome = await send(sink.url)
    assert outcome.retry_after == (None if seconds is None else pytest.approx(seconds))


async def test_a_2xx_whose_body_never_ends_is_delivered(sink: Sink) -> None:
    sink.default = Answer(status=200, body=b"beg", manner="hang_body")
    outcome = await send(sink.url, timeout_seconds=0.2)
    assert (outcome.kind, outcome.response) == (OutcomeKind.DELIVERED, b"beg")


async def test_an_answer_that_does_not_begin_in_its_own_time_is_a_timeout(sink: Sink) -> None:
    sink.default = Answer(manner="hang")
    outcome = await send(sink.url, timeout_seconds=60, answer_seconds=0.1)
    assert outcome.kind is OutcomeKind.TIMEOUT


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 2\r\ncontent-length: 2\r\n",
        b"content-length: 2\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"y" * 1000) for n in range(40)),
    ],
    ids=["two equal lengths", "40 kB of headers"],
)
async def test_an_unusual_answer_is_an_answer(head: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nok")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = await send(f"http://127.0.0.1:{port}/")
    assert (outcome.kind, outcome.response) == (OutcomeKind.DELIVERED, b"ok")


async def test_headers_that_trickle_are_a_timeout(sink: Sink) -> None:
    sink.default = Answer(manner="trickle")
    assert (await send(sink.url, timeout_seconds=0.2)).kind is OutcomeKind.TIMEOUT


async def test_a_private_address_is_blocked_until_it_is_allowed(sink: Sink) -> None:
    outcome = await send(sink.url, allow=[])
    assert outcome.kind is OutcomeKind.BLOCKED
    assert "127.0.0.1/32" in outcome.detail
    assert sink.received == []
    assert (await send(sink.url, allow=["127.0.0.1/32"])).kind is OutcomeKind.DELIVERED


# ---------------------------------------------------------------- TLS


async def _loopback(host: str, port: int, family: int) -> Sequence[AddrInfo]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


async def _send_tls(host: str, *, ca_file: str | None, asks: bool = False, **fields: Any) -> Outcome:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(TLS / "cert.pem")
    async with Sink(context) as sink:
        destination = HttpDestination(
            settings(f"https://{host}:{sink.port}/hooks", ca_file=ca_file, **fields), resolve=_loopback
        )
        await destination.open()
        try:
            return await destination.send("evt_1", BODY, timestamp=T0)
        finally:
            await destination.close()


async def test_a_certificate_of_the_configured_authority_is_accepted() -> None:
    outcome = await _send_tls("app.test", ca_file=str(TLS / "cert.pem"))
    assert outcome.kind is OutcomeKind.DELIVERED


@pytest.mark.parametrize(("host", "ca_file"), [("app.test", None), ("other.test", str(TLS / "cert.pem"))])
async def test_a_certificate_that_is_not_trusted_or_not_theirs_is_unreachable(
    host: str, ca_file: str | None
) -> None:
    outcome = await _send_tls(host, ca_file=ca_file)
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert f"the certificate of {host}" in outcome.detail


async def test_a_destination_that_asks_for_a_certificate_gets_ours(tmp_path: Path) -> None:
    ours = tmp_path / "client.pem"
    ours.write_text((TLS / "cert.pem").read_text() + (TLS / "key.pem").read_text())
    ca_file = str(TLS / "cert.pem")
    outcome = await _send_tls("app.test", ca_file=ca_file, asks=True, client_certificate=str(ours))
    assert outcome.kind is OutcomeKind.DELIVERED
    assert (await _send_tls("app.test", ca_file=ca_file, asks=True)).kind is OutcomeKind.UNREACHABLE
    with pytest.raises(ConfigError, match=r"client_certificate .* cannot be used"):
        await _send_tls("app.test", ca_file=ca_file, client_certificate=ca_file)
