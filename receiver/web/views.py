"""What the API, the command line and whoever shows things have in common: each thing as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from receiver.core.event import Event, Rejection
from receiver.core.event_json import iso
from receiver.core.work import Attempt, Delivery, Pickup, PickupAttempt

if TYPE_CHECKING:
    from receiver.engine.requests import IssuedUrl

_FIELDS: Mapping[type[Struct], str] = {
    Event: "id type source provider job_id ref occurred_at recorded_at data",
    Delivery: "id state destination event_id event_type attempts round_start due_at created_at updated_at last_outcome",
    Attempt: "number started_at duration_ms outcome status detail answer",
    Rejection: "at source status kind reason method peer content_type user_agent",
    Pickup: (
        "id state source kind job_id ref event_id host format attempts failures due_at deadline_at created_at updated_at "
        "last_outcome last_detail"
    ),
    PickupAttempt: "number started_at duration_ms outcome status detail",
}
"""The fields of each thing, in their order."""


def view(thing: Struct) -> dict[str, Any]:
    """Return one thing as JSON shows it: times as ISO 8601 in UTC, words for states."""
    return {name: _field(thing, name) for name in _FIELDS[type(thing)].split()}


def page(items: Sequence[Any], next: str | None = None) -> dict[str, Any]:
    """Return a list as JSON shows it; `next` is what to ask the next page with, None at the end."""
    return {"items": items, "next": next}


def issued_url(made: IssuedUrl) -> dict[str, Any]:
    """Return a callback URL and what goes with it. It holds secrets: only who asked for it may see it."""
    expected = made.expectation
    return {
        "url": made.url,
        "source": made.source,
        "token": made.token,
        "ref": made.ref,
        "webhook_secret": made.webhook_secret,
        "expect_by": time_of(expected.due_at) if expected else None,
        "pickup_id": expected.id if expected else None,
    }


def time_of(millis: int | None) -> str | None:
    """Return epoch milliseconds as ISO 8601 in UTC."""
    return None if millis is None else iso(millis)


def _field(thing: Any, name: str) -> Any:
    if name in _MADE:
        return _MADE[name](thing)
    value = getattr(thing, name)
    if name == "at" or name.endswith("_at"):
        return time_of(value)
    if isinstance(value, Enum):
        return value.value
    return dict(value) if isinstance(value, Mapping) else value


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url).hostname if url else None
    except ValueError:
        return None


_MADE: Mapping[str, Callable[[Any], Any]] = {
    # Links in it are made at each attempt, so here they are null.
    "data": lambda event: json.loads(event.data),
    "answer": lambda attempt: attempt.response.decode("utf-8", "replace"),
    # Of the URL that a pickup begins with, the host only: the rest may be signed.
    "host": lambda pickup: _host(pickup.target),
}
"""The fields that no attribute holds."""
