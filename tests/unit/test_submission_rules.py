"""Which requests a rule lets through, methods and paths as written, and no other spelling of them; which calls are the same."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from receiver.core.errors import SubmissionRefused
from receiver.core.submission import headers_out
from receiver.engine.submissions.allowances import Allowance, Applications
from receiver.engine.submissions.passing import Call, _patience
from receiver.settings.model import SubmitSettings, SubmitToken
from receiver.settings.submitting import Submission

TABLE = Submission.model_validate(
    {
        "base": "https://api.example.com",
        "jobs": [{"request": ["POST /v1/jobs", "POST /{owner}/{app}/{rest}"], "job": "id"}],
        "reads": ["GET /v1/jobs/{job}"],
    }
)
OURS = {"authorization": "Bearer key", "x-user-id": "us"}


@pytest.mark.parametrize(
    ("method", "path", "rule", "names"),
    [
        ("POST", "/v1/jobs", "/v1/jobs", {}),
        ("GET", "/v1/jobs/a.b-c_9", "/v1/jobs/{job}", {"job": "a.b-c_9"}),
        (
            "POST",
            "/fal-ai/whisper/a/b",
            "/{owner}/{app}/{rest}",
            {"owner": "fal-ai", "app": "whisper", "rest": "a/b"},
        ),
    ],
)
def test_a_request_that_is_named_fits(method: str, path: str, rule: str, names: dict[str, str]) -> None:
    found = TABLE.find(method, path)
    assert (found.request, found.names) == (f"{method} {rule}", names)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "v1/jobs",
            "/v1/jobs/",
            "//v1/jobs",
            "/v1//jobs",
            "/v1/./jobs",
            "/v1/../v1/jobs",
            "/v1/jobs/..",
        ),
        *("/v1/jobs/%2e%2e", "/v1/j%6fbs", "/v1/jobs\\x", "/v1/jobs\r\nx: y", "/v1/jobs/\x00", "/v1/jobs/ä"),
        *("http://evil.test/v1/jobs", "/v1/jobs/a b", "/v1/jobs/" + "a" * 129, "/a/b" + "/c" * 7, "*"),
    ],
)
def test_no_other_spelling_fits(path: str) -> None:
    for method in ("GET", "POST"):
        with pytest.raises(SubmissionRefused) as caught:
            TABLE.find(method, path)
        assert caught.value.status == 404
    with pytest.raises(SubmissionRefused):
        TABLE.find("DELETE", "/v1/jobs/a")


@pytest.mark.parametrize(
    "name",
    [
        *("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"),
        "x_http_method_override",
    ],
)
def test_no_header_makes_another_request_of_it(name: str) -> None:
    assert name not in dict(headers_out([(name, "GET"), ("x-mine", "1")], "authorization", OURS))


def test_no_credentials_of_the_callers_and_none_of_receivers_headers_go_out() -> None:
    given = [
        *(("authorization", "Bearer ours"), ("xi-api-key", "a"), ("x-user-id", "them"), ("cookie", "c")),
        *(
            ("x-forwarded-for", "1.2.3.4"),
            ("x-receiver-ref", "r"),
            ("connection", "x-secret"),
            ("te", "trailers"),
        ),
        *(("content-length", "5"), ("accept-encoding", "gzip"), ("idempotency-key", "k"), ("x-note", "\xfc")),
        *(("user-agent", "sdk/1"), ("content-type", "audio/wav"), ("prefer", "wait")),
    ]
    assert headers_out(given, "authorization", OURS) == [
        ("user-agent", "sdk/1"),
        ("content-type", "audio/wav"),
        ("prefer", "wait"),
        ("authorization", "Bearer key"),
        ("x-user-id", "us"),
        ("accept-encoding", "identity"),
    ]


@pytest.mark.parametrize(
    "other", [{"source": "b"}, {"method": "PUT"}, {"path": "/b"}, {"query": "model=b"}, {"ref": "b"}]
)
def test_a_call_that_differs_in_anything_repeats_no_other(other: dict[str, str]) -> None:
    """Else it would be answered with the other's job."""

    def fingerprint(**other: str) -> str:
        same: Any = {"source": "a", "method": "POST", "path": "/a", "query": "", "ref": None}
        call = Call(headers=(), receive=never, **(same | other))
        return call.fingerprint("hash of the body")

    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint(**other)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [("", 20), ("wait=5", 20), ("respond-async, wait=40", 45), ("wait", 65), ("wait=999", 65)],
)
def test_a_caller_who_asks_the_provider_to_wait_is_waited_for_a_minute_at_most(
    prefer: str, seconds: float
) -> None:
    assert _patience(prefer, 20.0) == seconds


def test_no_more_calls_are_under_way_than_receiver_takes_whichever_applications_make_them() -> None:
    allowances = [
        Allowance(SubmitToken(name=name, secrets=(SecretStr("a" * 32),), sources=("a",))) for name in "ab"
    ]
    applications = Applications(SubmitSettings(at_once=1))
    for _ in range(2):
        with applications.calling(allowances[0], "a", "read"):
            with pytest.raises(SubmissionRefused) as caught, applications.calling(allowances[1], "a", "read"):
                raise AssertionError
            assert caught.value.status == 503


async def never() -> Any:
    raise AssertionError
