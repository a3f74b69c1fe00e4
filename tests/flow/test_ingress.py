"""The ingress samples of `deploy/`, run as they stand by a real Caddy and a real nginx, in front of a whole receiver."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self, cast

import pytest

from receiver.app.wiring import Ports
from receiver.core.callback import Admission, Head
from receiver.providers import PushProvider
from receiver.settings.model import MIB, SourceSettings
from tests.docs.reading import page
from tests.support.clients import local_client
from tests.support.house import receiver
from tests.support.ingress import CADDY, CALLER, HOST, Child, Ingress, ingress
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.support.running import BASIC, Running, running, settings_text
from tests.support.senders import basic, deapi, over_in_a_pause, speech, transcript

pytestmark = pytest.mark.parametrize("kind", ["caddy", "nginx"])

SMALL = f"""
[sources.small]
provider = "deepgram"
basic = ["{BASIC}"]
max_audio_bytes = 100000
"""


@contextlib.asynccontextmanager
async def behind(
    kind: str, folder: Path, shape: Callable[[Ports], Ports] = lambda ports: ports
) -> AsyncIterator[tuple[Ingress, Running]]:
    """Run a receiver, and the proxy in front of it."""
    async with running(folder, settings_text(folder, extra=SMALL), shape=shape, work=False) as up:
        port = int(up.base.rpartition(":")[2])
        async with ingress(kind, folder, [port]) as proxy:
            yield proxy, up


def telling(came: asyncio.Event) -> Callable[[Ports], Ports]:
    """Wrap the providers so that `came` is set at a callback's head, before its body is read."""

    class Telling:
        def __init__(self, real: PushProvider) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def admit(self, head: Head) -> Admission:
            came.set()
            return self._real.admit(head)

    def shape(ports: Ports) -> Ports:
        told = {name: cast("PushProvider", Telling(provider)) for name, provider in ports.providers.items()}
        return dataclasses.replace(ports, providers=told)

    return shape


