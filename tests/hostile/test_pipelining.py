"""Requests that come before the last one is answered are not queued without bound."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.attack import MOST_GROWTH, Growth, only_200, send_good, strangers, target

_REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def test_pipelined_requests_whose_answers_nobody_reads_are_not_queued(tmp_path: Path) -> None:
    with target(tmp_path) as process, Growth(process) as growth:
        async with strangers(process, 100, _REQUEST * (60_000 // len(_REQUEST))):
            statuses = await send_good(process, 3, seconds=60)
    assert growth.bytes < MOST_GROWTH
    assert only_200(statuses), statuses
