"""The outbound client: the checked address is the one connected to, and every reply is bounded."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from receiver.core.errors import ConfigError
from receiver.core.work import OutcomeKind
from receiver.outbound.client import AddrInfo, Egress, Failure, GuardedResolver
from receiver.system.http1 import Reply
from tests.support.sink import Answer, Sink
from tests.unit.test_threads import unstartable_threads

ROOT = Path(__file__).parents[2]
LOOPBACK = ("127.0.0.0/8", "::1/128")


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as running:
        yield running


class Names:
    """A scripted DNS: each lookup of a name takes the next of its answers, the last one for good."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int, family: int) -> Sequence[AddrInfo]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        script = self.answers[host]
        found = script.pop(0) if len(script) > 1 else script[0]
        return [self._info(text, port) for text in found]

    @staticmethod
    def _info(text: str, port: int) -> AddrInfo:
        if ":" in text:
            return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, port, 0, 0))
        return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port))


async def post(
    url: str,
    *,
    allow: Sequence[str] = LOOPBACK,
    names: Names | None = None,
    timeout_seconds: float = 5.0,
    body_seconds: float = 2.0,
    times: int = 1,
) -> Reply | Failure:
    client = Egress(
        timeout_seconds=timeout_seconds,
        connections=4,
        allow=allow,
        resolve=names,
        body_seconds=body_seconds,
    )
    await client.open()
    try:
        for _ in range(times):
            answer = await client.post(client.prepared(url), {"content-type": "text/plain"}, b"hello")
        return answer
    finally:
        await client.close()


def failure(answer: Reply | Failure, kind: OutcomeKind) -> str:
    assert isinstance(answer, Failure), answer
    assert answer.kind is kind, answer
    return answer.detail


async def test_an_answer_is_status_headers_and_body(sink: Sink) -> None:
    sink.default = Answer(status=201, body=b"made", headers={"X-Thing": "1"})
    answer = await post(sink.url)
    assert isinstance(answer, Reply)
    assert (answer.status, answer.body, answer.headers["x-thing"]) == (201, b"made", "1")
    assert sink.received[0].body == b"hello"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.0.0.1.", "127。0。0。1", "0"],
)
async def test_a_refused_literal_is_never_connected_to(sink: Sink, host: str) -> None:
    answer = await post(f"http://{host}:{sink.port}/", allow=())
    failure(answer, OutcomeKind.BLOCKED)
    assert sink.received == []


async def test_a_name_of_this_machine_is_refused_by_the_system_resolver_too(sink: Sink) -> None:
    detail = failure(await post(f"http://localhost:{sink.port}/", allow=()), OutcomeKind.BLOCKED)
    assert "localhost resolves to" in detail
    assert sink.received == []


async def test_one_refused_address_among_public_ones_refuses_the_name(sink: Sink) -> None:
    names = Names(mixed_test=[["127.0.0.1", "10.0.0.1"]])
    detail = failure(await post(f"http://mixed.test:{sink.port}/", names=names), OutcomeKind.BLOCKED)
    assert "10.0.0.1" in detail
    assert sink.received == []


async def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(sink: Sink) -> None:
    """A DNS that answers well for the check and badly afterwards has nothing to gain: there is one lookup."""
    names = Names(rebinding_test=[["127.0.0.1"], ["10.0.0.1"]])
    answer = await post(f"http://rebinding.test:{sink.port}/", names=names)
    assert isinstance(answer, Reply)
    assert names.asked == ["rebinding.test"]
    assert sink.received[0].headers["host"] == f"rebinding.test:{sink.port}"


async def test_a_name_that_turns_to_a_refused_address_is_refused_at_the_next_connection(sink: Sink) -> None:
    names = Names(turning_test=[["127.0.0.1"], ["192.168.0.1"]])
    url = f"http://turning.test:{sink.port}/"
    assert isinstance(await post(url, names=names), Reply)
    assert "192.168.0.1" in failure(await post(url, names=names), OutcomeKind.BLOCKED)
    assert len(sink.received) == 1


