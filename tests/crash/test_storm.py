"""Random kills under load of mixed callbacks: every acknowledged one is delivered in the end, under one id.

Embedded, one receiver is killed and started again. Over PostgreSQL and S3 it is a fleet, behind senders that turn to another one
when a connection is refused, as a load balancer does; and one machine of it is lost with callbacks in its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import pytest

from receiver.demo.deapi import ApiJob
from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.crashing import fast_clock
from tests.support.delivered import Delivered
from tests.support.kept import Kept
from tests.support.processes import Acknowledged, Process, send_once
from tests.support.pulling import AUDIO, KEY, Providers, asked_providers
from tests.support.running import BASIC, DEAPI_SECRET, settings_text
from tests.support.s3_wire import Wire
from tests.support.senders import PAUSE, Sent, basic, deapi, speech, transcript
from tests.support.sink import Answer, Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")

SENDERS = 6
LEFT = 3
"""Callbacks that only the lost machine's journal holds, at least."""
PROCESSED, COMPLETED = "job.processing", "job.completed"


def _too_old(answer: httpx2.Response) -> bool:
    """Whether a signature was too old when it was read: the five minutes that it holds are five seconds of a busy machine."""
    return answer.status_code == 401 and "check this machine's clock" in answer.text


class Storm:
    """Senders that keep each callback until it is acknowledged, against receivers that keep dying."""

    def __init__(
        self,
        fleet: Sequence[Process],
        providers: Providers,
        seed: int,
        clock: Callable[[], int] = fast_clock,
        own: str = "",
    ) -> None:
        """`clock` is the receivers', and `own` ends each of their secrets."""
        self._fleet = fleet
        self._providers = providers
        self._clock = clock
        self._own = own
        self.answers: dict[str, list[str]] = {}
        """What each callback was answered, and by whom."""
        self.oracle = Acknowledged()
        self._random = random.Random(seed)
        self._turns = random.Random(seed)
        self._up: list[Process] = []
        """As a load balancer knows it: a receiver that was just killed may still be among them."""
        self._dead: list[Process] = []
        self._starting: list[asyncio.Task[None]] = []
        self._restarts: list[tuple[float, int]] = []
        """When a receiver was started again, at once after its kill, and how many callbacks had been acknowledged by then."""
        self._over = False
        self._tries = 0
        self._under_way: dict[int, str] = {}
        self._journaled: dict[str, Process] = {}
        """Who answered that it keeps a callback, which is all that the provider will ever hear."""
        self._changed = asyncio.Condition()

    def _next(self, number: int, sender: int) -> Sent:
        name = f"job-{sender}-{number}"
        kind = number % 4
        if kind == 1:
            return self._deapi(name, number)
        if kind == 0:
            sent = speech(name, method="PUT" if number % 8 else "POST", times=1 + 3 * (number % 3))
        else:
            # Long transcripts go to the blob store, short ones into the row.
            sent = transcript(name, text=f"This is {name}. " * (1 if kind == 2 else 3000))
        return replace(sent, headers=sent.headers | {"authorization": basic(BASIC + self._own)})

    def _deapi(self, name: str, number: int) -> Sent:
        """By turns: without a link, with one that has expired (the API is asked in both cases), without, and with a good one."""
        at, job, secret = self._clock() // 1000, self._providers.deapi, DEAPI_SECRET + self._own
        job.jobs.setdefault(name, ApiJob(result=AUDIO))
        if number % 8 < 4:
            return deapi(name, at=at, secret=secret)
        link = job.link(self._providers.deapi_base, name)
        return deapi(name, at=at, secret=secret, result_url=f"{link}0" if number % 16 < 8 else link)

    # ------------------------------------------------------------ senders

    async def send(self, sender: int) -> None:
        """Send one callback after the other, each until it is answered 2xx, as the provider would."""
        async with local_client() as client:
            number = 0
            while not self._over:
                number += 1
                self._under_way[sender] = self._next(number, sender).name
                while not await self._taken(client, number, sender):
                    await asyncio.sleep(PAUSE)  # a provider waits longer

    async def _taken(self, client: httpx2.AsyncClient, number: int, sender: int) -> bool:
        """Try one receiver after the other until one answers; tell whether it took the callback."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._up))
        for one in self._turns.sample(self._up, len(self._up)):
            sent = self._next(
                number, sender
            )  # signed afresh: by the receivers' clock a signature is soon too old
            answer = await send_once(client, one.port, sent.path, sent.headers, sent.body, sent.method)
            told = "broke" if answer is None else f"{answer.status_code} {answer.text}"
            self.answers.setdefault(sent.name, []).append(f"{one.port} {one.config.parent.name}: {told}")
            if answer is not None and answer.is_success:
                self.oracle.note(sent.name, answer.json().get("event_id"))
                if answer.json()["status"] == "journaled":
                    self._journaled[sent.name] = one
            async with self._changed:
                self._tries += 1
                self._changed.notify_all()
            if answer is not None and answer.status_code == 401 and one in self._dead:
                continue  # somebody else listens there now
            if answer is not None:
                assert answer.is_success or answer.status_code == 503 or _too_old(answer), answer.text
                return answer.is_success
        return False

    # ------------------------------------------------------------ receivers

    async def start(self, one: Process) -> None:
        """Start a receiver, and give it callbacks."""
        await one.start()
        assert one.port, "it does not start"
        async with self._changed:
            self._dead = [other for other in self._dead if other is not one]
            self._up.append(one)
            self._changed.notify_all()

    async def _kill(self, one: Process) -> None:
        self._dead.append(one)
        await one.kill()
        self._up.remove(one)

    async def kill(self, times: int) -> None:
        """Let a random number of callbacks pass, kill a random receiver that is up, start it again; leave all up."""
        for _ in range(times):
            until = self._tries + self._random.randint(1, 40)
            async with self._changed:
                await self._changed.wait_for(lambda until=until: self._up and self._tries >= until)  # type: ignore[misc]
            dying = self._random.choice(self._up)
            await self._kill(dying)
            self._restarts.append((time.monotonic(), len(self.oracle.events)))
            self._starting.append(asyncio.create_task(self.start(dying)))
        await asyncio.gather(*self._starting)

    def seconds_behind(self, arrived: Mapping[str, float], away: set[str]) -> list[float]:
        """Return for each restart how long after it the last delivery came of what was acknowledged before.

        `arrived` has the time of each delivery; those `away` waited for a machine that was lost.
        """
        acknowledged, seconds = list(self.oracle.events), []
        for at, count in self._restarts:
            came = [arrived[name] for name in acknowledged[:count] if name not in away]
            seconds.append(max([at, *came]) - at)
        return seconds

    def journaled(self, one: Process) -> set[str]:
        """Return the jobs whose callbacks a receiver said it keeps, and that may have been recorded since."""
        return {name for name, keeper in self._journaled.items() if keeper is one}

    async def lose(self, one: Process, wire: Wire) -> set[str]:
        """Cut a receiver off from PostgreSQL, and kill it for good; return jobs that nothing but its journal knows of."""
        await wire.stop()
        # Of these, PostgreSQL or another receiver may know something.
        before = set(self._under_way.values()) | self.journaled(one)

        def left() -> set[str]:
            return self.journaled(one) - before

        async with self._changed:
            await self._changed.wait_for(lambda: len(left()) >= LEFT)
        await self._kill(one)
        return left()

    async def run(self, kills: int, seconds: float, lost: tuple[Process, Wire] | None = None) -> set[str]:
        """Storm until receivers were killed so often, and every sender has its last answer.

        A machine that is to be `lost` is, halfway; the jobs that only its journal knows of are returned.
        """
        senders: list[asyncio.Task[None]] = []
        left: set[str] = set()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self.start(one) for one in self._fleet))
                senders += [asyncio.create_task(self.send(number)) for number in range(SENDERS)]
                await self.kill(kills // 2)
                if lost is not None:
                    left = await self.lose(*lost)
                await self.kill(kills - kills // 2)
                self._over = True
                await asyncio.gather(*senders)
        finally:
            for task in senders:
                task.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
        return left

    async def stop(self) -> None:
        """End those that are left."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*(one.stop() for one in self._up))


