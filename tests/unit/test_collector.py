"""The collector: what an attempt's finding does to its pickup, when it is made again, and what the application is told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest
from msgspec.structs import replace

from receiver.core.callback import MemoryBody
from receiver.core.errors import BlobsUnavailable
from receiver.core.event import (
    AudioDraft,
    Event,
    EventDraft,
    JobError,
    Recorded,
    RecordStatus,
    Stage,
    new_id,
)
from receiver.core.fetch import Failed, Fetch
from receiver.core.retention import Erasure, Subject, SubjectKind
from receiver.core.routing import Route, Router
from receiver.core.work import OutcomeKind, Pickup, PickupKind, PickupState
from receiver.engine.collector import Collector, PullSource
from receiver.engine.recorder import Recorder
from receiver.providers import PullProvider
from receiver.providers.pickups import Collected, Gone, Lookup, NotYet, Result
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.local import LocalBlobs
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store
from receiver.system.body_buffer import BodyBuffer
from tests.support.kept_events import kept_events
from tests.support.running import Seen
from tests.support.stepping import step

T0 = 1_800_000_000_000
HOUR = 3_600_000
SOUND = b"RIFF" + bytes(200)


def speech(pickup: Pickup, body: bytes = SOUND) -> Collected:
    """A result as an adapter finds it."""
    draft = EventDraft(
        type="speech.completed",
        idempotency_key=pickup.key,
        second_key=pickup.key,
        job_id=pickup.job_id,
        ref=pickup.ref,
        occurred_at=T0,
        audio=AudioDraft(content_type="audio/wav", extension="wav"),
    )
    return Collected(draft=draft, body=MemoryBody(body))


class Scripted:
    """A provider that finds what the test says, attempt by attempt; the last finding stays."""

    provider: ClassVar[str] = "scripted"
    source = "voices"
    deadline_seconds = 3600.0

    def __init__(self) -> None:
        self.script: list[Callable[[Pickup], Result]] = [speech]
        self.asked: list[Pickup] = []
        self.askable = True
        self.hold: asyncio.Event | None = None
        self.begun = asyncio.Event()

    def lookup(self, text: str, format: Mapping[str, Any]) -> Lookup:
        return Lookup(key=f"job:{text}", job_id=text)

    def can_ask(self, pickup: Pickup) -> bool:
        return self.askable and pickup.job_id is not None

    def family(self, pickup: Pickup) -> str:
        return "speech"

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        self.asked.append(pickup)
        self.begun.set()
        if self.hold is not None:
            await self.hold.wait()
        find = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return find(pickup)

    def redact(self, body: bytes) -> bytes:
        return body


@dataclass
class Bench:
    """A collector over a real store, and a clock that the test moves."""

    store: Store
    provider: Scripted
    seen: Seen
    woken: list[str]
    blobs: Any
    now: int = T0
    collectors: list[Collector] = field(default_factory=list)
    make: Callable[..., Collector] = field(default=cast("Any", None))

    @property
    def collector(self) -> Collector:
        return self.collectors[0]

    async def add(self, **changes: Any) -> Pickup:
        """Add a pickup that is due now."""
        fields: dict[str, Any] = {
            "id": new_id("pku", self.now),
            "source": "voices",
            "kind": PickupKind.RESULT,
            "key": "job:j1",
            "job_id": "j1",
            "ref": "order-1",
            "event_id": new_id("evt", self.now),
            "deadline_at": self.now + HOUR,
            "due_at": self.now,
            "created_at": self.now,
            "updated_at": self.now,
        }
        pickup, new = await self.store.add_pickup(Pickup(**(fields | changes)))
        assert new
        return pickup

    async def step(self, at: int | None = None) -> int:
        """Attempt once what is due at `at`."""
        self.now = self.now if at is None else at
        return await step(self.collector, self.now)

    async def events(self) -> list[Event]:
        """All events, as they were recorded."""
        found = await kept_events(self.store, limit=100)
        return sorted(found, key=lambda event: event.recorded_at)


class Blobs:
    """A real folder that can be out."""

    def __init__(self, inner: LocalBlobs) -> None:
        self._inner = inner
        self.out = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, *args: Any, **kwargs: Any) -> Any:
        if self.out:
            raise BlobsUnavailable
        return await self._inner.put(*args, **kwargs)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = SqliteStore(str(tmp_path / "receiver.db"))
    await store.migrate()
    await store.open()
    blobs = Blobs(LocalBlobs(str(tmp_path / "blobs")))
    await blobs.open()
    bodies = BodyBuffer(str(tmp_path / "spool"))
    bodies.open()
    made = Bench(store, Scripted(), Seen(), [], blobs)

    def make(worker: str = "w", provider: Scripted | None = made.provider, seconds: float = 10) -> Collector:
        recorder = Recorder(
            store=store,
            blobs=cast("Any", blobs),
            bodies=bodies,
            router=Router([Route("app", ("*",), ("*",))]),
            keys=KeyTemplate(),
            clock=lambda: made.now,
            expect=lambda names: lambda _: None,
            wake=made.woken.extend,
            wake_pickups=lambda source: None,
        )
        source = PullSource(
            provider_name="scripted",
            provider=cast("PullProvider | None", provider),
            fetch=cast("Fetch", object()) if provider else None,
            concurrency=4,
            attempt_seconds=seconds,
        )
        return Collector(store, recorder, {"voices": source}, made.seen, lambda: made.now, worker)

    made.make = make
    made.collectors.append(make())
    yield made
    await store.close()


def data(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(event.data)
    return found


async def test_a_result_becomes_the_event_that_was_promised_with_its_audio_stored(bench: Bench) -> None:
    pickup = await bench.add()
    assert await bench.step() == 1
    (event,) = await bench.events()
    assert (event.id, event.type, event.ref, event.job_id) == (
        pickup.event_id,
        "speech.completed",
        "order-1",
        "j1",
    )
    assert data(event)["audio"]["bytes"] == len(SOUND)
    assert event.blob_key is not None
    assert await bench.blobs.get(event.blob_key) == SOUND
    ended = await bench.store.pickup(pickup.id)
    assert (ended.state, ended.due_at, ended.attempts) == (PickupState.COLLECTED, None, 1)
    assert bench.woken == ["app"]
    assert await bench.step(T0 + 10 * HOUR) == 0


async def test_not_yet_is_no_failure_and_is_asked_again_about_when_the_provider_said(bench: Bench) -> None:
    failed: Callable[[Pickup], Result] = lambda _: Failed(kind=OutcomeKind.REFUSED, status=502, detail="502")  # noqa: E731
    bench.provider.script = [failed, failed, lambda _: NotYet(retry_in=20), failed, speech]
    pickup = await bench.add()
    failures, waits = [], []
    for _ in range(4):
        await bench.step()
        row = await bench.store.pickup(pickup.id)
        failures.append(row.failures)
        assert row.due_at is not None
        waits.append((row.due_at - bench.now) / 1000)
        bench.now = row.due_at
    assert failures == [1, 2, 0, 1]
    for wait, (low, high) in zip(waits, [(3.7, 6.3), (7.4, 12.6), (17.9, 22.1), (3.7, 6.3)], strict=True):
        assert low <= wait <= high, waits
    await bench.step()
    assert [a.outcome for a in await bench.store.pickup_attempts(pickup.id)] == [
        OutcomeKind.REFUSED,
        OutcomeKind.REFUSED,
        OutcomeKind.NOT_YET,
        OutcomeKind.REFUSED,
        OutcomeKind.COLLECTED,
    ]


async def test_an_outage_of_an_hour_loses_nothing_and_is_met_with_few_attempts(bench: Bench) -> None:
    """Spacing grows to five minutes and never falls below it; the result is had soon after the end."""
    over = T0 + HOUR

    def find(pickup: Pickup) -> Result:
        if bench.now < over:
            return Failed(kind=OutcomeKind.UNREACHABLE, detail="cannot be reached")
        return speech(pickup)

    bench.provider.script = [find]
    pickup = await bench.add(deadline_at=T0 + 24 * HOUR)
    times = []
    while (row := await bench.store.pickup(pickup.id)).due_at is not None:
        bench.now = row.due_at
        times.append(bench.now)
        await bench.step()
    gaps = [(later - earlier) / 1000 for earlier, later in itertools.pairwise(times)]
    assert 14 <= len(gaps) <= 24, gaps
    assert all(225 <= gap <= 376 for gap in gaps[7:]), gaps
    assert all(gap >= 3.7 for gap in gaps)
    assert times[-1] <= over + 376_000
    assert [event.type for event in await bench.events()] == ["speech.completed"]


async def test_retry_after_is_a_floor_and_the_deadline_a_ceiling(bench: Bench) -> None:
    busy: Callable[[Pickup], Result] = lambda _: Failed(  # noqa: E731
        kind=OutcomeKind.REFUSED, status=429, detail="429", retry_after=120
    )
    bench.provider.script = [busy]
    pickup = await bench.add()
    await bench.step()
    assert (await bench.store.pickup(pickup.id)).due_at == T0 + 120_000
    other = await bench.add(key="job:j2", deadline_at=T0 + 60_000)
    await bench.step()
    assert (await bench.store.pickup(other.id)).due_at == T0 + 60_000


async def test_at_its_deadline_a_pickup_that_is_not_ready_is_timed_out_and_not_failed_as_a_fact(
    bench: Bench,
) -> None:
    bench.provider.script = [lambda _: NotYet(retry_in=1000, detail="404")]
    pickup = await bench.add(deadline_at=T0 + 60_000)
    await bench.step()
    row = await bench.store.pickup(pickup.id)
    assert row.due_at == T0 + 60_000, "the last attempt is made when its time is up"
    await bench.step(T0 + 60_000)
    (event,) = await bench.events()
    assert (event.id, event.type, data(event)["error"]["code"]) == (
        pickup.event_id,
        "speech.failed",
        "timed_out",
    )
    assert (await bench.store.pickup(pickup.id)).state is PickupState.GONE


async def test_a_result_that_cannot_be_had_in_its_lifetime_is_told_with_the_providers_own_data(
    bench: Bench,
) -> None:
    told = EventDraft(
        type="speech.completed",
        idempotency_key="job:j1",
        second_key="job:j1",
        job_id="j1",
        occurred_at=T0,
        provider_data={"result_url": "https://results.example/x", "processing_time_ms": 45},
    )
    bench.provider.script = [
        lambda _: Failed(kind=OutcomeKind.REFUSED, status=403, detail="the link has expired")
    ]
    await bench.add(draft=told, deadline_at=T0)
    await bench.step()
    (event,) = await bench.events()
    assert (event.type, data(event)["error"]["code"]) == ("speech.failed", "unavailable")
    assert data(event)["error"]["details"] == "the link has expired"
    assert data(event)["provider_data"] == told.provider_data


@pytest.mark.parametrize(
    ("find", "code"),
    [
        (lambda _: Gone(error=JobError(code="unknown_job", message="no such job")), "unknown_job"),
        (lambda _: Failed(kind=OutcomeKind.UNUSABLE, detail="over the limit", too_large=True), "too_large"),
    ],
    ids=["gone", "too-large"],
)
async def test_what_another_try_would_not_change_ends_at_once(
    bench: Bench, find: Callable[[Pickup], Result], code: str
) -> None:
    bench.provider.script = [find]
    await bench.add()
    await bench.step()
    (event,) = await bench.events()
    assert (event.type, data(event)["error"]["code"]) == ("speech.failed", code)


async def test_the_providers_word_that_the_job_failed_ends_the_pickup(bench: Bench) -> None:
    def find(pickup: Pickup) -> Result:
        draft = EventDraft(
            type="speech.failed",
            idempotency_key=pickup.key,
            second_key=pickup.key,
            job_id="j1",
            occurred_at=T0,
            error=JobError(code="PROCESSING_ERROR", message="it broke"),
        )
        return Collected(draft=draft)

    bench.provider.script = [find]
    pickup = await bench.add()
    await bench.step()
    (event,) = await bench.events()
    assert data(event)["error"]["code"] == "PROCESSING_ERROR"
    row = await bench.store.pickup(pickup.id)
    assert (row.state, row.last_detail) == (PickupState.GONE, "it broke")


async def test_a_pickup_that_is_gone_may_be_asked_for_again_and_brings_another_event(bench: Bench) -> None:
    bench.provider.script = [lambda _: NotYet(retry_in=1), speech]
    await bench.add(deadline_at=T0)
    await bench.step()
    bench.now += 1000
    again = await bench.add()
    await bench.step()
    assert [event.type for event in await bench.events()] == ["speech.failed", "speech.completed"]
    assert (await bench.store.pickup(again.id)).state is PickupState.COLLECTED


async def test_our_own_trouble_never_ends_a_pickup_even_past_its_deadline(bench: Bench) -> None:
    bench.blobs.out = True
    pickup = await bench.add(deadline_at=T0)
    await bench.step()
    row = await bench.store.pickup(pickup.id)
    assert (row.state, row.last_outcome) == (PickupState.PENDING, "not_stored")
    assert row.due_at is not None
    bench.blobs.out = False
    await bench.step(row.due_at)
    assert [event.type for event in await bench.events()] == ["speech.completed"]


async def test_a_bug_in_an_adapter_is_noted_without_its_text_and_tried_again(bench: Bench) -> None:
    def find(pickup: Pickup) -> Result:
        raise RuntimeError("a secret text")

    bench.provider.script = [find, speech]
    pickup = await bench.add()
    await bench.step()
    (note,) = bench.seen.notes
    assert note[1] == "pickup.internal_error"
    assert "secret" not in str(note)
    row = await bench.store.pickup(pickup.id)
    assert row.due_at is not None
    await bench.step(row.due_at)
    assert (await bench.store.pickup(pickup.id)).state is PickupState.COLLECTED


async def test_progress_is_told_once_and_the_pickup_goes_on(bench: Bench) -> None:
    def find(pickup: Pickup) -> Result:
        progress = EventDraft(
            type="speech.processing",
            idempotency_key="job:j1:half",
            job_id="j1",
            occurred_at=T0,
            stage=Stage.PROGRESS,
        )
        return NotYet(retry_in=0, progress=progress)

    bench.provider.script = [find, find, speech]
    await bench.add()
    for second in range(3):
        await bench.step(T0 + 1000 * second)
    assert [event.type for event in await bench.events()] == ["speech.processing", "speech.completed"]
    assert bench.woken == ["app", "app"]


@pytest.mark.parametrize("kind", list(PickupKind))
async def test_an_attempt_whose_pickup_is_erased_meanwhile_tells_nothing(
    bench: Bench, kind: PickupKind
) -> None:
    """Neither progress nor that the callback is overdue; and that is no error of ours."""
    progress = EventDraft(
        type="speech.processing", idempotency_key="half", job_id="j1", occurred_at=T0, stage=Stage.PROGRESS
    )
    bench.provider.script = [lambda _: NotYet(retry_in=1, progress=progress)]
    bench.provider.hold = asyncio.Event()
    await bench.add(kind=kind)
    step = asyncio.create_task(bench.step())
    await bench.provider.begun.wait()
    whose = Subject(kind=SubjectKind.REF, key="order-1")
    await bench.store.erase(Erasure(subject=whose, tombstone_id="tmb_1", digest="", now=T0))
    bench.provider.hold.set()
    await step
    assert await bench.events() == []
    assert bench.woken == []
    assert bench.seen.notes == []
    assert [report.state for report in bench.seen.pickups] == ["lost"]


async def test_an_overdue_callback_is_told_although_what_follows_cannot_be_stored(bench: Bench) -> None:
    progress = EventDraft(
        type="speech.processing",
        idempotency_key="half",
        job_id="j1",
        occurred_at=T0,
        stage=Stage.PROGRESS,
        document=bytes(100_000),
    )
    bench.provider.script = [lambda _: NotYet(retry_in=1, progress=progress)]
    bench.blobs.out = True
    pickup = await bench.add(kind=PickupKind.EXPECTED)
    await bench.step()
    assert [event.type for event in await bench.events()] == ["callback.overdue"]
    assert (await bench.store.pickup(pickup.id)).last_outcome == "not_stored"


async def test_two_workers_that_race_for_one_job_by_two_pickups_make_one_event(bench: Bench) -> None:
    """One is the job's own pickup; the other an expectation that asks about the same job."""
    bench.provider.hold = asyncio.Event()
    job = await bench.add()
    expected = await bench.add(kind=PickupKind.EXPECTED, key="token:t1")
    both = asyncio.create_task(bench.step())
    while len(bench.provider.asked) < 2:
        await bench.provider.begun.wait()
        bench.provider.begun.clear()
    bench.provider.hold.set()
    assert await both == 2
    (event,) = await bench.events()
    rows = [await bench.store.pickup(one.id) for one in (job, expected)]
    assert {row.state for row in rows} == {PickupState.COLLECTED}
    assert {row.event_id for row in rows} == {event.id}


