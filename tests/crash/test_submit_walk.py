"""Kill -9 at each step of a submission, restart, repeat it as an SDK does: no job is submitted twice, and each has its event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from receiver.core.submission import SubmissionFilter
from receiver.core.work import PickupFilter, PickupKind, PickupState
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store
from tests.support.clients import local_client
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE
from tests.support.postgres import database, server
from tests.support.processes import Process
from tests.support.running import BASIC
from tests.support.submitting import TOKEN, Asked, accepted, api, settings

pytestmark = pytest.mark.usefixtures("nothing_left_running")
AUDIO = b"RIFF" + bytes(300_000)
"""Longer than a first piece, so that it is known only at its end whether it repeats another."""
WALL_CLOCK = {"CRASHING_AHEAD": "0"}
STEPS = {
    ("store.begin_submission", "before"): (200, 1),
    ("store.begin_submission", "after"): (200, 1),
    ("store.fingerprint_submission", "after"): (424, 0),
    ("store.end_submission", "before"): (424, 1),
    ("store.end_submission", "after"): (200, 1),
    ("answer.send", "before"): (200, 1),
    ("store.deliver_submission", "before"): (200, 1),
}
"""By the moment of the kill: what the repetition is answered, and how many jobs the provider has by then."""


async def _submit(process: Process) -> int:
    """Return the status, 0 where no whole answer came."""
    headers = {"authorization": f"Token {TOKEN}", "x-receiver-ref": "order-7"}
    base = f"http://127.0.0.1:{process.port}"
    async with local_client(base_url=base) as client:
        try:
            return (
                await client.post("/submit/deepgram/v1/listen", content=AUDIO, headers=headers)
            ).status_code
        except httpx2.TransportError:
            return 0


async def _call_back(process: Process, target: str) -> int:
    path = urlsplit(parse_qs(urlsplit(target).query)["callback"][0]).path
    user, _, password = BASIC.partition(":")
    document = {"metadata": {"request_id": "job-1", "duration": 1}, "results": {"channels": []}}
    base = f"http://127.0.0.1:{process.port}"
    async with local_client(base_url=base) as client:
        answer = await client.post(path, json=document, auth=httpx2.BasicAuth(user, password))
        return answer.status_code


def _walk() -> Iterator[object]:
    quick = ("store.end_submission", "before")
    for step in STEPS:
        for kind in ("sqlite", "postgres"):
            is_quick = (step, kind) == (quick, "sqlite")
            yield pytest.param(*step, kind, marks=() if is_quick else (pytest.mark.soak,))


@contextlib.contextmanager
def _store(kind: str, folder: Path) -> Iterator[tuple[Store, str]]:
    """Yield the store that will be read, and its settings."""
    if kind == "sqlite":
        yield SqliteStore(str(folder / "data" / "receiver.db")), ""
        return
    with database() as url:
        yield PostgresStore(url), f'[store]\nurl = "{url}"'


@pytest.mark.parametrize(("step", "when", "kind"), [*_walk()])
async def test_a_kill_at_this_step_submits_no_job_twice_and_leaves_none_without_its_event(
    step: str, when: str, kind: str, tmp_path: Path
) -> None:
    with _store(kind, tmp_path) as (store, text):
        await _killed(step, when, store, text, tmp_path)


async def _killed(step: str, when: str, store: Store, text: str, folder: Path) -> None:
    status, jobs = STEPS[step, when]
    config = folder / "receiver.toml"
    async with api() as there:
        config.write_text(settings(folder, there.base, extra=text))
        dying = Process(config, step, when, environ=WALL_CLOCK)
        await dying.start()
        await _submit(dying)
        assert await dying.died() == -9
        healthy = Process(config, environ=WALL_CLOCK)
        await healthy.start()
        try:
            assert (await _submit(healthy), len(there.asked)) == (status, jobs)
            for asked in there.asked:
                assert await _call_back(healthy, asked.target) == 200
        finally:
            await healthy.stop()
    await store.open()
    try:
        events = await kept_events(store, types=("transcript.completed",))
        assert [event.ref for event in events] == ["order-7"] * jobs
        expected = await store.pickups(PickupFilter())
        assert {(one.kind, one.ref) for one in expected} == {(PickupKind.EXPECTED, "order-7")}
        # One without a callback ends with the event that tells so.
        assert [one.state for one in expected].count(PickupState.COLLECTED) == jobs
    finally:
        await store.close()


@pytest.mark.soak
async def test_an_answer_that_came_while_the_store_was_away_outlives_a_kill(tmp_path: Path) -> None:
    """Its result is fetched, and would never come otherwise."""
    config = tmp_path / "receiver.toml"
    with server() as postgres:
        url = postgres.url(postgres.new_database())
        store = PostgresStore(url)
        await store.migrate()
        async with api() as there:

            async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
                await asyncio.to_thread(postgres.stop)
                await accepted({"url": f"{there.base}/api/v1/tts/retroactive/job-9"})(asked, writer)

            there.behave = behave
            text = settings(tmp_path, there.base, submit='url = "http://r.test"', answer_seconds="20")
            config.write_text(
                text.replace('["deepgram", "deapi"]', '["deepgram", "deepdub"]')
                + f'[store]\nurl = "{url}"\n[sources.deepdub]\nprovider = "deepdub"\nsubmit = true\n'
                f'api_key = "dd-0123456789abcdef"\nbase_url = "{there.base}/api/v1"\nallow = ["127.0.0.0/8"]\n'
            )
            killed, healthy = (Process(config, environ=WALL_CLOCK) for _ in range(2))
            await killed.start()
            async with local_client(base_url=f"http://127.0.0.1:{killed.port}") as client:
                path, headers = "/submit/deepdub/api/v1/tts/retroactive", {"x-api-key": TOKEN}
                answer = await client.post(path, json={"targetText": "x"}, headers=headers)
            assert answer.status_code == 200
            await killed.kill()
            await asyncio.to_thread(postgres.start)
            await healthy.start()
            await store.open()
            async with asyncio.timeout(PATIENCE):
                while not (found := await store.pickups(PickupFilter())):
                    await asyncio.sleep(0)
            assert [(one.kind, one.job_id) for one in found] == [(PickupKind.RESULT, "job-9")]
            [row] = await store.submissions(SubmissionFilter())
            assert (row.state, row.job_id) == ("accepted", "job-9")
            await store.close()
            await healthy.stop()
