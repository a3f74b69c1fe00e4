"""Junk does not hide the provider's own rejections: neither from the alarm nor from the list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from receiver.core.clock import wall_clock
from tests.hostile.attack import client, send, target
from tests.support.running import Running, running
from tests.support.senders import Sent, deapi

WRONG = "whsec_the_account_has_another_one_by_now"
JUNK = (
    Sent("junk", "/callbacks/deapi", {}, b"{}"),
    replace(deapi("junk"), headers=deapi("junk").headers | {"x-deapi-signature": "sha256=0"}),
    deapi("junk", at=1_700_000_000),
    replace(deapi("junk"), path="/callbacks/deapi/" + "a" * 80),
    Sent("junk", "/callbacks/nobody", {}, b"{}"),
)


async def test_junk_mutes_no_alarm_and_pushes_nothing_out_of_the_list(tmp_path: Path) -> None:
    with target(tmp_path) as process:
        async with client(process) as http:
            await send(http, deapi("first-wrong", secret=WRONG))
            for _ in range(120):
                for sent in JUNK:
                    assert await send(http, sent) in (401, 404)
            for number in range(2):
                await send(http, deapi(f"wrong-{number}", secret=WRONG))
        assert process.child.wait_for(
            lambda line: line.get("event") == "source.rejecting" and line.get("kind") == "wrong", seconds=10
        )
        process.child.stop(seconds=3)  # which writes the last of them
        found = process.run("rejections", "--limit", 1000, "--json").json["items"]
    kinds = [one["kind"] for one in found]
    assert kinds.count("wrong") == 3
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "wrong": 3,
        **dict.fromkeys(("missing", "malformed", "stale", "token", "unknown_source"), 100),
    }
    (unknown, *_) = [one for one in found if one["kind"] == "unknown_source"]
    assert unknown["source"] == "unknown"
    assert "'nobody'" in unknown["reason"]


async def test_an_alarm_is_raised_again_after_an_hour_without_a_success(tmp_path: Path) -> None:
    now = wall_clock()

    def alarms(up: Running) -> int:
        return sum(name == "source.rejecting" for _, name, _ in up.seen.notes)

    async with running(tmp_path, clock=lambda: now) as up:
        for expected in (1, 2):
            for _ in range(5):
                sent = deapi("wrong", secret=WRONG, at=now // 1000)
                answer = await up.client.post(sent.path, headers=sent.headers, content=sent.body)
                assert answer.status_code == 401
            assert alarms(up) == expected
            now += 3_600_000


async def test_junk_between_good_callbacks_raises_no_alarm_for_each_of_them(tmp_path: Path) -> None:
    now = wall_clock()
    async with running(tmp_path, clock=lambda: now) as up:

        async def answers(*sent: Sent) -> list[int]:
            return [
                (await up.client.post(one.path, headers=one.headers, content=one.body)).status_code
                for one in sent
            ]

        for expected in (1, 2):
            for turn in range(3):
                wrong = deapi("wrong", secret=WRONG, at=now // 1000)
                good = deapi(f"good-{expected}-{turn}", at=now // 1000)
                assert await answers(wrong, wrong, wrong, good) == [401, 401, 401, 200]
            assert sum(name == "source.rejecting" for _, name, _ in up.seen.notes) == expected
            now += 30_000


async def test_the_list_shows_no_token_that_stands_where_a_source_should(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        token = up.receiver.tokens.issue("deapi")
        await up.client.post(f"/callbacks/{token}", content=b"{}")
        await up.receiver.intake.rejections.flush()
        (kept,) = await up.receiver.store.rejections(None, limit=9)
        assert token not in repr(kept)
