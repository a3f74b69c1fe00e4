"""The road in with a provider of our own making: its bugs, its rejections, and bodies too long for memory."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from receiver.core.callback import Head, VerifiedCallback
from receiver.core.errors import IgnoredCallback, StoreUnavailable
from receiver.core.event import AudioDraft, EventDraft, Rejection
from receiver.core.observe import Observers
from receiver.engine.overload import LoadShedder, Storing, UnderWay
from receiver.storage.journal import Entry
from tests.support.intaking import MIB, NOW, SECRET, Made, Up, opening
from tests.support.kept_events import kept_events
from tests.support.running import Seen

Open = Callable[[Made], AbstractAsyncContextManager[Up]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    return functools.partial(opening, tmp_path)


async def test_what_is_stored_for_too_long_is_ended_however_many_looks_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("receiver.engine.overload._LOOK_SECONDS", 0.0)
    load = LoadShedder(1, clock=itertools.count().__next__)  # each look is a second later
    callback = UnderWay("deepgram")
    load.enter(callback, whole=True)
    with pytest.raises(TimeoutError), Storing(load, callback, 5):
        await asyncio.Event().wait()


# ---------------------------------------------------------------- large documents


@dataclass
class Slow(Made):
    """Takes its time with each document, and tells how many it read at once."""

    go_on: threading.Event = field(default_factory=threading.Event)
    both: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    busy: int = 0
    most: int = 0

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.both.release()
        assert self.go_on.wait(30)
        self.busy -= 1
        return super().normalize(callback)


async def test_two_large_documents_are_read_at_a_time_and_small_ones_pass_them(opened: Open) -> None:
    """A decoded document takes many times its bytes."""
    made = Slow()
    async with opened(made) as up:
        large = [asyncio.create_task(up.send(bytes([n]) * (MIB + 1))) for n in range(4)]
        for _ in range(2):
            assert await asyncio.to_thread(made.both.acquire, timeout=30)
        medium = asyncio.create_task(up.send(b"y" * 300_000))
        assert await asyncio.to_thread(made.both.acquire, timeout=30)
        assert made.most == 3, "two large ones, and the one that passed the others"
        made.go_on.set()
        answers = await asyncio.gather(*large, medium)
        assert {answer.status for answer in answers} == {200}
        assert made.most == 3


# ---------------------------------------------------------------- bugs of ours


@pytest.mark.parametrize("step", ["admit", "verify"])
@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_bug_while_proving_lets_nobody_in(opened: Open, step: str, size: int) -> None:
    """401, an error for the operator that names the step, and not a word of what the bug said."""
    async with opened(Made(broken=step)) as up:
        answer = await up.send(b"x" * size)
        assert (answer.status, answer.payload["status"]) == (401, "rejected")
        bug = ("error", "intake.bug", {"step": step, "source": "made", "error": "KeyError"})
        assert bug in up.seen.notes
        assert SECRET.decode() not in repr((answer, up.seen.notes, up.seen.callbacks))
        assert await kept_events(up.receiver.store) == []


@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_bug_while_reading_parks_what_was_proved(opened: Open, size: int) -> None:
    async with opened(Made(broken="normalize")) as up:
        answer = await up.send(b"x" * size)
        assert (answer.status, answer.payload["status"]) == (200, "parked")
        kept = await up.kept(answer)
        assert kept["type"] == "callback.parked"
        assert kept["error"]["message"] == "receiver could not read it (an internal error)"
        assert [fields["step"] for _, name, fields in up.seen.notes if name == "intake.bug"] == ["normalize"]


@pytest.mark.parametrize("retries", [True, False])
async def test_a_bug_while_recording_leaves_it_in_the_journal(opened: Open, retries: bool) -> None:
    """Answered by the provider's trait, drained once the bug is gone, and never a 500."""
    async with opened(Made(retries=retries)) as up:
        up.failing["record"] = ValueError("a driver's own error")
        answer = await up.send()
        assert answer.status == (503 if retries else 200)
        assert up.receiver.journal.depth == 1
        del up.failing["record"]
        assert await up.receiver.journal_drain.drain() == 1
        assert len(await kept_events(up.receiver.store)) == 1


async def test_a_body_that_cannot_even_be_asked_for_is_a_503(opened: Open) -> None:
    """The server's own trouble: nothing was promised, and the report still comes."""
    async with opened(Made()) as up:

        async def receive() -> MutableMapping[str, Any]:
            raise RuntimeError("the server's bug")

        head = Head(source="made", method="POST", headers=(), received_at=NOW)
        answer = await up.receiver.intake.accept(head, receive)
        assert (answer.status, answer.payload["status"]) == (503, "unavailable")
        assert up.seen.callbacks[-1].answer == "not_kept"