async def _pieces(body: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def test_audio_in_chunks_arrives_whole_over_https_and_the_caller_is_known(
    tmp_path: Path, kind: str
) -> None:
    """5 MB of unknown length, by PUT with Basic; what the caller itself says in X-Forwarded-For is not believed."""
    sent = speech("tts-1", times=640)
    assert len(sent.body) > 5_000_000
    async with behind(kind, tmp_path) as (proxy, up):
        headers = sent.headers | {"x-forwarded-for": "203.0.113.9"}
        answer = await proxy.call("PUT", sent.path, headers, _pieces(sent.body))
        assert (answer.status_code, answer.json()["status"]) == (200, "recorded")
        assert [report.peer for report in up.seen.callbacks] == [CALLER]
        event = await up.receiver.store.event(answer.json()["event_id"])
        assert json.loads(event.data)["audio"]["sha256"] == hashlib.sha256(sent.body).hexdigest()


async def test_a_signed_callback_is_proved_through_the_proxy(tmp_path: Path, kind: str) -> None:
    """Not a byte of the body or a header that the signature needs is changed."""
    sent = deapi("job-1")
    async with behind(kind, tmp_path) as (proxy, _):
        answer = await proxy.call("POST", sent.path, sent.headers, sent.body)
        assert (answer.status_code, answer.json()["status"]) == (200, "recorded")


async def test_the_proxy_does_not_collect_a_body_first(tmp_path: Path, kind: str) -> None:
    """The headers are judged while the caller still holds back the rest of the body."""
    came = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield sent.body[:1000]
        async with asyncio.timeout(PATIENCE):
            await came.wait()
        yield sent.body[1000:]

    sent = speech("tts-2")
    async with behind(kind, tmp_path, telling(came)) as (proxy, _):
        answer = await proxy.call("PUT", sent.path, sent.headers, slowly())
        assert answer.status_code == 200


PRIVATE = (
    "/",
    "/metrics",
    "/healthz",
    "/readyz",
    "/api/v1/pickups",
    "//metrics",
    "/callbacks/../metrics",
    "/callbacks/%2e%2e/metrics",
    "/callbacks/..%2fmetrics",
    "/callbacks/x/../../metrics",
    "/objects/..;/metrics",
)


async def test_nothing_but_callbacks_and_objects_is_open(tmp_path: Path, kind: str) -> None:
    async with behind(kind, tmp_path) as (proxy, up):
        assert (await up.client.get("/metrics")).status_code == 200
        for path in PRIVATE:
            answer = await proxy.call("GET", path)
            assert answer.status_code in (400, 404), path
            assert "receiver_" not in answer.text
        assert "no such link" in (await proxy.call("GET", "/objects/nothing")).text


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_sources_limit_is_refused_by_receiver(
    tmp_path: Path, kind: str, chunked: bool
) -> None:
    """The proxy has no limit of its own; receiver's answer reaches the caller although the body was not read."""
    sent = speech("tts-3", times=20)  # Caddy hangs up on a caller who still has more than 256 KiB to send
    async with behind(kind, tmp_path) as (proxy, up):
        body = _pieces(sent.body) if chunked else sent.body
        answer = await proxy.call("PUT", "/callbacks/small", sent.headers, body)
        assert (answer.status_code, answer.json()["status"]) == (413, "too_large")
        assert [report.answer for report in up.seen.callbacks] == ["too_large"]


async def test_a_call_without_tls_is_refused_and_not_redirected(tmp_path: Path, kind: str) -> None:
    """A redirected POST would lose its body, and its credentials were in clear."""
    sent = transcript("stt-1")
    async with behind(kind, tmp_path) as (proxy, up):
        answer = await proxy.call("POST", sent.path, sent.headers, sent.body, scheme="http")
        assert answer.status_code == 403
        assert "location" not in answer.headers
        assert up.seen.callbacks == []


FOREIGN = "hooks.example.org"


def _shown(kind: str) -> str:
    """Return the sample that the documentation shows."""
    language = {"caddy": "text", "nginx": "nginx"}[kind]
    blocks = page("docs/operating.md").blocks(language)
    return next(block for block in blocks if HOST in block)


async def _refuses_foreign_names(proxy: Ingress, schemes: tuple[str, ...]) -> None:
    """A callback under our name is recorded; under another one it meets an error, with and without TLS."""
    sent = transcript("stt-2")
    answer = await proxy.call("POST", sent.path, sent.headers, sent.body)
    assert (answer.status_code, answer.json()["status"]) == (200, "recorded")
    for scheme, name in itertools.product(schemes, (FOREIGN, f"{FOREIGN}:8443", "127.0.0.1")):
        headers = sent.headers | {"host": name}
        answer = await proxy.call("POST", sent.path, headers, sent.body, scheme=scheme)
        assert answer.status_code in ((421,) if scheme == "https" else (403, 421)), (scheme, name)
    assert await _named_in_tls(proxy, FOREIGN) in (b"", b"421")


async def _named_in_tls(proxy: Ingress, name: str) -> bytes:
    """Call as one who believes that `name` is here, and looks at no certificate; return the status, if there is one."""
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", proxy.https, ssl=careless, server_hostname=name
        )
    except ssl.SSLError:
        return b""
    writer.write(f"POST /callbacks/deepgram HTTP/1.1\r\nhost: {name}\r\ncontent-length: 0\r\n\r\n".encode())
    status = (await reader.readline()).split()[1]
    writer.close()
    return status


async def test_what_comes_under_another_name_is_refused(tmp_path: Path, kind: str) -> None:
    """A proxy that answers 2xx for names it does not know would have a provider believe that its callback is kept."""
    async with behind(kind, tmp_path) as (proxy, up):
        await _refuses_foreign_names(proxy, ("https", "http"))
        assert [report.answer for report in up.seen.callbacks] == ["recorded"]
        token = up.receiver.tokens.issue("speech", ref="order-42")
        await proxy.call("POST", f"/callbacks/speech/{token}", {"host": FOREIGN})
        assert token[:30] not in proxy.log()


async def test_the_documentations_sample_refuses_another_name_too(tmp_path: Path, kind: str) -> None:
    """Caddy makes its certificates itself here: for our name, and for no other that it is called by."""
    async with running(tmp_path, work=False) as up:
        port = int(up.base.rpartition(":")[2])
        async with ingress(kind, tmp_path, [port], shown=_shown(kind), local=kind == "caddy") as proxy:
            await _refuses_foreign_names(proxy, ("https", "http") if kind == "caddy" else ("https",))
            made = [path.stem for path in proxy.folder.rglob("*.crt") if "pki" not in path.parts]
            assert made == ([HOST] if kind == "caddy" else [])
        assert [report.answer for report in up.seen.callbacks] == ["recorded"]


