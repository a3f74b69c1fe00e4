"""Settings taken by a running receiver: at once and whole, or not at all; nothing is refused or lost meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from receiver.app import wiring
from receiver.settings.load import parse
from receiver.settings.model import Settings
from receiver.web.reloading import answering, ask_all, taken
from tests.support.house import build_house
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE
from tests.support.running import Running, api_token, running, settings_text
from tests.support.senders import Sent, transcript
from tests.support.sink import Sink

MORE = '[sources.more]\nprovider = "deepgram"\nbasic = ["deepgram:another-password-0123"]\n'
OLD, NEW = "the-older-token-0123456789", "the-newer-token-0123456789"


async def _send(up: Running, sent: Sent) -> int:
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    return answer.status_code


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.soak)])
async def test_callbacks_while_reloading_are_neither_refused_nor_lost(tmp_path: Path, count: int) -> None:
    async with Sink() as one, Sink() as other:
        texts = [
            settings_text(tmp_path, destination=sink.url, extra=MORE * (sink is other))
            for sink in (one, other)
        ]
        async with running(tmp_path, texts[0]) as up:
            numbers, statuses = iter(range(1, count + 1)), list[int]()

            async def send() -> None:
                for number in numbers:
                    statuses.append(await _send(up, transcript(f"job-{number}")))
                    if number % (count // 10) == 0:
                        assert not (await up.reload(texts[number // (count // 10) % 2])).error

            await asyncio.gather(*(send() for _ in range(16)))
            assert statuses == [200] * count
            events = await kept_events(up.receiver.store, limit=count + 1)
            assert len(events) == count

            await up.seen.until(lambda: len(up.seen.attempts) >= count)
            ids = {got.headers["webhook-id"] for got in (*one.received, *other.received)}
            assert ids == {event.id for event in events}
            assert one.received
            assert other.received, "both settings sent"


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, settings_text(tmp_path, extra=api_token("app", OLD)), work=False) as up:
        yield up


async def test_a_callback_ends_under_the_settings_that_it_began_with(up: Running, tmp_path: Path) -> None:
    sent = transcript("job-1")
    begun, rest = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield sent.body[:10]
        begun.set()
        await rest.wait()
        yield sent.body[10:]

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(
            up.client.request("POST", sent.path, headers=sent.headers, content=body())
        )
        await begun.wait()
        while not up.serving._face.under_way:
            await asyncio.sleep(0)
        changed = settings_text(tmp_path).replace("correct-horse-battery", "another-horse-battery")
        assert (await up.reload(changed)).changes == {
            "sources_changed": ["deepgram"],
            "settings_changed": ["api.tokens"],
        }
        assert await _send(up, transcript("job-2")) == 401
        rest.set()
    assert sending.result().status_code == 200


async def test_a_removed_token_is_refused_and_its_stream_ends(up: Running, tmp_path: Path) -> None:
    def asked(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    async with up.client.stream("GET", "/api/v1/stream", headers=asked(OLD)) as stream:
        pieces = stream.aiter_text()
        assert "the stream begins" in await anext(pieces)
        done = await up.reload(settings_text(tmp_path, extra=api_token("app", NEW)))
        assert done.changes == {"settings_changed": ["api.tokens"]}
        assert [piece async for piece in pieces] == []
    statuses = [
        (await up.client.get("/api/v1/stats", headers=asked(token))).status_code for token in (OLD, NEW)
    ]
    assert statuses == [401, 200]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[sources.new]\nprovider = 'nobody'\n", "there is no provider"),
        ("[destinations.new]\nurl = 'http://x'\nsecrets = ['abc']\n", "destinations.new"),
        ("[nonsense]\n", "nonsense: no such setting"),
    ],
)
async def test_settings_that_cannot_be_used_change_nothing_and_say_why(
    up: Running, tmp_path: Path, change: str, said: str
) -> None:
    before = up.serving.receiver
    done = await up.reload(settings_text(tmp_path, extra=change))
    assert said in (done.error or "")
    assert done.changes == {}
    assert up.serving.receiver is before
    assert up.seen.notes[-1][1] == "settings.not_taken"
    assert await _send(up, transcript("job-1")) == 200


async def test_a_login_by_a_removed_token_stays_ended_when_the_token_comes_back(
    up: Running, tmp_path: Path
) -> None:
    async def page(cookie: str) -> int:
        answer = await up.client.get("/console/events", headers={"cookie": f"receiver-console={cookie}"})
        return answer.status_code

    def login(in_seconds: int = 0) -> str:
        sessions = up.serving._face.sessions
        session = sessions.by_token(OLD)
        assert session is not None
        return sessions.cookie(replace(session, issued_at=session.issued_at + in_seconds))

    cookie = login()
    assert await page(cookie) == 200
    for tokens in (api_token("app", NEW), api_token("app", OLD)):
        assert not (await up.reload(settings_text(tmp_path, extra=tokens))).error
        assert await page(cookie) == 303
    assert await page(login(in_seconds=2)) == 200


async def test_a_stop_that_comes_during_a_reload_is_not_forgotten(
    up: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the reload made would take the process for one that goes on: ready, and with streams that do not end."""
    begin = wiring.begin

    async def stopped(receiver: wiring.Receiver, **roads: bool) -> None:
        await begin(receiver, **roads)
        up.serving.receiver.stopping = True

    monkeypatch.setattr(wiring, "begin", stopped)
    assert (await up.reload(settings_text(tmp_path, extra=MORE))).error == "receiver is stopping"
    assert up.serving.receiver.stopping


