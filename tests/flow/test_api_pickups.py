"""The API: results handed over and looked after, callback URLs made; and what those who may not are told."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from receiver.app.wiring import Ports
from receiver.core.errors import StoreUnavailable
from receiver.core.event import new_id
from receiver.core.work import PickupState
from receiver.demo.deepdub import BASE_PATH, Deepdub
from receiver.demo.serving import served
from receiver.settings.model import ApiScope
from receiver.storage.store.store import Store
from receiver.web.api.routes import OPERATIONS
from receiver.web.app import create_app
from tests.support.running import Running, api_token, running, settings_text

TOKEN = "a-token-of-some-length"
OLD_TOKEN = "the-token-before-it"
KEY = "dd-0123456789abcdef"
NOBODY = "http://127.0.0.1:9/api/v1"
PICKUPS, URLS = "/api/v1/pickups", "/api/v1/callback-urls"
SCOPED = {scope: f"a-token-that-may-{scope}" for scope in ApiScope}
HASHED = "a-token-of-which-only-the-hash-is-known"
TOKENS = "".join(
    [
        api_token("app", OLD_TOKEN),
        api_token("app", TOKEN),
        *(api_token(f"may-{scope}", secret, f'["{scope}"]') for scope, secret in SCOPED.items()),
        api_token("hashed", HASHED).replace(
            f'secret = "{HASHED}"', f'sha256 = "{hashlib.sha256(HASHED.encode()).hexdigest()}"'
        ),
    ]
)
JOB = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


def text(folder: Path, base: str, *, tokens: str = TOKENS) -> str:
    return f"""public_url = "https://hooks.example.com"
{settings_text(folder)}
[sources.deepdub]
provider = "deepdub"
api_key = "{KEY}"
base_url = "{base}"
allow = ["127.0.0.0/8"]
{tokens}
"""


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Running]:
    """A process that works not, so that what is handed over stays as it is."""
    async with running(tmp_path, text(tmp_path, NOBODY), work=False) as live:
        live.client.headers["authorization"] = f"Bearer {TOKEN}"
        yield live


def is_problem(answer: httpx2.Response, status: int) -> str:
    """Check that an answer is a problem document that nobody keeps; return its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert list(told) == ["type", "title", "status", "detail"]
    assert (told["type"], told["status"]) == ("about:blank", status)
    assert KEY not in answer.text
    assert TOKEN not in answer.text
    return str(told["detail"])


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer ü",
        f"Bearer {TOKEN[:-1]}",
    ],
)
async def test_without_a_token_nothing_is_told(up: Running, authorization: str | None) -> None:
    del up.client.headers["authorization"]
    headers = {} if authorization is None else {b"authorization": authorization.encode()}
    for method, path in (("GET", PICKUPS), ("POST", PICKUPS), ("GET", f"{PICKUPS}/pku_1"), ("POST", URLS)):
        answer = await up.client.request(method, path, headers=headers, content=b"{")
        assert "api.tokens" in is_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_two_authorizations_are_refused(up: Running) -> None:
    del up.client.headers["authorization"]
    twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")]
    is_problem(await up.client.get(PICKUPS, headers=twice), 401)


@pytest.mark.parametrize("token", [TOKEN, OLD_TOKEN])
async def test_any_of_the_tokens_is_taken(up: Running, token: str) -> None:
    answer = await up.client.get(PICKUPS, headers={"authorization": f"bearer {token}"})
    assert (answer.status_code, answer.json()) == (200, {"items": [], "next": None})
    assert answer.headers["cache-control"] == "no-store"


async def test_each_operation_refuses_without_its_scope(up: Running) -> None:
    """Each before its body is read."""
    for operation, scope in itertools.product(OPERATIONS, ApiScope):
        request = up.client.stream(
            operation.method,
            "/api/v1" + operation.path.replace("{", "").replace("}", ""),
            headers={"authorization": f"Bearer {SCOPED[scope]}"},
            content=b"{",
        )
        async with request as answer:  # not read to its end: a stream has none
            if scope is operation.scope:
                assert answer.status_code not in (401, 403), operation.name
            else:
                await answer.aread()
                assert f'"{operation.scope}"' in is_problem(answer, 403)


