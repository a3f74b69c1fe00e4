"""What the admin API and the command line have in common: pickups as JSON, never with a whole URL."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from receiver.core.envelope import iso
from receiver.core.work import Pickup, PickupAttempt

FORMAT_KEYS = ("product", "encoding", "container", "sample_rate", "channels", "bit_rate", "model")
"""What may be said of a job's format when a result or a callback URL is asked for; the adapters read it."""


def pickup_fields(pickup: Pickup) -> dict[str, Any]:
    """Return one pickup as JSON shows it; of the URL it begins with, the host only, since the rest may be signed."""
    return {
        "id": pickup.id,
        "state": pickup.state.value,
        "source": pickup.source,
        "kind": pickup.kind.value,
        "job_id": pickup.job_id,
        "ref": pickup.ref,
        "event_id": pickup.event_id,
        "host": _host(pickup.target),
        "format": dict(pickup.format),
        "attempts": pickup.attempts,
        "failures": pickup.failures,
        "due_at": time_of(pickup.due_at),
        "deadline_at": time_of(pickup.deadline_at),
        "created_at": time_of(pickup.created_at),
        "updated_at": time_of(pickup.updated_at),
        "last_outcome": pickup.last_outcome,
        "last_detail": pickup.last_detail,
    }


def pickup_attempt_fields(attempt: PickupAttempt) -> dict[str, Any]:
    """Return one attempt of a pickup as JSON shows it."""
    return {
        "number": attempt.number,
        "started_at": time_of(attempt.started_at),
        "duration_ms": attempt.duration_ms,
        "outcome": attempt.outcome.value,
        "status": attempt.status,
        "detail": attempt.detail,
    }


def time_of(millis: int | None) -> str | None:
    """Return epoch milliseconds as ISO 8601 in UTC."""
    return None if millis is None else iso(millis)


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url).hostname if url else None
    except ValueError:
        return None
