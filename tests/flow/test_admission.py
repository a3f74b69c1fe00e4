"""Past the bound a callback is refused at once, before its body is read, and taken again when there is room."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

from tests.support.running import BASIC, Running, running, settings_text
from tests.support.senders import speech

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
        while up.receiver.intake.under_way < 2:
            await asyncio.sleep(0)
        refused = await up.client.put(
            "/callbacks/deepgram", headers=speech("third").headers, content=speech("third").body
        )
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert up.seen.callbacks[-1].size == 0, "its body was not read"
        assert "max_callbacks" in up.seen.callbacks[-1].reason
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
        assert up.receiver.intake.under_way == 0


async def test_a_callback_that_is_cut_off_gives_its_place_back(tmp_path: Path) -> None:
    text = settings_text(tmp_path, extra="[server]\nmax_callbacks = 1\n")
    async with running(tmp_path, text) as up:
        _, writer = await _begin(up, bytes(100_000))
        while up.receiver.intake.under_way < 1:
            await asyncio.sleep(0)
        writer.close()
        await up.seen.until(lambda: [report.answer for report in up.seen.callbacks] == ["cut_off"])
        assert up.receiver.intake.under_way == 0
        sent = speech("next")
        answer = await up.client.put("/callbacks/deepgram", headers=sent.headers, content=sent.body)
        assert answer.status_code == 200
