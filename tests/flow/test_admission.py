"""Past the bound a callback is refused at once, before its body is read, and taken again when there is room."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.engine.overload import ALWAYS_ADMITTED, Place, UnderWay, WaitingRoom
from receiver.web.protocol import Protocol
from tests.support.running import BASIC, Running, running, settings_text
from tests.support.senders import deapi, speech

_HEAD = (
    "PUT /callbacks/deepgram HTTP/1.1\r\nHost: receiver\r\nContent-Type: audio/mpeg\r\n"
    f"Authorization: Basic {base64.b64encode(BASIC.encode()).decode()}\r\nContent-Length: {{}}\r\n\r\n"
)


async def _begin(up: Running, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the head of a callback and the first half of its body."""
    host, port = up.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(_HEAD.format(len(body)).encode() + body[: len(body) // 2])
    await writer.drain()
    return reader, writer


async def _status(reader: asyncio.StreamReader) -> int:
    return int((await reader.readline()).split()[1])


async def test_past_the_bound_a_callback_is_refused_early_and_others_end_well(tmp_path: Path) -> None:
    body = bytes(200_000)
    text = settings_text(tmp_path, extra="[server]\nmax_callbacks = 2\n")
    async with running(tmp_path, text) as up:
        slow = [await _begin(up, body + bytes([n])) for n in range(2)]
        while len(up.receiver.intake.load.under_way) < 2:
            await asyncio.sleep(0)
        refused = await up.client.put(
            "/callbacks/deepgram", headers=speech("third").headers, content=speech("third").body
        )
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert up.seen.callbacks[-1].size == 0, "its body was not read"
        assert "max_callbacks" in up.seen.callbacks[-1].reason
        sent = deapi("fourth")
        other = await up.client.post(sent.path, headers=sent.headers, content=sent.body)
        assert other.status_code == 200, "a source that has none under way has a share"
        health = await up.client.get("/healthz")
        assert health.status_code == 200, "probes are answered all the same"
        for n, (reader, writer) in enumerate(slow):
            writer.write((body + bytes([n]))[len(body) // 2 :])
            await writer.drain()
            assert await _status(reader) == 200
            writer.close()
        taken = await up.client.put(
            "/callbacks/deepgram", headers=speech("third").headers, content=speech("third").body
        )
        assert taken.status_code == 200
        assert not up.receiver.intake.load.under_way


async def test_a_callback_that_is_cut_off_gives_its_place_back(tmp_path: Path) -> None:
    text = settings_text(tmp_path, extra="[server]\nmax_callbacks = 1\n")
    async with running(tmp_path, text) as up:
        _, writer = await _begin(up, bytes(100_000))
        while len(up.receiver.intake.load.under_way) < 1:
            await asyncio.sleep(0)
        writer.close()
        await up.seen.until(lambda: [report.answer for report in up.seen.callbacks] == ["cut_off"])
        assert not up.receiver.intake.load.under_way
        sent = speech("next")
        answer = await up.client.put("/callbacks/deepgram", headers=sent.headers, content=sent.body)
        assert answer.status_code == 200


@contextlib.asynccontextmanager
async def _full(tmp_path: Path) -> AsyncIterator[Running]:
    """Run a receiver that takes one callback at once, and has it."""
    text = settings_text(tmp_path, extra="[server]\nmax_callbacks = 1\n")
    async with running(tmp_path, text) as up:
        _, writer = await _begin(up, bytes(100_000))
        while len(up.receiver.intake.load.under_way) < 1:
            await asyncio.sleep(0)
        yield up
        writer.close()


@pytest.mark.parametrize(
    ("version", "more"), [("1.1", "Connection: close\r\n"), ("1.0", ""), ("1.1", "Expect: 100-continue\r\n")]
)
async def test_a_refused_sender_may_end_its_body_before_the_connection_ends(
    tmp_path: Path, version: str, more: str
) -> None:
    """A connection that is closed with bytes unread is reset: many clients would never see the answer."""
    body = bytes(4 * 1024 * 1024)
    head = _HEAD.format(len(body)).replace("HTTP/1.1\r\n", f"HTTP/{version}\r\n{more}")
    async with _full(tmp_path) as up:
        host, port = up.base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 503 " in answer
        assert b"connection: close" in answer
        assert b"retry-after: 2" in answer
        for start in range(0, len(body), 65_536):
            writer.write(body[start : start + 65_536])
            await writer.drain()
        told = await reader.read()
        assert told.endswith(b"}"), "all of the answer, then an end and no reset"
        writer.close()


async def test_a_kept_connection_is_good_for_the_next_callback_after_a_refusal(tmp_path: Path) -> None:
    text = settings_text(tmp_path, extra="[server]\nmax_callbacks = 1\n")
    body = bytes(300_000)
    async with running(tmp_path, text) as up:
        slow_reader, slow = await _begin(up, body + b"1")
        while len(up.receiver.intake.load.under_way) < 1:
            await asyncio.sleep(0)
        reader, writer = await _begin(up, body)
        assert await _status(reader) == 503
        writer.write(body[len(body) // 2 :])
        slow.write((body + b"1")[len(body) // 2 :])
        assert await _status(slow_reader) == 200
        await reader.readuntil(b"}")
        writer.write(_HEAD.format(len(body)).encode() + body)
        assert await _status(reader) == 200
        slow.close()
        writer.close()


async def _told(up: Running, requests: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send requests in one piece to a receiver that is full."""
    host, port = up.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(requests)
    return reader, writer


def _at_its_end(writer: asyncio.StreamWriter) -> list[Protocol]:
    """Return the connection at the other end, once for each of its timers."""
    port = writer.get_extra_info("sockname")[1]
    return [
        connection
        for handle in asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # asyncio tells of no timers
        if not handle.cancelled()
        and isinstance(connection := getattr(handle._callback, "__self__", None), Protocol)
        and connection.client is not None
        and connection.client[1] == port
    ]


async def test_refused_requests_that_come_in_one_piece_leave_one_timer(tmp_path: Path) -> None:
    """One that was forgotten would end the connection in the midst of a later callback."""
    async with _full(tmp_path) as up:
        reader, writer = await _told(up, _HEAD.format(0).encode() * 3)
        for _ in range(3):
            assert await _status(reader) == 503
            await reader.readuntil(b"}")
        (connection,) = _at_its_end(writer)
        ends = connection._until
        writer.write(_HEAD.format(0).encode())
        assert await _status(reader) == 503
        assert connection._until > ends, "it was used, and is kept as long again"
        writer.close()


async def test_a_peer_that_reads_none_of_its_refusals_gets_no_more_of_them(tmp_path: Path) -> None:
    """What it does not read waits in memory."""
    request, count = f"POST /callbacks/deepgram HTTP/1.1\r\nHost: {'a' * 1000}\r\n\r\n".encode(), 3000
    async with _full(tmp_path) as up:
        host, port = up.base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(request)
        await reader.readuntil(b"}")
        (connection,) = _at_its_end(writer)
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.write(request * count + request.replace(b"Host", b"Connection: close\r\nHost"))
        while not connection.flow.write_paused:
            await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):  # what it sent after that is not read
            await reader.read()
        assert sum(report.count for report in up.seen.callbacks) < count
        writer.close()


async def test_after_a_refusal_that_ends_the_connection_nothing_more_is_begun(tmp_path: Path) -> None:
    async with _full(tmp_path) as up:
        last = _HEAD.format(0).replace("Host:", "Expect: 100-continue\r\nHost:").encode()
        reader, writer = await _told(up, last + _HEAD.format(0).encode() * 2)
        assert (await reader.read()).count(b"HTTP/1.1") == 1
        assert sum(report.count for report in up.seen.callbacks) == 1
        writer.close()


async def test_what_is_no_callback_is_not_refused_as_one(tmp_path: Path) -> None:
    """An answer to HEAD has no body: with one, the next answer on the connection would be misread."""
    async with _full(tmp_path) as up:
        assert (await up.client.head("/callbacks/deepgram")).status_code == 503
        assert (await up.client.get("/healthz")).status_code == 200


async def test_refusals_of_one_moment_are_told_together_and_each_is_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        load = up.receiver.intake.load
        load.limit = 1
        load.enter(UnderWay("deepgram"), whole=True)
        for _ in range(3):
            assert up.receiver.intake.sheds("deepgram", "PUT")
        assert up.receiver.intake.sheds("a stranger's\nword", "BREW")
        await up.seen.until(lambda: len(up.seen.callbacks) == 2)
        told = {(one.source, one.method, one.answer, one.count) for one in up.seen.callbacks}
        assert told == {("deepgram", "PUT", "overloaded", 3), ("unknown", "other", "overloaded", 1)}
        metrics = (await up.client.get("/metrics")).text
        assert 'receiver_callbacks_total{answer="overloaded",source="deepgram"} 3.0' in metrics
        assert 'receiver_ack_seconds_count{source="deepgram"} 3.0' in metrics


async def test_a_store_that_falls_behind_lets_no_more_in_until_it_has_caught_up(tmp_path: Path) -> None:
    """Long before `max_callbacks`: who waits longer than the provider does is answered in vain."""
    async with running(tmp_path) as up:
        load = up.receiver.intake.load
        now = [0.0]
        load.clock = lambda: now[0]
        waiting = [UnderWay("deepgram") for _ in range(ALWAYS_ADMITTED)]
        for one in waiting:
            load.enter(one, whole=True)
        sent = speech("early")
        answer = await up.client.put("/callbacks/deepgram", headers=sent.headers, content=sent.body)
        assert answer.status_code == 200, "many at once are no sign of trouble yet"
        now[0] = 0.3
        load.look()
        sent = speech("late")
        answer = await up.client.put("/callbacks/deepgram", headers=sent.headers, content=sent.body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "callbacks come faster than they are stored" in up.seen.callbacks[-1].reason
        load.leave(waiting.pop())
        answer = await up.client.put("/callbacks/deepgram", headers=sent.headers, content=sent.body)
        assert answer.status_code == 200, (
            "a few are taken however long it lasts: an outage must come to the journal"
        )


@pytest.mark.parametrize(("peers", "places"), [(1, WaitingRoom.PLACES_OF_A_PEER), (9, WaitingRoom.PLACES)])
async def test_in_a_full_waiting_room_the_oldest_gives_way(peers: int, places: int) -> None:
    """The oldest of a peer that has too many, so that it takes no room of others; else the oldest of all."""
    room, other = WaitingRoom(), Place(WaitingRoom(), "other")
    made = []
    for number in range(places + 1):
        place = Place(room, f"peer {number % peers}")
        place.task = None  # so that none of this test is cancelled
        made.append(place)
        room.enter(place)
        if not number and peers == 1:
            room.enter(other)
    assert [place.gave_way for place in made] == [True] + [False] * places
    assert not other.gave_way
