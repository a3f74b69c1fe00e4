"""A stranger's requests are counted; lines about them are limited."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.hostile.attack import client, only_200, send, send_good, target
from tests.support.senders import Sent, deapi

_SENT = 600


async def test_refusals_are_counted_and_their_lines_limited(tmp_path: Path) -> None:
    bad = Sent("bad", "/callbacks/deepgram", {"content-type": "application/json"}, b"{}")
    with target(tmp_path) as process:
        async with client(process) as http:

            async def refuse() -> None:
                for _ in range(_SENT // 4):
                    assert await send(http, bad) == 401

            await asyncio.gather(*(refuse() for _ in range(4)))
            assert only_200(await send_good(process, 1))
            metrics = (await http.get("/metrics")).text
    assert f'receiver_callbacks_total{{answer="rejected",source="deepgram"}} {_SENT}.0' in metrics
    assert process.lines("callback.rejected") < 20
    assert len(process.log) < 10_000


async def test_requests_for_sources_that_do_not_exist_are_limited_as_well(tmp_path: Path) -> None:
    with target(tmp_path) as process:
        async with client(process) as http:
            for number in range(200):
                assert await send(http, Sent("x", f"/callbacks/no{number}", {}, b"")) == 404
    assert len(process.log) < 10_000


async def test_codings_that_a_stranger_invents_are_limited_as_well(tmp_path: Path) -> None:
    sent = deapi("job")
    with target(tmp_path) as process:
        async with client(process) as http:
            for number in range(200):
                coding = "".join(chr(ord("a") + int(digit)) for digit in str(number))
                headers = sent.headers | {"content-encoding": coding, "x-deapi-signature": f"sha256={0:064}"}
                assert await send(http, Sent("x", sent.path, headers, sent.body)) == 415
    assert len(process.log) < 10_000
