"""The tools of the chaos matrix can fail: a loss, a double, a forgery and a rate that stays low are seen."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook

from chaos.cells import CELLS
from chaos.destination import Destination
from chaos.load import Load
from chaos.oracle import Oracle
from chaos.page import Row
from chaos.peer import beside
from chaos.wire import Wire
from receiver.demo.deapi import Deapi
from tests.support.clients import local_client
from tests.support.provider_host import ProviderHost, reply
from tests.support.running import APP_SECRET

CELL = CELLS[0]
ONE, TWO = f"{CELL.name}-1", f"{CELL.name}-2"


def _row(oracle: Oracle) -> Row:
    load = Load(CELL.name, 1, list, oracle, Deapi("key"), "")
    row = Row(CELL, load, before=1, during=1, after=1, recovered=0.0, began=0, end=0, remark="")
    row.judge(oracle)
    return row


def test_what_was_promised_and_delivered_under_one_id_holds() -> None:
    oracle = Oracle()
    oracle.acknowledge(ONE, "evt_1")
    oracle.acknowledge(TWO, None)
    oracle.deliver(ONE, "evt_1", 1.0)
    oracle.deliver(ONE, "evt_1", 2.0)
    oracle.deliver(TWO, "evt_2", 2.0)
    row = _row(oracle)
    assert (row.acknowledged, row.lost, row.doubled, row.holds) == (2, set(), set(), True)
    assert oracle.repeats == 1


def test_a_lost_callback_is_seen() -> None:
    oracle = Oracle()
    oracle.acknowledge(ONE, "evt_1")
    oracle.acknowledge(TWO, "evt_2")
    oracle.deliver(ONE, "evt_1", 1.0)
    row = _row(oracle)
    assert row.lost == {TWO}
    assert not row.holds


@pytest.mark.parametrize("told", ["evt_1", None])
def test_a_job_under_two_ids_is_seen(told: str | None) -> None:
    oracle = Oracle()
    oracle.acknowledge(ONE, told)
    oracle.deliver(ONE, "evt_1", 1.0)
    oracle.deliver(ONE, "evt_2", 1.0)
    row = _row(oracle)
    assert row.doubled == {ONE}
    assert not row.holds


def test_another_id_than_the_provider_was_told_is_seen() -> None:
    oracle = Oracle()
    oracle.acknowledge(ONE, "evt_1")
    oracle.deliver(ONE, "evt_2", 1.0)
    assert _row(oracle).doubled == {ONE}


def test_the_rate_counts_as_recovered_only_when_it_is_back() -> None:
    """Ten a second until 10, five until 20, then ten again."""
    oracle = Oracle()
    times = [n / 10 for n in range(100)] + [10 + n / 5 for n in range(50)] + [20 + n / 10 for n in range(100)]
    for number, at in enumerate(times):
        oracle.deliver(f"job-{number}", f"evt_{number}", at)
    before = oracle.rate(2, 10)
    assert before == pytest.approx(10, abs=0.2)
    assert oracle.recovered(12, 20, before) is None
    found = oracle.recovered(12, 30, before)
    assert found == pytest.approx(8, abs=0.5)


async def _deliver(port: int, body: bytes, secret: str) -> int:
    at = datetime.now(UTC)
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", at, body.decode()),
    }
    async with local_client() as client:
        return (
            await client.post(f"http://127.0.0.1:{port}/hooks", content=body, headers=headers)
        ).status_code


async def test_the_destination_tells_the_oracle_only_of_what_is_signed() -> None:
    body = json.dumps({"type": "transcript.completed", "data": {"job_id": ONE, "event_id": "evt_1"}}).encode()
    async with Destination(APP_SECRET) as destination:
        assert await _deliver(destination.port, body, "whsec_" + "A" * 32) == 401
        assert (destination.forged, destination.oracle.delivered) == (1, {})
        destination.behave("fail")
        assert await _deliver(destination.port, body, APP_SECRET) == 500
        assert destination.oracle.delivered == {}
        destination.behave("well")
        assert await _deliver(destination.port, body, APP_SECRET) == 200
        assert destination.oracle.delivered == {ONE: {"evt_1"}}
        assert destination.oracle.times[0] <= time.monotonic()


async def test_the_wire_holds_back_what_is_sent_while_it_is_frozen() -> None:
    async with (
        ProviderHost(scripts={"/": reply(200, b"there")}) as host,
        Wire(host.port) as wire,
        local_client(timeout=10) as client,
    ):
        url = f"http://127.0.0.1:{wire.port}/"
        assert (await client.get(url)).text == "there"
        wire.freeze()
        asked = asyncio.create_task(client.get(url))
        done, _ = await asyncio.wait([asked], timeout=0.2)
        assert (done, len(host.requests)) == (set(), 1)
        wire.thaw()
        assert (await asked).text == "there"


async def test_the_wire_answers_as_a_store_in_trouble() -> None:
    """The five manners in turn: 500, 503, cut, carried out but unanswered, served."""
    async with ProviderHost(scripts={"/": reply(200, b"there")}) as host, Wire(host.port) as wire:
        await wire.misbehave(True)
        seen: list[int | str] = []
        for _ in range(5):
            async with local_client(timeout=10) as client:
                try:
                    answer = await client.get(f"http://127.0.0.1:{wire.port}/", headers={"x-long": "a" * 400})
                    seen.append(answer.status_code)
                except httpx2.HTTPError:
                    seen.append("broken")
    assert seen == [500, 503, "broken", "broken", 200]
    assert len(host.requests) == 2


def test_the_other_queue_stands_beside_a_whole_run_only() -> None:
    """Each fault of theirs has a row of ours with the rate after by the rate before; a partial run shows no such table."""
    rows = [
        replace(_row(Oracle()), cell=cell, before=60.0, after=57.0 if cell.name == "kill-loop" else 60.0)
        for cell in CELLS
    ]
    told = "\n".join(beside(rows))
    assert "| processes killed again and again | 18 % | 95 % (95 % after 0.0 s) |" in told
    assert "| PostgreSQL stopped and started | 0 % | 100 % (95 % after 0.0 s) |" in told
    assert beside(rows[:3]) == []
