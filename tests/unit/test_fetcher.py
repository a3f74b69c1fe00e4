"""The way out to a provider: documents and results come whole, or what is wrong with them is said, within bounds."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from receiver.core.errors import JournalUnavailable
from receiver.core.fetch import Downloaded, Failed, FetchResponse
from receiver.core.work import OutcomeKind
from receiver.outbound.client import USER_AGENT
from tests.support.fetching import LIMIT, NOW, Way, the_way
from tests.support.provider_host import CHUNKED, ProviderHost, Script, Talk, chunk, reply

__all__ = ["the_way"]
KEY = {"Authorization": "Bearer sk-secret"}
AUDIO = os.urandom(300_000)


def failed(got: object, kind: OutcomeKind) -> Failed:
    assert isinstance(got, Failed), got
    assert got.kind is kind, got
    return got


def answered(got: object, status: int) -> FetchResponse:
    assert isinstance(got, FetchResponse), got
    assert got.status == status
    return got


def downloaded(got: object) -> bytes:
    assert isinstance(got, Downloaded), got
    data = got.body.load()
    assert (got.body.size, got.body.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert got.body.prefix == data[:4096]
    got.body.discard()
    return data


# ---------------------------------------------------------------- ask


async def test_a_document_is_asked_for_with_the_key_and_comes_whole(the_way: Way) -> None:
    the_way.host.scripts["/jobs/1"] = reply(200, b'{"a": 1}', {"X-Thing": "1", "x-thing": "2"})
    got = answered(await the_way.fetcher.ask(the_way.url("/jobs/1?x=%2F"), headers=KEY), 200)
    assert (got.body, got.headers["x-thing"]) == (b'{"a": 1}', "1")
    came = the_way.host.requests[0]
    assert (came.method, came.target) == ("GET", "/jobs/1?x=%2F")
    assert came.headers["authorization"] == "Bearer sk-secret"
    assert came.headers["accept"] == "application/json"
    assert came.headers["accept-encoding"] == "identity"
    assert came.headers["user-agent"] == USER_AGENT


async def test_another_accept_may_be_asked_for(the_way: Way) -> None:
    await the_way.fetcher.ask(the_way.url(), headers={"Accept": "audio/mpeg"})
    assert the_way.host.requests[0].headers["accept"] == "audio/mpeg"


@pytest.mark.parametrize("status", [201, 301, 302, 307, 400, 401, 404, 429, 500, 503])
async def test_any_status_is_an_answer_and_nothing_is_followed(the_way: Way, status: int) -> None:
    """The headers hold a key: it goes to no other place than was asked."""
    the_way.host.scripts["/"] = reply(status, b"said", {"Location": "/elsewhere"})
    assert answered(await the_way.fetcher.ask(the_way.url(), headers=KEY), status).body == b"said"
    assert len(the_way.host.requests) == 1


async def test_a_document_at_the_limit_is_read_and_one_over_it_is_no_result_that_is_too_large(
    the_way: Way,
) -> None:
    """A proxy's error page may be long; the next answer may be right."""
    the_way.host.scripts["/fits"] = reply(200, bytes(1024 * 1024))
    the_way.host.scripts["/over"] = reply(200, bytes(1024 * 1024 + 1))
    assert len(answered(await the_way.fetcher.ask(the_way.url("/fits"), headers={}), 200).body) == 1024 * 1024
    got = failed(await the_way.fetcher.ask(the_way.url("/over"), headers={}), OutcomeKind.UNUSABLE)
    assert (got.too_large, got.status) == (False, 200)


