"""Twelve providers' APIs on loopback, as far as their own packages submit jobs and ask about them; each job is called back at once.

What they take, answer and call back is what the packages of the versions in tests/sdks send and read, and what the pages say that
the recipes name. A request without the provider's key, or without what the callback needs, is refused as the provider would.
"""

from __future__ import annotations

import asyncio
import contextlib
import email
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from receiver.core.webhook import sign, webhook_key
from tests.support.clients import local_client
from tests.support.running import BASIC
from tests.support.senders import SPEECH
from tests.support.submitting import Api, Asked, response

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = "provider-key-0123456789"
AUDIO = SPEECH.read_bytes()
FAL_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
AT = "2026-11-30T12:00:00Z"
TEXT = "Good morning."


@dataclass(frozen=True, kw_only=True)
class Callback:
    """What a provider calls back with."""

    url: str
    document: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    signed: Callable[[bytes], Mapping[str, str]] = lambda body: {}


Answer = tuple[int, Any] | tuple[int, Any, Callback]
"""Status, JSON or bytes, and for a new job its callback."""


@dataclass(frozen=True)
class Request:
    """What was asked, in the provider's eyes."""

    method: str
    path: str
    query: dict[str, str]
    fields: dict[str, Any]
    """Of a JSON object, or of a form: files as bytes."""
    base: str
    job: str
    """The id for a new job."""

    @classmethod
    def of(cls, asked: Asked, base: str, job: str) -> Request:
        parts = urlsplit(asked.target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        kind = asked.headers.get("content-type", "")
        fields: dict[str, Any] = {}
        if kind.startswith("application/json") and asked.body and not parts.path.endswith("/upload"):
            fields = json.loads(asked.body)
        elif kind.startswith("multipart/"):
            whole = email.message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + asked.body)
            for part in whole.get_payload():
                name = str(part.get_param("name", header="content-disposition"))  # type: ignore[union-attr]
                assert name not in fields, name
                fields[name] = part.get_payload(decode=True)  # type: ignore[union-attr]
        elif asked.body:
            fields = {"": asked.body}
        return cls(asked.method, parts.path, query, fields, base, job)


def deepgram(ask: Request) -> Answer:
    product = ask.path.rpartition("/")[2]
    assert ask.fields
    result: dict[str, Any] = {"results": {"channels": [{"alternatives": [{"transcript": TEXT}]}]}}
    document = {"metadata": {"request_id": ask.job, "duration": 1, "created": AT}, **result}
    assert product == "listen"
    return 200, {"request_id": ask.job}, Callback(url=ask.query["callback"], document=document)


def assemblyai(ask: Request) -> Answer:
    if ask.path == "/v2/upload":
        return 200, {"upload_url": "https://cdn.example.test/upload/1"}
    done = {"id": ask.path.rpartition("/")[2], "status": "completed", "text": TEXT, "audio_url": "u"}
    if ask.method == "GET":
        return 200, done
    proof = {ask.fields["webhook_auth_header_name"]: ask.fields["webhook_auth_header_value"]}
    document = {"transcript_id": ask.job, "status": "completed"}
    call = Callback(url=ask.fields["webhook_url"], document=document, headers=proof)
    return 200, {"id": ask.job, "status": "queued", "audio_url": ask.fields["audio_url"]}, call


def elevenlabs(ask: Request) -> Answer:
    if ask.path == "/v1/workspace/webhooks":
        return 200, {"webhooks": []}
    assert ask.fields["webhook"] == b"true"
    assert ask.fields["model_id"]
    assert ask.fields["file"]
    data = {
        "request_id": ask.job,
        "webhook_metadata": ask.fields["webhook_metadata"].decode(),
        "transcription": {"text": TEXT, "language_code": "en"},
    }
    document = {"type": "speech_to_text_transcription", "event_timestamp": int(time.time()), "data": data}

    def signed(body: bytes) -> Mapping[str, str]:
        stamp = int(time.time())
        digest = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, "sha256").hexdigest()
        return {"elevenlabs-signature": f"t={stamp},v0={digest}"}

    call = Callback(url="/callbacks/elevenlabs", document=document, signed=signed)
    return 200, {"message": "accepted", "request_id": ask.job}, call


