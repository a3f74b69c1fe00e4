"""PlayHT's event stream, followed over real HTTP: progress, early ends, silence, and words that are not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.core.event import Stage
from receiver.core.work import OutcomeKind
from receiver.demo.playht import API_KEY, COMPLETED, END, PING, SILENCE, WHOLE_STREAM, Step, generating
from receiver.providers.pickups import Gone
from tests.support.callbacks import NOW
from tests.support.playht_asking import JOB, asking, collected, failed, not_yet


async def test_a_job_is_followed_from_beginning_to_end(tmp_path: Path) -> None:
    """Progress in between is not told when the end comes first."""
    async with asking(tmp_path, "sse") as ask:
        ask.job(WHOLE_STREAM)
        draft = collected(await ask()).draft
    assert draft.type == "speech.completed"
    assert draft.provider_data["duration"] == 1.5


async def test_progress_is_told_and_the_stream_followed_on_at_once(tmp_path: Path) -> None:
    """The first attempt tells it after `progress_seconds`; the latest word is what is told."""
    async with asking(tmp_path, "sse") as ask:
        ask.job((generating(0, "queued"), PING, generating(0.45), SILENCE))
        found = not_yet(await ask())
    assert found.retry_in == 0
    assert found.progress
    assert (found.progress.type, found.progress.stage) == ("speech.processing", Stage.PROGRESS)
    assert (found.progress.job_id, found.progress.ref, found.progress.occurred_at) == (JOB, "order-42", NOW)
    assert found.progress.idempotency_key == f"job:{JOB}:generating:generate:4"
    assert found.progress.provider_data == {
        "id": JOB,
        "progress": 0.45,
        "stage": "generate",
        "stage_progress": 0.45,
    }


async def test_what_a_later_attempt_finds_first_is_no_news(tmp_path: Path) -> None:
    """It stays with the stream, which here falls silent: not for `progress_seconds`, but for `silence_seconds`."""
    async with asking(tmp_path, "sse", progress_seconds=0.01, silence_seconds=0.7) as ask:
        ask.job((generating(0.45), SILENCE))
        found = not_yet(await ask(attempts=3))
    assert found.detail == "the event stream ended before the job"
    assert found.retry_in == 8.0


async def test_a_change_in_a_later_attempt_is_news(tmp_path: Path) -> None:
    async with asking(tmp_path, "sse", silence_seconds=20) as ask:
        ask.job((generating(0.45), generating(0.46), generating(0.62), SILENCE))
        found = not_yet(await ask(attempts=3))
    assert found.retry_in == 0
    assert found.progress
    assert found.progress.idempotency_key == f"job:{JOB}:generating:generate:6"


async def test_an_attempt_ends_in_time_though_nothing_is_new(tmp_path: Path) -> None:
    """Half of `attempt_seconds`; the rest is for the download."""
    async with asking(tmp_path, "sse", attempt_seconds=1, silence_seconds=20) as ask:
        ask.job((SILENCE,))
        found = not_yet(await ask(attempts=1))
    assert (found.retry_in, found.progress) == (0, None)


@pytest.mark.parametrize(("attempts", "wait"), [(0, 1.0), (1, 2.0), (2, 4.0), (9, 30.0)])
async def test_a_stream_that_ends_early_is_resumed(tmp_path: Path, attempts: int, wait: float) -> None:
    async with asking(tmp_path, "sse") as ask:
        ask.job((generating(0.45), END))
        found = not_yet(await ask(attempts=attempts))
    assert found.retry_in == wait
    assert found.progress
    assert found.progress.provider_data["progress"] == 0.45


async def test_after_an_early_end_the_next_attempt_completes(tmp_path: Path) -> None:
    async with asking(tmp_path, "sse") as ask:
        ask.job((generating(0.45), END), (generating(0.7), COMPLETED))
        not_yet(await ask())
        assert collected(await ask(attempts=1)).draft.audio


async def test_a_stream_that_ends_at_once_tells_nothing(tmp_path: Path) -> None:
    async with asking(tmp_path, "sse") as ask:
        ask.job((END,))
        assert not_yet(await ask()).progress is None


async def test_a_stream_that_never_says_anything_times_out(tmp_path: Path) -> None:
    async with asking(tmp_path, "sse", silence_seconds=0.7) as ask:
        ask.job((SILENCE,))
        found = failed(await ask())
    assert found.kind is OutcomeKind.TIMEOUT
    assert found.detail.endswith(" 0.7 s")


async def test_pings_alone_are_no_news_and_no_failure(tmp_path: Path) -> None:
    async with asking(tmp_path, "sse") as ask:
        ask.job((PING, PING, END))
        assert not_yet(await ask()).progress is None


async def test_unknown_events_and_data_that_is_no_json_are_passed_over(tmp_path: Path) -> None:
    odd: tuple[Step, ...] = (
        ("welcome", "hello"),
        ("generating", "{"),
        ("generating", "[1]"),
        ("x", {"a": 1}),
    )
    async with asking(tmp_path, "sse") as ask:
        ask.job((*odd, COMPLETED))
        assert collected(await ask()).draft.audio


@pytest.mark.parametrize("name", ["error", "failed"])
async def test_an_error_event_is_the_jobs_failure(tmp_path: Path, name: str) -> None:
    async with asking(tmp_path, "sse") as ask:
        ask.job((generating(0.1), (name, {"error_message": f"the voice {API_KEY} is gone"}), END))
        found = await ask()
    assert isinstance(found, Gone)
    assert found.error.message == "the voice [redacted] is gone"


@pytest.mark.parametrize(
    "data",
    ["not json", {}, {"url": 7}, {"url": "file:///etc/passwd"}, {"id": "another", "url": "http://x/y"}],
)
async def test_a_completed_event_that_is_not_understood_is_unusable(tmp_path: Path, data: object) -> None:
    """Also when there was progress before it: this is no stream that was cut off."""
    async with asking(tmp_path, "sse") as ask:
        ask.job((generating(0.9), ("completed", data)))
        assert failed(await ask()).kind is OutcomeKind.UNUSABLE


async def test_the_older_spelling_of_the_stages_progress_is_kept_as_told(tmp_path: Path) -> None:
    async with asking(tmp_path, "sse") as ask:
        older = {"progress": 0.3, "stage": "generate", "stageProgress": 0.3}
        ask.job((("generating", older), END))
        found = not_yet(await ask())
    assert found.progress
    assert found.progress.provider_data["stageProgress"] == 0.3


@pytest.mark.parametrize(
    ("told", "step"),
    [
        ({"progress": 1, "stage": "postprocessing"}, "postprocessing:10"),
        ({"progress": 0.3}, "unknown:3"),
        ({"progress": 7, "stage": "x"}, "x:10"),
        ({"progress": "much", "stage": 4}, "unknown:0"),
        ({"progress": True, "stage": "a\u0000b"}, "ab:0"),
    ],
)
async def test_progress_is_told_in_tenths(tmp_path: Path, told: dict[str, object], step: str) -> None:
    async with asking(tmp_path, "sse") as ask:
        ask.job((("generating", told), END))
        found = not_yet(await ask())
    assert found.progress
    assert found.progress.idempotency_key == f"job:{JOB}:generating:{step}"
