"""The pull road while something fails: the store, the blobs, the disk, the provider, a stop in mid-download."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.app.wiring import Ports
from receiver.core.clock import wall_clock
from receiver.core.work import Pickup, PickupAttempt, PickupFilter, PickupState
from receiver.demo.deepdub import BASE_PATH
from receiver.demo.serving import served
from receiver.engine.pickups import new_pickup
from receiver.storage.store.sqlite import SqliteStore
from receiver.system import body_buffer
from tests.faultvfs import FaultVFS
from tests.support.faulty import FaultyDeepdub
from tests.support.kept_events import kept_events
from tests.support.ports import free_port
from tests.support.provider_host import ProviderHost, Talk, reply
from tests.support.pulling import AUDIO, KEY, Providers, asked_providers
from tests.support.running import Running, running
from tests.support.senders import Sent, deapi
from tests.support.sink import Sink

AUDIO_REPLY = reply(200, AUDIO, {"content-type": "audio/mpeg"})


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with asked_providers() as found:
        yield found


class Hurried:
    """A clock that runs 20 times as fast as the wall's: backoff is over in no time."""

    def __init__(self) -> None:
        self._since = wall_clock()

    def __call__(self) -> int:
        return self._since + (wall_clock() - self._since) * 20


class Faulty:
    """Puts a receiver's SQLite on a file system with switches."""

    def __init__(self, folder: Path) -> None:
        self.vfs = FaultVFS()
        self._path = str(folder / "data" / "receiver.db")

    def shape(self, ports: Ports) -> Ports:
        ports.store = SqliteStore(self._path, vfs=self.vfs.name, busy_timeout=0.2)
        return ports


async def _push(up: Running, sent: Sent) -> dict[str, Any]:
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def _attempts(up: Running) -> list[PickupAttempt]:
    (pickup,) = await up.receiver.store.pickups(PickupFilter())
    return await up.receiver.store.pickup_attempts(pickup.id)


async def _one_event(up: Running, sink: Sink, event_id: str) -> None:
    """The job came to one event, delivered once, with the audio."""
    await sink.until(1)
    await up.seen.until(lambda: any(report.state == "delivered" for report in up.seen.attempts))
    event = json.loads(sink.received[0].body)
    assert (event["type"], event["data"]["event_id"]) == ("speech.completed", event_id)
    assert (await up.client.get(event["data"]["audio"]["url"])).content == AUDIO
    assert [one.id for one in await kept_events(up.receiver.store)] == [event_id]
    assert len(sink.received) == 1
    assert not _temporary(up.folder)


def _temporary(folder: Path) -> list[Path]:
    return list((folder / "data" / "journal" / "spool").iterdir())


async def _held_back(talk: Talk) -> None:
    """Answer with audio once the test says so."""
    await talk.until_told()
    await talk.send(AUDIO_REPLY)


# ---------------------------------------------------------------- our own parts


@pytest.mark.parametrize(
    ("switch", "turned"),
    [("full", True), ("fail_sync", ("-wal", ".db")), ("read_only", True)],
    ids=["full-disk", "sync-fails", "read-only"],
)
async def test_a_store_that_fails_while_a_result_is_collected_loses_nothing(
    switch: str, turned: Any, providers: Providers, tmp_path: Path
) -> None:
    """The attempt is made once and settled when the store is back: the provider is not asked again."""
    fault = Faulty(tmp_path)
    async with (
        Sink() as sink,
        ProviderHost(scripts={"/r": _held_back}) as host,
        running(tmp_path, providers.text(tmp_path, sink.url), shape=fault.shape) as up,
    ):
        told = await _push(up, deapi("job", result_url=host.url("/r")))
        await up.seen.until(lambda: bool(up.seen.callbacks))
        while not host.requests:
            await asyncio.sleep(0)
        setattr(fault.vfs, switch, turned)
        host.tell()
        await up.seen.until(lambda: any(n[1] == "pickup.store_unavailable" for n in up.seen.notes))
        setattr(fault.vfs, switch, type(turned)())
        await _one_event(up, sink, told["event_id"])
        assert [one.outcome for one in await _attempts(up)] == ["collected"]
        assert len(host.requests) == 1


async def test_a_deapi_callback_that_the_journal_took_becomes_a_pickup_and_one_event(
    providers: Providers, tmp_path: Path
) -> None:
    fault = Faulty(tmp_path)
    async with (
        Sink() as sink,
        running(tmp_path, providers.text(tmp_path, sink.url), shape=fault.shape) as up,
    ):
        sent = providers.pushed(providers.deapi_job())
        fault.vfs.full = True
        assert await _push(up, sent) == {"status": "journaled"}
        fault.vfs.full = False
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        again = await _push(up, sent)
        assert again["status"] == "duplicate"
        await _one_event(up, sink, again["event_id"])


