"""An S3 store that is never done, or says yes to everything: each call ends, and nothing counts as stored that is not."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs import s3, s3_client
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_options import S3Options
from tests.support import s3 as support
from tests.support.sink import Answer, Sink
from tests.unit.test_threads import unstartable_threads

s3_credentials = support.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")
ROOT = Path(__file__).parents[2]
BODY = MemoryBody(b"sound")
STORED = Answer(headers={"etag": '"5d41402abc4b2a76b9719d911017c592"'}, body=b"")
PAGE = Answer(headers={"content-type": "text/html"}, body=b"<html>maintenance</html>")
MISSING = Answer(status=404, body=b"")
TRICKLE = Answer(manner="trickle")


def at(port: int, **more: Any) -> S3Options:
    place = {"bucket": "bucket", "endpoint_url": f"http://127.0.0.1:{port}", "region": "us-east-1"}
    return S3Options(**(place | {"connections": 2, "timeout_seconds": 1.0} | more))


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        sink.default = STORED
        yield sink


@pytest.fixture
async def blobs(sink: Sink) -> AsyncIterator[S3Blobs]:
    blobs = S3Blobs(at(sink.port))
    await blobs.open()
    yield blobs
    await blobs.close()


async def put(blobs: S3Blobs) -> None:
    await blobs.put("a/one.mp3", BODY, content_type="audio/mpeg")


async def idle(blobs: S3Blobs) -> None:
    """Return when no thread of S3 is in a call."""
    async with asyncio.timeout(5):
        while blobs._calls._tickets:
            await asyncio.sleep(0.01)  # a thread's end is told to nobody


CALLS: dict[str, Callable[[S3Blobs], Coroutine[Any, Any, object]]] = {
    "put": put,
    "get": lambda blobs: blobs.get("a/one.mp3"),
    "list": lambda blobs: blobs.entries(),
    "delete": lambda blobs: blobs.delete(["a/one.mp3"]),
    "ask": lambda blobs: blobs.ping(),
    "put a large one": lambda blobs: blobs.put("a", MemoryBody(bytes(17 << 20)), content_type="audio/wav"),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_store_that_trickles_is_cut_off_and_its_threads_are_free_again(
    sink: Sink, blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is never silent, so no timeout of the connection ever ends it."""
    sink.default = TRICKLE
    with monkeypatch.context() as patched:
        for name in ("_ASK_SECONDS", "_LONG_SECONDS"):
            patched.setattr(s3, name, 0.3)
        patched.setattr(s3, "_SLOWEST", 1 << 40)
        with pytest.raises(BlobsUnavailable, match="did not answer in time"):
            await CALLS[call](blobs)
        await idle(blobs)
    sink.default = STORED
    await put(blobs)


async def test_large_bodies_leave_half_of_the_threads_to_others(sink: Sink, blobs: S3Blobs) -> None:
    large = MemoryBody(bytes(17 << 20))
    sink.scripts = {f"/bucket/{n}": TRICKLE for n in range(3)}
    putting = [asyncio.create_task(blobs.put(str(n), large, content_type="audio/wav")) for n in range(3)]
    await sink.until(1)
    async with asyncio.timeout(5):
        assert await blobs.get("another") == b""
    for task in putting:
        task.cancel()
    await asyncio.gather(*putting, return_exceptions=True)


