"""Requests over kept connections: when a connection is used again, and when what came is the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from receiver.system.http1 import Bounds, Connection, Connections, NoAnswer, NotHttp, Reply, Unanswered

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Far:
    """The far side: a script for each connection; counts them."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.accepted = 0
        self.left = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.scripts[min(self.accepted, len(self.scripts) - 1)]
        self.accepted += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(reader, writer)
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.left.set()


def answering(*answers: bytes) -> Script:
    """Give one answer to each request of a connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await request(reader)
            writer.write(answer)

    return script


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))


async def ask(client: Connections[int], far: Far, body: bytes = b"event", seconds: float = 5) -> Reply:
    return await client.ask(
        1, HEAD % len(body), body, Bounds(seconds=seconds, body_seconds=1, body_bytes=16_384)
    )


@asynccontextmanager
async def far_side(*scripts: Script, idle_seconds: float = 4) -> AsyncIterator[tuple[Far, Connections[int]]]:
    far = Far(*scripts)
    server = await asyncio.start_server(far.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def connect(_: int) -> Connection:
        return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]

    client: Connections[int] = Connections(connect, idle_seconds)
    try:
        yield far, client
    finally:
        await client.close()
        server.close()
        await asyncio.gather(*far.tasks)


@pytest.mark.parametrize(
    ("answer", "body", "kept"),
    [
        (OK, b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nx: y\r\n\r\n", b"ok", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n\x00\x01", b"", False),
        (OK + b"!", b"ok", False),
        (OK + OK, b"ok", False),
        (b"HTTP/1.1 500 No\r\ncontent-length: 90000\r\n\r\n" + b"x" * 17_000, b"x" * 16_384, False),
        (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", b"ok", True),
    ],
    ids=[
        "a length", "no body", "chunks and a trailer", "close", "HTTP/1.0", "HTTP/1.0 that keeps", "an upgrade",
        "a byte too many", "an answer too many", "a body too long", "bare line feeds",
    ],
)  # fmt: skip
async def test_an_answer_says_whether_the_connection_is_used_again(
    answer: bytes, body: bytes, kept: bool
) -> None:
    async with far_side(answering(answer, answer)) as (far, client):
        for _ in range(2):
            assert (await ask(client, far)).body == body
        assert far.accepted == (1 if kept else 2)


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of ")
        await writer.drain()
        writer.write(b"it")
        writer.write_eof()

    async with far_side(script) as (far, client):
        assert (await ask(client, far)).body == b"all of it"


async def test_a_name_that_comes_twice_is_the_first() -> None:
    answer = b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n"
    async with far_side(answering(answer)) as (far, client):
        assert (await ask(client, far)).headers["retry-after"] == "7"


async def test_a_connection_that_was_closed_or_spoke_while_idle_is_not_used_again() -> None:
    said = asyncio.Event()

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        writer.write_eof()

    async def speaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await said.wait()
        writer.write(b"HTTP/1.1 408 Too late\r\ncontent-length: 0\r\n\r\n")

    async with far_side(closing, speaking, answering(OK)) as (far, client):
        await ask(client, far)
        await far.left.wait()
        far.left.clear()
        await ask(client, far)
        said.set()
        await far.left.wait()
        assert (await ask(client, far)).status == 200
        assert far.accepted == 3


async def test_idle_connections_are_hung_up_on() -> None:
    async with far_side(answering(OK), idle_seconds=0.05) as (far, client):
        await ask(client, far)
        await far.left.wait()


async def test_a_kept_connections_next_request_has_its_own_time() -> None:
    """Neither the rest before it ends it, nor does it go on for longer than it may."""

    async def slow_then_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await request(reader)
        await asyncio.sleep(0.1)
        writer.write(OK)
        await request(reader)

    async with far_side(slow_then_silent, idle_seconds=0.05) as (far, client):
        await ask(client, far)
        assert (await ask(client, far)).status == 200
        with pytest.raises(TimeoutError):
            await ask(client, far, seconds=0.1)
        assert far.accepted == 1


async def test_a_long_body_is_written_as_the_far_side_takes_it_and_an_early_answer_ends_it() -> None:
    body = b"x" * 20_000_000
    took = 0

    async def taking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal took
        took = len(await request(reader))
        writer.write(OK)

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too long\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with far_side(taking, refusing) as (far, client):
        assert (await ask(client, far, body)).status == 200
        assert took == len(body)
        await client.close()
        assert (await ask(client, far, body)).status == 413


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", NoAnswer),
        (b"HTTP/1.1 200 O", NoAnswer),
        (b"HTTP/1.1 100 Continue\r\n\r\n", NoAnswer),
        (b"SSH-2.0-x\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc", NotHttp),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n", NotHttp),
    ],
)
async def test_a_connection_that_ends_or_lies_before_the_head_is_whole_gave_no_answer(
    answer: bytes, error: type[Unanswered]
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)
        writer.write_eof()

    async with far_side(script) as (far, client):
        with pytest.raises(error):
            await ask(client, far)