async def test_a_worker_that_lost_its_claim_writes_nothing(bench: Bench) -> None:
    bench.provider.hold = asyncio.Event()
    pickup = await bench.add()
    slow = asyncio.create_task(step(bench.collector, T0))
    await bench.provider.begun.wait()
    later = T0 + 10 * HOUR
    bench.provider.hold = None
    other = bench.make("other")
    assert await step(other, later) == 1
    held = bench.provider.asked
    assert len(held) == 2
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert len(await bench.events()) == 1
    assert len(await bench.store.pickup_attempts(pickup.id)) == 1


# ---------------------------------------------------------------- expectations


async def test_an_overdue_callback_is_told_where_nobody_can_be_asked(bench: Bench) -> None:
    pickup = await bench.add(kind=PickupKind.EXPECTED, key="token:t1", job_id=None, deadline_at=T0)
    await bench.step()
    (event,) = await bench.events()
    assert (event.id, event.type, event.ref) == (pickup.event_id, "callback.overdue", "order-1")
    assert data(event)["error"]["code"] == "overdue"
    assert bench.provider.asked == []
    assert (await bench.store.pickup(pickup.id)).state is PickupState.GONE


async def test_an_overdue_callback_is_told_for_a_source_that_only_calls_back(bench: Bench) -> None:
    bench.collectors[0] = bench.make("w", None)
    await bench.add(kind=PickupKind.EXPECTED, key="token:t1", deadline_at=T0)
    await bench.step()
    assert [event.type for event in await bench.events()] == ["callback.overdue"]