async def test_an_object_that_trickles_is_cut_off(
    sink: Sink, blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer's head was whole, and its body is read behind botocore's back."""
    monkeypatch.setattr(s3, "_LONG_SECONDS", 0.3)
    sink.default = Answer(
        headers={"content-length": "100", "connection": "close"}, body=b"a", manner="hang_body"
    )
    with pytest.raises(BlobsUnavailable, match="did not answer in time"):
        await blobs.get("a/one.mp3")
    await idle(blobs)


async def test_over_tls_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    monkeypatch.setattr(s3, "_ASK_SECONDS", 0.5)
    async with Sink(tls=context) as sink:
        sink.default = TRICKLE
        options = at(
            sink.port, endpoint_url=f"https://127.0.0.1:{sink.port}", ca_file=str(tmp_path / "ca.pem")
        )
        blobs = S3Blobs(options)
        await blobs.open()
        with pytest.raises(BlobsUnavailable, match="did not answer in time"):
            await blobs.ping()
        await idle(blobs)
        await blobs.close()


async def test_a_cancelled_call_frees_its_thread(sink: Sink, blobs: S3Blobs) -> None:
    sink.default = TRICKLE
    asking = [asyncio.create_task(put(blobs)) for _ in range(2)]
    await sink.until(2)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await idle(blobs)


async def test_a_call_that_is_given_up_does_not_cut_the_connection_that_another_has_now(
    sink: Sink, blobs: S3Blobs
) -> None:
    """A connection is the next one's as soon as an answer was read: the first may still wait, for another try say."""
    answered, end = threading.Event(), threading.Event()

    def ask(client: Any) -> None:
        client.head_bucket(Bucket="bucket")
        answered.set()
        end.wait(20)

    first = asyncio.create_task(blobs._calls.run(ask, doing="asking", seconds=20.0))
    await asyncio.to_thread(answered.wait, 20)
    sink.default = Answer(manner="hang", headers=STORED.headers, body=b"")
    second = asyncio.create_task(blobs.ping())
    await sink.until(2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    sink.released.set()
    await second
    end.set()
    assert len(sink.received) == 2, "with one try"
    assert sink.received[0].peer == sink.received[1].peer


async def test_no_store_is_asked_whether_it_wants_a_body() -> None:
    """On a connection that was cut, botocore waits for that answer without end."""
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        blobs = S3Blobs(at(server.sockets[0].getsockname()[1]))
        await blobs.open()
        with pytest.raises(BlobsUnavailable):
            await blobs.put("a", MemoryBody(bytes(4 << 20)), content_type="audio/wav")
        await blobs.close()
    assert heads[0].startswith(b"put ")
    assert not [head for head in heads if b"\r\nexpect:" in head]


async def test_closing_cuts_off_what_goes_on(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    sink.default = TRICKLE
    blobs = S3Blobs(at(sink.port, timeout_seconds=0.2))
    await blobs.open()
    asking = asyncio.create_task(put(blobs))
    await sink.until(1)
    began = time.monotonic()
    await blobs.close()
    assert time.monotonic() - began < s3_client._END_SECONDS
    with pytest.raises(BlobsUnavailable):
        await asking


def test_a_thread_that_never_ends_does_not_hold_the_process() -> None:
    code = (
        "import threading\n"
        "from receiver.system.background import Threads\n"
        "threads = Threads(1, 's3')\n"
        "threads.submit(threading.Event().wait)\n"
        "threads.close(); threads.join(0.1); print('over')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"over\n")


async def test_threads_that_cannot_be_started_are_an_outage_that_passes(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a limit of processes: more such failures than there may be threads, and then it works, and ends in order."""
    blobs = S3Blobs(at(sink.port))
    with unstartable_threads("s3", monkeypatch):
        for _ in range(3):
            with pytest.raises(BlobsUnavailable):
                await blobs.open()
    await blobs.open()
    await put(blobs)
    await blobs.close()


# ---------------------------------------------------------------- what counts as stored


@pytest.mark.parametrize(
    "answer",
    [
        PAGE,
        Answer(headers={"content-type": "text/html", "etag": '"66a1"'}, body=b"<html>static</html>"),
        Answer(headers=dict(STORED.headers) | {"x-amz-checksum-sha256": "AAAA"}, body=b""),
        Answer(body=b""),
    ],
    ids=["maintenance page", "page of a file", "another checksum", "nothing"],
)
async def test_a_yes_that_stored_nothing_is_not_believed(blobs: S3Blobs, sink: Sink, answer: Answer) -> None:
    sink.script.extend([answer, MISSING])
    with pytest.raises(BlobsUnavailable, match="it is not there: does 127"):
        await put(blobs)
    assert [request.method for request in sink.received] == ["PUT", "HEAD"]


async def test_an_answer_without_a_body_is_no_page_whatever_it_calls_itself(
    blobs: S3Blobs, sink: Sink
) -> None:
    sink.default = Answer(headers={"content-type": "text/html"} | dict(STORED.headers), body=b"")
    await put(blobs)
    assert [request.method for request in sink.received] == ["PUT"]


async def test_a_store_that_says_little_is_believed_when_the_object_is_there(
    blobs: S3Blobs, sink: Sink
) -> None:
    there = Answer(headers={"x-amz-meta-sha256": BODY.sha256}, body=b"sound")
    sink.script.extend([Answer(body=b""), there])
    await put(blobs)