async def test_a_broken_error_page_does_not_hide_its_status(the_way: Way) -> None:
    async def endless(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\n\r\n")
        await talk.forever(b"x" * 10_000)

    the_way.host.scripts["/endless"] = endless
    the_way.host.scripts["/cut"] = reply(404, b"not", length=100)
    the_way.host.scripts["/coded"] = reply(401, b"not gzip", {"Content-Encoding": "gzip"})
    the_way.host.scripts["/unknown"] = reply(402, b"?", {"Content-Encoding": "br"})
    the_way.host.scripts["/zipped"] = reply(400, gzip.compress(b"why", mtime=0), {"Content-Encoding": "gzip"})
    got = answered(await the_way.fetcher.ask(the_way.url("/endless"), headers={}), 503)
    assert (got.retry_after, len(got.body)) == (7.0, 1024 * 1024)
    answered(await the_way.fetcher.ask(the_way.url("/cut"), headers={}), 404)
    answered(await the_way.fetcher.ask(the_way.url("/coded"), headers={}), 401)
    answered(await the_way.fetcher.ask(the_way.url("/unknown"), headers={}), 402)
    assert answered(await the_way.fetcher.ask(the_way.url("/zipped"), headers={}), 400).body == b"why"


async def test_an_error_page_that_hangs_is_not_waited_for(the_way: Way) -> None:
    async def hangs(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 500 Oh\r\ncontent-length: 10\r\n\r\nbegun")
        await talk.hang()

    the_way.host.scripts["/"] = hangs
    way = await the_way.again(error_seconds=0.1)
    assert answered(await way.ask(the_way.url(), headers={}), 500).body == b"begun"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("999999999999999999999", 86400.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        (formatdate(NOW + 10**7, usegmt=True), 86400.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
    ],
)
async def test_retry_after_comes_in_seconds(the_way: Way, header: str, seconds: float | None) -> None:
    the_way.host.scripts["/"] = reply(429, b"", {"Retry-After": header})
    got = answered(await the_way.fetcher.ask(the_way.url(), headers={}), 429)
    assert got.retry_after == seconds
    assert ("retry-after" in got.headers) == (seconds is not None)


async def test_a_key_with_a_line_break_is_not_sent_and_not_shown(the_way: Way) -> None:
    got = failed(
        await the_way.fetcher.ask(the_way.url(), headers={"x-api-key": "sk-secret\n"}), OutcomeKind.BLOCKED
    )
    assert got.detail == "a header cannot be sent: it holds a line break"
    assert the_way.host.requests == []


# ---------------------------------------------------------------- download: whole


async def get(way: Way, script: Script, *, limit: int = LIMIT) -> Downloaded | FetchResponse | Failed:
    way.host.scripts["/r"] = script
    return await way.fetcher.download(way.url("/r"), hosts=["127.0.0.1"], limit=limit)


def chunked(*pieces: bytes, headers: bytes = b"") -> bytes:
    return CHUNKED + headers + b"\r\n" + b"".join(map(chunk, pieces)) + chunk(b"")


@pytest.mark.parametrize(
    "script",
    [
        reply(200, AUDIO),
        chunked(AUDIO[:7], AUDIO[7:100_000], AUDIO[100_000:]),
        b"HTTP/1.0 200 OK\r\n\r\n" + AUDIO,
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + reply(200, AUDIO),
        reply(200, gzip.compress(AUDIO, mtime=0), {"Content-Encoding": "gzip"}),
        reply(200, zlib.compress(AUDIO), {"Content-Encoding": "deflate"}),
        chunked(gzip.compress(AUDIO, mtime=0), headers=b"content-encoding: gzip\r\n"),
    ],
    ids=["length", "chunked", "until it closes", "after a 103", "gzip", "deflate", "gzip, chunked"],
)
async def test_a_result_comes_whole_counted_and_hashed(the_way: Way, script: Script) -> None:
    assert downloaded(await get(the_way, script, limit=len(AUDIO))) == AUDIO


async def test_a_result_is_asked_for_as_it_is_and_with_no_key(the_way: Way) -> None:
    await get(the_way, reply(200, b"x"))
    headers = the_way.host.requests[0].headers
    assert (headers["accept-encoding"], headers["accept"]) == ("identity", "*/*")
    assert "authorization" not in headers


async def test_headers_come_with_a_result(the_way: Way) -> None:
    got = await get(the_way, reply(200, b"x", {"Content-Type": "audio/mpeg"}))
    assert isinstance(got, Downloaded)
    assert got.headers["content-type"] == "audio/mpeg"


@pytest.mark.parametrize("status", [201, 204, 206, 304, 403, 404, 500])
async def test_any_other_status_is_an_answer_with_the_beginning_of_its_body(
    the_way: Way, status: int
) -> None:
    body = b"" if status in (204, 304) else b"x" * 100_000
    got = answered(await get(the_way, reply(status, body)), status)
    assert got.body == body[:16384]


async def test_nothing_is_left_in_the_spool(the_way: Way) -> None:
    await get(the_way, reply(200, AUDIO), limit=200_000)
    await get(the_way, reply(200, AUDIO, length=400_000))
    await get(the_way, chunked(AUDIO, b""), limit=299_999)
    downloaded(await get(the_way, reply(200, AUDIO)))
    assert os.listdir(the_way.folder) == []


async def test_a_disk_that_cannot_take_it_is_ours_to_mend(the_way: Way) -> None:
    Path(the_way.folder).rmdir()
    with pytest.raises(JournalUnavailable):
        await get(the_way, reply(200, AUDIO * 8), limit=len(AUDIO) * 8)


# ---------------------------------------------------------------- download: broken


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (reply(200, b""), "the result is empty"),
        (chunked(), "the result is empty"),
        (reply(200, b"", {"Content-Encoding": "gzip"}), "the result is empty"),
        (reply(200, gzip.compress(b"", mtime=0), {"Content-Encoding": "gzip"}), "the result is empty"),
        (reply(200, b"x" * 70, length=100), "cut off after 70 of 100 bytes"),
        (reply(200, AUDIO, length=300_001), "cut off after 300000 of 300001 bytes"),
        (chunked(b"abc")[:-5], "cut off after 3 bytes"),
        (CHUNKED + b"\r\n10\r\nabc", "cut off after 3 bytes"),
        (reply(200, b"x", {"Content-Encoding": "br"}), "content coding that is not understood: 'br'"),
        (reply(200, b"x", {"Content-Encoding": "gzip, gzip"}), "not understood: 'gzip, gzip'"),
        (reply(200, b"no gzip", {"Content-Encoding": "gzip"}), "says gzip, but the bytes cannot be decoded"),
        (
            reply(200, gzip.compress(AUDIO, mtime=0)[:-9], {"Content-Encoding": "gzip"}),
            "end before their coding does",
        ),
    ],
)
async def test_what_is_no_whole_result_is_unusable_and_says_why(
    the_way: Way, script: Script, said: str
) -> None:
    got = failed(await get(the_way, script), OutcomeKind.UNUSABLE)
    assert said in got.detail
    assert (got.too_large, got.status) == (False, 200)


