"""Requests in very many, very small parts: each costs as much as a large one, and good callbacks must not wait for them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from receiver.web.protocol import HEAD_LINES
from tests.hostile.attack import Target, client, send, strangers, target
from tests.support.raw import exchange, head
from tests.support.senders import transcript

_STRANGERS = 200
_ONE_BYTE = b"1\r\nx\r\n"
_CHUNKS = head("/callbacks/deepgram", {"transfer-encoding": "chunked"}) + _ONE_BYTE * 25_000
_TRAILER = (
    head("/callbacks/deepgram", {"transfer-encoding": "chunked"}) + b"1\r\nx\r\n0\r\n" + b"a:\r\n" * 15_000
)
_LINES = head("/callbacks/deepgram", [("a", "")] * 12_000)


async def longest(process: Target, seconds: float = 0.7) -> float:
    """Return the processor time that receiver spent, at most, from a good callback to its answer; they came one after another.

    By the clock, a callback also waits for whatever else the machine does.
    """
    spent = 0.0
    of = psutil.Process(process.child.pid)
    async with client(process, seconds=60) as http:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = _processor(of)
            assert await send(http, transcript(f"good-{time.monotonic_ns()}")) == 200
            spent = max(spent, _processor(of) - began)
    return spent


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize(
    "says", [_CHUNKS, _LINES, _TRAILER], ids=["one-byte-chunks", "header-lines", "trailer"]
)
async def test_good_callbacks_do_not_wait_for_tiny_parts(tmp_path: Path, says: bytes) -> None:
    """Parsed as they come, they took seconds each."""
    with target(tmp_path) as process:
        async with strangers(process, _STRANGERS, says):
            assert await longest(process) < 1.5


async def test_a_body_in_one_byte_chunks_is_taken_whole_and_header_lines_are_bounded(tmp_path: Path) -> None:
    sent = transcript("piecemeal", "It is ready. " * 200)
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in sent.body) + b"0\r\n\r\n"
    top = head(sent.path, sent.headers | {"transfer-encoding": "chunked"})
    with target(tmp_path) as process:
        status, _, answer = await exchange(process.port, [top, body])
        assert (status, b'"recorded"' in answer) == (200, True)
        (event,) = process.run("events", "--json").items
        shown = process.run("events", event["id"], "--json").json
        assert len(shown["data"]["transcript"]["text"]) == 2600
        sent = transcript("many-lines")
        for more, status in ((HEAD_LINES - 10, 200), (HEAD_LINES + 1, 400)):
            lines = [*sent.headers.items(), ("content-length", str(len(sent.body)))] + [("x-more", "")] * more
            answered, _, body = await exchange(process.port, [head(sent.path, lines) + sent.body])
            assert answered == status
        assert body == b"The request has more than 200 header lines."
        await asyncio.gather(*(exchange(process.port, [_LINES]) for _ in range(100)))
    assert len(process.log) < 15_000
