"""PlayHT, played offline: its jobs (JSON and event stream), its result host, and its dashboard's two kinds of callback.

Contract: https://docs.play.ht/reference/api-get-tts-data and https://docs.play.ht/reference/api-tts-webhooks; the stream's
events as in the samples of https://github.com/playht/text-to-speech-api. PlayHT's own service closed at the end of 2025.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from receiver.demo.serving import Provider, base_url, sample_audio

API = "/api/v2"
API_KEY, USER_ID = "simulated-playht-key-0123456789", "simulated-user-0123456789012"
CREATED = "2026-11-21T01:02:03.456Z"
MEDIA_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "mulaw": "audio/basic"}
_DURATION = 1.5
_ALPHABET = string.ascii_letters + string.digits

Step = tuple[str, Any]
"""One thing that a stream does: an event's name and its data (text as it is, a table as JSON), or one of the three below."""
SILENCE: Step = ("(silence)", None)
"""Say nothing more, and leave the connection open."""
END: Step = ("(end)", None)
"""End the stream here, completed or not."""
COMPLETED: Step = ("(completed)", None)
"""The event `completed` of this job."""
PING: Step = ("ping", "2026-11-21T01:02:04.000Z")


def generating(progress: float, stage: str = "generate") -> Step:
    """Return the event `generating`."""
    return "generating", {"progress": progress, "stage": stage, "stage_progress": progress}


WHOLE_STREAM: tuple[Step, ...] = (
    generating(0, "queued"),
    generating(0.01, "active"),
    PING,
    generating(0.45),
    generating(0.99, "postprocessing"),
    COMPLETED,
)
"""A job from beginning to end."""


@dataclass(slots=True)
class Job:
    """One job. `streams` and `unfinished` decide how asking goes; both may be changed while it is served."""

    id: str
    audio: bytes = field(repr=False)
    output_format: str = "mp3"
    streams: list[Sequence[Step]] = field(default_factory=lambda: [WHOLE_STREAM])
    """What the event stream does, one entry for each time it is asked for; the last stays."""
    unfinished: int = 0
    """So many more questions find the JSON without `output`."""
    answers: list[Response] = field(default_factory=list)
    """Answered in place of the job, one for each question, before anything else."""
    result: Response | None = None
    """Answered in place of the audio."""
    result_query: str = ""
    """What signs the link to the audio, with its question mark."""

    def next_stream(self) -> Sequence[Step]:
        """Return what this stream does."""
        return self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]

    def result_url(self, base: str) -> str:
        """Return the link to the audio; `base` is the result host's."""
        return f"{base}/pigeon/{self.id}_0.{self.output_format}{self.result_query}"

    def document(self, base: str, *, finished: bool) -> dict[str, Any]:
        """Return the job's JSON."""
        output = {"duration": _DURATION, "size": len(self.audio), "url": self.result_url(base)}
        link = {"href": f"{base}{API}/tts/{self.id}", "method": "GET", "rel": "self"}
        given = {"text": "Good morning.", "voice": "simulated", "output_format": self.output_format}
        return {
            "id": self.id,
            "created": CREATED,
            "input": given,
            "output": output if finished else None,
            "_links": [link],
        }

    def completed(self, base: str) -> dict[str, Any]:
        """Return the data of the event `completed`; version 2's callback says the same."""
        output = {"url": self.result_url(base), "duration": _DURATION, "size": len(self.audio)}
        return {"id": self.id, "progress": 1, "stage": "complete", **output}


class Playht(Provider):
    """The service: `app` answers for the API and for the result host."""

    name, port = "playht", 9902
    address = ("base_url", API)
    example: ClassVar = {"api_key": "any-key-will-do", "user_id": "anybody"}

    def __init__(self, *, api_key: str = API_KEY, user_id: str = USER_ID) -> None:
        super().__init__({"authorization": f"Bearer {api_key}", "x-user-id": user_id})
        self.jobs: dict[str, Job] = {}
        self.routes = [
            self.route(f"{API}/tts", self._make, method="POST"),
            self.route(f"{API}/tts/{{job_id}}", self._job),
            self.route("/pigeon/{name}", self._result, public=True),
        ]
        self.app = Starlette(routes=self.routes)

    def add(self, job_id: str | None = None, **options: Any) -> Job:
        """Return a new job, made as if it had been asked for."""
        options.setdefault("audio", sample_audio())
        job = Job(id=job_id or "".join(random.choices(_ALPHABET, k=18)), **options)
        self.jobs[job.id] = job
        return job

    def refusal(self) -> Response:
        """Return the answer to a wrong key or user id."""
        return error(403, "the API key or the user id is wrong")

    # ------------------------------------------------------------ requests

    async def _make(self, request: Request) -> Response:
        try:
            wanted = json.loads(await request.body())
            wanted["text"], wanted["voice"]
        except (ValueError, TypeError, KeyError):
            return error(400, "text and voice are required")
        job = self.add(output_format=wanted.get("output_format") or "mp3")
        headers = {"location": f"{API}/tts/{job.id}"}
        if not _wants_stream(request):
            document = job.document(base_url(request), finished=False)
            return JSONResponse(document, status_code=201, headers=headers)
        headers["content-location"] = f"{API}/tts/{job.id}?format=event-stream"
        return _stream(job, base_url(request), status=201, headers=headers)

    async def _job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            return error(404, "there is no such job")
        if job.answers:
            return job.answers.pop(0)
        if _wants_stream(request):
            return _stream(job, base_url(request))
        finished = job.unfinished <= 0
        job.unfinished -= 1
        return JSONResponse(job.document(base_url(request), finished=finished))

    async def _result(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["name"].partition("_")[0])
        if job is None or request.url.query != job.result_query.removeprefix("?"):
            return Response("<Error><Code>AccessDenied</Code></Error>", 403, media_type="application/xml")
        return job.result or Response(job.audio, media_type=MEDIA_TYPES.get(job.output_format))


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as PlayHT words it."""
    return JSONResponse({"error_message": message}, status_code=status, headers=dict(headers or {}))


def _wants_stream(request: Request) -> bool:
    """Tell whether a request is for the event stream: by `format`, or by what it accepts."""
    wanted = request.query_params.get("format")
    return "event-stream" in (wanted or request.headers.get("accept", "*/*")) or (
        wanted is None and request.method == "POST" and request.headers.get("accept", "*/*") == "*/*"
    )


def _stream(
    job: Job, base: str, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    play = _play(job, base, job.next_stream())
    return StreamingResponse(play, status, dict(headers or {}), media_type="text/event-stream")


async def _play(job: Job, base: str, steps: Sequence[Step]) -> AsyncIterator[bytes]:
    for step in steps:
        if step == END:
            return
        if step == SILENCE:
            await asyncio.Event().wait()  # until the other side has had enough
        name, data = ("completed", job.completed(base)) if step == COMPLETED else step
        if isinstance(data, dict):
            data = json.dumps({"id": job.id, **data})
        yield f"event: {name}\r\ndata: {data}\r\n\r\n".encode()
