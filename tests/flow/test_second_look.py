"""A refused callback over a URL of ours is verified again once its secret was put right, or accepted once; what strangers send is not kept."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from receiver.core.event import Rejection
from receiver.core.work import DeliveryFilter
from tests.support.kept_events import kept_events
from tests.support.running import BASIC, DEAPI_SECRET, Running, api_token, running, settings_text
from tests.support.senders import deapi

ADMIN, OPERATOR = "admin-token-of-some-length", "operator-token-of-some-length"
OLD = "whsec_another_secret_0123456789abcdefg"
MADE = """
[sources.made]
provider = "custom"
secrets = ["a-secret-of-the-settings"]
event = {family = "transcript", job = "id"}
result = {from = "text", at = "text"}
proof = [{kind = "same", at = "auth.key"}]
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A process that works not, with a source whose secret comes in the body."""
    folder = tmp_path_factory.mktemp("second-look")
    tokens = api_token("ops", ADMIN) + api_token("hand", OPERATOR, '["operate"]')
    text = settings_text(folder, destination="http://127.0.0.1:9/hooks", extra=tokens)
    text += (
        '[sources.made]\nprovider = "custom"\nsecrets = ["a-secret-of-ours"]\ncallback = { token = true }\n'
    )
    text = text[: text.index("[sources.made]")]
    text += MADE
    async with running(folder, text, work=False) as live:
        live.headers["text"] = text
        yield live


async def refused(up: Running, name: str, *, ref: str | None = "order", secret: str = OLD) -> Rejection:
    """Have a callback refused; return its rejection."""
    sent = deapi(name, secret=secret)
    token = "/" + up.serving.receiver.tokens.issue("deapi", ref=ref) if ref else ""
    answer = await up.client.post(sent.path + token, headers=sent.headers, content=sent.body)
    assert answer.status_code == 401
    await up.serving.receiver.intake.rejections.flush()
    return (await up.receiver.store.rejections("deapi", limit=1))[0]


async def post(up: Running, path: str, body: Any = None, *, status: int = 200, token: str = ADMIN) -> Any:
    headers = {"authorization": f"Bearer {token}"}
    answer = await up.client.post(f"/api/v1/rejections/{path}", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_mended_secret_is_confirmed_by_the_callback_it_refused(up: Running) -> None:
    one = await refused(up, "mended")
    assert one.request_kept
    judged = await post(up, f"{one.id}/verify", token=OPERATOR)
    assert (judged["verdict"], "x-deapi-signature fits no secret" in judged["reason"]) == ("refused", True)
    text = up.headers["text"]
    try:
        await up.reload(text.replace(DEAPI_SECRET, OLD))
        assert (await post(up, f"{one.id}/verify"))["verdict"] == "accepted"
    finally:
        await up.reload(text)
    assert await kept_events(up.receiver.store, job_id="mended") == []


async def test_what_its_head_alone_refuses_is_kept_over_a_url_of_ours_as_well(up: Running) -> None:
    document = {"err_code": "Bad Request", "err_msg": "corrupt audio", "request_id": "by-head"}
    for path, kept in ((f"/{up.receiver.tokens.issue('deepgram', ref='by-head')}", True), ("", False)):
        answer = await up.client.post(f"/callbacks/deepgram{path}", json=document, auth=("deepgram", "old"))
        assert answer.status_code == 401
        await up.serving.receiver.intake.rejections.flush()
        one = (await up.receiver.store.rejections("deepgram", limit=1))[0]
        assert one.request_kept is kept
    coded = {"content-encoding": "gzip", "content-type": "application/json"}
    body = gzip.compress(json.dumps(document).encode())
    token = up.receiver.tokens.issue("deepgram", ref="coded")
    await up.client.post(
        f"/callbacks/deepgram/{token}", content=body, headers=coded, auth=("deepgram", "old")
    )
    await up.serving.receiver.intake.rejections.flush()
    newest, _, one = await up.receiver.store.rejections("deepgram", limit=3)
    assert (newest.ref, newest.request_kept) == ("coded", False)
    assert (await post(up, f"{one.id}/verify"))["verdict"] == "refused"
    text = up.headers["text"]
    try:
        await up.reload(text.replace(BASIC, "deepgram:old"))
        assert (await post(up, f"{one.id}/verify"))["verdict"] == "accepted"
    finally:
        await up.reload(text)
    done = await post(up, f"{one.id}/accept", {"reason": "known"})
    assert (await up.receiver.store.event(done["event_id"])).ref == "by-head"


async def test_a_callback_is_accepted_once_by_an_admin_who_says_why(up: Running) -> None:
    one = await refused(up, "accepted", ref="order-7")
    path = f"{one.id}/accept"
    assert "lacks the scope" in (await post(up, path, {"reason": "x"}, status=403, token=OPERATOR))["detail"]
    for no_reason in ({}, {"reason": ""}, {"reason": "  "}):
        await post(up, path, no_reason, status=422)
    done = await post(up, path, {"reason": "seen at the provider"})
    assert (done["status"], done["pickup_id"]) == ("recorded", None)
    store = up.receiver.store
    event, callback = await store.event(done["event_id"]), await store.callback(done["event_id"])
    assert (event.type, event.job_id, event.ref) == ("speech.failed", "accepted", "order-7")
    assert callback is not None
    assert callback.proofs == "accepted-by-operator"
    assert len(await store.deliveries(DeliveryFilter(event_id=event.id))) == 1
    again = await post(up, path, {"reason": "twice"})
    assert (again["status"], again["event_id"]) == ("duplicate", event.id)
    acts = await store.acts(None, None, 20)
    (act,) = [act for act in acts if "seen at the provider" in act.detail]
    assert (act.token, act.subject, act.status) == ("ops", f"/api/v1/rejections/{path}", 200)


async def test_only_requests_over_urls_of_ours_are_kept_and_none_is_shown(up: Running) -> None:
    strangers = await refused(up, "stranger", ref=None)
    assert not strangers.request_kept
    assert "no request of a rejection" in (await post(up, f"{strangers.id}/verify", status=404))["detail"]
    await post(up, f"{strangers.id}/accept", {"reason": "x"}, status=404)
    sent = deapi("long", secret=OLD)
    token = up.receiver.tokens.issue("deapi", ref="long")
    long = sent.body + b" " * 65536
    assert (
        await up.client.post(f"{sent.path}/{token}", headers=sent.headers, content=long)
    ).status_code == 401
    await up.serving.receiver.intake.rejections.flush()
    assert [one.request_kept for one in await up.receiver.store.rejections("deapi", limit=1)] == [False]
    ours = await refused(up, "ours")
    signature = sent.headers["x-deapi-signature"].partition("=")[2]
    headers = {"authorization": f"Bearer {ADMIN}"}
    listed = (await up.client.get("/api/v1/rejections?source=deapi&limit=50", headers=headers)).text
    judged = str(await post(up, f"{ours.id}/verify"))
    for text in (listed, judged):
        assert signature not in text
        assert DEAPI_SECRET not in text


async def test_a_secret_that_came_in_the_body_is_neither_shown_nor_kept_with_the_event(up: Running) -> None:
    """It fits none of the settings, so that nothing else knows it for a secret."""
    url = f"/callbacks/made/{up.serving.receiver.tokens.issue('made', ref='r')}"
    wrong = "an-old-secret-of-the-provider"
    body = {"id": "j-1", "text": f"hello {wrong}", "auth": {"key": wrong}}
    assert (await up.client.post(url, json=body)).status_code == 401
    await up.serving.receiver.intake.rejections.flush()
    (one,) = await up.receiver.store.rejections("made", limit=5)
    judged = await post(up, f"{one.id}/verify")
    assert [(found["proof"], found["holds"]) for found in judged["proofs"]] == [
        ("token", True),
        ("same", False),
    ]
    done = await post(up, f"{one.id}/accept", {"reason": "known"})
    event, kept = (
        await up.receiver.store.event(done["event_id"]),
        await up.receiver.store.body(done["event_id"]),
    )
    assert (event.type, event.job_id) == ("transcript.completed", "j-1")
    assert kept is not None
    for text in (str(judged), event.data.decode(), kept.decode()):
        assert wrong not in text
    assert "hello [redacted]" in event.data.decode()


async def test_an_erasure_counts_and_takes_the_request(up: Running) -> None:
    one = await refused(up, "erase-me", ref="person-1")
    headers = {"authorization": f"Bearer {ADMIN}"}
    await up.client.post("/console/login", data={"token": ADMIN}, headers={"origin": up.base})
    page = (await up.client.get("/console/erase?kind=ref&key=person-1")).text
    assert "<dt>refused requests</dt><dd>1</dd>" in page
    erased = await up.client.post("/api/v1/erasures", json={"job_id": "erase-me"}, headers=headers)
    assert erased.status_code == 200
    await post(up, f"{one.id}/verify", status=404)


async def test_the_console_verifies_again_and_accepts_with_a_reason(up: Running) -> None:
    one = await refused(up, "console", ref="<b>order</b>")
    client, origin = up.client, {"origin": up.base}

    async def send(page: str, path: str, **fields: str) -> str:
        """Send the form of a page that leads to `path`; return the page that answers."""
        found = re.search(rf'action="{path}"><input type="hidden" name="form" value="(\w+)"', page)
        assert found, path
        answer = await client.post(path, data={"form": found[1], **fields}, headers=origin)
        assert answer.status_code == (200 if fields.get("reason", "x").strip() else 422), answer.text
        return answer.text

    await client.post("/console/login", data={"token": ADMIN}, headers=origin)
    base = f"/console/rejections/{one.id}"
    page = await send((await client.get("/console/rejections")).text, f"{base}/verify")
    for shown in (page, (await client.get(base)).text):
        assert "job_request_id" in shown
        assert '<dd class="m"><bdi>application/json</bdi></dd>' in shown
        assert "not shown" in shown
        assert "sha256=" not in shown
    assert "It is still refused" in page
    assert "<b>order" not in page
    assert "say why" in await send(page, f"{base}/accept", reason=" ")
    accepted = await send(page, f"{base}/accept", reason="called them")
    assert "Accepted</h1>" in accepted
    assert "It was recorded before" in await send(page, f"{base}/accept", reason="called them")
    audit = (await client.get("/console/audit")).text
    assert "called them" in audit
    assert one.id in audit