# ---------------------------------------------------------------- where it rages


@dataclass
class Fleet:
    """The receivers of a storm, each with a folder of its own."""

    receivers: list[Process]
    lost: tuple[Process, Wire] | None = None
    """The one that is lost for good, and its wire to PostgreSQL."""
    heir: Process | None = None
    """The next one on the lost one's disk."""

    def journaled(self) -> list[Path]:
        """Return what lies on the disk of the lost one."""
        return [] if self.heir is None else [*(self.heir.config.parent / "data" / "journal").glob("*.json")]


def _config(path: Path, providers: Providers, destination: str, place: Place, own: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    text = settings_text(
        path.parent, destination=destination, retry="{retries = 1000, wait = 1}", extra=place.settings
    )
    # A receiver of another storm may listen where one of this was killed: it refuses what was meant for that.
    for secret in (BASIC, DEAPI_SECRET):
        text = text.replace(secret, secret + own)
    asked = f'api_key = "{KEY}"\napi_url = "{providers.deapi_base}"\nresult_hosts = ["127.0.0.1"]\n'
    more = f'{asked}allow = ["127.0.0.0/8"]\nattempt_seconds = 5\n'
    path.write_text(text.replace("[sources.deapi]\n", f"[sources.deapi]\n{more}"))
    return path


@contextlib.asynccontextmanager
async def _fleet(
    place: Place, folder: Path, providers: Providers, destination: str, kind: type[Process], own: str
) -> AsyncIterator[Fleet]:
    """Embedded one receiver; over PostgreSQL and S3 three, and one to come."""

    def receiver(name: str, at: Place = place) -> Process:
        return kind(_config(folder / name, providers, destination, at, own), environ=place.environ)

    if place.shared is None:
        yield Fleet([receiver("receiver.toml")])
        return
    address, _, database = place.shared.database.rpartition("/")
    host, _, port = address.rpartition(":")
    async with Wire(int(port)) as wire:
        far = replace(place.shared, database=f"{host}:{wire.port}/{database}")
        lost = receiver("lost/receiver.toml", replace(place, settings=far.settings))
        rest = [receiver(f"{name}/receiver.toml") for name in ("one", "two")]
        yield Fleet([*rest, lost], (lost, wire), receiver("lost/heir.toml"))


async def storm_over(
    place: Place,
    folder: Path,
    *,
    kills: int,
    seed: int,
    seconds: float,
    kind: type[Process] = Process,
    clock: Callable[[], int] = fast_clock,
    patience: float = 60,
) -> None:
    """Let a storm rage for `seconds` at most, and the last deliveries come, for which leases of killed receivers have to end."""
    own = secrets.token_hex(8)
    with asked_providers() as providers:
        async with Sink() as sink, _fleet(place, folder, providers, sink.url, kind, own) as fleet:
            # The application has its bad moments as well.
            sink.script.extend(Answer(status=500) for _ in range(20))
            storm, delivered = Storm(fleet.receivers, providers, seed, clock, own), Delivered(sink)
            try:
                left = await storm.run(kills, seconds, fleet.lost)
                wanted = storm.oracle.events
                assert len(wanted) > kills
                away = storm.journaled(fleet.lost[0]) if fleet.lost else set()
                kept = place.kept(folder)
                await _until_delivered(delivered, wanted.keys() - away, patience, kept, storm.answers)
                if fleet.heir is not None:
                    # Nobody else could know of these.
                    assert len(fleet.journaled()) >= len(left) >= LEFT
                    assert left & delivered.ids.keys() == set()
                    await storm.start(fleet.heir)
                    await _until_delivered(delivered, {*wanted}, patience, kept, storm.answers)
                    await _drained(fleet, patience)
            finally:
                await storm.stop()
            delivered.look()
            behind = storm.seconds_behind(delivered.arrived, away)
            print(
                f"\n{kills} kills, {len(wanted)} callbacks: from a restart to the last delivery of what had been "
                f"acknowledged before: median {median(behind):.1f} s, worst {max(behind):.1f} s"
            )
            await asyncio.to_thread(_check, place.kept(folder), wanted, delivered)
            audio = await asyncio.to_thread(_check_audio, place.kept(folder), delivered)
            assert audio > kills / 5
            paths = [request.path for request in providers.deapi.requests]
            assert any(path.startswith("/api/") for path in paths), "links had expired, so the API was asked"


async def _until_delivered(
    delivered: Delivered, jobs: set[str], patience: float, kept: Kept, answers: dict[str, list[str]]
) -> None:
    with contextlib.suppress(TimeoutError):
        await delivered.until(lambda: delivered.ids.keys() >= jobs, patience)
    missing = jobs - delivered.ids.keys()
    known = await asyncio.to_thread(_known, kept, missing)
    told = {job: answers[job] for job in missing}
    assert missing == set(), f"not delivered: {told}; the store has {known}, now is {fast_clock()}"


def _known(kept: Kept, jobs: set[str]) -> dict[str, list[Any]]:
    """Return what the store has of jobs, for whoever has to find out why they were not delivered."""
    return {
        job: [
            kept.rows(text.format(job=job))
            for text in (
                "SELECT id, event_id, idempotency_key, second_key FROM callbacks WHERE idempotency_key LIKE '%{job}%'",
                "SELECT id, event_id, state, due_at, attempts, last_outcome, last_detail FROM pickups WHERE job_id = '{job}'",
                "SELECT id, type, recorded_at FROM events WHERE job_id = '{job}'",
                "SELECT state, due_at, attempts, claimed_by FROM deliveries WHERE event_id IN (SELECT id FROM events WHERE job_id = '{job}')",
            )
        ]
        for job in sorted(jobs)
    }


async def _drained(fleet: Fleet, patience: float) -> None:
    """Wait until nothing is left on the lost machine's disk."""
    async with asyncio.timeout(patience):
        while fleet.journaled():
            await asyncio.sleep(0.05)  # no process tells when it has drained


def _check(kept: Kept, wanted: dict[str, set[str]], delivered: Delivered) -> None:
    """Nothing is under two ids, neither delivered nor in the store; the id that was told is the one that was delivered."""
    doubled = {name: ids for name, ids in delivered.ids.items() if len(ids) > 1}
    assert doubled == {}
    # A callback answered "journaled" names no event yet; all others name the one that was delivered.
    assert {name: ids for name, ids in wanted.items() if ids and ids != delivered.ids[name]} == {}
    assert kept.rows("SELECT job_id FROM events GROUP BY job_id HAVING count(*) > 1") == []


def _check_audio(kept: Kept, delivered: Delivered) -> int:
    """Every audio that an event refers to is there, whole; return how many were fetched from deAPI."""
    said = [event["data"] for event in delivered.events if event["data"]["audio"]]
    found = kept.audio({data["audio"]["uri"] for data in said})
    fetched = 0
    for data in said:
        audio = found[data["audio"]["uri"]]
        assert hashlib.sha256(audio).hexdigest() == data["audio"]["sha256"]
        fetched += data["source"] == "deapi" and audio == AUDIO
    return fetched


# ---------------------------------------------------------------- storms


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("place", "kills"), [("embedded", 7), ("shared", 4)], indirect=["place"])
async def test_kills_under_load_lose_and_double_nothing(place: Place, kills: int, tmp_path: Path) -> None:
    await storm_over(place, tmp_path, kills=kills, seed=20261121, seconds=200)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)
async def test_a_long_storm_loses_and_doubles_nothing(place: Place, seed: int, tmp_path: Path) -> None:
    """`make storm KILLS=50` runs a shorter one."""
    kills = int(os.environ.get("STORM_KILLS", "200"))
    await storm_over(place, tmp_path, kills=kills, seed=seed, seconds=1200)
