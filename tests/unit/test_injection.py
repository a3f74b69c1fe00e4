"""What the callback is put into keeps whatever else the caller sent."""

from __future__ import annotations

import pytest

from receiver.engine.submissions.injection import Injection
from receiver.settings.submitting import SubmissionJob

JOB = SubmissionJob(request=("POST /v1/listen",), set_in="query", own=("callback",), job="id")


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""),
        ("a=1&b=%20;c", "a=1&b=%20;c&"),
        ("a=1&&b=2", "a=1&b=2&"),
        ("a=1&;&b=2", "a=1&b=2&"),
        (";;", ""),
        ("=", "=&"),
        ("callback=&a", "a&"),
    ],
)
def test_a_query_keeps_its_fields_and_gets_the_callback(query: str, kept: str) -> None:
    injection = Injection(JOB, {"callback": "https://h/c"}, passes_own=False)
    assert injection.into_query(query) == f"{kept}callback=https%3A%2F%2Fh%2Fc"