async def test_a_token_may_be_configured_by_its_hash(up: Running) -> None:
    answer = await up.client.get(PICKUPS, headers={"authorization": f"Bearer {HASHED}"})
    assert answer.status_code == 200
    digest = hashlib.sha256(HASHED.encode()).hexdigest()
    is_problem(await up.client.get(PICKUPS, headers={"authorization": f"Bearer {digest}"}), 401)


async def test_without_a_configured_token_the_setting_is_named(tmp_path: Path) -> None:
    async with running(tmp_path, text(tmp_path, NOBODY, tokens="")) as live:
        for sent in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer a"}):
            assert "[[api.tokens]]" in is_problem(await live.client.get(PICKUPS, headers=sent), 403)


async def test_a_process_without_intake_answers_the_api_as_well(up: Running) -> None:
    transport = httpx2.ASGITransport(app=create_app(up.receiver, intake=False))
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://x", headers=up.client.headers
    ) as client:
        assert (await client.get(PICKUPS)).status_code == 200


# ---------------------------------------------------------------- handing over


async def test_what_is_handed_over_comes_back_as_an_event(tmp_path: Path) -> None:
    standin = Deepdub(KEY)
    with served(standin.app) as base:
        async with running(tmp_path, text(tmp_path, base + BASE_PATH)) as live:
            live.client.headers["authorization"] = f"Bearer {TOKEN}"
            await hand_over(live, standin.submit(), base + BASE_PATH)


async def hand_over(up: Running, job: str, base: str) -> None:
    wanted = {"source": "deepdub", "result": f"{base}/tts/retroactive/{job}", "ref": "order-7"}
    answer = await up.client.post(PICKUPS, json=wanted)
    made = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"{PICKUPS}/{made['id']}")
    assert (made["source"], made["kind"], made["job_id"], made["ref"]) == (
        "deepdub",
        "result",
        job,
        "order-7",
    )
    assert made["host"] is None, "the adapter asks its own address"
    await up.seen.until(lambda: any(report.state == "collected" for report in up.seen.pickups))
    event = await up.receiver.store.event(made["event_id"])
    assert (event.type, event.ref) == ("speech.completed", "order-7")
    shown = (await up.client.get(answer.headers["location"])).json()
    assert (shown["state"], shown["due_at"], shown["attempts"]) == ("collected", None, 1)
    assert [(a["number"], a["outcome"]) for a in shown["attempts_made"]] == [(1, "collected")]


