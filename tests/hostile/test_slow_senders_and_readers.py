"""Who sends or reads slowly on purpose ends in bounded time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from receiver.core.tokens import ObjectLinks
from tests.hostile.attack import (
    MIB,
    TOKEN_SECRET,
    client,
    only_200,
    send,
    send_good,
    strangers,
    target,
    until,
)
from tests.support.raw import head
from tests.support.senders import speech

_LONGEST = 90.0
"""Most seconds until one is ended: the longest that is waited for is 75, and the machine may be busy."""


@pytest.mark.soak
@pytest.mark.timeout(200)
async def test_a_refused_sender_that_trickles_is_ended(tmp_path: Path) -> None:
    refused = head("/callbacks/deepgram", {"content-length": "100000", "content-type": "audio/mpeg"})
    with target(tmp_path) as process:
        async with strangers(process, 1, refused + b"x") as opened:
            reader, writer = opened[0]
            assert b" 401 " in await reader.readline()

            async def is_ended() -> bool:
                writer.write(b"x")
                try:
                    return await asyncio.wait_for(reader.read(1024), 5) == b""
                except TimeoutError:
                    return False
                except ConnectionError:
                    return True

            assert await until(is_ended, _LONGEST)


@pytest.mark.soak
@pytest.mark.timeout(200)
async def test_slow_readers_of_objects_are_ended(tmp_path: Path) -> None:
    sound = speech("long", times=2000)
    with target(tmp_path) as process:
        async with client(process) as http:
            assert await send(http, sound) == 200
        path = next(
            path
            for path in (tmp_path / "data" / "blobs").rglob("*")
            if path.stat().st_size > MIB and path.is_file()
        )
        key = str(path.relative_to(tmp_path / "data" / "blobs"))
        token = ObjectLinks([TOKEN_SECRET]).issue(
            key, content_type="audio/mpeg", expires_at=int(time.time() + 3600) * 1000
        )
        held = psutil.Process(process.child.pid).num_fds()
        async with strangers(process, 300, f"GET /objects/{token} HTTP/1.1\r\nhost: x\r\n\r\n".encode()):
            assert only_200(await send_good(process, 2))
            assert await until(lambda: psutil.Process(process.child.pid).num_fds() < held + 50, _LONGEST)