async def test_a_source_that_can_be_asked_is_asked_and_nobody_hears_of_a_delay_when_the_result_is_there(
    bench: Bench,
) -> None:
    await bench.add(kind=PickupKind.EXPECTED, key="token:t1")
    await bench.step()
    assert [event.type for event in await bench.events()] == ["speech.completed"]
    assert bench.provider.asked[0].key == "job:j1", "what it finds is the job's result"


TOKEN = "token:0123456789abcdef"


async def test_what_only_a_jobs_own_url_told_of_it_takes_no_other_jobs_result(bench: Bench) -> None:
    """The URL's holder may name any job: what is then asked about does not stand in the way of that job's own result."""
    known = await bench.add(key=f"{TOKEN}:job:j0", job_id="j0")
    await bench.step()
    await bench.add(kind=PickupKind.EXPECTED, key=TOKEN)
    await bench.step()
    assert [asked.key for asked in bench.provider.asked] == [known.key, f"{TOKEN}:job:j1"]
    assert (await _pushed(bench, known)).status is RecordStatus.RECORDED


async def test_a_failure_found_for_a_jobs_own_url_takes_no_other_jobs_failure(bench: Bench) -> None:
    def failed(pickup: Pickup) -> Result:
        draft = replace(speech(pickup).draft, audio=None, idempotency_key="job:j1", second_key="job:j1")
        return Collected(draft=replace(draft, type="speech.failed", error=JobError(message="no")))

    def progress(pickup: Pickup) -> Result:
        draft = replace(speech(pickup).draft, audio=None, stage=Stage.PROGRESS, idempotency_key="delivery:1")
        return NotYet(retry_in=1, progress=replace(draft, type="speech.processing", second_key=None))

    bench.provider.script = [progress, failed]
    pickup = await bench.add(key=f"{TOKEN}:job:j1")
    await bench.step()
    await bench.step(bench.now + 2000)
    assert {event.type for event in await bench.events()} == {"speech.processing", "speech.failed"}
    assert (await _pushed(bench, pickup)).status is RecordStatus.RECORDED


