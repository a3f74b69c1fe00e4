"""Every operation answers as the OpenAPI document says, whatever it is asked; the documents are served without a token."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import Response

from receiver.core.event import EVENT_TYPES
from receiver.web.api.descriptions import asyncapi, event_schema, openapi
from receiver.web.api.operation import Operation
from receiver.web.api.problems import answer
from receiver.web.api.routes import OPERATIONS
from tests.support.running import Running, api_token, running, settings_text

TOKEN = "a-token-of-some-length"
WORDS = ("a", "evt_0", "dlv_0", "\u00fc", "%00", "a%2Fb", "x" * 300, "..%2f")
QUERIES = (
    "",
    "sauce=1",
    "limit=0",
    "limit=500",
    "limit=1e9",
    "after=x",
    "after=0.evt_0",
    "after=99999999999999999999.evt_0",
    "type=*",
    "type=%5B",
    "since=0001-01-01T00:00:00Z",
    "until=9999-12-31T23:59:59Z",
    "source=%00&ref=%ff",
    "state=dead&destination=app",
    "min_bytes=9007199254740993",
    "max_seconds=nan",
    "redirect=maybe",
)
VALUES: tuple[Any, ...] = (-1, 1e308, "\ud800", "x" * 9000, {"a": 1})


def bodies(operation: Operation) -> list[Any]:
    """Return bodies of all kinds: each field of the struct with values that fit and that do not."""
    if operation.body is None:
        return [None]
    names = operation.body.__struct_fields__
    return [{}, [], 1, *({name: value} for name in names for value in VALUES)]


def calls(operation: Operation) -> list[tuple[str, Any]]:
    """Return what an operation is asked: paths, queries and bodies, each in its turn."""
    path = f"/api/v1{operation.path}"
    paths = [path.replace("{" + path.partition("{")[2], "") + word + path.partition("}")[2] for word in WORDS]
    plain = paths[0] if "{" in path else path
    asked: list[tuple[str, Any]] = [(one, None) for one in paths] if "{" in path else []
    asked += [(f"{plain}?{query}", None) for query in (QUERIES if operation.query else QUERIES[:2])]
    return [*asked, *((plain, body) for body in bodies(operation))]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Running]:
    tokens = api_token("all", TOKEN)
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks", extra=tokens)
    async with running(tmp_path, text, work=False) as up:
        up.client.headers["authorization"] = f"Bearer {TOKEN}"
        yield up


async def test_no_operation_answers_with_a_5xx_or_with_what_is_not_documented(api: Running) -> None:
    document = openapi()["paths"]
    for operation in OPERATIONS:
        documented = document[f"/api/v1{operation.path}"][operation.method.lower()]["responses"]
        for path, body in calls(operation):
            await insist(api, operation, path, body, documented)


async def insist(up: Running, operation: Operation, path: str, body: Any, documented: dict[str, Any]) -> None:
    content = None if body is None else json_of(body)
    async with up.client.stream(operation.method, path, content=content) as answer:
        case = (operation.name, path, body, answer.status_code)
        assert answer.status_code < 500, case
        if answer.status_code == 404 and operation.path not in path and "{" not in operation.path:
            return
        assert str(answer.status_code) in documented, case
        kinds = documented[str(answer.status_code)].get("content", {})
        if kinds:
            assert answer.headers["content-type"].partition(";")[0] in kinds, case


def json_of(body: Any) -> bytes:
    import json

    return json.dumps(body).encode()


async def test_a_parameter_that_is_none_is_named_beside_those_that_there_are(api: Running) -> None:
    for path, said in (
        (
            "events?sauce=1",
            "there is no parameter sauce; did you mean source? there is: source, provider, type, ",
        ),
        ("events?order=up", "order: one of newest, oldest"),
        ("events?limit=x", "limit: expected a whole number, got text"),
        ("deliveries?colour=red", "there is no parameter colour; there is: after, limit, destination, "),
        ("stats?x=1", "there is no parameter x; this operation has none"),
        ("events?since=1e-3", "since: write a time as 2026-11-21T10:00:00Z"),
    ):
        answer = await api.client.get(f"/api/v1/{path}")
        assert (answer.status_code, answer.json()["detail"][: len(said)]) == (400, said)


async def test_what_is_wrong_with_a_body_is_said_in_words(api: Running) -> None:
    for body, said in (
        (
            {"destinaton": "app"},
            "there is no field destinaton; did you mean destination? there is: ids, to, ",
        ),
        ({"colour": "red"}, "there is no field colour; there is: ids, to, destination, state, source, "),
        ({"state": "red"}, "state: one of dead, delivered"),
        ({"rate": "fast"}, "rate: expected a whole number or null, got text"),
        ({"ids": [1]}, "ids: expected text, got a whole number"),
        ({"since": "2026-11-21T10:00:00"}, "since: write a time as 2026-11-21T10:00:00Z"),
        ([], "the body: expected an object, got a list"),
    ):
        answer = await api.client.post("/api/v1/replays", json=body)
        assert (answer.status_code, answer.json()["detail"][: len(said)]) == (422, said)
    answer = await api.client.post("/api/v1/pickups", json={"source": "deepgram"})
    assert answer.json()["detail"] == "result is missing"


async def test_the_documents_are_served_to_anybody(tmp_path: Path) -> None:
    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        assert (await up.client.get("/openapi.json")).json() == openapi()
        assert (await up.client.get("/asyncapi.json")).json() == asyncapi()
        for one in EVENT_TYPES:
            given: httpx2.Response = await up.client.get(f"/schemas/{one}.json")
            assert given.json() == event_schema(one)
        assert (await up.client.get("/schemas/nothing.json")).status_code == 404
        assert list(itertools.islice(openapi()["paths"], 1)) == ["/api/v1/events"]


async def test_whoever_asks_for_a_document_again_and_again_has_it_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []

    def counted(content: object, **more: Any) -> Response:
        encoded.append(content)
        return answer(content, **more)

    monkeypatch.setattr("receiver.web.api.descriptions.answer", counted)
    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        for path in ("/openapi.json", "/asyncapi.json", "/schemas/speech.completed.json") * 3:
            assert (await up.client.get(path)).status_code == 200
    assert len(encoded) <= 3
