"""Power losses: receiver runs on a file system that forgets whatever was not synced, names included.

What was answered 2xx is there afterwards, byte for byte. The same check over a receiver whose fsync does nothing finds what is
missing, so it is a check.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from receiver.core.errors import ReceiverError
from tests.support.clients import local_client
from tests.support.crashing import fast_clock
from tests.support.kept_events import kept_events
from tests.support.power import Mounted, missing
from tests.support.processes import Process, send_once
from tests.support.running import Running, running, settings_text
from tests.support.senders import Sent, deapi, speech, transcript

LACKING = missing()
pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=f"no forgetful file system: {LACKING}"),
    pytest.mark.usefixtures("nothing_left_running"),
]


def _mixed(count: int) -> list[Sent]:
    """Audio in memory and in a file, transcripts in the row and in the blob store, deAPI's JSON."""
    made: list[Sent] = []
    for number in range(count):
        made += [
            speech(f"short-{number}"),
            speech(f"middle-{number}", times=20 + number),
            speech(f"long-{number}", times=140 + number),
            transcript(f"text-{number}"),
            transcript(f"document-{number}", text=f"This is {number}. " * 6000),
            deapi(f"deapi-{number}", at=fast_clock() // 1000),
        ]
    return made


async def _until_power_is_lost(folder: Path, **environ: str) -> dict[str, tuple[Sent, str | None]]:
    """Run a receiver on the forgetful file system, send, kill, lose power; return what was answered 2xx."""
    mount, acknowledged = folder / "mount", dict[str, tuple[Sent, str | None]]()
    with Mounted(mount, folder / "after") as disk:
        config = folder / "receiver.toml"
        config.write_text(settings_text(mount))
        process = Process(config, environ=environ)
        await process.start()
        try:
            async with local_client() as client:

                async def send(sent: Sent) -> None:
                    answer = await send_once(
                        client, process.port, sent.path, sent.headers, sent.body, sent.method
                    )
                    if answer is not None and answer.is_success:
                        acknowledged[sent.name] = (sent, answer.json().get("event_id"))

                mixed = _mixed(3)
                await asyncio.gather(*(send(sent) for sent in mixed[:12]))
                for sent in mixed[12:]:  # one by one: each commit and each sync by itself
                    await send(sent)
            (folder / "token-secret").write_text((mount / "data" / "token-secret").read_text())
        finally:
            await process.kill()
        disk.lose_power()
    return acknowledged


async def _lost(up: Running, acknowledged: dict[str, tuple[Sent, str | None]]) -> list[str]:
    """Return what was acknowledged and is not there: its event, its bytes, or the right ones of them."""
    events = {event.job_id: event for event in await kept_events(up.receiver.store, limit=1000)}
    lost = []
    for name, (sent, event_id) in acknowledged.items():
        event = events.get(name)
        if event is None or (event_id and event.id != event_id):
            lost.append(f"{name}: no event")
        elif event.blob_key:
            try:
                kept = await up.receiver.blobs.get(event.blob_key)
            except ReceiverError:
                lost.append(f"{name}: no bytes")
                continue
            digest = hashlib.sha256(kept).hexdigest()
            if digest != hashlib.sha256(sent.body).hexdigest() or digest.encode() not in event.data:
                lost.append(f"{name}: other bytes")
    return lost


@pytest.fixture
def after(tmp_path: Path) -> Path:
    """What the disk holds afterwards."""
    return tmp_path / "after"


async def test_what_was_acknowledged_survives_a_power_loss(tmp_path: Path, after: Path) -> None:
    """Store rows, audio and documents with their hashes; and the secret that made the callback URLs."""
    acknowledged = await _until_power_is_lost(tmp_path)
    assert len(acknowledged) == 18
    async with running(tmp_path, settings_text(after), work=False) as up:
        assert await _lost(up, acknowledged) == []
    assert (after / "data" / "token-secret").read_text() == (tmp_path / "token-secret").read_text()


async def test_what_the_journal_answered_for_survives_a_power_loss(tmp_path: Path, after: Path) -> None:
    """The store is out, deAPI is told 200 by the journal alone; so are the copies of what Deepgram was told to send again."""
    acknowledged = await _until_power_is_lost(tmp_path, CRASHING_STORE_OUT="all")
    assert sorted(acknowledged) == ["deapi-0", "deapi-1", "deapi-2"]
    everything: dict[str, tuple[Sent, str | None]] = {sent.name: (sent, None) for sent in _mixed(3)}
    async with running(tmp_path, settings_text(after), work=False) as up:
        assert up.receiver.journal.depth == len(everything)
        assert await up.receiver.journal_drain.drain() == len(everything)
        assert await _lost(up, everything) == []


@pytest.mark.parametrize(("store_out", "no_sync"), [("0", "all"), ("all", "all"), ("0", "folders")])
async def test_the_check_finds_the_loss_when_syncs_are_left_out(
    tmp_path: Path, after: Path, store_out: str, no_sync: str
) -> None:
    """The test of the tests above: the same receiver loses audio, documents and journal entries without fsync,
    and without that of folders alone.
    """
    acknowledged = await _until_power_is_lost(
        tmp_path, CRASHING_STORE_OUT=store_out, CRASHING_NO_SYNC=no_sync
    )
    assert acknowledged
    after.mkdir(exist_ok=True)
    async with running(tmp_path, settings_text(after), work=False) as up:
        await up.receiver.journal_drain.drain()
        assert await _lost(up, acknowledged)
