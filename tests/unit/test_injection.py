"""What the callback is put into keeps whatever else the caller sent."""

from __future__ import annotations

import pytest

from receiver.core.submission import Rule
from receiver.engine.submissions.injection import into_query

RULE = Rule(method="POST", path="/v1/listen", kind="submit", own=("callback",))


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
    assert into_query(query, RULE, {"callback": "https://h/c"}) == f"{kept}callback=https%3A%2F%2Fh%2Fc"