async def test_a_blob_folder_that_is_gone_for_a_while_delays_the_event_and_no_more(
    providers: Providers, tmp_path: Path
) -> None:
    async with (
        Sink() as sink,
        running(tmp_path, providers.text(tmp_path, sink.url), clock=Hurried()) as up,
    ):
        blobs = tmp_path / "data" / "blobs"
        blobs.rename(tmp_path / "away")
        told = await _push(up, providers.pushed(providers.deapi_job()))
        await up.seen.until(lambda: len(up.seen.pickups) >= 2)
        assert {report.outcome.kind for report in up.seen.pickups} == {"not_stored"}
        assert not _temporary(tmp_path)
        (tmp_path / "away").rename(blobs)
        await _one_event(up, sink, told["event_id"])
        assert [one.outcome for one in await _attempts(up)][-1] == "collected"


async def test_a_disk_too_full_for_the_download_delays_the_event_and_leaves_no_file(
    providers: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: Any, pieces: list[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with (
        Sink() as sink,
        running(tmp_path, providers.text(tmp_path, sink.url), clock=Hurried()) as up,
    ):
        monkeypatch.setattr(body_buffer._Writer, "_write", full)
        told = await _push(up, providers.pushed(providers.deapi_job()))
        await up.seen.until(lambda: bool(up.seen.pickups))
        outcome = up.seen.pickups[0].outcome
        assert (outcome.kind, outcome.detail) == (
            "not_stored",
            "the folder for temporary files cannot be written: No space left on device",
        )
        assert not _temporary(tmp_path)
        monkeypatch.undo()
        await _one_event(up, sink, told["event_id"])


async def test_a_stop_in_mid_download_hands_the_claim_back_uncounted_and_a_restart_finishes(
    providers: Providers, tmp_path: Path
) -> None:
    almost = asyncio.Event()

    async def stuck(talk: Talk) -> None:
        await talk.send(AUDIO_REPLY[:-1])
        almost.set()
        await talk.hang()

    async with Sink() as sink, ProviderHost(scripts={"/r": stuck}) as host:
        text = providers.text(tmp_path, sink.url) + "[server]\nstop_seconds = 0.05\n"
        async with running(tmp_path, text) as up:
            told = await _push(up, deapi("job", result_url=host.url("/r")))
            await almost.wait()
            while not _temporary(tmp_path):
                await asyncio.sleep(0)
        assert not _temporary(tmp_path)
        async with running(tmp_path, text, work=False) as up:
            (pickup,) = await up.receiver.store.pickups(PickupFilter())
            assert (pickup.state, pickup.attempts, pickup.claimed_by) == (PickupState.PENDING, 0, None)
            assert not await _attempts(up)
        host.scripts["/r"] = AUDIO_REPLY
        async with running(tmp_path, text) as up:
            await _one_event(up, sink, told["event_id"])
            assert [one.number for one in await _attempts(up)] == [1]


# ---------------------------------------------------------------- an outage of the provider


class Movable:
    """A clock that the test moves, and time goes on from there."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return wall_clock() + self.ahead

    async def to_next_attempt(self, up: Running, source: str) -> None:
        """Move to where the source's pickup is due, and wait until the attempt is settled."""
        due_at = await up.receiver.store.next_due_pickup(source)
        assert due_at is not None
        made = len(up.seen.pickups)
        self.ahead += max(0, due_at - self())
        up.receiver.collector.wake([source])
        await up.seen.until(lambda: len(up.seen.pickups) > made)


@pytest.mark.parametrize(
    ("outage", "outcome", "most", "least_gap"),
    [("down", "unreachable", 24, 3.7), ("page", "refused", 24, 3.7), ("busy", "refused", 8, 600)],
    ids=["connection-refused", "502", "429-with-retry-after"],
)
async def test_an_hours_outage_of_the_provider_loses_nothing_and_is_met_with_few_attempts(
    outage: str, outcome: str, most: int, least_gap: float, tmp_path: Path
) -> None:
    provider, clock, port = FaultyDeepdub(KEY, audio=AUDIO), Movable(), free_port()
    provider.busy_seconds, provider.fault = 600, None if outage == "down" else outage
    text = f"""
data = "{tmp_path / "data"}"
[sources.deepdub]
provider = "deepdub"
api_key = "{KEY}"
base_url = "http://127.0.0.1:{port}{BASE_PATH}"
allow = ["127.0.0.0/8"]
deadline_seconds = 86400
"""
    async with Sink() as sink:
        text += f'[destinations.app]\nurl = "{sink.url}"\nallow = ["127.0.0.0/8"]\n'
        with contextlib.ExitStack() as stack:
            if outage != "down":
                stack.enter_context(served(provider.app, port=port))
            async with running(tmp_path, text, clock=clock) as up:
                began = clock()
                pickup = await _hand_over(up, "deepdub", provider.submit())
                while clock() < began + 3_600_000:
                    await clock.to_next_attempt(up, "deepdub")
                if outage == "down":
                    stack.enter_context(served(provider.app, port=port))
                provider.fault = None
                await clock.to_next_attempt(up, "deepdub")
                await _one_event(up, sink, pickup.event_id)
                attempts = await _attempts(up)
    assert [one.outcome for one in attempts] == [outcome] * (len(attempts) - 1) + ["collected"]
    gaps = [(later.started_at - one.started_at) / 1000 for one, later in itertools.pairwise(attempts)]
    assert 4 <= len(attempts) <= most, gaps
    assert min(gaps) >= least_gap, gaps
    if outage != "busy":
        assert all(225 <= gap <= 380 for gap in gaps[7:]), gaps
    assert attempts[-1].started_at - began <= 3_600_000 + 2 * max(least_gap, 380) * 1000


async def _hand_over(up: Running, source: str, job: str) -> Pickup:
    pickup = new_pickup(up.receiver.ports.pulls[source], job, now=up.receiver.clock())
    stands, new = await up.receiver.store.add_pickup(pickup)
    assert new
    return stands


# ---------------------------------------------------------------- what is no result


SIGNATURE = "X-Amz-Signature=0123456789abcdef0123456789abcdef"
LIMIT = len(AUDIO) + 1000
BOMB_BYTES = 50 * 1024 * 1024


def _bomb() -> bytes:
    import gzip

    packed = gzip.compress(bytes(BOMB_BYTES), 9, mtime=0)
    assert len(packed) < LIMIT
    return reply(200, packed, {"content-type": "audio/mpeg", "content-encoding": "gzip"})


async def _endless(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\nconnection: close\r\n\r\n")
    await talk.forever(AUDIO)


def _to(location: str) -> bytes:
    return reply(302, b"", {"location": location})


def _typed(body: bytes, content_type: str, length: int | None = None) -> bytes:
    return reply(200, body, {"content-type": content_type}, length=length)


BAD: dict[str, tuple[Any, str, str]] = {
    "web-page": (
        _typed(b"<!DOCTYPE html><html><body>Sign in</body></html>", "audio/mpeg"),
        "unusable",
        "a web page",
    ),
    "no-bytes": (_typed(b"", "audio/mpeg"), "unusable", "the result is empty"),
    "cut-off": (
        _typed(AUDIO[:1000], "audio/mpeg", 5000),
        "unusable",
        "was cut off after 1000 of 5000 bytes",
    ),
    "image": (_typed(b"\x89PNG\r\n\x1a\n" + bytes(900), "audio/mpeg"), "unusable", "an image (image/png)"),
    "json": (_typed(b'{"message": "no"}', "application/json"), "unusable", "JSON, not audio"),
    "endless": (_endless, "unusable", f"sends more than {LIMIT} bytes"),
    "bomb": (_bomb, "unusable", f"sends more than {LIMIT} bytes"),
    "certificate": (AUDIO_REPLY, "unreachable", "is not accepted: self-signed certificate"),
    "other-host": (
        _to(f"http://elsewhere.example/a?{SIGNATURE}"),
        "blocked",
        "is not one of the hosts that results may come from",
    ),
    "metadata-service": (_to("http://169.254.169.254/latest/meta-data"), "blocked", "169.254.169.254"),
    "loop": (_to("/r"), "refused", "leads through more than 5 redirects"),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_result_is_told_in_the_history_and_in_the_event_that_ends_it(
    case: str, providers: Providers, tmp_path: Path
) -> None:
    """Tried again until the deadline, unless it is too large: another try would find the same."""
    script, kind, said = BAD[case]
    script, clock = script() if script is _bomb else script, Movable()
    async with Sink() as sink, ProviderHost(tls=case == "certificate", scripts={"/r": script}) as host:
        text = providers.text(
            tmp_path, sink.url, more=f"max_audio_bytes = {LIMIT}\ndeadline_seconds = 3600"
        ).replace('result_hosts = ["127.0.0.1"]', 'result_hosts = ["127.0.0.1", "169.254.169.254"]')
        async with running(tmp_path, text, clock=clock) as up:
            told = await _push(up, deapi("job", result_url=host.url(f"/r?{SIGNATURE}")))
            await up.seen.until(lambda: bool(up.seen.pickups))
            first = (await _attempts(up))[0]
            assert (first.outcome, said in first.detail) == (kind, True), first
            too_large = case in ("endless", "bomb")
            if not too_large:
                assert not sink.received
                clock.ahead += 3_600_000
                up.receiver.collector.wake(["deapi"])
            await sink.until(1)
            event = json.loads(sink.received[0].body)
            assert (event["type"], event["data"]["event_id"]) == ("speech.failed", told["event_id"])
            error = event["data"]["error"]
            assert error["code"] == ("too_large" if too_large else "unavailable")
            assert said in (error["message"] if too_large else error["details"])
            attempts = await _attempts(up)
            assert SIGNATURE not in str(attempts) + str(error) + str(up.seen.notes) + str(up.seen.pickups)
            assert [one.outcome for one in attempts] == [kind] * (1 if too_large else 2)
            assert not _temporary(tmp_path)
