"""deAPI, played offline: its three events, signed afresh for every try.

Contract: https://docs.deapi.ai/execution-modes-and-integrations/webhooks. The signature is HMAC-SHA256 over the timestamp
header's text, a full stop and the raw body; ten attempts over 22 h 48 min.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from receiver.core.clock import iso, wall_clock
from receiver.core.proofs import hmac_sha256_hex
from receiver.demo.serving import Callback, Provider, base_url, sample_audio
from receiver.providers.deapi import signed

WAITS = (60, 120, 300, 600, 1800, 3600, 10800, 21600, 43200)
"""Seconds between the ten attempts."""
EVENTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "processing": ("processing", "pending", "started_at", {}),
    "completed": ("done", "processing", "completed_at", {"processing_time_ms": 4500}),
    "failed": (
        "error",
        "processing",
        "failed_at",
        {"error_code": "PROCESSING_ERROR", "error_message": "the simulated provider was asked to fail"},
    ),
}
"""For each event: the job's status, the one before, the field that tells when, and what else its data hold."""
RESULT_URL = "https://results.example.test/{job}.mp3"
"""A made-up host: nothing fetches it, and deAPI's real hosts are left alone."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job of deAPI's and the URL that it reports to."""

    url: str = field(repr=False)
    secret: str = field(repr=False)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    kind: str = "txt2audio"
    result_url: str | None = None

    def body(self, event: str, *, now: int) -> bytes:
        """Return the body of one event, with a delivery id of its own; `now` in epoch milliseconds."""
        at = iso(now)
        data: dict[str, Any] = {"job_request_id": self.id, "job_type": self.kind}
        status, previous, moment, more = EVENTS[event]
        data |= {"status": status, "previous_status": previous, moment: at, **more}
        if event == "completed":
            data["result_url"] = self.result_url or RESULT_URL.format(job=self.id)
        whole = {"event": f"job.{event}", "delivery_id": str(uuid.uuid4()), "timestamp": at, "data": data}
        return json.dumps(whole).encode()

    def callback(self, event: str, body: bytes, *, now: int) -> Callback:
        """Return one try of `body`: timestamp and signature are those of `now` (epoch milliseconds)."""
        headers = {
            "content-type": "application/json",
            "user-agent": "DeAPI-Webhook/1.0",
            "x-deapi-event": f"job.{event}",
            "x-deapi-delivery-id": json.loads(body)["delivery_id"],
        }
        return Callback("POST", self.url, headers | signed(self.secret, body, now=now), body)

    def callbacks(self, events: Sequence[str]) -> Iterator[tuple[str, Callable[[], Callback]]]:
        """Yield what is sent about each event, and its name: the same body at every try, signed at the time of that."""
        bodies = {event: self.body(event, now=wall_clock()) for event in events}
        for event in events:
            yield f"job.{event}", partial(self._callback_now, event, bodies[event])

    def _callback_now(self, event: str, body: bytes) -> Callback:
        return self.callback(event, body, now=wall_clock())


def event_order(event: str, *, out_of_order: bool = False, duplicate: bool = False) -> Sequence[str]:
    """Return the events of a job in the order sent: `all` is processing and completed, anything else itself.

    `out_of_order` turns the order round, `duplicate` sends each twice.
    """
    events = ["processing", "completed"] if event == "all" else [event]
    if out_of_order:
        events.reverse()
    return [name for name in events for _ in range(2 if duplicate else 1)]


_EXPIRED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'


@dataclass(slots=True)
class ApiJob:
    """One job as the API describes it."""

    kind: str = "txt2audio"
    statuses: Sequence[str] = ("done",)
    """One for each time the job is asked for; the last one stays."""
    result: bytes | None = None
    """What the link leads to; None is a short spoken sentence."""
    content_type: str | None = "audio/mpeg"
    text: str | None = None
    """A result in the job's own document, in place of a link."""
    error_code: str = "WORKER_TIMEOUT"
    times_asked: int = field(default=0, init=False)

    def next_status(self) -> str:
        """Return the status for this time."""
        status = self.statuses[min(self.times_asked, len(self.statuses) - 1)]
        self.times_asked += 1
        return status


class Deapi(Provider):
    """API and storage at one address. Jobs may be added at any time, from any thread."""

    name, port = "deapi", 9903
    address = ("api_url", "")
    example: ClassVar = {"api_key": "any key will do"}

    def __init__(self, api_key: str) -> None:
        super().__init__({"authorization": f"Bearer {api_key}"})
        self.jobs: dict[str, ApiJob] = {}
        self._round = 0
        self._lock = threading.Lock()
        self.app = Starlette(
            routes=[
                self.route("/api/v2/jobs/{job_id}", self._job),
                self.route("/results/{job_id}", self._result, public=True),
            ]
        )

    def finished(self, base: str, kind: str, *, expired: bool) -> tuple[str, str]:
        """Return the id of a new job that has ended, and the link to its result, a dead one where it is `expired`."""
        words = b"Hello, this is the voice of the simulator." if kind.endswith("2txt") else None
        job_id = self.add(ApiJob(kind, result=words, content_type="text/plain" if words else "audio/mpeg"))
        link = self.link(base, job_id)
        if expired:
            self.expire()
        return job_id, link

    def add(self, work: ApiJob | None = None) -> str:
        """Return the id of a new job."""
        job_id = str(uuid.uuid4())
        self.jobs[job_id] = work or ApiJob()
        return job_id

    def link(self, base: str, job_id: str) -> str:
        """Return a link to the job's result, good until `expire` is called; `base` is where this is served."""
        number = self._round
        return f"{base}/results/{job_id}?round={number}&signature={self._signature(job_id, number)}"

    def expire(self) -> None:
        """Let every link expire that was made until now."""
        with self._lock:
            self._round += 1

    def refusal(self) -> Response:
        """Return the answer to a wrong key."""
        return JSONResponse({"message": "Unauthenticated."}, status_code=401)

    def _signature(self, job_id: str, number: int) -> str:
        return hmac_sha256_hex("the storage's own secret", f"{job_id}.{number}".encode())

    # ------------------------------------------------------------ the API

    async def _job(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        work = self.jobs.get(job_id)
        if work is None:
            return JSONResponse({"message": "Not found."}, status_code=404)
        with self._lock:
            status = work.next_status()
        return JSONResponse({"data": self._document(base_url(request), job_id, work, status)})

    def _document(self, base: str, job_id: str, work: ApiJob, status: str) -> dict[str, Any]:
        data: dict[str, Any] = {"status": status, "preview": None, "result_url": None, "result": None}
        match status:
            case "done":
                link = None if work.text is not None else self.link(base, job_id)
                return data | {"progress": 100, "result_url": link, "result": work.text}
            case "error" | "failed":
                failure = {"error_code": work.error_code, "error_message": "the worker did not answer"}
                return data | {"progress": 40} | failure
        return data | {"progress": 40 if status == "processing" else 0}

    # ------------------------------------------------------------ the storage

    async def _result(self, request: Request) -> Response:
        job_id, query = request.path_params["job_id"], request.query_params
        work = self.jobs.get(job_id)
        right = query.get("signature") == self._signature(job_id, self._round)
        if work is None or not right or query.get("round") != str(self._round):
            return Response(_EXPIRED, status_code=403, media_type="application/xml")
        headers = {"content-type": work.content_type} if work.content_type else {}
        return Response(work.result if work.result is not None else sample_audio(), headers=headers)
