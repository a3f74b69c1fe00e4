"""The recorder as a table: what came in, and the `Recording` that is written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from receiver.core import event_json
from receiver.core.callback import Head, MemoryBody, TokenClaims, VerifiedCallback
from receiver.core.event import (
    ASKED,
    Answered,
    AudioDraft,
    EventDraft,
    FileDraft,
    Recorded,
    Recording,
    RecordStatus,
    RemoteResult,
    Stage,
    TranscriptDraft,
    moment,
    new_id,
)
from receiver.core.routing import Route, Router
from receiver.core.work import Deferral, Pickup, PickupKind
from receiver.engine.recorder import Recorder
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.local import LocalBlobs
from receiver.system.body_buffer import BodyBuffer
from tests.support.memory import MemoryStore

CAME, NOW = 1795222923456, 1795222925000
SECRET = b"S3CRET-value"
LIMIT = 20_000
"""Bytes of a whole event: Standard Webhooks' advice."""
LARGE = {f"field-{number}": "x" * 900 for number in range(200)}
"""Provider data that no event can hold."""
KEYS = KeyTemplate("{source}/{year}/{month}/{day}/{hour}/{name}")
WAV = AudioDraft(content_type="audio/wav", extension="wav")
IMAGE = FileDraft(part="media", content_type="image/png", extension="png")
TEXT = FileDraft(part="document", content_type="text/plain", extension="txt")


class Provider:
    provider = "acme"
    keeps_retrying = True

    secret_headers: frozenset[str] = frozenset()

    def redact(self, body: bytes) -> bytes:
        return body.replace(SECRET, b"[redacted]")


