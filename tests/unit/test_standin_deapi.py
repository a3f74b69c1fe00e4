"""deAPI's stand-ins: the account that switches its webhooks off, the API, and links that expire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.core.event import AudioDraft
from receiver.core.proofs import hmac_sha256_hex
from receiver.demo import deapi
from receiver.demo.deapi import ApiJob, Deapi
from receiver.demo.serving import Callback, CallbackAttempt, open_client, send_until_accepted, waits_of
from receiver.system.audio.formats import facts as audio_facts
from tests.support.collecting import NOW, Place, placed

KEY = "dpn-sk-0123456789abcdef"
SECRET = "a-webhook-secret-of-some-length"


FAILURES_ALLOWED = 10
"""Failed callbacks in a row after which the webhooks of the whole account are switched off."""


class Account:
    """An account's webhooks: `FAILURES_ALLOWED` failures in a row, of whatever job, switch them off.

    deAPI does not say whether an attempt or a callback given up counts; here every attempt does, the harder reading.
    """

    def __init__(self) -> None:
        self.failures = 0
        """Failed attempts since the last that was taken."""
        self.switched_off = False

    def send(
        self,
        client: httpx2.Client,
        job: deapi.Job,
        event: str,
        *,
        clock: Callable[[], int],
        waits: Sequence[float],
        sleep: Callable[[float], None],
    ) -> Iterator[CallbackAttempt]:
        """Send one event until it is taken, signed afresh for every try; nothing once the webhooks are switched off.

        `clock` gives epoch milliseconds; `waits` are the seconds between the tries.
        """
        if self.switched_off:
            return
        body = job.body(event, now=clock())

        def signed() -> Callback:
            return job.callback(event, body, now=clock())

        for tried in send_until_accepted(client, signed, label=f"job.{event}", waits=waits, sleep=sleep):
            self.failures = 0 if tried.accepted else self.failures + 1
            self.switched_off = self.failures >= FAILURES_ALLOWED
            yield tried
            if self.switched_off:
                return


class Taker:
    """A callback URL that answers by script."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        """For the next callbacks; 200 when there are none."""
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.app = Starlette(routes=[Route("/hook", self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        self.came.append((dict(request.headers), await request.body()))
        return Response(status_code=self.statuses.pop(0) if self.statuses else 200)


class Sender:
    """An account that sends to a taker; every wait passes at once on a clock of its own."""

    def __init__(self, url: str, client: httpx2.Client) -> None:
        self.account, self.url, self._client = Account(), url, client
        self.now = NOW

    def send(self, event: str = "completed", *, attempts: int = 10) -> list[CallbackAttempt]:
        job = deapi.Job(f"{self.url}/hook", SECRET)
        return list(
            self.account.send(
                self._client,
                job,
                event,
                clock=lambda: self.now,
                waits=waits_of(deapi.WAITS, attempts=attempts),
                sleep=self._sleep,
            )
        )

    def _sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with placed() as place:
        yield place


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with open_client() as client:
        yield client


@pytest.fixture
def sender(taker: Taker, place: Place, http: httpx2.Client) -> Sender:
    place.app = taker.app
    return Sender(place.url, http)


def test_every_try_is_signed_afresh_over_the_same_body(taker: Taker, sender: Sender) -> None:
    taker.statuses = [500, 503]
    assert [tried.status for tried in sender.send()] == [500, 503, 200]
    stamps = [int(headers["x-deapi-timestamp"]) for headers, _ in taker.came]
    assert stamps == [NOW // 1000, NOW // 1000 + 60, NOW // 1000 + 180]
    assert len({body for _, body in taker.came}) == 1
    for headers, body in taker.came:
        message = headers["x-deapi-timestamp"].encode() + b"." + body
        assert headers["x-deapi-signature"] == "sha256=" + hmac_sha256_hex(SECRET, message)


def test_ten_attempts_take_as_long_as_documented(taker: Taker, sender: Sender) -> None:
    taker.statuses = [500] * 10
    assert len(sender.send()) == 10
    assert (sender.now - NOW) / 3_600_000 == 22.8


def test_ten_failures_in_a_row_of_any_job_switch_the_webhooks_off(taker: Taker, sender: Sender) -> None:
    taker.statuses = [401] * 30
    assert len(sender.send(attempts=6)) == 6
    assert not sender.account.switched_off
    assert len(sender.send(attempts=6)) == 4
    assert sender.account.switched_off
    assert sender.send() == []
    assert len(taker.came) == 10


def test_one_success_begins_the_count_anew(taker: Taker, sender: Sender) -> None:
    taker.statuses = [*[500] * 9, 200, *[500] * 9]
    sender.send(attempts=10)
    sender.send(attempts=9)
    assert (sender.account.failures, sender.account.switched_off) == (9, False)


# ---------------------------------------------------------------- API and storage


@pytest.fixture
def provider() -> Deapi:
    return Deapi(KEY)


class Api:
    """Asks the API with the key, and everything else without."""

    def __init__(self, url: str, http: httpx2.Client) -> None:
        self.url, self._http = url, http

    def get(self, path: str, *, key: str | None = KEY) -> httpx2.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return self._http.get(self.url + path, headers=headers)

    def job(self, job_id: str) -> Any:
        return self.get(f"/api/v2/jobs/{job_id}").json()["data"]

    def follow(self, link: str) -> httpx2.Response:
        assert link.startswith(self.url)
        return self._http.get(link)


@pytest.fixture
def api(provider: Deapi, place: Place, http: httpx2.Client) -> Api:
    place.app = provider.app
    return Api(place.url, http)


def test_a_job_goes_through_its_statuses_and_ends_with_a_link(provider: Deapi, api: Api) -> None:
    job = provider.add(ApiJob(statuses=["pending", "processing", "done"]))
    told = [api.job(job) for _ in range(4)]
    assert [data["status"] for data in told] == ["pending", "processing", "done", "done"]
    assert [data["result_url"] is None for data in told] == [True, True, False, False]
    audio = api.follow(told[2]["result_url"])
    assert (audio.status_code, audio.headers["content-type"]) == (200, "audio/mpeg")


def test_a_job_that_failed_says_why(provider: Deapi, api: Api) -> None:
    job = provider.add(ApiJob(statuses=["error"]))
    data = api.job(job)
    assert (data["status"], data["error_code"], data["result_url"]) == ("error", "WORKER_TIMEOUT", None)


def test_a_link_expires_and_the_next_one_works(provider: Deapi, api: Api) -> None:
    job = provider.add()
    first = provider.link(api.url, job)
    assert api.follow(first).status_code == 200
    provider.expire()
    assert api.follow(first).status_code == 403
    fresh = api.job(job)["result_url"]
    assert api.follow(fresh).status_code == 200


@pytest.mark.parametrize("damage", ["signature=0", "round=5&signature=0", ""])
def test_a_link_that_was_not_made_here_is_refused(provider: Deapi, api: Api, damage: str) -> None:
    assert api.get(f"/results/{provider.add()}?{damage}", key=None).status_code == 403


def test_the_api_wants_its_key_and_knows_its_jobs(provider: Deapi, api: Api) -> None:
    job = provider.add()
    assert api.get("/api/v2/jobs/another").status_code == 404
    assert api.get(f"/api/v2/jobs/{job}", key=None).status_code == 401
    assert api.get(f"/api/v2/jobs/{job}", key="dpn-sk-another").status_code == 401
    assert api.get("/api/v1/client/request-status/another").status_code == 404


def test_the_sample_of_every_job_is_a_real_recording(provider: Deapi, api: Api) -> None:
    """So that its length can be told."""
    sample = api.follow(provider.link(api.url, provider.add())).content
    facts = audio_facts(sample, AudioDraft(content_type="audio/mpeg", extension="mp3"))
    assert facts.duration_seconds is not None
    assert 0.2 < facts.duration_seconds < 60
