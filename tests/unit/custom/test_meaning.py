"""What a proved request of a source without code means, and the words that tell why one is parked."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sources import head, source, verdict

LINK = {"from": "link", "at": "url", "hosts": ["*"]}


@pytest.mark.parametrize(
    ("options", "query", "body", "said"),
    [
        ({"body": "query"}, "id=1&id=2", b"", "field:id came 2 times; it may come once"),
        ({"body": "form"}, "", b"id=1&id=2", "field:id came 2 times; it may come once"),
        ({"event": {"family": "speech", "job": "query:id"}}, "id=1&id=2", {}, "query:id came 2 times"),
        ({}, "", {}, "field:id is missing"),
        ({}, "", {"id": {"a": 1}}, "field:id is no plain value"),
    ],
)
def test_a_job_that_cannot_be_told_is_parked_with_the_reason(
    options: dict[str, Any], query: str, body: Any, said: str
) -> None:
    told = verdict(source(**options), head(query=query), body)
    assert isinstance(told, str)
    assert told.startswith("parked: ")
    assert said in told


@pytest.mark.parametrize(
    "link", ["https://[::1", "https://", "ftp://a.example/x", "a.example/x", "https://a.example:99999/"]
)
def test_a_link_that_is_no_url_is_parked_and_not_picked_up(link: str) -> None:
    told = verdict(source(result=LINK), head(), {"id": "1", "url": link})
    assert (
        told
        == "parked: field:url is no link to the result: it must begin with https:// (or http://) and a host"
    )


def test_a_link_that_is_missing_is_told_so() -> None:
    assert verdict(source(result=LINK), head(), {"id": "1"}) == (
        "parked: there is no link to the result: field:url is missing"
    )


@pytest.mark.parametrize("at", ["payload", "form:payload"])
def test_a_document_in_a_field_of_a_form_stays_there_and_is_read(at: str) -> None:
    own = {"body": "form", "unwrap": [{"at": at, "in_place": True}]}
    event = {"family": "speech", "job": "payload.id", "keep": ["payload.n"], "drop": ["payload.secret"]}
    told = verdict(source(**own, event=event), head(), b"payload=%7B%22id%22%3A%22j1%22%2C%22n%22%3A2%7D")
    assert not isinstance(told, str), told
    assert (told.job_id, told.provider_data) == ("j1", {"payload.n": 2})


def test_a_multipart_body_that_is_none_proves_nobody() -> None:
    """The secret is one of its fields: what cannot be read is refused, and never an error of ours."""
    made = source(body="multipart", proof=[{"kind": "same", "at": "form:secret"}])
    told = verdict(made, head(("content-type", "multipart/form-data; boundary=x")), b"no parts")
    assert str(told).startswith("refused: the body does not begin with its multipart boundary")
