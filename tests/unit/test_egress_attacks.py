"""Replies made to do harm end soon, in flat memory, with a clear outcome: for deliveries (POST) and for pickups (GET) alike."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from receiver.core.work import OutcomeKind
from receiver.outbound.client import (
    RESPONSE_LIMIT,
    Egress,
    Failure,
    ReplyBroken,
)
from receiver.outbound.guard import Target, target
from receiver.outbound.streams import Incoming
from receiver.system.http1 import INTERIM_LIMIT, Reply
from tests.support.provider_host import CHUNKED, ProviderHost, Talk, chunk, reply

Attack = Callable[[Talk], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


def endless(begin: bytes, again: bytes) -> Attack:
    async def attack(talk: Talk) -> None:
        await talk.send(begin)
        await talk.forever(again)

    return attack


HEADS = {
    "headers": endless(OK, b"".join(b"x-%d: a\r\n" % number for number in range(50))),
    "headers of one name": endless(OK, b"set-cookie: a=b\r\n" * 50),
    "a header's value": endless(OK + b"x: ", b"a" * 10_000),
    "a header's name": endless(OK, b"a" * 10_000),
    "folded lines": endless(OK + b"x: a\r\n", b" b\r\n" * 1000),
    "a reason": endless(b"HTTP/1.1 200 ", b"a" * 10_000),
    "a status": endless(b"HTTP/1.1 ", b"2" * 10_000),
    "1xx answers": endless(b"", HINT * 100),
    "1xx answers and their headers": endless(b"", HINT[:-2] + b"x: a\r\n" * 50 + b"\r\n"),
    "bytes that are no HTTP": endless(b"", b"\x00\xff" * 5000),
}
"""What never ends before the body begins."""


@pytest.fixture
async def client() -> AsyncIterator[Egress]:
    client = Egress(timeout_seconds=10, connections=4, allow=["127.0.0.0/8"])
    await client.open()
    yield client
    await client.close()


@pytest.fixture
async def host() -> AsyncIterator[ProviderHost]:
    async with ProviderHost() as running:
        yield running


def place(host: ProviderHost) -> Target:
    found = target(host.url("/"))
    assert isinstance(found, Target)
    return found


async def send(client: Egress, host: ProviderHost, verb: str) -> Reply | Incoming | Failure:
    if verb == "post":
        return await client.post(client.prepared(host.url("/")), {}, b"event")
    return await client.get(place(host), {}, seconds=10)


@pytest.mark.parametrize("verb", ["post", "get"])
@pytest.mark.parametrize("attack", HEADS)
async def test_a_head_without_end_is_hung_up_on(
    client: Egress, host: ProviderHost, attack: str, verb: str
) -> None:
    host.scripts["/"] = HEADS[attack]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = await send(client, host, verb)
    assert isinstance(got, Failure)
    assert got.kind is OutcomeKind.UNREACHABLE
    where = f"127.0.0.1:{host.port}"
    assert got.detail in {f"{where} did not answer in HTTP", f"{where} sends 1xx answers without end"}
    await host.hung_up.wait()
    assert host.talks[0].sent < 8_000_000  # what fits into both sockets' buffers, at most
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB


@pytest.mark.parametrize("verb", ["post", "get"])
async def test_some_1xx_answers_are_waited_out_and_one_more_is_not(
    client: Egress, host: ProviderHost, verb: str
) -> None:
    host.scripts["/"] = HINT * INTERIM_LIMIT + reply(200, b"ok")
    for _ in range(2):  # the count begins anew with each request
        got = await send(client, host, verb)
        assert not isinstance(got, Failure)
        assert got.status == 200
        if isinstance(got, Incoming):
            got.close()
    host.scripts["/"] = HINT * (INTERIM_LIMIT + 1) + reply(200, b"ok")
    got = await send(client, host, verb)
    assert isinstance(got, Failure)
    assert "1xx" in got.detail


async def test_a_kept_connection_counts_1xx_answers_anew(client: Egress, host: ProviderHost) -> None:
    async def keep(talk: Talk) -> None:
        for _ in range(3):
            await talk.send(HINT * INTERIM_LIMIT + reply(200, b"ok", keep=True))
            await talk.next()

    host.scripts["/"] = keep
    for _ in range(3):
        got = await client.post(client.prepared(host.url("/")), {}, b"event")
        assert isinstance(got, Reply)
    assert len(host.talks) == 1


@pytest.mark.parametrize("verb", ["post", "get"])
async def test_what_comes_unasked_on_a_kept_connection_is_no_requests_answer(
    client: Egress, host: ProviderHost, verb: str
) -> None:
    async def late(talk: Talk) -> None:
        await talk.send(reply(200, b"ok", keep=True))
        await talk.until_told()
        await talk.send(reply(418, b"late", keep=True))
        await talk.next()

    for script, status in ((late, 200), (reply(201, b"own"), 201)):
        host.scripts["/"] = script
        got = await send(client, host, verb)
        assert not isinstance(got, Failure)
        assert got.status == status
        if isinstance(got, Incoming):
            while await got.read():
                pass
            got.close()
        host.tell()
        for _ in range(100):  # until it is here
            await asyncio.sleep(0)
    assert len(host.talks) == 2


BODIES = {
    "a chunk's extension": endless(CHUNKED + b"\r\n3;", b"a" * 10_000),
    "a chunk's size": endless(CHUNKED + b"\r\n", b"0" * 10_000),
    "trailers": endless(CHUNKED + b"\r\n" + chunk(b"abc") + b"0\r\n", b"x: a\r\n" * 1000),
    "a trailer": endless(CHUNKED + b"\r\n" + chunk(b"abc") + b"0\r\nx: ", b"a" * 10_000),
    "small chunks": endless(CHUNKED + b"\r\n", chunk(b"a") * 1000),
    "a body": endless(OK + b"\r\n", b"a" * 10_000),
    "blank lines": endless(b"", b"\r\n" * 1000),
}


@pytest.mark.parametrize("attack", BODIES)
async def test_a_delivery_waits_for_no_body_without_end(host: ProviderHost, attack: str) -> None:
    host.scripts["/"] = BODIES[attack]
    client = Egress(timeout_seconds=0.5, connections=1, allow=["127.0.0.0/8"], body_seconds=0.2)
    await client.open()
    got = await client.post(client.prepared(host.url("/")), {}, b"event")
    if isinstance(got, Reply):
        assert got.status == 200
        assert len(got.body) <= RESPONSE_LIMIT
    await host.hung_up.wait()
    await client.close()


@pytest.mark.parametrize(
    "garbage", [b"zz\r\n", b"0\r\n" + b"x: a\r\n" * 10_000, b"0\r\nx: " + b"a" * 100_000]
)
async def test_a_body_that_stops_being_http_breaks_at_once(
    client: Egress, host: ProviderHost, garbage: bytes
) -> None:
    """Not only when somebody loses patience."""

    async def serve(talk: Talk) -> None:
        await talk.send(CHUNKED + b"\r\n" + chunk(b"abc"))
        await talk.until_told()
        await talk.send(garbage)
        await talk.hang()

    host.scripts["/"] = serve
    got = await client.get(place(host), {}, seconds=10)
    assert isinstance(got, Incoming)
    assert await got.read() == b"abc"
    host.tell()
    with pytest.raises(ReplyBroken):
        await got.read()
    got.close()