async def test_a_listener_that_raises_changes_no_answer(opened: Open) -> None:
    """A recorded callback must not be answered 500 since a log could not be written."""

    class Raising(Seen):
        def callback(self, report: Any) -> None:
            raise OSError(28, "No space left on device")

    async with opened(Made()) as up:
        Observers.__init__(up.receiver.observer, [Raising()])
        assert (await up.send()).status == 200


@pytest.mark.parametrize(
    ("length", "status"),
    [("7", 200), ("²", 200), ("-1", 200), ("1 000", 200), ("101", 413), ("9" * 5000, 413)],
)
async def test_a_length_is_only_believed_when_it_is_one(opened: Open, length: str, status: int) -> None:
    async with opened(Made(limit=100)) as up:
        assert (await up.send(b"1234567", ("content-length", length))).status == status


# ---------------------------------------------------------------- long bodies that were not understood


@pytest.mark.parametrize("size", [0, 100, 70_000, 4 * MIB, 4 * MIB + 1, 9 * MIB])
async def test_a_parked_body_is_kept_whole_without_its_secrets(opened: Open, size: int) -> None:
    """In its row, as a blob, or rewritten from file to file when it is too long for memory."""
    body = bytearray(b"{" + b"x" * size)[:size]
    for place in (10, size // 2, size - 40):
        if size >= 100:
            body[place : place + len(SECRET)] = SECRET
    async with opened(Made(malformed=True)) as up:
        answer = await up.send(bytes(body))
        assert (answer.status, answer.payload["status"]) == (200, "parked")
        kept = await up.kept(answer)
        assert kept["provider_data"] == {"content_type": "", "bytes": size}
        if size > 64 * 1024:
            assert await up.receiver.blobs.get(kept["blob_key"]) == bytes(body).replace(SECRET, b"[redacted]")
            assert kept["document"]["content_type"] == "application/json"
        else:
            assert kept["blob_key"] is None
        assert list((up.folder / "data" / "journal" / "spool").iterdir()) == []
        held = b"".join(path.read_bytes() for path in (up.folder / "data").rglob("*") if path.is_file())
        assert SECRET not in held
        assert (await up.send(bytes(body))).payload["status"] == "duplicate"


async def test_a_parked_body_waits_in_the_journal_and_becomes_the_same_event(opened: Open) -> None:
    async with opened(Made(malformed=True)) as up:
        up.failing["record"] = StoreUnavailable()
        body = b"x" * (5 * MIB)
        assert (await up.send(body)).status == 503
        up.failing.clear()
        assert await up.receiver.journal_drain.drain() == 1
        answer = await up.send(body)
        assert answer.payload["status"] == "duplicate"
        blobs = [path for path in (up.folder / "data" / "blobs").rglob("*") if path.is_file()]
        assert len(blobs) == 1


async def test_an_outage_that_lasts_leaves_one_blob_and_no_other_name_of_it(opened: Open) -> None:
    """Each look at the journal stores the blob again: the same name, and nothing beside it."""
    made = Made(audio=AudioDraft(content_type="audio/mpeg", extension="mp3"))
    async with opened(made) as up:
        up.failing["record"] = StoreUnavailable()
        await up.send(b"x" * 100_000)
        for _ in range(4):
            assert await up.receiver.journal_drain.drain() == 0
        blobs = [path for path in (up.folder / "data" / "blobs").rglob("*") if path.is_file()]
        assert len(blobs) == 1


# ---------------------------------------------------------------- rejections


async def _rejections(up: Up, source: str | None = "made") -> list[Rejection]:
    await up.receiver.intake.rejections.flush()
    return await up.receiver.store.rejections(source, limit=1000)


async def test_three_rejections_in_a_row_name_the_setting_to_look_at_once(opened: Open) -> None:
    made = Made(reject="sources.made.secrets")
    async with opened(made) as up:

        def alerts() -> list[dict[str, Any]]:
            return [fields for _, name, fields in up.seen.notes if name == "source.rejecting"]

        for _ in range(2):
            await up.send()
        assert alerts() == []
        made.reject = ""
        await up.send()
        made.reject = "sources.made.secrets"
        for _ in range(2):
            await up.send()
        assert alerts() == [], "a callback that was proved begins the count anew"
        for _ in range(5):
            await up.send()
        alarm = {"source": "made", "kind": "wrong", "in_a_row": 3, "look_at": "sources.made.secrets"}
        assert alerts() == [alarm]
        assert up.seen.callbacks[-1].reason == "no (look at sources.made.secrets)"


async def test_a_rejection_is_kept_without_body_or_credentials(opened: Open) -> None:
    async with opened(Made(reject="x")) as up:
        agent = ("user-agent", "u" * 500)
        await up.send(SECRET, ("authorization", "Basic xyz"), ("content-type", "a/b"), agent, method="PUT")
        kept = (await _rejections(up))[0]
        assert (kept.source, kept.at, kept.status, kept.reason) == ("made", NOW, 401, "no")
        assert (kept.method, kept.peer, kept.content_type, len(kept.user_agent)) == (
            "PUT",
            "192.0.2.1",
            "a/b",
            200,
        )
        assert "xyz" not in repr(kept)


async def test_a_rejection_keeps_the_names_of_headers_unless_they_may_be_a_token(opened: Open) -> None:
    """Without their values, and at most 64 of them."""
    names = ["host", "x-signature", "x-signature", "x_time.stamp"]
    hostile = ["x-" + "ab-" * 21 + "c", "dg-" + "a1" * 20, "x-é", "x y", "<b>", "", "x-a\n"]
    async with opened(Made(reject="x")) as up:
        await up.send(SECRET, *((name, "Basic xyz") for name in [*names, *hostile]))
        (kept,) = await _rejections(up)
        assert kept.headers == tuple(dict.fromkeys(names))
        assert "xyz" not in repr(kept)
        await up.send(SECRET, *((f"x-{number}", "") for number in range(200)))
        assert (await _rejections(up))[0].headers == tuple(f"x-{number}" for number in range(64))


async def test_the_last_hundred_rejections_of_a_source_and_kind_are_kept(opened: Open) -> None:
    async with opened(Made(reject="x")) as up:
        for number in range(130):
            await up.send(b"", ("user-agent", str(number)))
            if number % 50 == 0:
                await up.receiver.intake.rejections.flush()
        assert {kept.user_agent for kept in await _rejections(up)} == {
            str(number) for number in range(30, 130)
        }


async def test_rejections_wait_while_the_store_is_out_and_the_newest_win(opened: Open) -> None:
    async with opened(Made(reject="x")) as up:
        up.failing["reject"] = StoreUnavailable()
        for number in range(1200):
            await up.send(b"", ("user-agent", str(number)))
            if number == 600:
                await up.receiver.intake.rejections.flush()
        await up.receiver.intake.rejections.flush()
        up.failing.clear()
        assert {kept.user_agent for kept in await _rejections(up)} == {
            str(number) for number in range(1100, 1200)
        }


async def test_what_was_rejected_before_the_stop_is_written(opened: Open) -> None:
    made = Made(reject="x")
    async with opened(made) as up:
        await up.send()
    async with opened(made) as up:
        assert len(await up.receiver.store.rejections("made", limit=10)) == 1


async def test_a_source_that_is_gone_keeps_its_callbacks_in_the_journal(opened: Open) -> None:
    """Configured away while some wait: they stay, told once, and are recorded as soon as it is configured again."""
    made = Made()
    async with opened(made) as up:
        up.failing["record"] = StoreUnavailable()
        await up.send()
        up.failing.clear()
        providers = up.receiver.journal_drain._providers
        up.receiver.journal_drain._providers = {}
        for _ in range(5):
            assert await up.receiver.journal_drain.drain() == 0
        assert up.receiver.journal.depth == 1
        told = [note for note in up.seen.notes if note[1].startswith("journal.")]
        assert told == [("warning", "journal.source_missing", {"source": "made", "entries": 1})]
        ended = Entry("0" * 40, 0, 0, "made", "store out", proofs=("submission",))
        assert up.receiver.journal_drain.able(ended), "what a submission came to needs no provider"
        up.receiver.journal_drain._providers = providers
        assert await up.receiver.journal_drain.drain() == 1


async def test_what_the_settings_say_meanwhile_to_ignore_is_parked_since_it_was_promised(
    opened: Open,
) -> None:
    made = Made()
    async with opened(made) as up:
        up.failing["record"] = StoreUnavailable()
        await up.send()
        up.failing.clear()
        made.broken, made.short = "normalize", [IgnoredCallback()]
        assert await up.receiver.journal_drain.drain() == 1
        [event] = await kept_events(up.receiver.store)
        assert event.type == "callback.parked"


async def test_a_journal_that_cannot_be_drained_is_told_once(opened: Open) -> None:
    async with opened(Made()) as up:
        lock = up.folder / "data" / "journal" / ".draining"
        for _ in range(2):
            lock.symlink_to("missing/place")
            for _ in range(2):
                assert await up.receiver.journal_drain.drain() == 0
            lock.unlink()
            assert await up.receiver.journal_drain.drain() == 0
            lock.unlink()
        told = [(level, name) for level, name, _ in up.seen.notes]
        assert told == [("warning", "journal.drain_stopped")] * 2, "and again when it happens again"
        assert "symbolic links" in up.seen.notes[0][2]["error"]
