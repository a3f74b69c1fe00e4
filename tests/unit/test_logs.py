"""What is logged and counted, and that listeners never disturb the engine."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from receiver.app.log import LogObserver
from receiver.app.metrics import MetricsObserver
from receiver.core.observe import AttemptReport, CallbackReport, Observers, SubmissionReport, no_secrets
from receiver.core.work import Due, Outcome, OutcomeKind, StoreStats


def _callback(**fields: Any) -> CallbackReport:
    given: dict[str, Any] = {
        "source": "dg",
        "provider": "deepgram",
        "method": "POST",
        "answer": "recorded",
        "status": 200,
    }
    return CallbackReport(**(given | {"seconds": 0.0123456789, "size": 5} | fields))


def _attempt(**fields: Any) -> AttemptReport:
    given: dict[str, Any] = {
        "destination": "app",
        "delivery_id": "dlv_1",
        "event_id": "evt_1",
        "event_type": "speech.completed",
    }
    given |= {"number": 1, "outcome": Outcome(kind=OutcomeKind.DELIVERED, status=200), "seconds": 0.5}
    return AttemptReport(**(given | {"state": "delivered", "due_at": None, "waited_seconds": 0.25} | fields))


def _log(style: str = "json", level: str = "info") -> tuple[LogObserver, io.StringIO]:
    stream = io.StringIO()
    return LogObserver(style=style, level=level, stream=stream), stream


@pytest.mark.parametrize(("outcome", "level"), [("forwarded", "info"), ("refused", "warning")])
def test_a_submission_is_one_json_line(outcome: str, level: str) -> None:
    log, stream = _log()
    report = SubmissionReport(application="crm", source="dg", request="POST /v1/listen", outcome=outcome)
    report.status, report.bytes_in, report.job_id, report.ref = 200, 7, "job-1", "order-7"
    log.submission(report)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["application"]) == (f"submit.{outcome}", level, "crm")
    assert (line["request"], line["job_id"], line["ref"]) == ("POST /v1/listen", "job-1", "order-7")


def test_a_callback_is_one_json_line_without_what_is_empty() -> None:
    log, stream = _log()
    log.callback(_callback(event_id="evt_1", peer="192.0.2.1"))
    line = json.loads(stream.getvalue())
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "event": "callback.recorded",
        "source": "dg",
        "provider": "deepgram",
        "method": "POST",
        "status": 200,
        "seconds": 0.012346,
        "size": 5,
        "event_id": "evt_1",
        "peer": "192.0.2.1",
    }


def test_a_failed_attempt_is_a_warning_with_its_detail() -> None:
    log, stream = _log()
    outcome = Outcome(
        kind=OutcomeKind.REFUSED,
        status=301,
        detail="redirects are not followed",
        response=b"their secret page",
    )
    log.attempt(_attempt(outcome=outcome, state="pending", due_at=5))
    line = json.loads(stream.getvalue())
    assert (line["level"], line["event"], line["detail"]) == (
        "warning",
        "attempt.refused",
        "redirects are not followed",
    )
    assert "their secret page" not in stream.getvalue()


def test_the_console_shows_the_same_fields() -> None:
    log, stream = _log("console")
    log.callback(_callback(event_id="evt_1", reason="none"))
    line = stream.getvalue()
    assert line.count("\n") == 1
    for part in ("callback.recorded", "evt_1", "deepgram", "0.012346"):
        assert part in line
    assert re.match(r"\d\d:\d\d:\d\d \[", line)


def test_a_stream_that_is_no_terminal_gets_json_by_itself() -> None:
    log, stream = _log("auto")
    log.note("info", "receiver.ready")
    assert json.loads(stream.getvalue())["event"] == "receiver.ready"


@pytest.mark.parametrize(
    ("level", "kept"),
    [
        (
            "debug",
            ["callback.recorded", "callback.rejected", "attempt.delivered", "attempt.timeout", "a", "b", "c"],
        ),
        (
            "info",
            ["callback.recorded", "callback.rejected", "attempt.delivered", "attempt.timeout", "a", "b", "c"],
        ),
        ("warning", ["callback.rejected", "attempt.timeout", "b", "c"]),
        ("error", ["c"]),
    ],
)
def test_a_level_keeps_what_is_at_least_as_grave(level: str, kept: list[str]) -> None:
    log, stream = _log(level=level)
    log.callback(_callback())
    log.callback(_callback(answer="rejected", status=401))
    log.attempt(_attempt())
    log.attempt(_attempt(outcome=Outcome(kind=OutcomeKind.TIMEOUT)))
    for grade, name in (("info", "a"), ("warning", "b"), ("error", "c")):
        log.note(grade, name)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == kept


def test_the_journal_is_told_while_something_waits() -> None:
    log, stream = _log()
    log.journal(0, 0)
    log.journal(3, 1.5)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["depth"], line["oldest_age_seconds"]) == ("journal.waiting", 3, 1.5)


def test_a_long_outage_is_told_now_and_then_and_its_end_once() -> None:
    stream, now = io.StringIO(), 0.0
    log = LogObserver(style="json", level="info", stream=stream, clock=lambda: now)
    for depth in range(1, 101):
        now += 0.7
        log.journal(depth, now)
    for depth in range(99, -1, -1):
        log.journal(depth, now)
    log.journal(0, 0)
    now += 1
    log.journal(1, 0)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    waits = [(line["event"], line.get("depth")) for line in lines]
    assert waits == [
        ("journal.waiting", 1),
        ("journal.waiting", 44),
        ("journal.waiting", 87),
        ("journal.empty", None),
        ("journal.waiting", 1),
    ]


def test_values_under_the_names_of_secrets_are_not_written() -> None:
    log, stream = _log()
    log.note("info", "a", Authorization="Basic x", dg_token="y", api_key="z", client_secret="w", plain="v")
    line = json.loads(stream.getvalue())
    names = ("Authorization", "dg_token", "api_key", "client_secret")
    assert {line[name] for name in names} == {"[redacted]"}
    assert line["plain"] == "v"
    assert no_secrets({"Set-Cookie": 1, "size": 2}) == {"Set-Cookie": "[redacted]", "size": 2}


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("value", ["\ud800", {1: b"x"}, object(), {2}, b"\xff", "a\nb\x1b[31m\u202e"])
def test_whatever_is_told_becomes_one_line(style: str, value: object) -> None:
    """Lone surrogates, bytes, objects, line breaks, terminal codes and text that runs backwards."""
    log, stream = _log(style)
    log.note("warning", "odd", value=value)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert "odd" in lines[0]
    assert "\x1b[31m" not in lines[0]
    if style == "json":
        assert json.loads(lines[0])["event"] == "odd"
    else:
        assert "\u202e" not in lines[0]


class _Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class _Broken:
    """A listener with a bug."""

    def __getattr__(self, name: str) -> Any:
        def report(*args: Any, **fields: Any) -> None:
            raise RuntimeError(name)

        return report


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_log_on_a_full_disk_disturbs_nobody(style: str) -> None:
    log = LogObserver(style=style, level="info", stream=_Full())
    log.callback(_callback())
    log.note("error", "a")


def test_a_listener_with_a_bug_is_reported_and_keeps_no_other_from_hearing() -> None:
    log, stream = _log()
    observers = Observers([_Broken(), log])
    observers.callback(_callback())
    observers.attempt(_attempt())
    observers.journal(1, 0)
    observers.note("error", "a")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    failed = [line["error"] for line in lines if line["event"] == "listener.failed"]
    assert (failed, len(lines)) == (["RuntimeError"] * 3, 7)


# ---------------------------------------------------------------- metrics


def _samples(metrics: MetricsObserver, stats: StoreStats | None = None, now: int = 0) -> dict[str, float]:
    text = metrics.render(stats, ("app", "other"), ("deapi",), now).decode()
    return {
        ",".join((sample.name, *(value for _, value in sorted(sample.labels.items())))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_callbacks_and_attempts_are_counted_by_names_of_ours() -> None:
    metrics = MetricsObserver()
    metrics.callback(_callback())
    metrics.callback(_callback(answer="rejected", status=401, size=0, job_id="x" * 100, peer="192.0.2.1"))
    metrics.attempt(_attempt(outcome=Outcome(kind=OutcomeKind.TIMEOUT), state="pending"))
    metrics.attempt(_attempt(number=2))
    metrics.journal(2, 7.5)
    metrics.note("error", "store.out", error="x")
    metrics.note("info", "receiver.ready")
    found = _samples(metrics)
    assert found["receiver_callbacks_total,recorded,dg"] == found["receiver_callbacks_total,rejected,dg"] == 1
    assert found["receiver_callback_bytes_total,dg"] == 5
    assert found["receiver_attempts_total,app,timeout"] == found["receiver_attempts_total,app,delivered"] == 1
    assert found["receiver_deliveries_total,app,delivered"] == 1
    assert found["receiver_delivery_wait_seconds_count,app"] == 1
    assert (found["receiver_journal_depth"], found["receiver_journal_oldest_age_seconds"]) == (2, 7.5)
    assert found["receiver_notes_total,store.out,error"] == 1
    assert not any("ready" in name or "192.0.2.1" in name or "xxx" in name for name in found)


def test_depths_come_from_the_store_for_each_configured_destination() -> None:
    """One that has nothing due shows 0; one that is configured no more shows nothing; without a store they stay."""
    metrics = MetricsObserver()
    due = (
        Due(name="app", depth=4, oldest_due_at=1000),
        Due(name="removed", depth=9, oldest_due_at=1),
    )
    found = _samples(metrics, StoreStats(due=due, dead={"app": 2, "removed": 1}), now=6000)
    assert (found["receiver_due_deliveries,app"], found["receiver_due_deliveries,other"]) == (4, 0)
    assert found["receiver_oldest_due_age_seconds,app"] == 5
    assert found["receiver_dead_deliveries,app"] == 2
    assert not any("removed" in name for name in found)
    assert _samples(metrics)["receiver_due_deliveries,app"] == 4
    assert _samples(metrics, StoreStats(due=(), dead={}))["receiver_due_deliveries,app"] == 0
