"""Deepdub, played offline: retroactive text to speech, kept to the letter of its contract.

https://docs.deepdub.ai/api-reference/tts/get-retroactive-tts-audio: `POST {base}/tts/retroactive` answers with a URL; a GET of it,
with the same `x-api-key`, is 404 until the audio is ready. A failed, an unknown and an expired id are the same 404.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from typing import ClassVar

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from receiver.demo.serving import Provider, base_url, sample_audio

BASE_PATH = "/api/v1"
_PATH = f"{BASE_PATH}/tts/retroactive"
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TYPES = {"mp3": "audio/mpeg", "opus": "audio/ogg", "mulaw": "audio/mulaw", "headerless-wav": None}


class _Job(Struct):
    left: int
    """404s still to be answered."""
    format: str


class Deepdub(Provider):
    """The provider. `not_ready` is how many 404s come before the audio of a job."""

    name, port = "deepdub", 9901
    address = ("base_url", BASE_PATH)
    example: ClassVar = {"api_key": "any key will do"}
    has_links = False

    def __init__(self, api_key: str, *, not_ready: int = 0, audio: bytes | None = None) -> None:
        super().__init__({"x-api-key": api_key})
        self.not_ready = not_ready
        self.audio = audio if audio is not None else sample_audio()
        """What every job comes to, whatever was asked for."""
        self.content_type: str | None = "asked"
        """The type of the audio: `asked` is that of the job's format, None sends none."""
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self.app = Starlette(
            routes=[
                self.route(_PATH, self._submit, method="POST"),
                self.route(_PATH + "/{name}", self._fetch),
            ]
        )

    def submit(self, format: str = "mp3") -> str:
        """Return the id of a new job, as if it had been posted."""
        job_id = str(uuid.uuid4())
        with self._lock:
            self._jobs[job_id] = _Job(self.not_ready, format)
        return job_id

    async def _submit(self, request: Request) -> Response:
        problem, wanted = _problem(await request.body())
        if problem:
            return JSONResponse({"success": False, "message": problem}, status_code=400)
        return JSONResponse({"url": f"{base_url(request)}{_PATH}/{self.submit(wanted)}"})

    async def _fetch(self, request: Request) -> Response:
        job_id = request.path_params["name"].partition(".")[0]  # an extension is ignored
        if not _ID.fullmatch(job_id):
            return JSONResponse({"success": False, "message": "Invalid generation ID"}, status_code=400)
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.left > 0:
                if job is not None:
                    job.left -= 1
                return JSONResponse({"success": False, "message": "Not found"}, status_code=404)
        kind = _TYPES[job.format] if self.content_type == "asked" else self.content_type
        return Response(self.audio, headers={"content-type": kind} if kind else {})

    def refusal(self) -> Response:
        """Return the answer to a wrong key."""
        return JSONResponse({"success": False, "message": "Unauthorized"}, status_code=401)


def _problem(body: bytes) -> tuple[str, str]:
    """Return what is wrong with a submitted body ("" for nothing) and the format that it asks for."""
    try:
        asked = json.loads(body)
    except ValueError:
        return "Invalid JSON", ""
    if not isinstance(asked, dict):
        return "Invalid JSON", ""
    for name in ("targetText", "model", "voicePromptId", "locale"):
        if not isinstance(asked.get(name), str) or not asked[name]:
            return f"{name} is required", ""
    wanted = asked.get("format", "mp3")
    return ("", wanted) if wanted in _TYPES else ("Invalid format", "")