def test_the_documentations_sample_takes_bodies_as_large_as_receiver_does(tmp_path: Path, kind: str) -> None:
    """Each proxy reads units in its own way: Caddy's MB is a million bytes."""
    if kind == "caddy":
        (tmp_path / "Caddyfile").write_text(_shown(kind))
        adapted = subprocess.run(
            [CADDY, "adapt", "--adapter", "caddyfile", "--config", tmp_path / "Caddyfile"],
            capture_output=True,
            text=True,
            check=True,
        )
        limits = [int(size) for size in re.findall(r'"max_size":(\d+)', adapted.stdout)]
    else:
        limits = [int(size) * MIB for size in re.findall(r"client_max_body_size (\d+)m;", _shown(kind))]
    assert limits == [SourceSettings.model_fields["max_audio_bytes"].default]


async def test_a_head_that_trickles_is_cut_off(tmp_path: Path, kind: str) -> None:
    """Without the proxy it would be waited for."""
    limit = {"caddy": "read_header 10s", "nginx": "client_header_timeout       10s"}[kind]
    async with ingress(kind, tmp_path, [free_port()], {limit: limit.replace("10s", "300ms")}) as proxy:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", proxy.https, ssl=proxy.trusted, server_hostname=HOST
        )
        writer.write(f"PUT /callbacks/deepgram HTTP/1.1\r\nhost: {HOST}\r\nx-slow: ".encode())
        async with asyncio.timeout(9):
            answer = await reader.read()
        assert answer == b"" or b" 408 " in answer.partition(b"\r\n")[0]
        writer.close()


async def test_no_line_of_the_proxy_holds_a_token_or_credentials(tmp_path: Path, kind: str) -> None:
    """Neither of a request that went well nor of one that found no receiver, was cut off, or came without TLS."""
    came, sent = asyncio.Event(), speech("tts-4")
    async with behind(kind, tmp_path, telling(came)) as (proxy, up):
        token = up.receiver.tokens.issue("speech", ref="order-42")
        path = f"/callbacks/speech/{token}"
        calls = [("https", path), ("http", path), ("https", f"{path}?key={token}"), ("https", f"/x/{token}")]
        for scheme, one in calls:
            await proxy.call("PUT", one, sent.headers, sent.body, scheme=scheme)
        assert [report.answer for report in up.seen.callbacks] == ["recorded", "duplicate"]
        came.clear()
        await _break_off(proxy, path, came)
        await up.seen.until(lambda: len(up.seen.callbacks) == 3)
    (tmp_path / "alone").mkdir()
    async with ingress(kind, tmp_path / "alone", [free_port()]) as alone:
        assert (await alone.call("PUT", path, sent.headers, sent.body)).status_code in (502, 503)
    for log in (proxy.log(), alone.log()):
        assert "/callbacks/speech" in log
        for secret in (token[:30], token[-30:], basic().removeprefix("Basic "), BASIC.partition(":")[2]):
            assert secret not in log


async def _break_off(proxy: Ingress, path: str, came: asyncio.Event) -> None:
    """Send a head and a part of the body, and hang up once receiver has the head."""
    head = f"PUT {path} HTTP/1.1\r\nhost: {HOST}\r\nauthorization: {basic()}\r\ncontent-length: 99\r\n\r\nab"
    _, writer = await asyncio.open_connection(
        "127.0.0.1", proxy.https, ssl=proxy.trusted, server_hostname=HOST
    )
    writer.write(head.encode())
    await came.wait()
    writer.transport.abort()


# ---------------------------------------------------------------- a rolling deploy


