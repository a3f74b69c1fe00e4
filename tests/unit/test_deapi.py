"""deAPI: settings, job kinds, and fields that are missing or of the wrong kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import CallbackRejected, ConfigError, MalformedCallback
from receiver.core.event import EventDraft, Stage
from receiver.core.tokens import CallbackTokens
from receiver.providers import deapi
from tests.support.callbacks import DEAPI_SECRET, NOW, deapi_draft, deapi_head, deapi_source, prove
from tests.support.golden import source_settings, tokens


def _document(event: Any = "job.completed", **data: Any) -> dict[str, Any]:
    known = {"job_request_id": "j1", "result_url": "https://results.deapi.ai/a"}
    return {"event": event, "delivery_id": "d1", "data": known | data}


def _draft(document: Any) -> EventDraft:
    return deapi_draft(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({}, ["E201"]),
        ({"secrets": []}, ["E201"]),
        ({"secrets": [""]}, ["E204"]),
        ({"secrets": ["x" * 32], "tolerance_seconds": 0}, ["E204"]),
        ({"require_token": True}, ["W201"]),
        ({"secrets": "short"}, ["W202"]),
        ({"secrets": ["x" * 32], "api_key": "dpn-sk-1"}, []),
        ({"secrets": ["x" * 32], "api_url": "api.deapi.ai"}, ["E204"]),
        ({"secrets": ["x" * 32], "api_url": "https://u:p@api.deapi.ai"}, ["E204"]),
        ({"secrets": ["x" * 32], "result_hosts": []}, ["E204"]),
        ({"secrets": ["x" * 32], "result_hosts": ["https://deapi.ai"]}, ["E204"]),
        ({"secrets": ["x" * 32], "result_hosts": ["*", "127.0.0.1", "::1"]}, []),
        ({"secrets": ["x" * 32], "deadline_seconds": 0}, ["E204"]),
        ({"secrets": ["x" * 32], "api_key": "dpn-sk-1", "api_url": "http://api.example.com"}, ["W203"]),
        ({"secrets": ["x" * 32], "api_key": "dpn-sk-1", "api_url": "http://127.0.0.1:9"}, []),
    ],
)
def test_findings_have_stable_codes(options: dict[str, Any], codes: list[str]) -> None:
    found = deapi.DeapiProvider.findings(source_settings("da", {"provider": "deapi"} | options))
    assert [finding.code for finding in found] == codes


def test_without_a_secret_the_source_does_not_start() -> None:
    with pytest.raises(ConfigError, match=r"sources\.da\.secrets: .*add secrets = "):
        deapi_source(secrets=[])


@pytest.mark.parametrize(("asked", "limit"), [(100, 100), (64 * 1024 * 1024, 1024 * 1024)])
def test_the_body_limit_is_small(asked: int, limit: int) -> None:
    assert deapi_source(max_json_bytes=asked).admit(deapi_head(b"{}")).body_limit == limit


def test_a_body_past_the_limit_is_not_understood() -> None:
    with pytest.raises(MalformedCallback):
        deapi_draft(json.dumps(_document()).encode(), max_json_bytes=20)


def test_the_refusal_of_a_stale_callback_tells_how_far_off_it_is() -> None:
    with pytest.raises(CallbackRejected, match="is 400 s old, 300 s are allowed"):
        deapi_source().admit(deapi_head(b"{}", stamp=NOW // 1000 - 400))


def test_the_tolerance_is_a_setting() -> None:
    stale = deapi_head(b"{}", stamp=NOW // 1000 - 400)
    assert deapi_source(tolerance_seconds=500).admit(stale).head is stale


def test_the_refusal_of_a_signature_names_the_setting_and_no_secret() -> None:
    source, body = deapi_source(), MemoryBody(b"{}")
    admission = source.admit(deapi_head(b"{}", secret="someone else's secret"))
    with pytest.raises(CallbackRejected) as caught:
        source.verify(admission, body)
    assert "sources.da.secrets" in caught.value.message
    assert DEAPI_SECRET not in caught.value.message


def test_after_rotating_our_own_secret_a_jobs_secret_still_proves() -> None:
    """A job's secret is derived from the token secret of its time; older token secrets still derive it."""
    older = CallbackTokens(["the-older-token-secret"])
    token = older.issue("da", job_secret=True)
    both = CallbackTokens(["the-older-token-secret", "the-newer-token-secret"])
    settings = source_settings("da", {"provider": "deapi", "secrets": [DEAPI_SECRET]})
    source = deapi.DeapiProvider.create(settings, both)
    head = deapi_head(b"{}", secret=older.job_secrets(token)[0], token=token)
    assert prove(source, head, MemoryBody(b"{}")).proofs == {"token", "job_secret"}


