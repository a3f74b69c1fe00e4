"""PlayHT: settings, callbacks that are odd, and what may be handed over for a pickup."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from receiver.core.callback import Head, MemoryBody, VerifiedCallback
from receiver.core.errors import CallbackRejected, ConfigError, MalformedCallback, PickupRefused
from receiver.core.event import EventDraft, Stage
from receiver.core.work import Pickup, PickupKind
from receiver.providers import PullProvider, playht
from tests.support.callbacks import NOW
from tests.support.golden import source_settings, tokens

KEY, USER = "ak-unit-0123456789abcdef", "unituser0123456789"
URL = "https://results.example.test/a.mp3"


def _source(**options: Any) -> playht.PlayhtProvider:
    table = {"provider": "playht", "api_key": KEY, "user_id": USER} | options
    return playht.PlayhtProvider.create(
        source_settings("ph", {k: v for k, v in table.items() if v is not None}), tokens()
    )


def _proved(document: Any, **options: Any) -> tuple[playht.PlayhtProvider, VerifiedCallback]:
    source = _source(**options)
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = (("authorization", f"Bearer {KEY}"),)
    head = Head(source="ph", method="POST", headers=headers, received_at=NOW)
    return source, source.verify(source.admit(head), MemoryBody(body))


def _draft(document: Any, **options: Any) -> EventDraft:
    source, callback = _proved(document, **options)
    return source.normalize(callback)


def _pickup(job_id: str | None) -> Pickup:
    return Pickup(
        id="pku_1",
        source="ph",
        kind=PickupKind.EXPECTED,
        key="token:1",
        job_id=job_id,
        event_id="evt_1",
        deadline_at=NOW,
        due_at=NOW,
        created_at=NOW,
        updated_at=NOW,
    )


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({}, ["E401"]),
        ({"user_id": USER}, ["E401"]),
        ({"callback_keys": []}, ["E401"]),
        ({"callback_keys": [""]}, ["E404"]),
        ({"api_key": "a key"}, ["E404"]),
        ({"api_key": "", "user_id": USER}, ["E404"]),
        ({"api_key": KEY, "user_id": "line\nbreak"}, ["E404"]),
        ({"api_key": KEY, "user_id": USER, "mode": "poll"}, ["E404"]),
        ({"api_key": KEY, "user_id": USER, "result_hosts": []}, ["E404"]),
        ({"api_key": KEY, "user_id": USER, "base_url": "api.play.ht"}, ["E404"]),
        ({"api_key": KEY, "user_id": USER, "base_url": "https://a:b@tts.example.com"}, ["E404"]),
        ({"api_key": KEY}, ["W401"]),
        ({"callback_keys": "only-callbacks-carry-it"}, ["W401"]),
        ({"require_token": True}, ["W401"]),
        ({"api_key": KEY, "user_id": USER, "base_url": "http://tts.example.com/v2"}, ["W402"]),
        ({"api_key": KEY, "user_id": USER, "base_url": "http://10.0.0.7/api/v2/"}, []),
        ({"api_key": KEY, "user_id": USER, "result_hosts": ["*"]}, ["W403"]),
        ({"api_key": KEY, "user_id": 1234567890}, []),
    ],
)
def test_findings_have_stable_codes(options: dict[str, Any], codes: list[str]) -> None:
    found = playht.PlayhtProvider.findings(source_settings("ph", {"provider": "playht"} | options))
    assert [finding.code for finding in found] == codes
    assert not [finding for finding in found if KEY in finding.message + finding.fix]


def test_without_a_key_the_source_does_not_start() -> None:
    with pytest.raises(ConfigError, match=r"sources\.ph\.api_key: .*add api_key = "):
        _source(api_key=None)


def test_the_default_result_hosts_are_not_all_of_a_clouds() -> None:
    """Anybody may have a bucket at amazonaws.com."""
    assert playht.PlayhtSettings().result_hosts == (
        "peregrine-results.s3.amazonaws.com",
        "play.ht",
        "play.ai",
    )


def test_the_deadline_is_that_of_playhts_jobs() -> None:
    assert (_source().deadline_seconds, _source(deadline_seconds=60).deadline_seconds) == (172_800, 60)


# ---------------------------------------------------------------- callbacks


@pytest.mark.parametrize(("asked", "limit"), [(100, 100), (64 * 1024 * 1024, 1024 * 1024)])
def test_the_body_limit_is_small(asked: int, limit: int) -> None:
    source = _source(max_json_bytes=asked)
    head = Head(source="ph", method="POST", headers=(("secret-key", KEY),), received_at=NOW)
    assert source.admit(head).body_limit == limit


def test_a_body_past_the_limit_is_not_understood() -> None:
    with pytest.raises(MalformedCallback, match="20 are allowed"):
        _draft({"id": "j", "status": "queued", "more": "x" * 30}, max_json_bytes=20)


def test_the_refusal_of_a_key_names_the_setting_and_no_key() -> None:
    head = Head(source="ph", method="POST", headers=(("secret-key", KEY + "x"),), received_at=NOW)
    with pytest.raises(CallbackRejected) as caught:
        _source().admit(head)
    assert caught.value.setting == "sources.ph.api_key"
    assert KEY not in caught.value.message


def test_a_token_is_proof_enough_only_where_tokens_are_required() -> None:
    head = Head(source="ph", method="POST", headers=(), token=tokens().issue("ph"), received_at=NOW)
    with pytest.raises(CallbackRejected, match="neither Authorization nor secret-key"):
        _source().admit(head)
    assert _source(require_token=True).admit(head).proofs == {"token"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("queued", "processing"),
        ("CREATED", "processing"),
        ("INPROGRESS", "processing"),
        ("postprocessing", "processing"),
        ("complete", "completed"),
        ("SUCCESS", "completed"),
        ("error", "failed"),
        ("FAILED", "failed"),
    ],
)
def test_the_status_decides_the_event(status: str, kind: str) -> None:
    draft = _draft({"id": "j1", "status": status, "url": URL})
    assert draft.type == f"speech.{kind}"
    assert draft.stage is (Stage.PROGRESS if kind == "processing" else Stage.FINAL)
    assert (draft.remote is not None) is (kind == "completed")
    assert (draft.error is not None) is (kind == "failed")


@pytest.mark.parametrize("status", [None, "", 7, ["complete"], {}, "done", "complete\n"])
def test_another_status_is_not_understood(status: Any) -> None:
    with pytest.raises(MalformedCallback, match="status"):
        _draft({"id": "j1", "status": status, "url": URL})


@pytest.mark.parametrize("job_id", [None, "", " ", [], {}, True, 1.5])
def test_without_an_id_the_job_cannot_be_told(job_id: Any) -> None:
    with pytest.raises(MalformedCallback, match="job cannot be told"):
        _draft({"id": job_id, "status": "complete", "url": URL})


@pytest.mark.parametrize("named", ["id", "transcriptionId"])
def test_a_job_that_is_called_like_a_secret_is_not_understood(named: str) -> None:
    """Its id would stand in the event; redacted, it would be that of any other such job."""
    with pytest.raises(MalformedCallback, match="holds a secret") as caught:
        _draft({named: f"job-{KEY}", "status": "queued"})
    assert KEY not in caught.value.message


def test_a_job_that_is_called_like_a_token_is_not_understood_from_the_journal_either() -> None:
    """The journal keeps no token; what came is judged the same when it is read again."""
    token = tokens().issue("ph")
    source, callback = _proved({"id": f"job-{token}", "status": "queued"})
    for known in (token, None):
        with pytest.raises(MalformedCallback, match="holds a secret"):
            source.normalize(replace(callback, head=replace(callback.head, token=known)))


@pytest.mark.parametrize("url", [None, "", 7, "ftp://r.example.test/a", "javascript:alert(1)", {}, []])
def test_a_finished_job_without_a_usable_link_is_asked_for(url: Any) -> None:
    draft = _draft({"id": "j1", "status": "complete", "url": url})
    assert draft.remote
    assert (draft.remote.url, draft.remote.key) == (None, "job:j1:complete")


@pytest.mark.parametrize("job_id", ["j1", "../leases"])
def test_a_finished_job_without_a_link_that_cannot_be_asked_for_is_not_understood(job_id: str) -> None:
    options = {"user_id": None} if job_id == "j1" else {}
    with pytest.raises(MalformedCallback, match="no link to its audio"):
        _draft({"id": job_id, "status": "complete"}, **options)


def test_of_several_outputs_the_first_is_the_audio_and_all_are_kept() -> None:
    outputs = [URL, URL + "2"]
    draft = _draft({"transcriptionId": "t1", "status": "SUCCESS", "metadata": {"output": outputs}})
    assert draft.remote
    assert draft.remote.url == URL
    assert draft.provider_data["metadata"]["output"] == outputs


def test_a_single_output_that_is_no_list_is_the_audio() -> None:
    draft = _draft({"transcriptionId": "t1", "status": "SUCCESS", "metadata": {"output": URL}})
    assert draft.remote
    assert draft.remote.url == URL


def test_what_signs_a_link_is_used_and_not_kept() -> None:
    signed = "X-Amz-Signature=5f3c0e9a7b&X-Amz-Expires=60"
    document = {"id": "j1", "status": "complete", "url": f"{URL}?{signed}", "metadata": {"output": [7]}}
    draft = _draft(document)
    assert draft.remote
    assert draft.remote.url == f"{URL}?{signed}"
    assert draft.provider_data["url"] == f"{URL}?[redacted]"
    assert draft.document
    assert b"5f3c0e9a7b" not in draft.document


def test_steps_of_a_job_are_different_callbacks() -> None:
    steps: list[dict[str, Any]] = [{"progress": 0}, {"progress": 0.5}, {"progress": 0.5, "note": "again"}, {}]
    keys = [_draft({"id": "j1", "status": "queued"} | step).idempotency_key for step in steps]
    assert keys == ["job:j1:queued:0", "job:j1:queued:0.5", "job:j1:queued:0.5", "job:j1:queued"]


def test_a_key_or_token_that_is_echoed_is_not_kept() -> None:
    token = tokens().issue("ph")
    document = {"id": "j1", "status": "error", "error_message": f"key {KEY}", "hook": f"https://h/ph/{token}"}
    body = json.dumps(document).encode()
    source = _source()
    headers = (("secret-key", KEY),)
    head = Head(source="ph", method="POST", headers=headers, token=token, received_at=NOW)
    draft = source.normalize(source.verify(source.admit(head), MemoryBody(body)))
    assert draft.error
    assert draft.error.message == "key [redacted]"
    assert token not in repr(draft)
    assert KEY not in repr(draft)
    assert KEY.encode() not in source.redact(body)


def test_an_unknown_status_is_named_without_the_key() -> None:
    with pytest.raises(MalformedCallback, match=r"not known: paused \[redacted\]$"):
        _draft({"id": "j1", "status": f"paused {KEY}"})


# ---------------------------------------------------------------- pickups


@pytest.mark.parametrize(
    "given",
    [
        "BxMcwDjy0tHZVC4LYz",
        "  BxMcwDjy0tHZVC4LYz\n",
        "https://api.play.ht/api/v2/tts/BxMcwDjy0tHZVC4LYz",
        "https://API.play.ht:443/api/v2/tts/BxMcwDjy0tHZVC4LYz/",
        "https://api.play.ht/api/v2/tts/BxMcwDjy0tHZVC4LYz?format=event-stream",
        "/api/v2/tts/BxMcwDjy0tHZVC4LYz",
    ],
)
def test_a_job_is_told_by_its_id_its_url_or_its_location(given: str) -> None:
    order = _source().lookup(given, {})
    assert (order.job_id, order.key, order.target) == (
        "BxMcwDjy0tHZVC4LYz",
        "job:BxMcwDjy0tHZVC4LYz:complete",
        None,
    )


@pytest.mark.parametrize(
    "given",
    [
        "",
        "two words",
        "..",
        "../leases",
        "a/b",
        "https://elsewhere.example.com/api/v2/tts/j1",
        "http://api.play.ht/api/v2/tts/j1",
        "https://api.play.ht:8443/api/v2/tts/j1",
        "https://api.play.ht/api/v1/tts/j1",
        "https://api.play.ht/api/v2/tts/",
        "https://api.play.ht/api/v2/tts/a/b",
        "https://api.play.ht/api/v2/tts/..%2fleases",
        "https://api.play.ht/api/v2/tts/j1?secret=1",
        "https://api.play.ht/api/v2/tts/j1#x",
        "https://user:pass@api.play.ht/api/v2/tts/j1",
        "https://api.play.ht@elsewhere.example.com/api/v2/tts/j1",
        "https://[/api/v2/tts/j1",
        "/api/v1/tts/j1",
        "x" * 300,
        "ключ",
    ],
)
def test_anything_else_is_refused_saying_what_to_hand_over(given: str) -> None:
    with pytest.raises(PickupRefused, match=r"https://api\.play\.ht/api/v2/tts/ and the id"):
        _source().lookup(given, {})


@pytest.mark.parametrize("missing", ["api_key", "user_id"])
def test_without_key_or_user_id_nothing_is_picked_up_and_both_settings_are_named(missing: str) -> None:
    source = _source(**{missing: None, "require_token": True})
    with pytest.raises(PickupRefused, match=r"set api_key and user_id in \[sources\.ph\]"):
        source.lookup("BxMcwDjy0tHZVC4LYz", {})
    assert not source.can_ask(_pickup("j1"))


@pytest.mark.parametrize(("job_id", "can"), [("j1", True), (None, False), ("..", False), ("a b", False)])
def test_only_a_job_whose_id_is_known_and_plain_can_be_asked_for(job_id: str | None, can: bool) -> None:
    assert _source().can_ask(_pickup(job_id)) is can


def test_a_callback_and_an_order_of_the_same_job_have_the_same_key() -> None:
    draft = _draft({"id": "BxMcwDjy0tHZVC4LYz", "status": "complete", "url": URL})
    order = _source().lookup("BxMcwDjy0tHZVC4LYz", {})
    assert draft.remote
    assert {order.key} == {draft.remote.key, draft.idempotency_key, draft.second_key}


def test_it_is_a_pull_provider_of_speech() -> None:
    source = _source()
    assert isinstance(source, PullProvider)
    assert source.family(_pickup("j1")) == "speech"


def test_the_key_is_shown_by_no_repr() -> None:
    settings = playht.PlayhtSettings.model_validate({"api_key": KEY, "user_id": USER})
    assert KEY not in repr(settings)
