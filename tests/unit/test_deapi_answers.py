"""deAPI: answers about a job that are spelled another way than documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from receiver.core.fetch import Failed
from receiver.core.work import OutcomeKind
from receiver.providers import deapi
from receiver.providers.pickups import Collected, NotYet, Result
from tests.support.callbacks import DEAPI_SECRET
from tests.support.collecting import NOW, Place, collected, fetching, pickup_of, placed
from tests.support.golden import source_settings, tokens

KEY = "dpn-sk-0123456789abcdef"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with placed() as place:
        yield place


async def _told(place: Place, folder: Path, document: Any, status: int = 200) -> Result:
    """Return what an attempt comes to when the API answers with `document`; its links lead to a line of text."""
    place.app = Starlette(
        routes=[
            Route("/api/v2/jobs/j1", lambda _: JSONResponse(document, status_code=status)),
            Route("/x", lambda _: PlainTextResponse("Good morning.")),
        ]
    )
    table = {"provider": "deapi", "secrets": [DEAPI_SECRET], "api_key": KEY, "api_url": place.url}
    settings = source_settings("da", table | {"result_hosts": ["127.0.0.1"], "allow": ["127.0.0.0/8"]})
    source = deapi.DeapiProvider.create(settings, tokens())
    async with fetching(settings, folder) as fetch:
        return await source.collect(
            pickup_of(source.lookup("j1", {}).key, job_id="j1", attempts=1), fetch, now=NOW
        )


@pytest.mark.parametrize("status", ["done", "DONE", "completed", "finished-in-a-new-way"])
async def test_a_link_may_also_stand_where_text_does(place: Place, tmp_path: Path, status: str) -> None:
    """The documentation's own sample of `result` is a link."""
    draft = collected(
        await _told(place, tmp_path, {"data": {"status": status, "result": f"{place.url}/x"}})
    ).draft
    assert draft.transcript is not None
    assert draft.transcript.text == "Good morning."


async def test_a_document_without_data_is_read_as_it_is(place: Place, tmp_path: Path) -> None:
    draft = collected(await _told(place, tmp_path, {"status": "failed", "error_code": "X"})).draft
    assert draft.error is not None
    assert (draft.type, draft.error.code, draft.error.message) == ("media.failed", "X", "X")


async def test_the_jobs_own_type_decides_where_nothing_else_does(place: Place, tmp_path: Path) -> None:
    data = {"status": "error", "job_type": "txt2audio"}
    assert collected(await _told(place, tmp_path, {"data": data})).draft.type == "speech.failed"


async def test_a_key_that_is_echoed_is_not_kept(place: Place, tmp_path: Path) -> None:
    data = {"status": "error", "error_message": f"bad key {KEY}", "note": KEY}
    result = await _told(place, tmp_path, {"data": data})
    assert KEY not in repr(result)
    assert isinstance(result, Collected)
    assert result.draft.error is not None
    assert result.draft.error.message == "bad key [redacted]"


async def test_the_words_of_a_failure_are_told_without_tokens_and_links_that_work(
    place: Place, tmp_path: Path
) -> None:
    """As they are where the callback tells them."""
    said = f"no answer from https://h.example.com/callbacks/da/{tokens().issue('da')}, see https://r.example.com/x?a=1"
    data = {"status": "error", "error_message": said, "error_code": "https://r.example.com/y?b=2"}
    draft = collected(await _told(place, tmp_path, {"data": data})).draft
    assert draft.error is not None
    assert draft.error.message == (
        "no answer from https://h.example.com/callbacks/da/[redacted], see https://r.example.com/x?[redacted]"
    )
    assert draft.error.code == "https://r.example.com/y?[redacted]"
    assert draft.provider_data["error_message"] == draft.error.message


@pytest.mark.parametrize("document", [{}, {"data": None}, {"data": {"status": "brand-new"}}])
async def test_a_status_that_is_not_known_means_not_yet(place: Place, tmp_path: Path, document: Any) -> None:
    assert isinstance(await _told(place, tmp_path, document), NotYet)


@pytest.mark.parametrize("document", [[], "done", None, 5])
async def test_what_is_no_object_is_unusable(place: Place, tmp_path: Path, document: Any) -> None:
    result = await _told(place, tmp_path, document)
    assert isinstance(result, Failed)
    assert result.kind is OutcomeKind.UNUSABLE


@pytest.mark.parametrize("status", [301, 302, 400, 403, 500])
async def test_any_other_status_is_a_failure(place: Place, tmp_path: Path, status: int) -> None:
    result = await _told(place, tmp_path, {"data": {"status": "done"}}, status)
    assert isinstance(result, Failed)
    assert (result.kind, result.status) == (OutcomeKind.REFUSED, status)