def deepdub(ask: Request) -> Answer:
    if ask.method == "GET":
        return 200, AUDIO
    return 200, {"url": f"{ask.base}/api/v1/tts/retroactive/{ask.job}"}


def _standard(body: bytes) -> Mapping[str, str]:
    return sign([webhook_key(SECRET)], f"wh-{hashlib.sha256(body).hexdigest()[:8]}", int(time.time()), body)


def openai(ask: Request) -> Answer:
    response: dict[str, Any] = {
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [],
        "tools": [],
    }
    response |= {"parallel_tool_calls": True, "tool_choice": "auto"}
    if ask.method == "GET":
        return 200, {"id": ask.path.rpartition("/")[2], "status": "completed", **response}
    assert ask.fields["background"] is True
    event = {"id": f"evt_{ask.job}", "type": "response.completed", "created_at": int(time.time())}
    call = Callback(url="/callbacks/openai", document=event | {"data": {"id": ask.job}}, signed=_standard)
    return 200, {"id": ask.job, "status": "queued", **response}, call


def replicate(ask: Request) -> Answer:
    job = ask.job if ask.method == "POST" else ask.path.rpartition("/")[2]
    urls = {"get": f"{ask.base}/v1/predictions/{job}", "cancel": f"{ask.base}/v1/predictions/{job}/cancel"}
    whole: dict[str, Any] = {
        "id": job,
        "version": "v" * 64,
        "model": "o/m",
        "created_at": AT,
        "input": {},
        "urls": urls,
    }
    whole |= {"logs": "", "error": None, "metrics": {}, "source": "api"}
    done: dict[str, Any] = whole | {
        "status": "succeeded",
        "output": [f"{ask.base}/file.mp3"],
        "completed_at": AT,
    }
    if ask.path == "/file.mp3":
        return 200, AUDIO
    if ask.method == "GET":
        return 200, done
    assert ask.fields["webhook_events_filter"] == ["completed"]
    call = Callback(url=ask.fields["webhook"], document=done, signed=_standard)
    return 201, whole | {"status": "starting", "output": None}, call


def fal(ask: Request) -> Answer:
    if ask.path == "/file.mp3":
        return 200, AUDIO
    result = {"audio": {"url": f"{ask.base}/file.mp3"}}
    if ask.method == "GET":
        job = ask.path.split("/requests/")[1].split("/")[0]
        done: dict[str, Any] = {"status": "COMPLETED", "request_id": job, "logs": None, "metrics": {}}
        return 200, done if ask.path.endswith("/status") else result
    here = f"{ask.base}{ask.path}/requests/{ask.job}"
    urls = {"response_url": here, "status_url": f"{here}/status", "cancel_url": f"{here}/cancel"}

    def signed(body: bytes) -> Mapping[str, str]:
        names = {"request-id": ask.job, "user-id": "u", "timestamp": str(int(time.time()))}
        message = "\n".join([*names.values(), hashlib.sha256(body).hexdigest()])
        names["signature"] = FAL_KEY.sign(message.encode()).hex()
        return {f"x-fal-webhook-{name}": value for name, value in names.items()}

    document = {"request_id": ask.job, "status": "OK", "payload": result}
    call = Callback(url=ask.query["fal_webhook"], document=document, signed=signed)
    return 200, {"request_id": ask.job, "status": "IN_QUEUE", "queue_position": 0, **urls}, call


def revai(ask: Request) -> Answer:
    job = {"id": ask.path.split("/")[4] if ask.method == "GET" else ask.job, "created_on": AT}
    monologues = [{"speaker": 0, "elements": [{"type": "text", "value": TEXT, "ts": 0, "end_ts": 1}]}]
    if ask.path.endswith("/transcript"):
        return 200, {"monologues": monologues}
    if ask.method == "GET":
        return 200, job | {"status": "transcribed", "type": "async"}
    options = json.loads(ask.fields["options"]) if "options" in ask.fields else ask.fields
    config = options["notification_config"]
    document = {"job": job | {"status": "transcribed"}}
    call = Callback(url=config["url"], document=document, headers=config["auth_headers"])
    return 200, job | {"status": "in_progress", "type": "async"}, call