@pytest.mark.parametrize(
    "script",
    [
        reply(200, AUDIO),
        chunked(AUDIO),
        reply(200, b"", length=10**15),
        reply(200, gzip.compress(AUDIO, mtime=0), {"Content-Encoding": "gzip"}),
        reply(200, gzip.compress(bytes(300_000), mtime=0), {"Content-Encoding": "gzip"}),
    ],
)
async def test_a_result_over_the_limit_is_too_large(the_way: Way, script: Script) -> None:
    got = failed(await get(the_way, script, limit=len(AUDIO) - 1), OutcomeKind.UNUSABLE)
    assert got.too_large
    assert got.detail == f"127.0.0.1:{the_way.host.port} sends more than 299999 bytes"


async def test_a_body_without_end_is_too_large_and_hung_up_on(the_way: Way) -> None:
    async def endless(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await talk.forever(b"x" * 10_000)

    assert failed(await get(the_way, endless, limit=1_000_000), OutcomeKind.UNUSABLE).too_large
    await the_way.host.hung_up.wait()
    assert the_way.host.talks[0].sent < 20_000_000


async def test_gzip_that_decodes_to_nothing_without_end_is_unusable(the_way: Way) -> None:
    """Empty blocks inside one member: the decoded size stays 0, so what crosses the wire is counted, too."""
    packer = zlib.compressobj(wbits=31)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)

    async def endless(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + head)
        await talk.forever(b"\x00\x00\x00\xff\xff" * 2000)

    refused = failed(await get(the_way, endless, limit=100_000), OutcomeKind.UNUSABLE)
    assert refused.detail.endswith("the bytes are many times as long as what they decode to")


async def test_a_bomb_ends_as_too_large_in_flat_memory(the_way: Way) -> None:
    bomb = gzip.compress(bytes(60_000_000), mtime=0)
    tracemalloc.start()
    try:
        got = await get(the_way, reply(200, bomb, {"Content-Encoding": "gzip"}), limit=30_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert failed(got, OutcomeKind.UNUSABLE).too_large
    assert peak < 12_000_000
    assert os.listdir(the_way.folder) == []


# ---------------------------------------------------------------- time


async def _begin_and_hang(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun")
    await talk.hang()


async def _trickle(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    await talk.forever(b"x")


async def _say_nothing(talk: Talk) -> None:
    await talk.hang()


Slow = Callable[[Talk], Awaitable[None]]
SLOW: list[tuple[Slow, dict[str, float], str]] = [
    (_begin_and_hang, {"idle_seconds": 0.1}, "sent nothing for 0.1 s"),
    (_begin_and_hang, {"attempt_seconds": 0.1}, "was not done in 0.1 s"),
    (_trickle, {"attempt_seconds": 0.2, "idle_seconds": 5}, "was not done in 0.2 s"),
    (_say_nothing, {"ask_seconds": 0.1}, "did not answer in time"),
    (_say_nothing, {"attempt_seconds": 0.1}, "did not answer in time"),
]


@pytest.mark.parametrize(("slow", "limits", "said"), SLOW)
@pytest.mark.parametrize("verb", ["ask", "download"])
async def test_what_is_too_slow_is_a_timeout(
    the_way: Way, slow: Slow, limits: dict[str, float], said: str, verb: str
) -> None:
    the_way.host.scripts["/r"] = slow
    way, url = await the_way.again(**limits), the_way.url("/r?key=hunter2")
    got = await (way.ask(url, headers={}) if verb == "ask" else way.download(url, hosts=["*"], limit=LIMIT))
    assert failed(got, OutcomeKind.TIMEOUT).detail == f"127.0.0.1:{the_way.host.port} {said}"
    assert os.listdir(the_way.folder) == []


async def test_a_cancelled_download_stays_cancelled_and_leaves_nothing(the_way: Way) -> None:
    began = asyncio.Event()

    async def hangs(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n" + AUDIO)
        began.set()
        await talk.hang()

    task = asyncio.create_task(get(the_way, hangs))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(the_way.folder) == []


async def test_many_downloads_at_once_keep_apart(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        bodies = {f"/{n}": os.urandom(100_000 + n) for n in range(20)}
        host.scripts |= {path: reply(200, body) for path, body in bodies.items()}
        got = await asyncio.gather(
            *(way.fetcher.download(way.url(path), hosts=["*"], limit=LIMIT) for path in bodies)
        )
        assert [downloaded(one) for one in got] == list(bodies.values())
