"""The journal keeps what was proved, survives restarts, and gives it back once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from receiver.core.callback import Head, MemoryBody, TokenClaims, VerifiedCallback
from receiver.core.errors import BlobsUnavailable, JournalUnavailable, StoreUnavailable
from receiver.core.observe import Observers
from receiver.storage.journal import Journal
from receiver.system.body_buffer import FileBody
from tests.support.running import Seen


def _callback(body: bytes = b"hello", *, at: int = 5, path: Path | None = None) -> VerifiedCallback:
    headers = (("content-type", "audio/mpeg"), ("authorization", "Basic c2VjcmV0"), ("dg-token", "k"))
    spooled: MemoryBody | FileBody = MemoryBody(body)
    if path is not None:
        path.write_bytes(body)
        spooled = FileBody.read(str(path))
    return VerifiedCallback(
        head=Head(source="deepgram", method="PUT", headers=headers, received_at=at, peer="127.0.0.1"),
        claims=TokenClaims(source="deepgram", token_id="t1", ref="order-42", format={"encoding": "mp3"}),
        proofs=frozenset({"basic"}),
        body=spooled,
    )


async def _journal(folder: Path, seen: Seen | None = None, max_bytes: int = 10**6) -> Journal:
    journal = Journal(
        str(folder), max_bytes=max_bytes, observer=Observers([seen] if seen else []), clock=lambda: 1_000_005
    )
    await journal.open()
    return journal


async def _nothing(callback: VerifiedCallback) -> None:
    """Take it."""


def _notes(seen: Seen) -> list[tuple[str, dict[str, Any]]]:
    return [(name, fields) for _, name, fields in seen.notes]


@pytest.mark.parametrize("spooled", [False, True])
async def test_what_was_kept_comes_back_after_a_restart(tmp_path: Path, spooled: bool) -> None:
    """Another journal over the same folder gives the same callback, less the headers with credentials."""
    before = _callback(path=tmp_path / "spooled" if spooled else None)
    await (await _journal(tmp_path / "j")).keep(
        before, key="k1", reason="store out", secret_headers=frozenset(("dg-token",))
    )
    journal = await _journal(tmp_path / "j")
    assert (journal.depth, journal.oldest_age_seconds) == (1, 1000.0)
    got: list[VerifiedCallback] = []

    async def take(callback: VerifiedCallback) -> None:
        assert callback.body.load() == b"hello"
        got.append(callback)

    assert await journal.drain(take, bool) == 1
    assert got[0].head.headers == (("content-type", "audio/mpeg"),)
    assert (got[0].claims, got[0].proofs) == (before.claims, before.proofs)
    assert got[0].body.sha256 == before.body.sha256
    assert (journal.depth, os.listdir(tmp_path / "j")) == (0, [".draining"])


async def test_the_same_callback_is_kept_once(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    for _ in range(3):
        await journal.keep(_callback(), key="k1", reason="store out")
    assert journal.depth == 1


async def test_an_outage_stops_the_drain_and_keeps_everything(tmp_path: Path) -> None:
    seen = Seen()
    journal = await _journal(tmp_path, seen)
    for number in range(6):
        await journal.keep(_callback(at=number), key=f"k{number}", reason="store out")
    tried: list[int] = []

    async def take(callback: VerifiedCallback) -> None:
        tried.append(callback.head.received_at)
        if len(tried) > 1:
            raise StoreUnavailable("the database is out")

    assert await journal.drain(take, bool) == 1
    assert (tried, journal.depth, journal.refused) == ([0, 1, 2, 3], 5, "the database is out")
    with pytest.raises(StoreUnavailable):
        await journal.drain(take, bool)
    assert [fields["error"] for name, fields in _notes(seen)] == ["the database is out"]


async def test_entries_that_are_always_refused_hold_up_no_other(tmp_path: Path) -> None:
    """The four oldest are too large for the store: everything else is taken, and why they are left is said once."""
    seen = Seen()
    journal = await _journal(tmp_path, seen)
    for number in range(10):
        await journal.keep(_callback(at=number), key=f"k{number}", reason="store out")
    taken: list[int] = []

    async def take(callback: VerifiedCallback) -> None:
        if callback.head.received_at < 4:
            raise BlobsUnavailable("the store refused it (413)")
        taken.append(callback.head.received_at)

    with pytest.raises(BlobsUnavailable):
        await journal.drain(take, bool)
    assert taken == []
    assert await journal.drain(take, bool) == 6
    assert (taken, journal.depth) == ([4, 5, 6, 7, 8, 9], 4)
    assert await journal.drain(take, bool) == 0, "they wait"
    with pytest.raises(BlobsUnavailable):
        await (await _journal(tmp_path, seen)).drain(take, bool)
    assert [(name, fields["error"]) for name, fields in _notes(seen)] == [
        ("journal.drain_stopped", "the store refused it (413)")
    ] * 2, "once for each process"


async def test_entries_are_passed_on_together_more_and_more_while_they_are_taken(tmp_path: Path) -> None:
    """So that they share commits; but few while the store refuses, and few at once where bodies are large."""
    journal = await _journal(tmp_path, max_bytes=10**8)
    for number in range(40):
        await journal.keep(_callback(at=number), key=f"k{number}", reason="store out")
    for number in range(40, 43):
        await journal.keep(_callback(bytes(3_000_000), at=number), key=f"k{number}", reason="store out")
    under_way, groups = 0, []

    async def take(callback: VerifiedCallback) -> None:
        nonlocal under_way
        under_way += 1
        await asyncio.sleep(0)  # until all of the group are under way
        if under_way:
            groups.append(under_way)
        under_way = 0

    assert await journal.drain(take, bool) == 43
    assert groups == [1, 2, 4, 8, 16, 10, 1, 1]


async def test_a_group_that_is_broken_off_comes_again_whole(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    for number in range(3):
        await journal.keep(_callback(at=number), key=f"k{number}", reason="store out")
    taken: list[int] = []

    async def take(callback: VerifiedCallback) -> None:
        taken.append(callback.head.received_at)
        if len(taken) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await journal.drain(take, bool)
    assert await (await _journal(tmp_path)).drain(take, bool) == 2
    assert sorted(taken) == [0, 1, 1, 2, 2]


class Clocked:
    """A journal with a clock that is set, and a store that refuses what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000
        self.journal = Journal(
            str(folder),
            max_bytes=10**6,
            observer=Observers([]),
            clock=lambda: 1_000_000,
            elapsed=lambda: self.now / 1000,
        )
        self.refused: set[int] = set()
        self.tried: list[int] = []

    async def keep(self, *numbers: int) -> None:
        for number in numbers:
            await self.journal.keep(_callback(at=number), key=f"k{number}", reason="store out")

    async def take(self, callback: VerifiedCallback) -> None:
        self.tried.append(callback.head.received_at)
        if callback.head.received_at in self.refused:
            raise BlobsUnavailable("refused")

    async def drain(self) -> list[int]:
        """Drain, and return what was tried."""
        self.tried = []
        with contextlib.suppress(BlobsUnavailable):
            await self.journal.drain(self.take, bool)
        return self.tried

    async def waited(self) -> int:
        """Return after how many seconds 0 is tried again, while others come and are taken."""
        began = self.now
        while True:
            self.now += 10_000
            await self.keep(self.now)
            if 0 in await self.drain():
                return (self.now - began) // 1000