@pytest.mark.parametrize(
    ("job_type", "family"),
    [
        ("txt2audio", "speech"),
        ("img2audio", "speech"),
        ("aud2txt", "transcript"),
        ("vid2txt", "transcript"),
        ("audiofile2txt", "transcript"),
        ("videofile2txt", "transcript"),
        ("img2txt", "media"),
        ("txt2video", "media"),
        ("txt2embedding", "media"),
        ("something_new", "media"),
        (None, "media"),
        (["txt2audio"], "media"),
    ],
)
def test_the_job_kind_decides_the_family(job_type: Any, family: str) -> None:
    assert _draft(_document(job_type=job_type)).type == f"{family}.completed"


@pytest.mark.parametrize("status", ["error", "failed"])
def test_a_completed_job_in_an_error_state_has_failed(status: str) -> None:
    draft = _draft(_document(status=status, result_url="https://r.example.test/a"))
    assert (draft.type, draft.remote) == ("media.failed", None)
    assert draft.error


def test_a_processing_event_is_progress() -> None:
    assert _draft(_document("job.processing")).stage is Stage.PROGRESS


@pytest.mark.parametrize("url", [None, "", 7, "ftp://r.example.test/a", "javascript:alert(1)", {}])
def test_a_completed_job_without_a_usable_link_is_not_understood_where_it_cannot_be_polled(url: Any) -> None:
    with pytest.raises(MalformedCallback, match=r"no link to its result is there: set sources\.da\.api_key"):
        _draft(_document(result_url=url))


def test_a_result_lies_at_its_link_until_the_deadline() -> None:
    link = "https://results.deapi.ai/a.mp3?signature=1"
    remote = _draft(_document(result_url=link)).remote
    assert remote is not None
    assert (remote.key, remote.url, remote.deadline_at) == ("job:j1:job.completed", link, NOW + 86_400_000)


def test_a_job_without_a_link_is_asked_for_where_there_is_a_key() -> None:
    remote = deapi_draft(json.dumps(_document(result_url=None)).encode(), api_key="dpn-sk-0123456789").remote
    assert remote is not None
    assert (remote.key, remote.url) == ("job:j1:job.completed", None)


def test_a_job_whose_id_no_url_can_hold_cannot_be_polled_either() -> None:
    body = json.dumps(_document(job_request_id="../j 1", result_url=None)).encode()
    with pytest.raises(MalformedCallback, match="no link to its result"):
        deapi_draft(body, api_key="dpn-sk-0123456789")


@pytest.mark.parametrize("away", [-3600, 3600])
def test_the_deadline_counts_from_the_arrival_whatever_time_the_event_tells(away: int) -> None:
    document = _document(result_url="https://results.deapi.ai/a") | {"timestamp": NOW / 1000 + away}
    body = json.dumps(document).encode()
    remote = deapi_draft(body, deadline_seconds=600).remote
    assert remote is not None
    assert remote.deadline_at == NOW + 600_000


def test_a_completed_job_that_says_it_failed_does_not_stand_for_its_completion() -> None:
    failed = _draft(_document(status="error", error_message="it broke"))
    assert failed.type.endswith(".failed")
    assert failed.second_key == "job:j1:job.failed"


@pytest.mark.parametrize("delivery", [None, "", 7.5, [], {}])
def test_without_a_delivery_id_job_and_event_are_the_identity(delivery: Any) -> None:
    draft = _draft(_document() | {"delivery_id": delivery})
    assert (draft.idempotency_key, draft.second_key) == ("job:j1:job.completed", None)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"event": "job.completed"},
        {"event": "job.completed", "data": []},
        {"event": "job.completed", "data": {}},
        _document(job_request_id=None),
        _document(job_request_id=["j"]),
        _document("job.deleted"),
        _document(None),
        _document(["job.completed"]),
        [],
        "job.completed",
    ],
)
def test_what_names_no_known_event_or_no_job_is_not_understood(document: Any) -> None:
    with pytest.raises(MalformedCallback):
        _draft(document)


def test_the_unknown_event_is_named() -> None:
    with pytest.raises(MalformedCallback, match=r"job\.deleted$"):
        _draft(_document("job.deleted\n"))


@pytest.mark.parametrize("wrong", [True, -5, 0, 1e300, "x", "", [], None])
def test_a_time_that_cannot_be_read_is_the_time_of_arrival(wrong: Any) -> None:
    assert _draft(_document() | {"timestamp": wrong}).occurred_at == NOW


def test_the_unknown_event_is_named_without_what_signs_a_link() -> None:
    with pytest.raises(MalformedCallback, match=r"named https://h/x\?\[redacted\]$"):
        _draft(_document("named https://h/x?signature=c0ffee"))


def test_a_secret_or_token_that_is_echoed_is_not_kept() -> None:
    token = tokens().issue("da")
    url = f"https://hooks.example.com/callbacks/da/{token}"
    body = json.dumps(_document(webhook_url=url, note=DEAPI_SECRET)).encode()
    source = deapi_source()
    draft = source.normalize(prove(source, deapi_head(body, token=token), MemoryBody(body)))
    assert token not in repr(draft)
    assert DEAPI_SECRET not in repr(draft)
    assert draft.provider_data["webhook_url"] == "https://hooks.example.com/callbacks/da/[redacted]"
    assert DEAPI_SECRET.encode() not in source.redact(body)
