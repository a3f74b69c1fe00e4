"""The console without a browser: who gets in, from where, and what its pages and forms do."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from msgspec.structs import replace

from receiver.core.destinations import DestinationState
from receiver.core.event import new_id
from receiver.core.observe import Repeats
from receiver.core.work import DeliveryFilter, DeliveryState, Pickup, PickupKind
from receiver.demo.serving import sample_audio
from receiver.web.app import create_app
from receiver.web.console.sessions import sessions_of
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE
from tests.support.running import APP_SECRET, BASIC, Running, api_token, running, settings_text
from tests.support.sink import Sink

ADMIN, READER = "admin-token-of-some-length", "reader-token-of-some-length"
HOSTILE = "<img src=x onerror=alert(1)>\u202e\x00'\"</script>{{7*7}}"
FILTERS = "state=dead&source=deepgram"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def one(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A receiver with a destination that answers, and one that does not."""
    tmp_path = tmp_path_factory.mktemp("console")
    async with Sink() as sink:
        tokens = api_token("ops", ADMIN) + api_token("viewer", READER, '["read"]')
        text = settings_text(tmp_path, destination=sink.url, extra=tokens)
        text += '[destinations.gone]\nurl = "http://127.0.0.1:9/hooks"\nsecrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
        text += 'retry = { schedule = [] }\nallow = ["127.0.0.0/8"]\n'
        async with running(tmp_path, text) as run:
            yield run


@pytest.fixture
def up(one: Running) -> Running:
    """The same with nobody logged in."""
    one.client.cookies.clear()
    return one


async def post(run: Running, path: str, **fields: str) -> httpx2.Response:
    """Send a form as a browser does from a page of ours."""
    return await run.client.post(path, data=fields, headers={"origin": run.base})


async def login(run: Running, token: str = ADMIN) -> None:
    answer = await post(run, "/console/login", token=token)
    assert answer.status_code == 303, answer.text


async def called(run: Running, ref: str = "call-1", **body: Any) -> str:
    """Call back as the provider does; return the event's id."""
    path = f"/callbacks/speech/{run.receiver.tokens.issue('speech', ref=ref)}"
    if body:
        answer = await run.client.post(path, json=body)
    else:
        answer = await run.client.post(path, content=sample_audio(), headers={"content-type": "audio/mpeg"})
    assert answer.status_code == 200, answer.text
    event_id: str = answer.json()["event_id"]
    return event_id


async def dead(run: Running, event_id: str) -> str:
    """Return the id of the event's delivery that was given up."""
    wanted = DeliveryFilter(event_id=event_id, destination="gone")
    (delivery,) = await run.receiver.store.deliveries(wanted)
    ended = {one.id for one in await run.receiver.store.deliveries(replace(wanted, state=DeliveryState.DEAD))}
    if not ended:
        await run.seen.until(lambda: any(one.delivery_id == delivery.id for one in run.seen.attempts))
    return delivery.id


async def form_of(run: Running, page: str, action: str) -> str:
    """Return the token of the form on a page that leads to `action`."""
    text = (await run.client.get(page)).text
    found = re.search(
        rf'action="{re.escape(action)}"[^>]*>\s*<input type="hidden" name="form" value="(\w+)"', text
    )
    assert found, f"{page} has no form to {action}"
    return found[1]


# ---------------------------------------------------------------- getting in


async def test_nobody_sees_a_page_before_logging_in(up: Running) -> None:
    answer = await up.client.get("/console/events?ref=a")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/login?next=%2Fconsole%2Fevents%3Fref%3Da"
    assert (await post(up, "/console/login", token="wrong")).status_code == 401
    await login(up)
    assert (await up.client.get("/console/events")).status_code == 200


async def test_without_an_admin_token_there_is_no_console(tmp_path: Path) -> None:
    text = settings_text(tmp_path, extra=api_token("viewer", READER, '["read", "operate"]'))
    async with running(tmp_path, text) as run:
        assert (await run.client.get("/console/login")).status_code == 404


