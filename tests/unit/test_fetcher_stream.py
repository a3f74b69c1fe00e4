"""Event streams: events as they come, then a clean end or one failure; what is no stream is an answer."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import pytest

from receiver.core.fetch import Failed, FetchResponse, ServerSentEvent
from receiver.core.work import OutcomeKind
from receiver.outbound.fetcher import Fetcher
from tests.support.fetching import Way, the_way
from tests.support.provider_host import CHUNKED, Talk, chunk, reply

__all__ = ["the_way"]
HEAD = CHUNKED + b"content-type: text/event-stream; charset=utf-8\r\n\r\n"
TYPE = {"Content-Type": "text/event-stream"}
Seen = list[ServerSentEvent | Failed]


async def follow(way: Way, *, fetcher: Fetcher | None = None, idle: float = 5) -> tuple[FetchResponse, Seen]:
    asked = (fetcher or way.fetcher).stream(
        way.url("/jobs/1"), headers={"AUTHORIZATION": "k"}, idle_seconds=idle
    )
    async with asked as stream:
        assert not isinstance(stream, Failed), stream
        return stream.response, [event async for event in stream.events()]


def events(*pairs: tuple[str, str]) -> Seen:
    return [ServerSentEvent(event=event, data=data) for event, data in pairs]


def failure(seen: Seen, kind: OutcomeKind) -> Failed:
    last = seen[-1]
    assert isinstance(last, Failed), seen
    assert last.kind is kind
    return last


@pytest.mark.parametrize("status", [200, 201])
async def test_a_stream_gives_its_events_and_ends(the_way: Way, status: int) -> None:
    body = b'event: generating\ndata: {"progress": 0.5}\n\n: ping\n\ndata: done\n\ndata: unfinished'
    the_way.host.scripts["/jobs/1"] = reply(status, body, {"Content-Type": "Text/Event-Stream"})
    answer, seen = await follow(the_way)
    assert seen == events(("generating", '{"progress": 0.5}'), ("message", "done"))
    assert (answer.status, answer.body) == (status, b"")
    came = the_way.host.requests[0].headers
    assert (came["accept"], came["authorization"]) == ("text/event-stream", "k")


async def test_events_come_one_by_one_while_the_stream_is_open(the_way: Way) -> None:
    taken = asyncio.Semaphore(0)

    async def serve(talk: Talk) -> None:
        await talk.send(HEAD)
        for number in (b"1", b"2", b"3"):
            await talk.send(chunk(b"data: " + number + b"\n\n"))
            await taken.acquire()
        await talk.hang()

    the_way.host.scripts["/"] = serve
    found = []
    async with the_way.fetcher.stream(the_way.url(), headers={}, idle_seconds=5) as stream:
        assert not isinstance(stream, Failed)
        async for event in stream.events():
            assert isinstance(event, ServerSentEvent)
            found.append(event.data)
            taken.release()
            if len(found) == 3:
                break
    assert found == ["1", "2", "3"]


async def _silent(talk: Talk) -> None:
    await talk.send(HEAD + chunk(b"data: 1\n\n"))
    await talk.hang()


async def _pings(talk: Talk) -> None:
    await talk.send(HEAD + chunk(b"data: 1\n\n"))
    await talk.forever(chunk(b": ping\n\n"))


async def _broken(talk: Talk) -> None:
    await talk.send(HEAD + chunk(b"data: 1\n\n") + b"ff\r\ndata: cut")


async def _long_line(talk: Talk) -> None:
    await talk.send(HEAD + chunk(b"data: 1\n\n"))
    await talk.forever(chunk(b"x" * 1000))


async def _endless(talk: Talk) -> None:
    await talk.send(HEAD + chunk(b"data: 1\n\n"))
    await talk.forever(chunk(b": " + b"x" * 50_000 + b"\n"))


BAD: list[tuple[Callable[[Talk], Awaitable[None]], OutcomeKind, str]] = [
    (_silent, OutcomeKind.TIMEOUT, "sent nothing for 0.2 s"),
    (_pings, OutcomeKind.TIMEOUT, "was not done in 0.5 s"),
    (_broken, OutcomeKind.UNREACHABLE, "was cut off after"),
    (_long_line, OutcomeKind.UNUSABLE, "a line of the stream is over 65536 bytes"),
    (_endless, OutcomeKind.UNUSABLE, "sends more than 1000000 bytes"),
]


@pytest.mark.parametrize(("serve", "kind", "said"), BAD)
async def test_a_stream_that_goes_wrong_ends_with_one_failure(
    the_way: Way, serve: Callable[[Talk], Awaitable[None]], kind: OutcomeKind, said: str
) -> None:
    limited = await the_way.again(attempt_seconds=0.5, stream_bytes=1_000_000)
    the_way.host.scripts["/jobs/1"] = serve
    _, seen = await follow(the_way, fetcher=limited, idle=0.2)
    assert seen[:-1] == events(("message", "1"))
    assert said in failure(seen, kind).detail


async def test_a_stream_may_be_coded(the_way: Way) -> None:
    coded = gzip.compress(b"data: 1\n\n", mtime=0)
    the_way.host.scripts["/jobs/1"] = reply(200, coded, TYPE | {"Content-Encoding": "gzip"})
    assert (await follow(the_way))[1] == events(("message", "1"))
    the_way.host.scripts["/jobs/1"] = reply(200, coded, TYPE | {"Content-Encoding": "br"})
    assert "'br'" in failure((await follow(the_way))[1], OutcomeKind.UNUSABLE).detail


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"Content-Type": "application/json"}),
        (200, {}),
        (202, TYPE),
        (302, TYPE),
        (404, TYPE),
        (500, {}),
    ],
)
async def test_what_is_no_stream_is_an_answer_with_its_body(
    the_way: Way, status: int, headers: dict[str, str]
) -> None:
    the_way.host.scripts["/jobs/1"] = reply(
        status, b'{"id": 1}', headers | {"Location": "/x", "Retry-After": "3"}
    )
    answer, seen = await follow(the_way)
    assert (answer.status, answer.body, answer.retry_after, seen) == (status, b'{"id": 1}', 3.0, [])
    assert len(the_way.host.requests) == 1


async def test_the_body_of_what_is_no_stream_is_bounded(the_way: Way) -> None:
    async def endless(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\n\r\n")
        await talk.forever(b"x" * 10_000)

    the_way.host.scripts["/jobs/1"] = endless
    answer, _ = await follow(the_way)
    assert len(answer.body) == 1024 * 1024


async def test_no_head_in_time_is_a_failure(the_way: Way) -> None:
    async def hang(talk: Talk) -> None:
        await talk.hang()

    the_way.host.scripts["/jobs/1"] = hang
    async with the_way.fetcher.stream(the_way.url("/jobs/1"), headers={}, idle_seconds=0.1) as stream:
        assert isinstance(stream, Failed)
        assert stream.kind is OutcomeKind.TIMEOUT


async def test_leaving_a_stream_hangs_up(the_way: Way) -> None:
    the_way.host.scripts["/"] = _pings
    async with the_way.fetcher.stream(the_way.url(), headers={}, idle_seconds=5) as stream:
        assert not isinstance(stream, Failed)
    await the_way.host.hung_up.wait()