async def test_the_socket_is_the_last_look(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the resolver's check ever bypassed, the socket's own address is still judged."""

    async def careless(
        self: GuardedResolver, host: str, port: int = 0, family: int = 0
    ) -> list[dict[str, object]]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 6, "flags": 0}]

    monkeypatch.setattr(GuardedResolver, "resolve", careless)
    detail = failure(await post(f"http://name.test:{sink.port}/", allow=()), OutcomeKind.BLOCKED)
    assert "127.0.0.1 is loopback" in detail
    assert sink.received == []


async def test_proxies_of_the_environment_are_not_used(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Sink() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert isinstance(await post(sink.url), Reply)
        assert proxy.received == []


async def test_a_redirect_is_an_answer_and_not_followed(sink: Sink) -> None:
    sink.scripts["/hooks"] = Answer(status=302, headers={"Location": "/elsewhere"})
    answer = await post(sink.url)
    assert isinstance(answer, Reply)
    assert answer.status == 302
    assert [came.path for came in sink.received] == ["/hooks"]


async def test_cookies_are_not_kept(sink: Sink) -> None:
    sink.default = Answer(headers={"Set-Cookie": "a=1"})
    names = Names(app_test=[["127.0.0.1"]])
    await post(f"http://app.test:{sink.port}/", names=names, times=2)
    assert len(sink.received) == 2
    assert all("cookie" not in came.headers for came in sink.received)


async def test_connections_are_kept_for_the_next_request(sink: Sink) -> None:
    await post(sink.url, times=5)
    assert len({came.peer for came in sink.received}) == 1


async def test_a_long_body_is_cut_at_16_kib(sink: Sink) -> None:
    sink.default = Answer(status=500, body=b"x" * 1_000_000)
    answer = await post(sink.url)
    assert isinstance(answer, Reply)
    assert answer.body == b"x" * 16384


async def test_a_compressed_body_is_not_unpacked(sink: Sink) -> None:
    sink.default = Answer(body=b"\x1f\x8b not really", headers={"Content-Encoding": "gzip"})
    answer = await post(sink.url)
    assert isinstance(answer, Reply)
    assert answer.body == b"\x1f\x8b not really"


async def test_no_answer_in_time_is_a_timeout(sink: Sink) -> None:
    sink.default = Answer(manner="hang")
    detail = failure(await post(sink.url, timeout_seconds=0.1), OutcomeKind.TIMEOUT)
    assert detail == f"127.0.0.1:{sink.port} did not answer in time"


async def test_headers_that_trickle_are_a_timeout(sink: Sink) -> None:
    sink.default = Answer(manner="trickle")
    failure(await post(sink.url, timeout_seconds=0.2), OutcomeKind.TIMEOUT)


@pytest.mark.parametrize(
    ("timeout_seconds", "body_seconds"),
    [(0.2, 3600), (3600, 0.1)],
    ids=["the whole timeout", "the body's own"],
)
async def test_once_headers_are_here_a_body_that_never_ends_changes_nothing(
    sink: Sink, timeout_seconds: float, body_seconds: float
) -> None:
    sink.default = Answer(status=202, body=b"begun", manner="hang_body")
    answer = await post(sink.url, timeout_seconds=timeout_seconds, body_seconds=body_seconds)
    assert isinstance(answer, Reply)
    assert (answer.status, answer.body) == (202, b"begun")


async def test_nobody_there_is_said_with_host_and_port_only() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        answer = await post(f"http://127.0.0.1:{port}/secret-path?key=hunter2")
    detail = failure(answer, OutcomeKind.UNREACHABLE)
    assert detail == f"127.0.0.1:{port} cannot be reached: connection refused"


async def test_an_unknown_name_is_said() -> None:
    detail = failure(await post("http://nowhere.test/", names=Names()), OutcomeKind.UNREACHABLE)
    assert detail == "nowhere.test:80 has no address: the name cannot be resolved"


async def test_a_name_that_no_thread_could_look_up_is_not_called_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with unstartable_threads("egress-dns", monkeypatch):
        detail = failure(await post("http://localhost:9/"), OutcomeKind.UNREACHABLE)
    assert detail.startswith("localhost:9 was not looked up: this process can start no thread")


def test_a_lookup_that_never_ends_does_not_hold_the_process() -> None:
    code = (
        "import asyncio, socket, threading\n"
        "from receiver.outbound.client import Egress\n"
        "socket.getaddrinfo = lambda *_: threading.Event().wait()\n"
        "async def post():\n"
        "    client = Egress(timeout_seconds=0.1, connections=1)\n"
        "    await client.open()\n"
        "    print((await client.post(client.prepared('http://name.test/'), {}, b'')).kind.value)\n"
        "    await client.close()\n"
        "asyncio.run(post())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=10, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"timeout\n")


@pytest.mark.parametrize(
    ("manner", "said"),
    [("drop", "closed the connection without an answer"), ("garbage", "did not answer in HTTP")],
)
async def test_a_broken_answer_is_unreachable(sink: Sink, manner: str, said: str) -> None:
    sink.default = Answer(manner=manner)
    assert failure(await post(sink.url), OutcomeKind.UNREACHABLE).endswith(said)


async def test_plain_http_where_tls_is_expected_is_unreachable(sink: Sink) -> None:
    detail = failure(await post(f"https://127.0.0.1:{sink.port}/"), OutcomeKind.UNREACHABLE)
    assert "TLS" in detail


async def test_a_cancelled_request_stays_cancelled(sink: Sink) -> None:
    sink.default = Answer(manner="hang")
    task = asyncio.create_task(post(sink.url))
    await sink.until(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("content", [None, "not a certificate"])
async def test_a_ca_file_that_cannot_be_used_is_named_at_the_start(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    client = Egress(timeout_seconds=1, connections=1, ca_file=str(path))
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be used"):
        await client.open()
