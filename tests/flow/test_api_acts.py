"""What is done over the API: replays, destinations, erasures; each is in the audit, and none is done twice by one key."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from receiver.app.wiring import Timing
from receiver.core.audit import new_act
from receiver.core.errors import StoreUnavailable
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.web.api.acts import refuse_other
from receiver.web.api.operation import Again
from receiver.web.api.problems import Refused
from tests.contract.store_suite import T0
from tests.support.kept_events import kept_events
from tests.support.running import Running, api_token, running, settings_text
from tests.support.senders import transcript

TOKEN = "a-token-of-some-length"
ALL = DeliveryFilter(limit=100)


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Running]:
    """A process that works not: deliveries stay as they are."""
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks", extra=api_token("ops", TOKEN))
    head = 'public_url = "https://hooks.example.com"\nserver.trusted_proxies = ["127.0.0.1"]\n'
    async with running(tmp_path, head + text, work=False) as live:
        live.client.headers["authorization"] = f"Bearer {TOKEN}"
        yield live


async def send(up: Running, name: str) -> str:
    sent = transcript(name)
    answer = await up.client.post(sent.path, headers=sent.headers, content=sent.body)
    return str(answer.json()["event_id"])


async def post(up: Running, path: str, body: Any = None, *, status: int = 200, key: str = "") -> Any:
    headers = {"idempotency-key": key} if key else {}
    answer: httpx2.Response = await up.client.post(f"/api/v1/{path}", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


async def end(up: Running, state: DeliveryState) -> None:
    """End every delivery that is due."""
    from tests.contract.store_suite import settlement

    store, now = up.receiver.store, up.receiver.clock()
    for claim in await store.claim("app", worker="w", limit=50, now=now, lease_until=now + 9000):
        assert await store.settle(settlement(claim, state=state, due_at=None, at=now - 10))


async def test_what_was_named_is_replayed_once_for_a_key(up: Running) -> None:
    first = await send(up, "first")
    await send(up, "second")
    await end(up, DeliveryState.DEAD)
    done = await post(up, "replays", {"ids": [first]}, key="k1")
    assert (done["found"], done["replayed"]) == (1, 1)
    assert await post(up, "replays", {"ids": [first]}, key="k1") == done
    states = {one.event_id == first: one.state for one in await up.receiver.store.deliveries(ALL)}
    assert states == {True: DeliveryState.PENDING, False: DeliveryState.DEAD}
    other = await post(up, "replays", {"ids": []}, key="k1", status=422)
    assert "Idempotency-Key" in other["detail"]
    await post(up, "destinations/app/pause", key="k2")
    await post(up, "destinations/app/resume", key="k2", status=422)


@pytest.mark.parametrize(("waited", "said"), [(59_999, "under way"), (60_000, None)])
def test_a_key_of_a_request_under_way_is_refused_until_its_process_must_have_ended(
    waited: int, said: str | None
) -> None:
    noted = new_act("POST /replays", "ops", at=T0, subject="/", details={}, peer=None, key="k", digest="d")
    refused = pytest.raises(Refused, match=said) if said else contextlib.nullcontext()
    with refused:
        refuse_other(noted, replace(noted, at=T0 + waited), again=Again.ANSWERED)


async def test_what_fits_is_counted_and_then_exactly_that_is_replayed(up: Running) -> None:
    await send(up, "first")
    await send(up, "second")
    await end(up, DeliveryState.DEAD)
    counted = await post(up, "replays", {"state": "dead", "type": "transcript.*", "rate": 1, "dry_run": True})
    assert (counted["found"], counted["replayed"], counted["dry_run"]) == (2, 0, True)
    assert counted["operation"]["state"] == "planned"
    assert counted["operation"]["selection"]["type"] == "transcript.*"
    await send(up, "later")
    await end(up, DeliveryState.DEAD)
    path = f"operations/{counted['operation']['id']}"
    assert (await post(up, f"{path}/resume"))["state"] == "running"
    assert await up.receiver.bulk.step()
    stopped = await post(up, f"{path}/stop")
    assert (stopped["state"], stopped["total"], stopped["done"], stopped["changed"]) == ("stopped", 2, 1, 1)
    assert not await up.receiver.bulk.step()
    assert (await post(up, f"{path}/resume?rate=50"))["rate"] == 50
    while await up.receiver.bulk.step():
        pass
    done = (await up.client.get(f"/api/v1/{path}")).json()
    assert (done["state"], done["changed"], done["requested_by"]) == ("done", 2, "ops")
    assert (await up.client.get("/api/v1/operations")).json()["items"] == [done]
    assert len(await up.receiver.store.deliveries(DeliveryFilter(state=DeliveryState.DEAD))) == 1
    await post(up, "operations/op_none/stop", status=404)


async def test_what_failed_by_a_fault_of_receiver_is_done_when_it_is_asked_again_with_its_key(
    up: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_id = await send(up, "again")
    await end(up, DeliveryState.DEAD)

    async def out(*wanted: Any, **more: Any) -> list[str]:
        raise StoreUnavailable("the store does not answer")

    with monkeypatch.context() as outage:
        outage.setattr(up.receiver.store, "replay", out)
        await post(up, "replays", {"ids": [event_id]}, status=503, key="k1")
    assert (await post(up, "replays", {"ids": [event_id]}, key="k1"))["replayed"] == 1


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "ids"),
        ({"ids": ["evt_1"], "state": "dead"}, "not both"),
        ({"to": "app", "state": "dead"}, "to makes"),
        ({"to": "nowhere"}, "there is: app"),
        ({"destination": "nowhere"}, "there is: app"),
        ({"state": "pending"}, "state: "),
        ({"source": "deepgrm"}, "did you mean deepgram?"),
        ({"type": "nothing.*"}, "there is no event type"),
    ],
)
async def test_a_replay_that_contradicts_itself_is_refused_by_name(
    up: Running, body: dict[str, Any], named: str
) -> None:
    assert named in (await post(up, "replays", body, status=422))["detail"]


async def test_a_destination_is_paused_and_resumed_and_its_jobs_are_told_so(up: Running) -> None:
    await send(up, "waits")
    assert (await post(up, "destinations/app/pause"))["status"] == "paused"
    job = (await up.client.get("/api/v1/jobs/waits")).json()
    assert (job["cause"], "app is paused" in job["sentence"]) == ("paused", True)
    listed = (await up.client.get("/api/v1/destinations")).json()["items"]
    assert listed[0]["health"]["status"] == "paused"
    assert (await post(up, "destinations/app/resume"))["status"] == "active"
    await post(up, "destinations/nowhere/pause", status=404)


async def test_a_subject_is_counted_then_erased(up: Running) -> None:
    event_id = await send(up, "gone")
    counted = await post(up, "erasures", {"job_id": "gone", "dry_run": True})
    assert (counted["events"], counted["deliveries"], counted["dry_run"]) == (1, 1, True)
    assert (await post(up, "erasures", {"job_id": "gone"}))["events"] == 1
    assert (await up.client.get(f"/api/v1/events/{event_id}")).status_code == 404
    assert (await up.client.get("/api/v1/jobs/gone")).json()["cause"] == "erased"
    assert "one subject" in (await post(up, "erasures", {}, status=422))["detail"]


@pytest.mark.parametrize("subject", [{"job_id": "gone"}, {"ref": "order-7"}], ids=["job", "ref"])
async def test_an_erasure_reaches_the_journal_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: dict[str, str]
) -> None:
    """What came before it is dropped and stays away, what comes after it is recorded."""
    common = f'tokens.secrets = ["a-secret-that-both-of-them-have"]\nstore.url = "sqlite:///{tmp_path}/receiver.db"\n'
    one, other = (f'journal.path = "{tmp_path}/{name}"\n{common}' for name in ("one", "other"))
    token, sent, by_hand = api_token("ops", TOKEN), transcript("gone"), Timing(drain=(600, 600))
    async with (
        running(tmp_path, one + settings_text(tmp_path, extra=token), work=False, timing=by_hand) as taking,
        running(tmp_path, other + settings_text(tmp_path, extra=token), work=False) as asked,
    ):
        intake, drain = taking.receiver.intake, taking.receiver.journal_drain

        async def out(*_: Any) -> None:
            raise StoreUnavailable("the store does not answer")

        async def journaled(name: str) -> None:
            with monkeypatch.context() as outage:
                outage.setattr(type(intake._recorder), "record", out)
                answer = await taking.client.post(
                    sent.path, headers=sent.headers, content=transcript(name).body
                )
                assert answer.status_code == 503

        asked.client.headers["authorization"] = f"Bearer {TOKEN}"
        url = f"/callbacks/deepgram/{asked.receiver.tokens.issue('deepgram', ref='order-7')}"
        first = await asked.client.post(url, headers=sent.headers, content=sent.body)
        await journaled("gone")  # the same job's, without the ref
        erased = await post(asked, "erasures", subject)
        assert (erased["journal_entries"], erased["events"]) == (0, 1), first.text
        await drain.drain()
        told = {name for _, name, _ in taking.seen.notes if name.startswith("journal.")}
        assert ("journal.erased" in told, "journal.drained" in told) == (True, False), (
            "nothing of it is stored"
        )
        again = await taking.client.post(sent.path, headers=sent.headers, content=sent.body)
        assert again.json()["status"] == "duplicate"
        assert taking.receiver.journal.depth == 0
        assert not await kept_events(taking.receiver.store, job_id="gone")
        (stone,) = await taking.receiver.store.tombstones()
        assert stone.journal_entries == 1
        await journaled("kept")
        await drain.drain()
        assert await kept_events(taking.receiver.store, job_id="kept")


async def test_every_act_is_in_the_audit_without_what_may_be_secret(up: Running) -> None:
    await post(up, "callback-urls", {"source": "deepgram", "ref": "order-7"}, status=201, key="once")
    again = await post(up, "callback-urls", {"source": "deepgram", "ref": "order-7"}, status=409, key="once")
    assert "not kept" in again["detail"]
    up.client.headers["x-forwarded-for"] = "203.0.113.9"
    await post(up, "replays", {"to": "nowhere"}, status=422)
    page = (await up.client.get("/api/v1/audit", params={"token": "ops"})).json()
    acts = [(one["action"], one["detail"], one["status"]) for one in page["items"]]
    assert acts == [
        ("POST /replays", '{"to":"nowhere","dry_run":false}', 422),
        ("POST /callback-urls", '{"source":"deepgram"}', 201),
    ]
    assert "order-7" not in str(page)
    assert {one["token"] for one in page["items"]} == {"ops"}
    assert [one["peer"] for one in page["items"]] == ["203.0.113.9", "127.0.0.1"]
