"""Callbacks as the providers send them, made for a name so that each can be told apart."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from receiver.core.proofs import hmac_sha256_hex
from tests.support.running import BASIC, DEAPI_SECRET

PAUSE = 0.03
"""Seconds between the callbacks of one caller where a steady load is wanted, and not all that two cores can give."""
SPEECH = Path(__file__).resolve().parents[2] / "receiver" / "demo" / "samples" / "speech.mp3"


def basic(credentials: str = BASIC) -> str:
    """Return the `Authorization` value of `user:password`."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@dataclass(frozen=True)
class Sent:
    """One callback, ready to send."""

    name: str
    """Comes back in the event's `job_id`."""
    path: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"


async def over_in_a_pause(over: asyncio.Event) -> bool:
    """Wait for a pause between two callbacks; tell whether there is to be no other."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), PAUSE)
    return over.is_set()


def speech(name: str, *, method: str = "PUT", content_type: str = "audio/mpeg", times: int = 1) -> Sent:
    """Deepgram text to speech: raw audio (the sample, `times` over), the request id in a header."""
    headers = {"content-type": content_type, "authorization": basic(), "dg-request-id": name}
    return Sent(name, "/callbacks/deepgram", headers, SPEECH.read_bytes() * times, method)


def transcript(name: str, text: str = "Your order is ready.") -> Sent:
    """Deepgram speech to text, batch."""
    body = {
        "metadata": {
            "transaction_key": "deprecated",
            "request_id": name,
            "sha256": "154e291ecfa8be6ab8343560bcc109008fa7853eb5372533e8efdefc9b504c33",
            "created": "2026-11-21T01:02:03.456Z",
            "duration": 1.5,
            "channels": 1,
            "models": [],
            "model_info": {},
        },
        "results": {"channels": [{"alternatives": [{"transcript": text, "confidence": 0.99, "words": []}]}]},
    }
    headers = {"content-type": "application/json", "authorization": basic()}
    return Sent(name, "/callbacks/deepgram", headers, json.dumps(body).encode())


def deapi(
    name: str,
    event: str | None = None,
    *,
    secret: str = DEAPI_SECRET,
    at: int | None = None,
    result_url: str | None = None,
    job_type: str = "txt2audio",
) -> Sent:
    """A signed deAPI callback; signed afresh each time it is made. A failure is an event by itself; a completed job, with `result_url`, waits for what lies there."""
    if event is None:
        event = "job.completed" if result_url else "job.failed"
    status = {"job.processing": "processing", "job.completed": "done", "job.failed": "error"}.get(
        event, "done"
    )
    sent_at = at if at is not None else int(time.time())
    data: dict[str, object] = {
        "job_request_id": name,
        "status": status,
        "previous_status": "processing",
        "job_type": job_type,
    }
    if event == "job.completed":
        data |= {"processing_time_ms": 45000} | ({"result_url": result_url} if result_url else {})
    body = json.dumps(
        {
            "event": event,
            "delivery_id": f"{name}-{event}",
            "timestamp": datetime.fromtimestamp(sent_at, UTC).isoformat(),
            "data": data,
        }
    ).encode()
    stamp = str(sent_at)
    headers = {
        "content-type": "application/json",
        "x-deapi-event": event,
        "x-deapi-delivery-id": f"{name}-{event}",
        "x-deapi-timestamp": stamp,
        "x-deapi-signature": "sha256=" + hmac_sha256_hex(secret, f"{stamp}.".encode() + body),
    }
    return Sent(name, "/callbacks/deapi", headers, body)