async def test_an_entry_that_is_refused_while_others_are_taken_waits_longer_each_time(tmp_path: Path) -> None:
    """Each try may cost a whole upload."""
    house = Clocked(tmp_path)
    house.refused = {0}
    await house.keep(0, 1)
    assert await house.drain() == [0, 1]
    assert [await house.waited() for _ in range(8)] == [10, 20, 40, 80, 160, 320, 600, 600]


async def test_what_an_outage_refused_is_taken_within_seconds_of_its_end(tmp_path: Path) -> None:
    """Also what was refused when it began, while another was still taken."""
    house = Clocked(tmp_path)
    await house.keep(*range(6))
    house.refused = {1, 2, 3, 4, 5}
    assert await house.drain() == [0, 1, 2, 3]
    for _ in range(50):
        house.now += 5_000
        await house.drain()
    house.refused = set()
    tried = await house.drain()
    house.now += 10_000
    assert sorted(tried + await house.drain()) == [1, 2, 3, 4, 5]


async def test_entries_that_stay_refused_after_an_outage_hold_up_none_of_the_others(tmp_path: Path) -> None:
    """All were refused once; the three oldest will be for ever, and a drain ends at three in a row."""
    house = Clocked(tmp_path)
    await house.keep(*range(9))
    house.refused = set(range(9))
    for _ in range(3):
        house.now += 1_000
        await house.drain()
    house.refused = {0, 1, 2}
    for _ in range(2):
        house.now += 1_000
        await house.drain()
    assert (house.journal.depth, set(house.tried) >= {3, 4, 5, 6, 7, 8}) == (3, True)


async def test_one_refused_entry_is_named_beside_those_that_were_taken(tmp_path: Path) -> None:
    seen = Seen()
    journal = await _journal(tmp_path, seen)
    for number in range(3):
        await journal.keep(_callback(at=number), key=f"k{number}", reason="store out")

    async def take(callback: VerifiedCallback) -> None:
        if callback.head.received_at == 0:
            raise BlobsUnavailable("the store refused it (413)")

    assert await journal.drain(take, bool) == 2
    assert [name for name, _ in _notes(seen)] == ["journal.entry_refused"]
    assert journal.refused == "the store refused it (413)"


@pytest.mark.parametrize("umask", [0o022, 0o077])
async def test_who_drained_first_does_not_lock_others_out(tmp_path: Path, umask: int) -> None:
    """Root drains by hand, then the service's own user: it must be able to open the lock."""
    journal = await _journal(tmp_path)
    before = os.umask(umask)
    try:
        await journal.drain(_nothing, bool)
    finally:
        os.umask(before)
    assert (tmp_path / ".draining").stat().st_mode & 0o444 == 0o444


