"""Problem documents (RFC 9457): how every error under `/api` is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from receiver.core.errors import ConfigError, NotFound, Unavailable, UsageError
from receiver.web.views import shown

TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Content too large",
    422: "Unprocessable content",
    500: "Internal error",
    503: "Service unavailable",
}
_LATER = {"retry-after": "5"}
_encode = msgspec.json.Encoder().encode


class Problem(Struct, frozen=True, kw_only=True):
    """What is wrong with a request, or with receiver."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    """What to do about it, for a person."""


class Refused(Exception):
    """A request that is answered with a problem."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def answer(
    content: Any,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Return a JSON answer that nobody keeps."""
    return Response(
        _encode(shown(content)),
        status_code=status,
        media_type=media_type,
        headers={"cache-control": "no-store"} | dict(headers or {}),
    )


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem document."""
    content = Problem(title=TITLES[status], status=status, detail=detail)
    return answer(content, status=status, headers=headers, media_type="application/problem+json")


def refusal_of(error: Exception) -> Refused:
    """Return how a request is answered that failed with this error; of a fault of receiver's own it tells nothing."""
    match error:
        case Refused():
            return error
        case NotFound():
            return Refused(404, error.message)
        case UsageError() | ConfigError():
            return Refused(422, error.message)
        case Unavailable():
            return Refused(503, error.message, _LATER)
        case TimeoutError():
            return Refused(503, "it was not done in time", _LATER)
        case ClientDisconnect():
            return Refused(400, "the connection ended before the body did")
    return Refused(500, "an internal error; the log says more")