async def test_a_job_that_still_runs_is_told_as_overdue_once_and_asked_about_until_it_ends(
    bench: Bench,
) -> None:
    wait: Callable[[Pickup], Result] = lambda _: NotYet(retry_in=10)  # noqa: E731
    bench.provider.script = [wait, wait, speech]
    pickup = await bench.add(kind=PickupKind.EXPECTED, key="token:t1")
    for _ in range(3):
        row = await bench.store.pickup(pickup.id)
        assert row.due_at is not None
        await bench.step(row.due_at)
    assert [event.type for event in await bench.events()] == ["callback.overdue", "speech.completed"]


# ---------------------------------------------------------------- at work


async def test_a_new_pickup_is_attempted_when_woken_and_a_stop_hands_back_what_was_not_finished(
    bench: Bench,
) -> None:
    bench.provider.hold = asyncio.Event()
    collector = bench.collector
    collector.start()
    pickup = await bench.add()
    collector.wake(["voices"])
    collector.wake(["unknown"])
    await bench.provider.begun.wait()
    await collector.stop(0)
    row = await bench.store.pickup(pickup.id)
    assert (row.state, row.attempts, row.claimed_by, row.due_at) == (PickupState.PENDING, 0, None, T0)
    assert await bench.events() == []


async def test_an_attempt_that_takes_too_long_is_ended_and_made_again(bench: Bench) -> None:
    bench.collectors[0] = bench.make("w", bench.provider, 0.01)
    bench.provider.hold = asyncio.Event()
    pickup = await bench.add()
    await bench.step()
    row = await bench.store.pickup(pickup.id)
    assert (row.state, row.last_outcome) == (PickupState.PENDING, "timeout")