def speechmatics(ask: Request) -> Answer:
    transcript = {"format": "2.9", "metadata": {"created_at": AT, "type": "transcription"}, "results": []}
    job = {"id": ask.path.split("/")[3] if ask.method == "GET" else ask.job, "created_at": AT}
    about = job | {"status": "done", "data_name": "a.wav", "duration": 1}
    transcript["job"] = about
    if ask.path.endswith("/transcript"):
        return 200, transcript
    if ask.method == "GET":
        return 200, {"job": about}
    [config] = json.loads(ask.fields["config"])["notification_config"]
    assert config["contents"] == ["transcript.json-v2"]
    name, _, value = config["auth_headers"][0].partition(": ")
    url = f"{config['url']}?id={ask.job}&status=success"
    return 201, {"id": ask.job}, Callback(url=url, document=transcript, headers={name: value})


def gladia(ask: Request) -> Answer:
    if ask.path == "/v2/upload":
        metadata: dict[str, Any] = {
            "id": "f",
            "filename": "a.wav",
            "source": None,
            "extension": "wav",
            "size": 1,
        }
        metadata |= {"audio_duration": 1.0, "number_of_channels": 1}
        return 200, {"audio_url": "https://api.example.test/file/f", "audio_metadata": metadata}
    said = {"full_transcript": TEXT, "languages": ["en"], "utterances": []}
    if ask.method == "GET":
        job = {"id": ask.path.rpartition("/")[2], "request_id": "r", "version": 2, "kind": "pre-recorded"}
        facts = {"audio_duration": 1.0, "number_of_distinct_channels": 1, "billing_time": 1.0}
        result = {"metadata": facts | {"transcription_time": 1.0}, "transcription": said}
        return 200, job | {"status": "done", "created_at": AT, "post_session_metadata": {}, "result": result}
    assert ask.fields["callback"] is True
    document = {"id": ask.job, "event": "transcription.success", "payload": {"transcription": said}}
    answer = {"id": ask.job, "result_url": f"{ask.base}/v2/pre-recorded/{ask.job}"}
    return 201, answer, Callback(url=ask.fields["callback_config"]["url"], document=document)


def soniox(ask: Request) -> Answer:
    if ask.path == "/v1/files":
        return 201, {"id": "f1", "filename": "a.wav", "size": 1, "created_at": AT}
    if ask.path.endswith("/transcript"):
        return 200, {"id": ask.path.split("/")[3], "text": TEXT, "tokens": []}
    job: dict[str, Any] = {"id": ask.path.split("/")[3] if ask.method == "GET" else ask.job}
    job |= {"created_at": AT, "model": "m"}
    job |= {"filename": "a.wav", "enable_speaker_diarization": False, "enable_language_identification": False}
    if ask.method == "GET":
        return 200, job | {"status": "completed"}
    assert len(ask.fields["webhook_url"]) <= 256
    proof = {ask.fields["webhook_auth_header_name"]: ask.fields["webhook_auth_header_value"]}
    document = {"id": ask.job, "status": "completed"}
    call = Callback(url=ask.fields["webhook_url"], document=document, headers=proof)
    return 201, job | {"status": "queued"}, call


def sarvam(ask: Request) -> Answer:
    job = {"job_id": ask.path.split("/")[4] if ask.path.count("/") > 3 else ask.job}
    storage = {"storage_container_type": "Azure", "input_storage_path": "i", "output_storage_path": "o"}
    if ask.method == "GET" or ask.path.endswith("/start"):
        counts = {"total_files": 1, "successful_files_count": 1, "failed_files_count": 0, "job_details": []}
        times = {"created_at": AT, "updated_at": AT}
        return 200, job | storage | counts | times | {"job_state": "Completed"}
    proof = {"x-sarvam-job-callback-token": ask.fields["callback"]["auth_token"]}
    document = job | {"job_state": "Completed"}
    call = Callback(url=ask.fields["callback"]["url"], document=document, headers=proof)
    return 202, job | storage | {"job_parameters": {}, "job_state": "Accepted"}, call


