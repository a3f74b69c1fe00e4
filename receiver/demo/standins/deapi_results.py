"""deAPI's other side, played offline: the API that tells of jobs, and the storage of results with links that expire.

Contract: https://docs.deapi.ai/api/v2/utilities/jobs. The API wants a Bearer key; links are signed and take none. A link that
is not honoured (any more) is a storage's 403.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.core.signing import hmac_sha256_hex
from receiver.demo.standins.serving import Asked

_EXPIRED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'
_PAGE = b"<!DOCTYPE html><html><head><title>Not here</title></head><body>Sign in to go on.</body></html>"


@dataclass(slots=True)
class Work:
    """One job as the API tells it."""

    kind: str = "txt2audio"
    statuses: Sequence[str] = ("done",)
    """One for each time the job is asked for; the last one stays."""
    result: bytes | None = None
    """What the link leads to; None is a short spoken sentence."""
    content_type: str | None = "audio/mpeg"
    text: str | None = None
    """A result told in the job's own document, in place of a link."""
    error_code: str = "WORKER_TIMEOUT"
    times_asked: int = field(default=0, init=False)

    def next_status(self) -> str:
        """Return the status for this time."""
        status = self.statuses[min(self.times_asked, len(self.statuses) - 1)]
        self.times_asked += 1
        return status


class Deapi:
    """API and storage at one address. Behaviour is set by attributes, at any time, from any thread."""

    def __init__(self, api_key: str) -> None:
        self._key = api_key
        self.api_manner = "works"
        """`works`; `busy` (429 with Retry-After); `down` (503); `page` (200, HTML)."""
        self.storage_manner = "works"
        """`works`; `page` (200, HTML); `down` (503)."""
        self.works: dict[str, Work] = {}
        self.asked: list[Asked] = []
        self._round = 0
        self._lock = threading.Lock()
        self.app = Starlette(
            routes=[
                Route("/api/v2/jobs/{job_id}", self._job, methods=["GET"]),
                Route("/results/{job_id}", self._result, methods=["GET"]),
            ]
        )

    def add(self, work: Work | None = None) -> str:
        """Return the id of a new job."""
        job_id = str(uuid.uuid4())
        self.works[job_id] = work or Work()
        return job_id

    def link(self, base: str, job_id: str) -> str:
        """Return a link to the job's result, good until `expire` is called; `base` is where this is served."""
        number = self._round
        return f"{base}/results/{job_id}?round={number}&signature={self._signature(job_id, number)}"

    def expire(self) -> None:
        """Let every link expire that was made until now."""
        with self._lock:
            self._round += 1

    def asked_for(self, start: str) -> list[Asked]:
        """Return the requests, in order, whose path begins with `start`."""
        return [asked for asked in self.asked if asked.path.startswith(start)]

    def _signature(self, job_id: str, number: int) -> str:
        return hmac_sha256_hex("the storage's own secret", f"{job_id}.{number}".encode())

    # ------------------------------------------------------------ the API

    async def _job(self, request: Request) -> Response:
        self.asked.append(await Asked.of(request))
        if request.headers.get("authorization") != f"Bearer {self._key}":
            return JSONResponse({"message": "Unauthenticated."}, status_code=401)
        match self.api_manner:
            case "busy":
                waits = {"retry-after": "9", "x-ratelimit-type": "minute"}
                return JSONResponse({"message": "Too Many Attempts."}, status_code=429, headers=waits)
            case "down":
                return Response("upstream connect error", status_code=503, media_type="text/plain")
            case "page":
                return Response(_PAGE, media_type="text/html")
        job_id = request.path_params["job_id"]
        work = self.works.get(job_id)
        if work is None:
            return JSONResponse({"message": "Not found."}, status_code=404)
        with self._lock:
            status = work.next_status()
        base = str(request.base_url).rstrip("/")
        return JSONResponse({"data": self._told(base, job_id, work, status)})

    def _told(self, base: str, job_id: str, work: Work, status: str) -> dict[str, Any]:
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
        self.asked.append(await Asked.of(request))
        job_id, query = request.path_params["job_id"], request.query_params
        work = self.works.get(job_id)
        right = query.get("signature") == self._signature(job_id, self._round)
        if work is None or not right or query.get("round") != str(self._round):
            return Response(_EXPIRED, status_code=403, media_type="application/xml")
        match self.storage_manner:
            case "page":
                return Response(_PAGE, media_type="text/html")
            case "down":
                return Response("slow down", status_code=503, headers={"retry-after": "3"})
        headers = {"content-type": work.content_type} if work.content_type else {}
        return Response(work.result if work.result is not None else _sample(), headers=headers)


def _sample() -> bytes:
    return resources.files("receiver.demo.samples").joinpath("speech.mp3").read_bytes()