async def test_the_same_result_twice_is_one_pickup(up: Running) -> None:
    first = await up.client.post(PICKUPS, json={"source": "deepdub", "result": JOB, "ref": "first"})
    again = await up.client.post(PICKUPS, json={"source": "deepdub", "result": f"{JOB}.mp3", "ref": "again"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["ref"] == "first"
    assert again.json()["event_id"] == first.json()["event_id"]


async def test_deadline_and_format_are_taken(up: Running) -> None:
    wanted = {
        "source": "deepdub",
        "result": JOB,
        "deadline_seconds": 90,
        "format": {"encoding": "mulaw", "sample_rate": 8000},
    }
    made = (await up.client.post(PICKUPS, json=wanted)).json()
    stored = await up.receiver.store.pickup(made["id"])
    assert stored.deadline_at - stored.created_at == 90_000
    assert stored.format == {"encoding": "mulaw", "sample_rate": 8000}
    plain = (await up.client.post(PICKUPS, json={"source": "deepdub", "result": "another-job"})).json()
    stored = await up.receiver.store.pickup(plain["id"])
    assert stored.deadline_at - stored.created_at == 3_600_000, "the source's own"


GOOD: dict[str, Any] = {"source": "deepdub", "result": JOB}


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b"[" * 60_000, 422, "expected an object, got a list"),
        (b'{"format":' + b"[" * 60_000, 400, "nested too deeply"),
        ({"source": "deepdub"}, 422, "result"),
        (GOOD | {"sauce": 1}, 422, "sauce"),
        (GOOD | {"ref": 7}, 422, "ref: "),
        (GOOD | {"result": ""}, 422, "result: "),
        (GOOD | {"deadline_seconds": 0}, 422, "deadline_seconds: "),
        (GOOD | {"deadline_seconds": 10**9}, 422, "deadline_seconds: "),
        (GOOD | {"deadline_seconds": True}, 422, "deadline_seconds: "),
        (GOOD | {"format": {"encoding": []}}, 422, "format: "),
        (GOOD | {"format": {"speed": 2}}, 422, "sample_rate"),
        (GOOD | {"ref": "x" * 501}, 422, "500"),
        (GOOD | {"source": "nobody"}, 422, "deepdub, deepgram"),
        (GOOD | {"source": "speech"}, 422, "it calls back"),
        (GOOD | {"source": "deapi"}, 422, "sources.deapi.api_key"),
        (
            GOOD | {"result": "https://elsewhere.example.com/api/v1/tts/retroactive/1"},
            422,
            "elsewhere.example.com",
        ),
        (GOOD | {"result": "a" * 9000}, 422, "8192"),
        (GOOD | {"ref": "a" * 70_000}, 413, "65536"),
    ],
    ids=range(21),
)
async def test_what_cannot_be_picked_up_is_refused_by_name(
    up: Running, body: bytes | dict[str, Any], status: int, named: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert named in is_problem(await up.client.post(PICKUPS, content=content), status)
    assert (await up.client.get(PICKUPS)).json()["items"] == []


async def test_a_lone_surrogate_does_no_harm(up: Running) -> None:
    """JSON may spell one; whatever is made of it, it is an answer."""
    content = b'{"source": "deepdub", "result": "job-1", "ref": "a\\ud800b"}'
    answer = await up.client.post(PICKUPS, content=content)
    assert answer.status_code in (201, 400)
    assert (await up.client.get(PICKUPS)).status_code == 200


# ---------------------------------------------------------------- looking


async def test_lists_are_filtered_and_come_in_pages(up: Running) -> None:
    for number in range(5):
        wanted = {"source": "deepdub", "result": f"job-{number}", "ref": f"order-{number % 2}"}
        assert (await up.client.post(PICKUPS, json=wanted)).status_code == 201
    jobs, after = [], None
    for size in (2, 2, 1):
        page = (
            await up.client.get(PICKUPS, params={"limit": 2} | ({"after": after} if after else {}))
        ).json()
        assert len(page["items"]) == size
        jobs += [one["job_id"] for one in page["items"]]
        after = page["next"]
    assert after is None
    assert sorted(jobs) == [f"job-{number}" for number in range(5)]

    async def found(**query: str) -> set[str]:
        answer = await up.client.get(PICKUPS, params=query)
        return {one["job_id"] for one in answer.json()["items"]}

    assert await found(ref="order-1") == {"job-1", "job-3"}
    assert await found(job_id="job-4", source="deepdub") == {"job-4"}
    assert await found(source="deepgram") == set()
    assert await found(state="gone") == set()
    assert len(await found(state="pending")) == 5


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit: "),
        ("limit=501", "limit: "),
        ("limit=x", "limit: "),
        ("state=lost", "state: "),
        ("sauce=1", "sauce"),
        ("ref=a&ref=b", "ref twice"),
    ],
)
async def test_a_query_that_is_not_understood_is_refused_by_name(up: Running, query: str, named: str) -> None:
    assert named in is_problem(await up.client.get(f"{PICKUPS}?{query}"), 400)


async def test_unknown_ids_and_paths_and_methods_are_problems(up: Running) -> None:
    assert "pku_none" in is_problem(await up.client.get(f"{PICKUPS}/pku_none"), 404)
    is_problem(await up.client.get("/api/v1/nothing"), 404)
    answer = await up.client.delete(PICKUPS)
    is_problem(answer, 405)
    assert {"GET", "POST"} <= set(answer.headers["allow"].split(", "))


async def test_the_host_of_a_url_is_shown_and_nothing_else_of_it(up: Running) -> None:
    made = (await up.client.post(PICKUPS, json=GOOD)).json()
    stored = await up.receiver.store.pickup(made["id"])
    signed = replace_pickup(stored, target="https://results.example.com/a.mp3?signature=5ecret")
    await up.receiver.store.add_pickup(signed)
    answer = await up.client.get(f"{PICKUPS}/{signed.id}")
    assert answer.json()["host"] == "results.example.com"
    assert "5ecret" not in answer.text
    assert "a.mp3" not in answer.text


def replace_pickup(pickup: Any, **changes: Any) -> Any:
    """Return another pickup with these changes."""
    from msgspec.structs import replace as changed

    fresh = {"id": new_id("pku", pickup.created_at), "key": "another", "due_at": pickup.due_at + 3_600_000}
    return changed(pickup, **(fresh | changes))


# ---------------------------------------------------------------- the store is out


