"""Events live: the stream and `receiver tail`, over connections that break; nothing is lost, and a gap is told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from msgspec.structs import replace

from receiver.cli import tail
from receiver.core.errors import UsageError
from receiver.core.event import EventSearch, Recording
from receiver.core.retention import Erasure, Subject, SubjectKind
from receiver.core.webhook import new_webhook_secret, verify
from receiver.web.api import stream
from tests.contract.store_suite import recording
from tests.support.clients import NO_AUTHORITIES
from tests.support.patience import PATIENCE
from tests.support.running import Running, api_token, running, settings_text

TOKEN = "a-token-of-some-length"
BREAKS = 50


@pytest.fixture
async def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tail, "_PAUSES", (0.0,))
    text = settings_text(tmp_path, extra=api_token("dev", TOKEN, '["read"]'))
    async with running(tmp_path, text, work=False) as live:
        yield live


@contextlib.asynccontextmanager
async def breaking(port: int) -> AsyncIterator[tuple[str, list[int]]]:
    """Pass connections on to a port, and break each of the first ones after one event."""
    breaks: list[int] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection("127.0.0.1", port)
        back.write(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(ConnectionError):
            while piece := await to.read(65536):
                first = piece.find(b"event: event")
                if first < 0 or len(breaks) == BREAKS:
                    writer.write(piece)
                    await writer.drain()
                    continue
                breaks.append(1)
                # One event comes whole, and half of the next where there is one.
                end = piece.find(b"\n\n", first) + 2
                writer.write(piece[: end + 40])
                await writer.drain()
                break
        back.close()
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", breaks


def whole(job_id: str | None = None) -> Recording:
    """A recording whose event links to nothing."""
    made = recording(job_id=job_id)
    return replace(made, event=replace(made.event, blob_key=None))


def client(token: str = TOKEN) -> httpx2.Client:
    """Return a client whose tail fails after a while: a thread that follows for ever would hold up the end of the run."""
    until = time.monotonic() + 60

    def bound(request: httpx2.Request) -> None:
        assert time.monotonic() < until, "the tail goes on and tells nothing"

    return httpx2.Client(
        timeout=10,
        headers={"authorization": f"Bearer {token}"},
        verify=NO_AUTHORITIES,
        trust_env=False,
        event_hooks={"request": [bound]},
    )


async def test_a_tail_loses_nothing_and_repeats_nothing_over_fifty_broken_connections(up: Running) -> None:
    store, made = up.receiver.store, [whole() for _ in range(3 * BREAKS)]

    async def record() -> None:
        for one in made:
            await store.record(one)

    def read(base: str) -> list[str]:
        with client() as http:
            told = tail.follow(http, base, {}, after="0.evt_0")
            return [one.cursor.partition(".")[2] for one in itertools.islice(told, len(made))]

    async with breaking(urlsplit(up.base).port or 0) as (base, breaks), asyncio.timeout(PATIENCE):
        found, _ = await asyncio.gather(asyncio.to_thread(read, base), record())
    assert len(breaks) == BREAKS
    assert found == [one.event.id for one in made]


async def test_a_connection_that_breaks_before_the_first_event_loses_none(up: Running) -> None:
    waiting = [whole(), whole()]
    ids = [one.event.id for one in waiting]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection("127.0.0.1", urlsplit(up.base).port)
        back.write(await reader.readuntil(b"\r\n\r\n"))
        begun = await to.readuntil(b"begins")
        writer.write(begun + await to.readuntil(b"\r\n"))
        await writer.drain()
        await up.receiver.store.record(waiting.pop(0))
        with contextlib.suppress(ConnectionError):
            while not waiting and (piece := await to.read(65536)):
                writer.write(piece)
                await writer.drain()
        back.close()
        writer.close()

    def read(base: str) -> list[str]:
        with client() as http:
            return [one.cursor.partition(".")[2] for one in itertools.islice(tail.follow(http, base, {}), 1)]

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server, asyncio.timeout(PATIENCE):
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await asyncio.to_thread(read, base) == ids[:1]


async def test_a_receiver_that_stops_and_stays_away_is_told_once_it_cannot_be_reached(up: Running) -> None:
    told: list[str] = []

    def warn(text: str) -> None:
        told.append(text)
        raise KeyboardInterrupt

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        server.close()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n: the stream begins\nid: 0.evt_0\n\n")
        writer.close()

    def read(base: str) -> None:
        with client() as http, pytest.raises(KeyboardInterrupt):
            next(tail.follow(http, base, {}, warn=warn))

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(read, base)
    assert told == [f"the connection to {base} ended (ConnectError): connecting again"]


async def test_a_gap_is_told_when_what_was_read_last_is_gone(up: Running) -> None:
    store = up.receiver.store
    first, second = whole(job_id="j1"), whole(job_id="j2")
    for one in (first, second):
        await store.record(one)
    cursor = (await store.search(EventSearch(limit=1)))[0].place
    subject = Subject(kind=SubjectKind.JOB, key="j1")
    await store.erase(Erasure(subject=subject, tombstone_id="tmb_1", digest="d", now=1, limit=9))

    def read() -> list[tail.StreamItem]:
        with client() as http:
            after = f"{cursor.position}.{cursor.id}"
            return list(itertools.islice(tail.follow(http, up.base, {}, after=after), 2))

    gap, event = await asyncio.to_thread(read)
    assert (gap.kind, event.kind) == ("gap", "event")
    assert second.event.id in event.cursor


async def test_what_is_forwarded_has_the_bytes_of_the_stream_and_is_signed(up: Running) -> None:
    got: list[tuple[dict[str, str], bytes]] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = [
            line.split(": ", 1)
            for line in (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[1:]
            if line
        ]
        headers = {name.lower(): value for name, value in head}
        got.append((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()

    secret = new_webhook_secret()
    told = tail.StreamItem("event", "1.evt_1", b'{"type":"speech.completed","data":{"event_id":"evt_1"}}')
    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks"
        assert await asyncio.to_thread(tail._forwarded, url, secret, told) == "204"
    ((headers, body),) = got
    assert (body, headers["webhook-id"]) == (told.body, "evt_1")
    assert verify(secret, headers, body, now=time.time())


async def test_a_laptop_that_wants_a_signature_is_told_how_to_get_one() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    told = tail.StreamItem("event", "1.evt_1", b'{"type":"speech.completed","data":{"event_id":"evt_1"}}')
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks"
        assert "--secret" in await asyncio.to_thread(tail._forwarded, url, None, told)
        assert await asyncio.to_thread(tail._forwarded, url, new_webhook_secret(), told) == "401"


@pytest.mark.parametrize(
    ("token", "query", "after", "told"),
    [
        ("wrong", {}, None, r"401: the token is none of api\.tokens"),
        (TOKEN, {}, "99999.evt_1", r"409: .* Begin again at 0\.evt_0"),
        (TOKEN, {"source": "deepgrm"}, None, r"400: .* did you mean deepgram\?"),
        (TOKEN, {"type": "nothing.*"}, None, r"400: there is no event type"),
    ],
)
async def test_what_trying_again_does_not_mend_ends_the_tail_with_what_to_do(
    up: Running, token: str, query: dict[str, str], after: str | None, told: str
) -> None:
    def read() -> None:
        with client(token) as http:
            next(tail.follow(http, up.base, query, after=after))

    with pytest.raises(UsageError, match=told):
        await asyncio.to_thread(read)