async def test_a_pushed_result_that_was_recorded_meanwhile_is_the_pickups_event(bench: Bench) -> None:
    bench.provider.hold = asyncio.Event()
    pickup = await bench.add()
    step = asyncio.create_task(bench.step())
    await bench.provider.begun.wait()
    other = await bench.add(key="job:other", event_id=new_id("evt", T0))
    recorded = await _pushed(bench, other)
    bench.provider.hold.set()
    await step
    row = await bench.store.pickup(pickup.id)
    assert row.state is PickupState.COLLECTED
    assert row.event_id == recorded.event_id
    assert len([e for e in await bench.events() if e.job_id == "j1"]) == 1


async def _pushed(bench: Bench, like: Pickup) -> Recorded:
    """Record a whole event of the same job, as a callback does that carries its result."""
    from receiver.core.event import CallbackRow, Recording

    now = bench.now
    callback = CallbackRow(
        id=new_id("cb", now),
        source="voices",
        idempotency_key="delivery:1",
        second_key="job:j1",
        method="POST",
        content_type="",
        received_at=now,
        body_size=0,
        body_sha256="",
        body=None,
        proofs="hmac",
    )
    event = Event(
        id=new_id("evt", now),
        type="speech.completed",
        source="voices",
        provider="scripted",
        job_id="j1",
        ref=None,
        stage=Stage.FINAL,
        occurred_at=now,
        recorded_at=now,
        data=b"{}",
    )
    recorded = await bench.store.record(Recording(callback=callback, event=event, destinations=("app",)))
    assert recorded.status is RecordStatus.RECORDED
    return recorded