async def test_the_cookie_is_for_this_site_alone_and_behind_https_for_https_alone(up: Running) -> None:
    plain = (await post(up, "/console/login", token=ADMIN)).headers["set-cookie"]
    assert plain.startswith("receiver-console=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(plain.split("; "))
    headers = {"origin": up.base, "x-forwarded-proto": "https"}
    secure = await up.client.post("/console/login", data={"token": ADMIN}, headers=headers)
    assert secure.headers["set-cookie"].startswith("__Host-receiver=")
    assert "Secure" in secure.headers["set-cookie"].split("; ")


async def test_after_five_wrong_tokens_an_address_waits_and_no_other(up: Running) -> None:
    app = create_app(up.receiver)  # its own count
    for address, tries in (("203.0.113.7", 5), ("203.0.113.8", 0)):
        transport = httpx2.ASGITransport(app=app, client=(address, 1))
        origin = {"origin": up.base}
        async with httpx2.AsyncClient(transport=transport, base_url=up.base, headers=origin) as client:
            for _ in range(tries):
                assert (await client.post("/console/login", data={"token": "guess"})).status_code == 401
            answer = await client.post("/console/login", data={"token": ADMIN})
            assert answer.status_code == (429 if tries else 303)


async def test_a_page_of_another_site_uses_up_nobodys_logins(up: Running) -> None:
    """It can make a browser follow links of ours and send forms that name its own origin."""
    noted = len(up.seen.notes)
    for _ in range(10):
        assert (await up.client.get("/console/login?once=x")).status_code == 401
        forged = await up.client.post(
            "/console/login", data={"token": "guess"}, headers={"origin": "https://elsewhere.example"}
        )
        assert forged.status_code == 403
    assert (await post(up, "/console/login", token=ADMIN)).status_code == 303
    assert sum(note[1] == "console.login_failed" for note in up.seen.notes[noted:]) <= Repeats.LINES


async def test_a_link_logs_in_once_on_this_machine_and_not_by_way_of_a_proxy(tmp_path: Path) -> None:
    async with running(tmp_path, settings_text(tmp_path)) as run:
        sessions = sessions_of(run.receiver.settings)
        path = f"/console/login?once={sessions.offer_link()}"
        transport = httpx2.ASGITransport(
            app=create_app(run.receiver, sessions=sessions), client=("127.0.0.1", 1)
        )
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            assert (await client.get(path, headers={"x-forwarded-for": "203.0.113.7"})).status_code == 401
            assert (await client.get(path, headers={"host": "[::2]:8080"})).status_code == 401
            assert (await client.get(path)).headers["location"] == "/console/"
            assert (await client.get("/console/")).status_code == 200
            client.cookies.clear()
            assert (await client.get(path)).status_code == 401


async def test_logging_out_ends_the_session_also_where_its_cookie_was_copied(up: Running) -> None:
    await login(up)
    copied = dict(up.client.cookies)
    token = await form_of(up, "/console/", "/console/logout")
    assert (await post(up, "/console/logout", form=token)).status_code == 303
    up.client.cookies.update(copied)
    assert (await up.client.get("/console/")).status_code == 303


# ---------------------------------------------------------------- from where


@pytest.mark.parametrize("host", ["evil.example.com", "localhost.evil.example.com", "127.0.0.1.nip.io", ""])
async def test_a_name_that_is_not_ours_is_refused_before_anything_is_read(up: Running, host: str) -> None:
    await login(up)
    answer = await up.client.get("/console/", headers={"host": host})
    assert answer.status_code == 421


async def test_a_foreign_origin_is_refused(up: Running) -> None:
    await login(up)
    token = await form_of(up, "/console/", "/console/logout")
    for headers in (
        {"origin": "https://evil.example.com"},
        {"origin": "null"},
        {"origin": "http://["},
        {},
        {"sec-fetch-site": "same-site"},
    ):
        answer = await up.client.post("/console/logout", data={"form": token}, headers=headers)
        assert answer.status_code == 403
    assert (await up.client.get("/console/")).status_code == 200


@pytest.mark.parametrize("wanted", ["//[", "//evil.example.com/console/", "/console/\\evil", "console/"])
async def test_a_login_leads_to_pages_of_ours_alone(up: Running, wanted: str) -> None:
    answer = await post(up, "/console/login", token=ADMIN, next=wanted)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/")


async def test_a_form_whose_sender_hangs_up_is_no_fault_of_ours(up: Running) -> None:
    statuses = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    names = {"host": "localhost", "origin": "http://localhost"}
    names["content-type"] = "application/x-www-form-urlencoded"
    headers = [(name.encode(), value.encode()) for name, value in names.items()]
    scope = {"type": "http", "method": "POST", "path": "/console/login", "query_string": b""}
    await create_app(up.receiver)({**scope, "headers": headers}, receive, send)
    assert statuses[0] == 400


async def test_a_form_of_another_session_or_action_is_refused(up: Running) -> None:
    await login(up)
    foreign = await form_of(up, "/console/", "/console/logout")
    event_id = await called(up)
    delivery = await dead(up, event_id)
    fields = {"id": delivery, "back": "/console/deliveries"}
    assert (await post(up, "/console/deliveries/replay-picked", **fields)).status_code == 403
    assert (await post(up, "/console/deliveries/replay-picked", form=foreign, **fields)).status_code == 403
    await login(up)  # another session
    other = await form_of(up, f"/console/events/{event_id}", f"/console/events/{event_id}/replay")
    up.client.cookies.clear()
    await login(up)
    answer = await post(up, f"/console/events/{event_id}/replay", form=other, to="gone")
    assert answer.status_code == 403
    assert (await up.receiver.store.delivery(delivery)).state is DeliveryState.DEAD


async def test_pages_carry_the_strict_policy_and_are_not_kept(up: Running) -> None:
    await login(up)
    answer = await up.client.get("/console/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", answer.text)


# ---------------------------------------------------------------- what pages and forms do


async def test_every_page_answers_also_when_there_is_nothing(up: Running) -> None:
    await login(up)
    for path in (
        "", "events", "jobs", "pickups", "rejections", "parked", "sources", "sources/speech", "deliveries",
        "operations", "destinations", "destinations/app", "retention", "audit", "erase?kind=ref&key=nobody",
    ):  # fmt: skip
        answer = await up.client.get(f"/console/{path}")
        assert answer.status_code == 200, path
    assert (await up.client.get("/console/find?q=nobody")).status_code == 404
    assert (await up.client.get("/console/events?colour=red")).status_code == 400


async def test_hostile_text_stays_text_on_every_page(up: Running) -> None:
    await login(up)
    event_id = await called(up, ref=HOSTILE, err_code=HOSTILE, err_msg=HOSTILE, request_id="r-1")
    parked = await called(up, ref=HOSTILE, what=HOSTILE)
    await up.client.post("/callbacks/speech/x", content=b"", headers={"user-agent": HOSTILE[:20]})
    for path in (
        "", "events", "jobs", "rejections", "parked", "deliveries", "destinations/gone",
        f"events/{event_id}", f"events/{parked}",
    ):  # fmt: skip
        text = (await up.client.get(f"/console/{path}")).text
        assert "<img" not in text, path
        assert "\u202e" not in text, path
        assert "\x00" not in text, path
    assert "&lt;img src=x onerror=alert(1)&gt;" in (await up.client.get(f"/console/events/{event_id}")).text


async def test_what_is_downloaded_is_the_event_or_the_body_and_no_name_from_the_address(up: Running) -> None:
    await login(up)
    path = f"/console/events/{await called(up, what='nobody knows')}/download"
    told = [
        (await up.client.get(f"{path}/{what}")).status_code
        for what in ("event", "x%22;y", "%C4%80", "x%0D%0Aa:b")
    ]
    assert told == [200, 404, 404, 404]


async def test_audio_plays_by_ranges_and_has_an_outline_that_is_made_once(up: Running) -> None:
    await login(up)
    event_id = await called(up)
    page = (await up.client.get(f"/console/events/{event_id}")).text
    assert f'src="/console/events/{event_id}/audio"' in page
    part = await up.client.get(f"/console/events/{event_id}/audio", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, sample_audio()[10:20])
    assert part.headers["content-security-policy"] == "default-src 'none'; sandbox"
    while (answer := await up.client.get(f"/console/events/{event_id}/peaks")).status_code == 202:
        assert answer.headers["retry-after"] == "1"
    outline = answer.json()
    assert outline["buckets"] == 1000
    assert len(outline["peaks"]) == 1
    event = await up.receiver.store.event(event_id)
    assert await up.receiver.blobs.get(f"{event.blob_key}peaks")


async def test_words_are_found_in_short_and_long_transcripts_and_nothing_else_is(up: Running) -> None:
    await login(up)
    said = {}
    for ref, text in {
        "short": "Please send a REFUND.",
        "long": "word " * 3000 + "übrigens a refund too",
        "none": "hello",
    }.items():
        words = [{"alternatives": [{"transcript": text, "confidence": 0.9, "words": []}]}]
        said[ref] = await called(up, ref, metadata={"request_id": f"s-{ref}"}, results={"channels": words})
    page = (await up.client.get("/console/events?text=refund")).text
    assert "2 transcripts of" in page
    assert "Please send a REFUND." in page
    assert said["long"] in page
    assert said["none"] not in page
    assert said["long"] in (await up.client.get("/console/events", params={"text": "ÜBRIGENS a"})).text
    assert "No transcript of" in (await up.client.get("/console/events?text=nobody-said-it")).text


async def test_a_dead_letter_is_replayed_after_it_was_counted(up: Running) -> None:
    await login(up)
    failed = {"err_code": "Bad Request", "err_msg": "no", "request_id": "r-2"}
    user, _, password = BASIC.partition(":")
    answer = await up.client.post("/callbacks/deepgram", json=failed, auth=(user, password))
    delivery = await dead(up, answer.json()["event_id"])
    form = await form_of(up, f"/console/deliveries?{FILTERS}", "/console/operations")
    counted = await post(up, "/console/operations", form=form, state="dead", source="deepgram")
    assert "Replay 1 row?" in counted.text
    assert "nothing was done yet" in counted.text
    (path,) = re.findall(r'action="(/console/operations/op_\w+)/run"', counted.text)
    found = re.search(rf'action="{path}/run"><input type="hidden" name="form" value="(\w+)"', counted.text)
    assert found
    assert {
        (await post(up, f"{path}/run", form=found[1], rate=rate)).status_code for rate in ("0", "9" * 5000)
    } == {400}
    assert (await post(up, f"{path}/run", form=found[1], rate="50")).headers["location"] == path
    await up.seen.until(lambda: sum(one.delivery_id == delivery for one in up.seen.attempts) == 2)
    told = (await up.client.get(f"{path}/progress")).json()
    assert (told["done"], told["changed"], told["state"]) == (1, 1, "done")
    assert path in (await up.client.get("/console/operations")).text


async def test_a_parked_callback_is_read_again_one_or_all(up: Running) -> None:
    await login(up)
    event_id = await called(up, ref="odd", what="nobody knows")
    path = f"/console/events/{event_id}/renormalize"
    form = await form_of(up, f"/console/events/{event_id}", path)
    answer = await post(up, path, form=form)
    assert answer.headers["location"] == f"/console/events/{event_id}?done=same"
    form = await form_of(up, "/console/parked", "/console/operations")
    counted = await post(up, "/console/operations", form=form, kind="renormalize", type="callback.parked")
    assert "Renormalize " in counted.text
    assert (await post(up, "/console/operations", form=form, kind="paint")).status_code == 422


async def test_a_test_event_goes_to_one_destination_alone(up: Running) -> None:
    await login(up)
    form = await form_of(up, "/console/destinations/app", "/console/destinations/app/test")
    answer = await post(up, "/console/destinations/app/test", form=form)
    event_id = answer.headers["location"].partition("?")[0].rpartition("/")[2]
    (delivery,) = await up.receiver.store.deliveries(DeliveryFilter(event_id=event_id))
    await up.seen.until(lambda: any(one.delivery_id == delivery.id for one in up.seen.attempts))
    assert (delivery.destination, delivery.event_type) == ("app", "destination.test")
    for page in (f"events/{event_id}", f"jobs?ref={event_id}"):
        assert "Delivered to app." in (await up.client.get(f"/console/{page}")).text


async def test_a_fresh_secret_is_shown_once_and_the_present_one_never(up: Running) -> None:
    await login(up)
    path = "/console/destinations/app/rotate"
    form = await form_of(up, "/console/destinations/app", path)
    page = (await post(up, path, form=form)).text
    (fresh,) = set(re.findall(r"whsec_[\w+/=]+", html.unescape(page)))
    assert fresh != APP_SECRET
    assert "{secret = &#34;…&#34;, until = 20" in page
    assert fresh not in (await up.client.get("/console/audit")).text


async def test_a_source_is_tried_with_its_own_secret_once_at_a_time(
    up: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "receiver.toml"
    settings.write_text(settings_text(up.folder))
    monkeypatch.setenv("RECEIVER_CONFIG", str(settings))
    await login(up)
    for name in ("deapi", "speech"):
        path = f"/console/sources/{name}/test"
        form = await form_of(up, f"/console/sources/{name}", path)
        both = await asyncio.gather(*(post(up, path, form=form) for _ in range(2)))
        answer, other = sorted(both, key=lambda one: one.status_code)
        assert answer.status_code == 303, answer.text
        assert (other.status_code, "another test callback is under way" in other.text) == (422, True)
        assert "Recorded" in (await up.client.get(answer.headers["location"])).text


async def test_a_reader_sees_everything_and_changes_nothing(up: Running) -> None:
    await login(up, READER)
    event_id = await called(up)
    path = f"/console/events/{event_id}/replay"
    form = await form_of(up, f"/console/events/{event_id}", path)
    assert "needs the scope operate" in (await up.client.get(f"/console/events/{event_id}")).text
    assert (await post(up, path, form=form, to="app")).status_code == 403


async def test_a_subject_is_erased_with_its_waveform_once_its_name_is_typed(up: Running) -> None:
    await login(up)
    event_id = await called(up, ref="order-7")
    event = await up.receiver.store.event(event_id)
    await up.client.get(f"/console/events/{event_id}/peaks")
    form = await form_of(up, "/console/erase?kind=ref&key=order-7", "/console/erase")
    fields = {"form": form, "kind": "ref", "key": "order-7"}
    assert (await post(up, "/console/erase", **fields, typed="order-8")).status_code == 422
    answer = await post(up, "/console/erase", **fields, typed="order-7")
    assert answer.headers["location"] == "/console/retention?done=erased.1"
    assert not await kept_events(up.receiver.store, ref="order-7")
    acts = await up.receiver.store.acts("ops", None, 2)
    assert [(act.action, act.detail, act.status) for act in acts] == [
        ("console /erase", '{"kind":"ref"}', 303),
        ("console /erase", '{"kind":"ref"}', 422),
    ]
    assert "console /erase" in (await up.client.get("/console/audit")).text
    assert not await up.receiver.blobs.entries(event.blob_key or "")


async def test_what_a_job_is_called_by_leads_to_it(up: Running) -> None:
    await login(up)
    event_id = await called(up, ref="order 7/8")
    url = f"https://x/callbacks/speech/{up.receiver.tokens.issue('speech', ref='order 7/8')}"
    for wanted in ("order 7/8", url):
        answer = await up.client.get("/console/find", params={"q": wanted})
        assert answer.headers["location"] == "/console/jobs?ref=order%207%2F8"
    answer = await up.client.get("/console/find", params={"q": event_id})
    assert answer.headers["location"] == f"/console/events/{event_id}"


async def test_the_overview_leads_to_why_a_job_never_arrived(tmp_path: Path) -> None:
    """In one step, for five causes: the job's page begins with the cause, and has a button to what can be done."""
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks", extra=api_token("ops", ADMIN))
    async with running(
        tmp_path,
        text.replace("[destinations.app]", '[destinations.app]\nevents = ["speech.failed"]'),
        work=False,
    ) as run:
        store, now = run.receiver.store, run.receiver.clock()
        await login(run)
        url = f"/callbacks/deapi/{run.receiver.tokens.issue('deapi', ref='rejected')}"
        assert (await run.client.post(url, json={"event": "job.completed"})).status_code == 401
        await run.receiver.intake.rejections.flush()
        await called(run, ref="parked", what="nobody knows")
        await called(run, ref="unrouted")
        await called(run, ref="held", err_code="Bad Request", err_msg="no", request_id="r-9")
        opened = DestinationState(name="app", opened_at=now, failing_since=now, failures=5)
        await store.change_destination("app", lambda _: opened, now=now, tell=lambda before, after: None)
        waiting = Pickup(
            id=new_id("pku", now),
            source="deepdub",
            kind=PickupKind.RESULT,
            key="k",
            ref="waiting",
            event_id=new_id("evt", now),
            deadline_at=now + 60_000,
            due_at=now + 30_000,
            created_at=now,
            updated_at=now,
        )
        await store.add_pickup(waiting)
        for ref, sentence, button in (
            ("rejected", "No event yet: 1 callback was refused", "See the failing check"),
            ("parked", "Arrived and was proved, but not understood", "See why, and read it again"),
            ("waiting", "The result is being fetched from deepdub", "See its pickup"),
            ("held", "app has been failing since", "See the destination"),
            ("unrouted", "no destination took", "See by which rules, and send it"),
        ):
            found = await run.client.get(f"/console/find?q={ref}")
            page = (await run.client.get(found.headers["location"])).text
            assert sentence in page
            led = re.search(rf'href="([^"]+)">{button}', page)
            assert led, ref
            assert (await run.client.get(html.unescape(led[1]))).status_code == 200
        assert "content-length, content-type" in (await run.client.get("/console/rejections")).text
        assert "Send again now" in (await run.client.get("/console/destinations/app")).text


async def test_an_event_that_is_recorded_before_the_page_follows_is_in_what_it_follows(up: Running) -> None:
    await login(up)
    page = (await up.client.get("/console/events?source=speech")).text
    await called(up, ref="between")
    followed = re.search(r'data-live="([^"]+)"', page)
    assert followed
    async with asyncio.timeout(PATIENCE), up.client.stream("GET", html.unescape(followed[1])) as stream:
        assert (
            await anext(line async for line in stream.aiter_lines() if line.startswith("data:")) == "data: 1"
        )


async def test_newer_events_are_told_as_server_sent_events(up: Running) -> None:
    await login(up)
    async with up.client.stream("GET", "/console/events/live?source=speech") as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 1000"
        await called(up, ref=HOSTILE)
        assert await anext(line async for line in lines if line.startswith("data:")) == "data: 1"


async def test_lists_that_are_opened_at_once_are_no_more_than_may_be_open(up: Running) -> None:
    await login(up)
    told, everyone = list[int](), asyncio.Event()

    async def follow() -> None:
        async with up.client.stream("GET", "/console/events/live") as stream:
            told.append(stream.status_code)
            if len(told) == 40:
                everyone.set()
            await everyone.wait()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(follow() for _ in range(40)))
    assert (told.count(200), told.count(503)) == (16, 24)
