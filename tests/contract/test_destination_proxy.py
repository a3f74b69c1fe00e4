"""A destination behind an HTTP proxy: a tunnel for https, whole URLs for http, and what the guard still refuses."""

from __future__ import annotations

import base64
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from receiver.core.errors import SettingsError
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.model import DestinationSettings
from tests.contract.destination_suite import BODY, T0
from tests.support.ports import free_port
from tests.support.s3 import environment
from tests.support.sink import Answer, Sink

CREDENTIALS = "ours:hunter2"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """proxy.py on loopback, which asks for credentials; its host and port."""
    said = tmp_path_factory.mktemp("proxy") / "port"
    options = "--hostname 127.0.0.1 --port 0 --num-acceptors 1 --num-workers 1 --threadless --log-level e"
    command = [
        sys.executable,
        "-m",
        "proxy",
        *options.split(),
        "--basic-auth",
        CREDENTIALS,
        "--port-file",
        str(said),
    ]
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while not (said.exists() and said.read_text().strip()) and time.monotonic() < until:
            time.sleep(0.02)
        yield f"127.0.0.1:{said.read_text().strip()}"
    finally:
        child.terminate()
        child.wait()


async def send(url: str, proxy: str, **fields: Any) -> Outcome:
    about = {"name": "app", "url": url, "proxy": f"http://{proxy}", "timeout_seconds": 5} | fields
    destination = HttpDestination(DestinationSettings.model_validate(about))
    await destination.open()
    try:
        return await destination.send("evt_1", BODY, timestamp=T0)
    finally:
        await destination.close()


async def test_plain_http_is_the_whole_url_and_the_proxys_credentials() -> None:
    """The proxy resolves the name: it is not even looked up here."""
    async with Sink() as sink:
        outcome = await send("http://app.test/hooks?x=1", f"{CREDENTIALS}@127.0.0.1:{sink.port}")
    assert outcome.kind is OutcomeKind.DELIVERED
    (came,) = sink.received
    assert (came.url, came.body) == ("http://app.test/hooks?x=1", BODY)
    assert came.headers["host"] == "app.test"
    assert came.headers["proxy-authorization"] == f"Basic {base64.b64encode(CREDENTIALS.encode()).decode()}"


async def test_an_answer_that_shows_the_request_is_kept_without_the_proxys_credentials() -> None:
    shown = f"Basic {base64.b64encode(CREDENTIALS.encode()).decode()} {CREDENTIALS} hunter2"
    async with Sink() as sink:
        sink.script.append(Answer(status=502, body=shown.encode()))
        outcome = await send("http://app.test/", f"{CREDENTIALS}@127.0.0.1:{sink.port}")
    assert outcome.response == b"Basic [redacted] [redacted] [redacted]"


async def test_https_is_a_tunnel_whose_end_shows_its_own_certificate(proxy: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with Sink(context) as sink:
        url = f"https://localhost:{sink.port}/hooks"
        trusted = await send(url, f"{CREDENTIALS}@{proxy}", ca_file=str(tmp_path / "ca.pem"))
        unknown = await send(url, f"{CREDENTIALS}@{proxy}")
    assert trusted.kind is OutcomeKind.DELIVERED
    (came,) = sink.received
    assert came.body == BODY
    assert "proxy-authorization" not in came.headers
    assert "the certificate of localhost" in unknown.detail


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_address_in_the_url_is_still_judged(proxy: str, scheme: str) -> None:
    outcome = await send(f"{scheme}://127.0.0.1:{proxy.rpartition(':')[2]}/", f"{CREDENTIALS}@{proxy}")
    assert outcome.kind is OutcomeKind.BLOCKED


async def test_a_proxy_that_wants_other_credentials_is_told_and_they_are_not(proxy: str) -> None:
    outcome = await send("https://app.example.com/", f"ours:hunter3@{proxy}")
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert outcome.detail == (
        f"the proxy {proxy} answered 407 and makes no tunnel to app.example.com:443: it wants other credentials"
    )


async def test_a_tunnel_to_nobody_is_unreachable(proxy: str) -> None:
    outcome = await send(f"https://localhost:{free_port()}/", f"{CREDENTIALS}@{proxy}")
    assert outcome.kind is OutcomeKind.UNREACHABLE


async def test_no_proxy_there_and_what_is_none_are_told() -> None:
    port = free_port()
    outcome = await send("https://app.example.com/", f"127.0.0.1:{port}")
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert outcome.detail == f"the proxy 127.0.0.1:{port} cannot be reached: connection refused"
    async with Sink() as sink:
        sink.default = Answer(status=405)
        outcome = await send("https://app.example.com/", f"127.0.0.1:{sink.port}")
        assert "makes no tunnel to app.example.com:443" in outcome.detail
    with pytest.raises(SettingsError, match="write a proxy as http://host:port") as told:
        await send("https://app.example.com/", "a:hunter2@proxy.example.com/path")
    assert "hunter2" not in str(told.value)