class Out:
    """A store that can be wrapped around another and taken away."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.out = False

    def __getattr__(self, name: str) -> Any:
        if self.out and name in ("add_pickup", "pickups", "pickup"):

            async def refuse(*args: Any) -> Any:
                raise StoreUnavailable

            return refuse
        return getattr(self._inner, name)


async def test_a_store_that_is_out_is_503_with_retry_after(tmp_path: Path) -> None:
    stores: list[Out] = []

    def shape(ports: Ports) -> Ports:
        stores.append(Out(ports.store))
        return replace(ports, store=cast("Store", stores[0]))

    async with running(tmp_path, text(tmp_path, NOBODY), shape=shape, work=False) as live:
        live.client.headers["authorization"] = f"Bearer {TOKEN}"
        stores[0].out = True
        wanted = {"source": "deepgram", "expect_within_seconds": 60}
        for answer in (
            await live.client.post(PICKUPS, json=GOOD),
            await live.client.get(PICKUPS),
            await live.client.get(f"{PICKUPS}/pku_1"),
            await live.client.post(URLS, json=wanted),
        ):
            is_problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
        stores[0].out = False
        assert (await live.client.post(PICKUPS, json=GOOD)).status_code == 201


# ---------------------------------------------------------------- callback URLs


async def test_a_callback_url_is_one_that_receiver_takes_and_expects(up: Running) -> None:
    wanted = {
        "source": "deepgram",
        "ref": "order-9",
        "format": {"product": "speak"},
        "expires_seconds": 7200,
        "expect_within_seconds": 600,
    }
    answer = await up.client.post(URLS, json=wanted)
    made = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    claims = up.receiver.tokens.read(made["token"])
    assert claims
    assert (claims.source, claims.ref, claims.format) == ("deepgram", "order-9", {"product": "speak"})
    assert made["url"].startswith("https://deepgram:")
    assert made["url"].endswith(f"@hooks.example.com/callbacks/deepgram/{made['token']}")
    assert claims.expires_at is not None
    assert claims.expect_by is not None
    assert claims.expires_at - claims.expect_by == 6_600_000
    expected = await up.receiver.store.pickup(made["pickup_id"])
    assert (expected.kind, expected.key, expected.due_at) == (
        "expected",
        claims.expectation,
        claims.expect_by,
    )
    assert expected.state is PickupState.PENDING


async def test_a_job_secret_is_handed_out_for_deapi(up: Running) -> None:
    made = (await up.client.post(URLS, json={"source": "deapi", "job_secret": True})).json()
    assert made["webhook_secret"] == up.receiver.tokens.job_secrets(made["token"])[0]
    assert (made["expect_by"], made["pickup_id"]) == (None, None)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"source": "nobody"}, "there is no source"),
        ({"source": "deepdub"}, PICKUPS),
        ({"source": "deepgram", "job_secret": True}, "deAPI"),
        ({"source": "deepgram", "expires_seconds": 60, "expect_within_seconds": 61}, "expires must"),
        ({"source": "deepgram", "expect_within_seconds": -1}, "expect_within_seconds: "),
        ({"source": "deepgram", "ref": "x" * 501}, "ref: "),
        ({"source": "deepgram", "ttl": 1}, "ttl"),
    ],
)
async def test_a_callback_url_that_would_not_work_is_refused(
    up: Running, body: dict[str, Any], named: str
) -> None:
    assert named in is_problem(await up.client.post(URLS, json=body), 422)


# ---------------------------------------------------------------- readiness


async def test_readiness_fails_when_a_pickup_has_been_due_for_too_long(tmp_path: Path) -> None:
    """Nobody works: the pickup that was handed over stays due."""
    settings = text(tmp_path, NOBODY) + "[server]\nready_due_age_seconds = 0.001\n"
    async with running(tmp_path, settings, work=False) as live:
        live.client.headers["authorization"] = f"Bearer {TOKEN}"
        assert (await live.client.get("/readyz")).json()["parts"]["collector"] == "ok"
        assert (await live.client.post(PICKUPS, json=GOOD)).status_code == 201
        due = (await live.receiver.store.stats(live.receiver.clock())).pickups
        assert [one.name for one in due] == ["deepdub"]
        transport = httpx2.ASGITransport(app=create_app(live.receiver))
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            while live.receiver.clock() - due[0].oldest_due_at < 2:
                pass
            answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "a pickup of deepdub" in answer.json()["parts"]["collector"]
