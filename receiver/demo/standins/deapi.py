"""deAPI, played offline: its three events, signed afresh for every try.

Contract: https://docs.deapi.ai/execution-modes-and-integrations/webhooks. The signature is HMAC-SHA256 over the timestamp
header's text, a full stop and the raw body; ten attempts over 22 h 48 min.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2

from receiver.core.signing import hmac_sha256_hex
from receiver.demo.standins.sending import Callback, Try, send_until_taken

WAITS = (60, 120, 300, 600, 1800, 3600, 10800, 21600, 43200)
"""Seconds between the ten attempts."""
FAILURES_ALLOWED = 10
"""Failed callbacks in a row after which the webhooks of the whole account are switched off."""
EVENTS = ("processing", "completed", "failed")
RESULT_URL = "https://results.example.test/{job}.mp3"
"""A made-up host: nothing fetches it, and deAPI's real hosts are left alone."""


def waits(*, attempts: int = len(WAITS) + 1, scale: float = 1.0) -> list[float]:
    """Return the seconds between `attempts` attempts, `scale` times the real ones."""
    longest = [*WAITS, *[WAITS[-1]] * attempts]
    return [seconds * scale for seconds in longest[: max(attempts - 1, 0)]]


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
        at = _iso(now)
        data: dict[str, Any] = {"job_request_id": self.id, "job_type": self.kind}
        match event:
            case "processing":
                data |= {"status": "processing", "previous_status": "pending", "started_at": at}
            case "completed":
                url = self.result_url or RESULT_URL.format(job=self.id)
                data |= {"status": "done", "previous_status": "processing", "completed_at": at}
                data |= {"result_url": url, "processing_time_ms": 4500}
            case _:
                data |= {"status": "error", "previous_status": "processing", "failed_at": at}
                data |= {
                    "error_code": "PROCESSING_ERROR",
                    "error_message": "the stand-in was asked to fail",
                }
        whole = {"event": f"job.{event}", "delivery_id": str(uuid.uuid4()), "timestamp": at, "data": data}
        return json.dumps(whole).encode()

    def callback(self, event: str, body: bytes, *, now: int) -> Callback:
        """Return one try of `body`: timestamp and signature are those of `now` (epoch milliseconds)."""
        stamp = str(now // 1000)
        headers = {
            "content-type": "application/json",
            "user-agent": "DeAPI-Webhook/1.0",
            "x-deapi-event": f"job.{event}",
            "x-deapi-delivery-id": json.loads(body)["delivery_id"],
            "x-deapi-timestamp": stamp,
            "x-deapi-signature": "sha256=" + hmac_sha256_hex(self.secret, stamp.encode() + b"." + body),
        }
        return Callback("POST", self.url, headers, body)


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
        job: Job,
        event: str,
        *,
        clock: Callable[[], int],
        waits: Sequence[float],
        sleep: Callable[[float], None],
    ) -> Iterator[Try]:
        """Send one event until it is taken, signed afresh for every try; nothing once the webhooks are switched off.

        `clock` gives epoch milliseconds; `waits` are the seconds between the tries.
        """
        if self.switched_off:
            return
        body = job.body(event, now=clock())

        def signed() -> Callback:
            return job.callback(event, body, now=clock())

        for tried in send_until_taken(client, signed, label=f"job.{event}", waits=waits, sleep=sleep):
            self.failures = 0 if tried.taken else self.failures + 1
            self.switched_off = self.failures >= FAILURES_ALLOWED
            yield tried
            if self.switched_off:
                return


def story(event: str, *, out_of_order: bool = False, duplicate: bool = False) -> Sequence[str]:
    """Return the events of a job in the order sent: `all` is processing and completed, anything else itself.

    `out_of_order` turns the order round, `duplicate` sends each twice.
    """
    events = ["processing", "completed"] if event == "all" else [event]
    if out_of_order:
        events.reverse()
    return [name for name in events for _ in range(2 if duplicate else 1)]


def _iso(now: int) -> str:
    return datetime.fromtimestamp(now / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