PROVIDERS: dict[str, tuple[Callable[[Request], Answer], str, str]] = {
    "deepgram": (deepgram, "authorization", f"Token {KEY}"),
    "assemblyai": (assemblyai, "authorization", KEY),
    "elevenlabs": (elevenlabs, "xi-api-key", KEY),
    "deepdub": (deepdub, "x-api-key", KEY),
    "openai": (openai, "authorization", f"Bearer {KEY}"),
    "replicate": (replicate, "authorization", f"Bearer {KEY}"),
    "fal": (fal, "authorization", f"Key {KEY}"),
    "revai": (revai, "authorization", f"Bearer {KEY}"),
    "speechmatics": (speechmatics, "authorization", f"Bearer {KEY}"),
    "gladia": (gladia, "x-gladia-key", KEY),
    "soniox": (soniox, "authorization", f"Bearer {KEY}"),
    "sarvam": (sarvam, "api-subscription-key", KEY),
}
"""What each does, and where it wants which key."""


@dataclass
class Stage:
    """All of them."""

    bases: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, Asked]] = field(default_factory=list)
    jobs: dict[str, list[str]] = field(default_factory=dict)
    """By provider: the ids of jobs."""
    statuses: list[tuple[str, int]] = field(default_factory=list)
    """What callbacks were answered."""
    receiver: str = ""
    """Where receiver listens."""
    calls: list[asyncio.Task[None]] = field(default_factory=list)

    async def answer(self, name: str, base: str, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and call back beside it."""
        self.asked.append((name, asked))
        behave, header, key = PROVIDERS[name]
        file = asked.target == "/file.mp3"
        if asked.headers.get(header) != key and not file:
            writer.write(response(401, b'{"error": "no key"}'))
            return
        jobs = self.jobs.setdefault(name, [])
        job = f"{name}-{len(jobs) + 1}"
        try:
            status, document, *calls = behave(Request.of(asked, base, job))
        except (AssertionError, KeyError, ValueError) as error:
            writer.write(response(422, json.dumps({"error": repr(error)}).encode()))
            return
        if asked.method == "POST" and not asked.target.endswith(("/upload", "/files", "/start")):
            jobs.append(job)
        self.calls += [asyncio.create_task(self._call(name, call)) for call in calls]
        binary = isinstance(document, bytes)
        body = document if binary else json.dumps(document).encode()
        raw = response(status, body)
        writer.write(raw.replace(b"application/json", b"audio/mpeg", 1) if binary else raw)

    async def _call(self, name: str, call: Callback) -> None:
        parts = urlsplit(call.url)
        body = json.dumps(call.document).encode()
        user, _, password = BASIC.partition(":")
        auth: Any = httpx2.BasicAuth(user, password) if parts.username else None
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        headers = {"content-type": "application/json", **call.headers, **call.signed(body)}
        async with local_client(base_url=self.receiver) as client:
            answer = await client.post(target, content=body, headers=headers, auth=auth)
        self.statuses.append((name, answer.status_code))


@contextlib.asynccontextmanager
async def provider_apis() -> AsyncIterator[Stage]:
    """Serve all of them, each at an address of its own."""
    stage = Stage()
    async with contextlib.AsyncExitStack() as stack:
        for name in PROVIDERS:
            api = Api("")

            async def behave(
                asked: Asked, writer: asyncio.StreamWriter, name: str = name, api: Api = api
            ) -> None:
                await stage.answer(name, api.base, asked, writer)

            api.behave = behave
            server = await asyncio.start_server(api.serve, "127.0.0.1", 0, limit=1 << 20)
            await stack.enter_async_context(server)
            api.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            stage.bases[name] = api.base
        yield stage
        await asyncio.gather(*stage.calls)