class Store(MemoryStore):
    """Remembers what is written, and answers what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Recording] = []
        self.deferred: list[Deferral] = []
        self.status: RecordStatus | None = None

    async def record(self, recording: Recording) -> Recorded:
        self.written.append(recording)
        recorded = await super().record(recording)
        return replace(recorded, status=self.status) if self.status else recorded

    async def defer(self, deferral: Deferral) -> Recorded:
        self.deferred.append(deferral)
        recorded = await super().defer(deferral)
        return replace(recorded, status=self.status) if self.status else recorded


@dataclass
class Desk:
    """A recorder over a real blob folder and a store in memory."""

    folder: Path
    now: int = NOW
    store: Store = field(default_factory=Store)
    woken: list[str] = field(default_factory=list)
    woken_pickups: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blobs = LocalBlobs(str(self.folder / "blobs"))
        bodies = BodyBuffer(str(self.folder / "spool"))
        bodies.open()
        self.recorder = Recorder(
            store=self.store,
            blobs=self.blobs,
            bodies=bodies,
            router=Router([Route("app", ("acme",), ("speech.*",)), Route("other", ("*",), ("media.*",))]),
            keys=KEYS,
            clock=lambda: self.now,
            expect=lambda names: lambda _: self.woken.extend(names),
            wake=self.woken.extend,
            wake_pickups=self.woken_pickups.append,
        )

    async def record(
        self, body: bytes = b"{}", *, claims: TokenClaims | None = None, **fields: Any
    ) -> Recorded:
        """Record a callback with this body, and a draft with these fields."""
        head = Head(
            source="acme",
            method="PUT",
            headers=(("content-type", "application/json"),),
            received_at=CAME,
        )
        callback = VerifiedCallback(
            head=head, claims=claims, proofs=frozenset({"token", "basic"}), body=MemoryBody(body)
        )
        return await self.recorder.record(Provider(), callback, _draft(**fields))  # type: ignore[arg-type]

    async def recorded(self, body: bytes = b"{}", **fields: Any) -> Recording:
        """Do the same; return what was written."""
        await self.record(body, **fields)
        return self.store.written[-1]

    async def blob(self, recording: Recording) -> bytes:
        assert recording.event.blob_key is not None
        return await self.blobs.get(recording.event.blob_key)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    await made.store.open()
    await made.blobs.open()
    yield made
    await made.blobs.close()


def _draft(**fields: Any) -> EventDraft:
    known: dict[str, Any] = {"type": "speech.completed", "idempotency_key": "job:1", "occurred_at": CAME}
    return EventDraft(**(known | fields))


def _data(recording: Recording) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(recording.event.data)
    return data


def _size(recording: Recording) -> int:
    """Return the bytes of the whole event as it is sent, with a long link."""
    return len(
        event_json.render(recording.event, lambda key, kind: (f"https://hooks.example.com/{'x' * 500}", NOW))
    )


def _pickup(**fields: Any) -> Pickup:
    known: dict[str, Any] = {"id": "pku_1", "source": "acme", "kind": PickupKind.RESULT, "key": "job:1"}
    times = {"deadline_at": NOW, "due_at": NOW, "created_at": CAME, "updated_at": CAME}
    return Pickup(**(known | times | {"event_id": "evt_01ktzz00000000000000000000"} | fields))


# ---------------------------------------------------------------- what is kept, and where

KEPT: dict[str, tuple[bytes, dict[str, Any], str | None, bytes | None, bytes | None]] = {
    # name: (body, draft, field that links to a blob, bytes in the blob, bytes in the row)
    "a document": (b"{}", {"document": b"{}"}, None, None, b"{}"),
    "an empty document": (b"", {"document": b""}, None, None, b""),
    "no document": (b"{}", {}, None, None, None),
    "a document as long as a row takes": (
        b"{}", {"document": b"x" * 65_536}, None, None, b"x" * 65_536,
    ),
    "a document longer than that": (
        b"{}", {"document": b"x" * 65_537}, "document", b"x" * 65_537, None,
    ),
    "a document whose fields are too many": (
        b"{}", {"document": b"{}", "provider_data": LARGE}, "document", b"{}", None,
    ),
    "a document in place of an empty body": (
        b"", {"document": b"{}", "provider_data": LARGE}, "document", b"{}", None,
    ),
    "too many fields without a body": (b"", {"provider_data": LARGE}, None, None, None),
    "too many fields with a body": (b"{a}", {"provider_data": LARGE}, "document", b"{a}", None),
    "parked, with its document": (b"?", {"parked": "odd", "document": b"?"}, None, None, b"?"),
    "parked, too long for memory": (
        b"?" + SECRET, {"parked": "odd"}, "document", b"?[redacted]", None,
    ),
    "parked without a body": (b"", {"parked": "odd"}, None, None, None),
    "audio": (b"RIFF", {"audio": WAV}, "audio", b"RIFF", None),
    "audio with too many fields": (b"RIFF", {"audio": WAV, "provider_data": LARGE}, "audio", b"RIFF", None),
    "an image": (b"PNG", {"file": IMAGE}, "media", b"PNG", None),
    "an image with too many fields": (b"PNG", {"file": IMAGE, "provider_data": LARGE}, "media", b"PNG", None),
    "a text file": (b"words", {"file": TEXT}, "document", b"words", None),
    "a text file with too many fields": (
        b"words", {"file": TEXT, "provider_data": LARGE}, "document", b"words", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
async def test_what_is_kept_and_where(desk: Desk, name: str) -> None:
    body, draft, link, blob, row = KEPT[name]
    recording = await desk.recorded(body, **draft)
    data = _data(recording)
    assert [part for part in event_json.LINKED if data[part] is not None] == ([link] if link else [])
    if link is None:
        assert recording.event.blob_key is None
    else:
        assert await desk.blob(recording) == blob
        assert (data[link]["bytes"], data[link]["url"]) == (len(blob or b""), None)
    assert recording.callback.body == row
    assert (recording.callback.body_size, recording.callback.body_sha256) == (
        len(body), MemoryBody(body).sha256,
    )  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
async def test_an_event_stays_under_20_kb_whatever_it_links_to(desk: Desk, name: str) -> None:
    body, draft, *_ = KEPT[name]
    text = TranscriptDraft(text="a" * 7_900)
    recording = await desk.recorded(body, **draft, transcript=text, ref="r" * 500)
    assert _size(recording) < LIMIT


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("shape", [{"audio": WAV}, {"file": IMAGE}, {}])
async def test_provider_data_is_shortened_only_past_the_limit(
    desk: Desk, shape: dict[str, Any], over: int
) -> None:
    plain = len((await desk.recorded(b"", provider_data={"a": ""}, **shape)).event.data)
    text = "x" * (event_json.DATA_LIMIT - plain + over)
    recording = await desk.recorded(b"", idempotency_key="job:2", provider_data={"a": text}, **shape)
    # The key of the object is another one: of the same length, as all are.
    assert _data(recording)["provider_data"] == ({} if over else {"a": text})
    assert len(recording.event.data) <= event_json.DATA_LIMIT


@pytest.mark.parametrize(
    ("body", "kind", "extension"),
    [
        (b' \n{"a": 1}', "application/json", "json"),
        (b"[1]", "application/json", "json"),
        (b"plain", "application/octet-stream", "bin"),
    ],
)
async def test_a_document_is_named_by_what_it_is(desk: Desk, body: bytes, kind: str, extension: str) -> None:
    recording = await desk.recorded(body, provider_data=LARGE)
    assert _data(recording)["document"]["content_type"] == kind
    assert str(recording.event.blob_key).endswith(f".{extension}")


# ---------------------------------------------------------------- where it lies


async def test_two_bodies_under_one_identity_never_overwrite_each_other(desk: Desk) -> None:
    """A provider, or a thief of one of its URLs, sends other bytes for the same job: the first stay what they were."""
    first = await desk.recorded(b"RIFF first", audio=WAV)
    second = await desk.recorded(b"RIFF other", audio=WAV)
    assert await desk.blob(first) == b"RIFF first"
    assert await desk.blob(second) == b"RIFF other"


@pytest.mark.parametrize(
    "other",
    [
        {"idempotency_key": "job:2"},
        {"audio": AudioDraft(content_type="audio/mpeg", extension="mp3")},
    ],
)
async def test_the_key_tells_apart_what_differs_and_repeats_what_does_not(
    desk: Desk, other: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"audio": WAV}
    first = (await desk.recorded(b"RIFF", **fields)).event.blob_key
    assert (await desk.recorded(b"RIFF", **fields)).event.blob_key == first
    assert (await desk.recorded(b"RIFF", **(fields | other))).event.blob_key != first


@pytest.mark.parametrize(("waited", "at"), [(12 * 3_600_000 - 1, CAME), (12 * 3_600_000, CAME + 43_200_000)])
async def test_the_time_in_the_key_is_the_arrivals_for_half_a_day(desk: Desk, waited: int, at: int) -> None:
    desk.now = CAME + waited
    recording = await desk.recorded(b"RIFF", audio=WAV)
    expected = KEYS.key(source="acme", received_at=at, name="x").rpartition("/")[0]
    assert str(recording.event.blob_key).rpartition("/")[0] == expected


# ---------------------------------------------------------------- the rows


async def test_the_rows_of_a_callback(desk: Desk) -> None:
    recording = await desk.recorded(b"{}", document=b"{}", job_id="j1", ref="r1", second_key="j1:done")
    row, event = recording.callback, recording.event
    assert (row.source, row.idempotency_key, row.second_key) == ("acme", "job:1", "j1:done")
    assert (row.method, row.content_type, row.proofs) == ("PUT", "application/json", "basic,token")
    assert (row.received_at, event.occurred_at, event.recorded_at) == (CAME, CAME, NOW)
    assert moment(row.id) == moment(event.id) == moment(new_id("any", NOW))
    assert (event.type, event.source, event.provider) == ("speech.completed", "acme", "acme")
    assert (event.job_id, event.ref, event.stage) == ("j1", "r1", Stage.FINAL)
    assert (recording.destinations, recording.answered) == (("app",), None)


async def test_the_rows_of_what_was_picked_up(desk: Desk) -> None:
    pickup = _pickup()
    for body in (None, MemoryBody(b"RIFF")):
        fields: dict[str, Any] = {"audio": WAV} if body else {}
        recording = await desk.recorder.result(Provider(), pickup, _draft(**fields), body)  # type: ignore[arg-type]
        row = recording.callback
        assert (row.method, row.proofs, row.received_at, row.content_type) == ("GET", ASKED, CAME, "")
        assert (recording.event.id, recording.event.recorded_at) == (pickup.event_id, NOW)
        assert moment(row.id) == moment(pickup.event_id)
        assert row.body_size == (4 if body else 0)
    progress = await desk.recorder.progress(Provider(), pickup, _draft(stage=Stage.PROGRESS))  # type: ignore[arg-type]
    assert progress.event.id != pickup.event_id
    overdue = await desk.recorder.overdue("acme", pickup, _draft(type="callback.overdue"))
    assert (overdue.event.id, overdue.event.provider, overdue.destinations) == (pickup.event_id, "acme", ())
    assert desk.store.written == [], "a pickup's recording is written with its settlement"


async def test_a_result_at_the_provider_becomes_a_pickup_and_no_event_yet(desk: Desk) -> None:
    remote = RemoteResult(key="job:1", url="https://acme.example/r", deadline_at=NOW + 5)
    claims = TokenClaims(source="acme", token_id="t", format={"encoding": "mulaw"})
    recorded = await desk.record(b"{}", claims=claims, remote=remote, document=b"{}", job_id="j1", ref="r1")
    [deferral] = desk.store.deferred
    pickup = deferral.pickup
    assert (pickup.kind, pickup.key, pickup.target, pickup.deadline_at, pickup.due_at) == (
        PickupKind.RESULT, "job:1", "https://acme.example/r", NOW + 5, NOW,
    )  # fmt: skip
    assert (pickup.job_id, pickup.ref, pickup.format) == ("j1", "r1", {"encoding": "mulaw"})
    assert pickup.draft is not None
    assert (pickup.draft.remote, pickup.draft.document) == (None, None)
    assert (deferral.callback.body, moment(deferral.callback.id)) == (b"{}", moment(pickup.event_id))
    assert (recorded.status, recorded.event_id) == (RecordStatus.RECORDED, pickup.event_id)
    assert desk.store.written == []


# ---------------------------------------------------------------- expectations


@pytest.mark.parametrize(
    ("expect_by", "stage", "answered", "late"),
    [
        (None, Stage.FINAL, None, False),
        (CAME + 1, Stage.FINAL, True, False),
        (CAME, Stage.FINAL, True, False),
        (CAME - 1, Stage.FINAL, True, True),
        (CAME - 1, Stage.OPEN, True, True),
        (CAME - 1, Stage.PROGRESS, False, False),
    ],
)
async def test_which_expectation_a_callback_answers(
    desk: Desk, expect_by: int | None, stage: Stage, answered: bool | None, late: bool
) -> None:
    claims = TokenClaims(source="acme", token_id="t1", expect_by=expect_by)
    recording = await desk.recorded(b"{}", claims=claims, stage=stage, job_id="j1")
    expected = None if answered is None else Answered(key="token:t1", final=answered, job_id="j1")
    assert (recording.answered, _data(recording)["late"]) == (expected, late)


# ---------------------------------------------------------------- who is woken


@pytest.mark.parametrize(
    ("status", "type", "woken"),
    [
        (RecordStatus.RECORDED, "speech.completed", ["app"]),
        (RecordStatus.RECORDED, "media.completed", ["other"]),
        (RecordStatus.RECORDED, "transcript.completed", []),
        (RecordStatus.DUPLICATE, "speech.completed", []),
        (RecordStatus.LATE, "speech.completed", []),
    ],
)
async def test_only_a_new_event_wakes_its_destinations(
    desk: Desk, status: RecordStatus, type: str, woken: list[str]
) -> None:
    desk.store.status = status
    assert (await desk.record(b"{}", type=type)).status is status
    assert (desk.woken, desk.woken_pickups) == (woken, [])


@pytest.mark.parametrize(
    ("status", "woken"), [(RecordStatus.RECORDED, ["acme"]), (RecordStatus.DUPLICATE, [])]
)
async def test_only_a_new_pickup_wakes_its_source(desk: Desk, status: RecordStatus, woken: list[str]) -> None:
    desk.store.status = status
    await desk.record(b"{}", remote=RemoteResult(key="job:1", url=None, deadline_at=NOW))
    assert (desk.woken_pickups, desk.woken) == (woken, [])