class Receivers:
    """Two receivers over one data folder, as processes."""

    def __init__(self, folder: Path) -> None:
        self.ports = [free_port(), free_port()]
        self._folder = folder
        self._config = folder / "receiver.toml"
        self._config.write_text(settings_text(folder))
        self._children: dict[int, Child] = {}

    async def start(self, port: int) -> None:
        """Start the one that listens on `port`."""
        command = [
            sys.executable,
            "-m",
            "receiver",
            "--config",
            str(self._config),
            "serve",
            "--port",
            str(port),
        ]
        drain = {"RECEIVER__SERVER__DRAIN_SECONDS": "1", "PYTHONPATH": str(ROOT)}
        self._children[port] = await Child.start(command, os.environ | drain, self._folder)
        await self._children[port].said('"receiver.ready"')

    async def stop(self, port: int) -> None:
        """Stop it as a supervisor does."""
        assert await self._children.pop(port).stop(signal.SIGTERM) == 0

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*map(self.start, self.ports))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in self._children.values():
            await child.stop(signal.SIGKILL)


async def test_a_rolling_deploy_fails_no_callback(tmp_path: Path, kind: str) -> None:
    """Both receivers are replaced one after the other under load, behind a proxy that tries nothing again."""
    numbers, over = itertools.count(), asyncio.Event()
    answers: list[tuple[str, str]] = []

    async def call_on(proxy: Ingress) -> None:
        while not await over_in_a_pause(over):
            sent = transcript(f"stt-{next(numbers)}")
            answer = await proxy.call("POST", sent.path, sent.headers, sent.body)
            answers.append((sent.name, answer.json()["status"] if answer.is_success else answer.text))

    async with Receivers(tmp_path) as receivers:
        # Caddy asks ten times as often as the sample says, so that the receivers need not drain for as long.
        often = {"health_interval 1s": "health_interval 100ms"} if kind == "caddy" else {}
        async with ingress(kind, tmp_path, receivers.ports, often) as proxy:
            callers = [asyncio.create_task(call_on(proxy)) for _ in range(2)]
            for port in receivers.ports:
                if kind == "nginx":
                    await proxy.reload_nginx(down=port)
                so_far = len(answers)
                await receivers.stop(port)
                assert len(answers) > so_far
                await receivers.start(port)
                if kind == "nginx":
                    await proxy.reload_nginx()
                await _takes_callbacks(port)
            over.set()
            await asyncio.gather(*callers)
        assert {status for _, status in answers} == {"recorded"}
        listed = await _events(tmp_path)
        assert {name for name, _ in answers} == listed


async def _takes_callbacks(port: int) -> None:
    """Return when the proxy sends callbacks to a receiver that was started again: only then is the next one stopped."""
    async with local_client() as client:
        while not re.search(
            r"^receiver_callbacks_total\{.*\} [1-9]",
            (await client.get(f"http://127.0.0.1:{port}/metrics")).text,
            re.MULTILINE,
        ):
            await asyncio.sleep(0.02)


async def _events(folder: Path) -> set[str]:
    words = ("--config", folder / "receiver.toml", "events", "--json", "--limit", "10000")
    return {event["job_id"] for event in (await asyncio.to_thread(receiver, *words)).items}


async def test_slow_bodies_of_one_stranger_keep_no_callback_out(tmp_path: Path, kind: str) -> None:
    """Heads that look signed, and no body: the proxy keeps them to itself, and nginx takes 200 of one address."""
    head = "".join(
        (
            f"POST /callbacks/deapi HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000\r\n",
            f"x-deapi-timestamp: {int(time.time())}\r\nx-deapi-signature: sha256={'0' * 64}\r\n\r\n{{",
        )
    ).encode()
    async with behind(kind, tmp_path) as (proxy, up):
        opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        some = asyncio.Semaphore(50)

        async def begin() -> None:
            with contextlib.suppress(OSError):
                async with some, asyncio.timeout(5):
                    both = await asyncio.open_connection(
                        "127.0.0.1", proxy.https, ssl=proxy.trusted, server_hostname=HOST
                    )
                    opened.append(both)
                    both[1].write(head)

        await asyncio.gather(*(begin() for _ in range({"caddy": 100, "nginx": 220}[kind])))
        if kind == "nginx":
            async with asyncio.timeout(PATIENCE):
                assert b" 503 " in await opened[-1][0].readline()
        sent = deapi("job-1")
        async with asyncio.timeout(PATIENCE):
            answer = await proxy.call("POST", sent.path, sent.headers, sent.body)
        assert (answer.status_code, answer.json()["status"]) == (200, "recorded")
        assert [report.peer for report in up.seen.callbacks] == [CALLER]
        for _, writer in opened:
            writer.transport.abort()