async def test_a_rejection_that_is_being_written_is_kept(
    up: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writing is under way when the stop comes."""
    store, rejections = up.receiver.store, up.receiver.rejections
    reject, asked, go_on = store.reject, asyncio.Event(), asyncio.Event()

    async def held(*rejections: Any, **how: Any) -> None:
        asked.set()
        await go_on.wait()
        await reject(*rejections, **how)

    monkeypatch.setattr(store, "reject", held)
    sent = transcript("job-1")
    async with asyncio.timeout(PATIENCE):
        assert (await up.client.post(sent.path, content=sent.body)).status_code == 401
        await asked.wait()
        stopping = asyncio.create_task(rejections.stop())
        while rejections._background.running:
            await asyncio.sleep(0)
        go_on.set()
        await stopping
        while not await store.rejections("deepgram", limit=5):
            await asyncio.sleep(0.01)


async def test_who_ends_before_it_answers_is_told_and_the_others_are_asked(tmp_path: Path) -> None:
    async def failing() -> bytes:
        raise OSError

    async def answer() -> bytes:
        return b"done"

    journal = str(tmp_path)
    async with answering(journal, failing), answering(journal, answer), answering(journal, failing):
        answers, silent = await asyncio.to_thread(ask_all, journal, seconds=5)
    assert answers == [b"done"]
    assert ["before it answered" in sentence for sentence in silent] == [True, True]


def _settings(text: str) -> Settings:
    return parse(text, {}, lambda name: "")


def test_what_hangs_on_sockets_and_files_waits_for_a_restart() -> None:
    before = _settings(f'[server]\nport = 1\n{MORE}[submit]\nlisten = ":1"\n')
    after = _settings(
        'data = "x"\n[server]\nport = 2\n[submit]\nlisten = ":2"\n[retention]\nbodies = "3d"\n'
        '[destinations.app]\nurl = "https://a.example"\n'
    )
    settings, changes = taken(before, after)
    assert changes == {
        "sources_removed": ["more"],
        "destinations_added": ["app"],
        "settings_changed": ["retention.bodies"],
        "needs_restart": ["data", "server.port", "submit.listen"],
    }
    assert settings.submit.listen == ":1"
    assert (settings.data, settings.server) == (before.data, before.server)
    assert (settings.sources, settings.retention) == (after.sources, after.retention)
    assert taken(settings, after)[1] == {"needs_restart": changes["needs_restart"]}, (
        "and is told again until then"
    )


def test_the_command_has_each_process_take_them_and_tells_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)  # a socket's path may not be so long
    folder.mkdir()
    house = build_house(folder)
    try:
        assert house.run("reload").status == 2
        assert "no receiver runs" in house.run("reload").err
        serve, work = house.start("serve", "--port", "0"), house.start("work")
        (house.folder / "secret").write_text("deepgram:a-password-from-a-file")
        config = Path(house.config)
        text = config.read_text()
        file = '[sources.more]\nprovider = "deepgram"\nbasic = ["file:secret"]\n'
        config.write_text(text + file)
        said = house.run("reload")
        assert said.status == 0, said.err
        assert sorted(said.out.splitlines()) == sorted(
            f"process {child.pid}: sources added: more" for child in (serve, work)
        )
        (house.folder / "secret").write_text("deepgram:another-from-a-file")
        rows = house.run("reload", "--json").items
        assert [row["changes"]["sources_changed"] for row in rows] == [["more"]] * 2

        config.write_text(text + file.replace("basic", "basik"))
        said = house.run("reload")
        assert said.status == 2
        assert "nothing is taken: sources.more.basik: no such setting; did you mean basic?" in said.out
        assert "start receiver again" not in said.out

        config.write_text(text + file.replace("file:secret", "deepgram:env:NOT_SET"))
        said = house.run("reload")
        assert said.status == 2
        assert (
            "A running process cannot see a new variable: export it, then start receiver again." in said.out
        )

        config.write_text(text)
        os.kill(serve.pid, signal.SIGHUP)
        line = serve.wait_for(lambda line: line.get("sources_removed") == "more", seconds=60)
        assert line
        assert line["event"] == "settings.taken"
        os.kill(work.pid, signal.SIGKILL)
        work.wait_for(lambda line: False, seconds=60)
        assert [row["pid"] for row in house.run("reload", "--json").items] == [serve.pid]
    finally:
        house.close()