async def test_a_poison_entry_does_not_stop_the_others(tmp_path: Path) -> None:
    seen = Seen()
    journal = await _journal(tmp_path, seen)
    for number in range(3):
        await journal.keep(_callback(at=number), key=f"k{number}", reason="store out")

    async def take(callback: VerifiedCallback) -> None:
        if callback.head.received_at == 1:
            raise RuntimeError("a bug")

    assert await journal.drain(take, bool) == 2
    for _ in range(5):
        await journal.drain(take, bool)
    assert journal.depth == 1
    assert [name for _, name, _ in seen.notes] == ["journal.entry_failed"]


@pytest.mark.parametrize("damage", ["body", "meta", "missing", "shape", "types", "shown", "zeros"])
async def test_a_damaged_entry_is_set_aside_and_reported(tmp_path: Path, damage: str) -> None:
    seen = Seen()
    journal = await _journal(tmp_path, seen)
    await journal.keep(_callback(), key="k", reason="store out")
    body, meta = next(tmp_path.glob("*.body")), next(tmp_path.glob("*.json"))
    if damage == "body":
        body.write_bytes(b"hellp")
    elif damage == "meta":
        meta.write_bytes(b"{tru")
    elif damage == "shape":
        meta.write_bytes(json.dumps({"sha256": 1, "head": {}}).encode())
    elif damage == "types":
        meta.write_bytes(json.dumps(json.loads(meta.read_bytes()) | {"proofs": 7}).encode())
    elif damage == "shown":
        fields = json.loads(meta.read_bytes())
        meta.write_bytes(json.dumps(fields | {"head": fields["head"] | {"received_at": "x"}}).encode())
    elif damage == "zeros":
        meta.write_bytes(bytes(meta.stat().st_size))
    else:
        body.unlink()
    journal = await _journal(tmp_path, seen)
    assert journal.oldest_age_seconds > 0

    async def take(callback: VerifiedCallback) -> None:
        raise AssertionError("a damaged callback must not be recorded")

    assert await journal.drain(take, bool) == 0
    assert journal.depth == 0
    assert (tmp_path / "damaged" / meta.name).exists()
    assert seen.notes[-1][1] == "journal.entry_damaged"


async def test_a_body_without_its_commit_was_never_promised(tmp_path: Path) -> None:
    """An old leftover is swept; a young one may belong to a process that is writing it now."""
    old, young = tmp_path / "old.body", tmp_path / "young.body"
    for path, age in ((old, 0), (young, 1000)):
        path.write_bytes(b"x")
        os.utime(path, (age, age))
    journal = Journal(str(tmp_path), max_bytes=10, observer=Observers([]), clock=lambda: 4_000_000)
    await journal.open()
    assert (old.exists(), young.exists(), journal.depth) == (False, True, 0)


async def test_no_credentials_lie_in_the_journal(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    callback = _callback()
    uri = ("x-forwarded-uri", "/callbacks/deepgram/aaaabbbb")
    head = replace(callback.head, token="aaaabbbb", headers=(*callback.head.headers, uri))
    await journal.keep(replace(callback, head=head), key="k", reason="store out")
    meta = json.loads(next(tmp_path.glob("*.json")).read_bytes())
    assert not [secret for secret in ("c2VjcmV0", "aaaabbbb") if secret in json.dumps(meta)]
    assert meta["head"]["token"] is None
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


async def test_a_full_journal_says_so(tmp_path: Path) -> None:
    journal = await _journal(tmp_path, max_bytes=8)
    await journal.keep(_callback(), key="k1", reason="store out")
    with pytest.raises(JournalUnavailable, match="full"):
        await journal.keep(_callback(), key="k2", reason="store out")


async def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    journal = await _journal(tmp_path / "j")
    (tmp_path / "j").rmdir()
    with pytest.raises(JournalUnavailable):
        await journal.keep(_callback(), key="k1", reason="store out")
    with pytest.raises(JournalUnavailable):
        await journal.ping()
    assert journal.depth == 0


async def test_what_another_process_drained_is_no_damage(tmp_path: Path) -> None:
    """Two processes of one machine see the same folder; the slower one finds the entry gone."""
    seen = Seen()
    first, second = await _journal(tmp_path), await _journal(tmp_path, seen)
    await first.keep(_callback(), key="k", reason="store out")
    second = await _journal(tmp_path, seen)

    async def take(callback: VerifiedCallback) -> None:
        return

    assert await first.drain(take, bool) == 1
    assert await second.drain(take, bool) == 0
    assert (second.depth, seen.notes) == (0, [])
    assert not (tmp_path / "damaged").exists()


async def test_the_folder_itself_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is worth nothing in a folder whose own name a power loss takes."""
    synced: list[str] = []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    await _journal(tmp_path / "a" / "j")
    assert synced[-2:] == [str(tmp_path), str(tmp_path / "a")]
