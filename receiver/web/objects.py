"""Links to stored objects that receiver serves itself: conditions, ranges, and pages of other origins."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from receiver.core.errors import NotFound
from receiver.storage.blobs import Blobs, disposition

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.app.wiring import Receiver

_CONDITIONS = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "range")
_RANGE = re.compile(r"[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.ASCII)
_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Objects:
    """Serves stored objects to callers with a link that receiver issued."""

    def __init__(self, receiver: Receiver) -> None:
        self._links = receiver.links
        self._blobs = receiver.blobs
        self._clock = receiver.clock
        self._origins = receiver.settings.blobs.cors_origins

    def route(self) -> Route:
        """Return the route of the links; pages of the configured origins may read what they answer."""
        if not self._origins:
            return Route("/objects/{token}", self.get)
        cors = Middleware(
            CORSMiddleware,
            allow_origins=self._origins,
            allow_methods=("GET", "HEAD"),
            allow_headers=_CONDITIONS,
            expose_headers=(
                "accept-ranges",
                "content-disposition",
                "content-length",
                "content-range",
                "etag",
            ),
            max_age=3600,
        )
        return Route("/objects/{token}", self.get, methods=["GET", "OPTIONS"], middleware=[cors])

    async def get(self, request: Request) -> Response:
        """Answer 200 or 206 with the bytes, 304 or 412 by the caller's conditions, 404 for an unknown link, 410 for an expired one."""
        claims = self._links.read(request.path_params["token"])
        if claims is None:
            return _problem(404, "there is no such link; copy it whole from the event")
        key, content_type, expires_at = claims
        if self._clock() > expires_at:
            return _problem(
                410, "the link has expired; `receiver replay` sends the event again with a fresh one"
            )
        try:
            return await served(request, self._blobs, key, content_type)
        except NotFound as error:
            return _problem(404, error.message)


async def served(request: Request, blobs: Blobs, key: str, content_type: str) -> Response:
    """Answer the bytes of an object that is on this machine, by the caller's conditions. Raises `NotFound`."""
    found = await asyncio.to_thread(blobs.local, key)
    if found is None:
        raise NotFound("the object is not here any more")
    changed_at = datetime.fromtimestamp(found.modified_at // 1000, UTC)
    headers = {
        "etag": f'"{key.rpartition("/")[2].partition(".")[0]}"',  # a key's name has the hash of the bytes in it
        "last-modified": format_datetime(changed_at, usegmt=True),
        "cache-control": "private, max-age=300",
    }
    if status := _unmet(request, headers["etag"], changed_at):
        return Response(status_code=status, headers=headers)
    _keep_satisfiable(request, found.size)
    headers |= {
        "content-disposition": disposition(key, content_type),
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
    }
    return FileResponse(found.path, media_type=content_type, headers=headers)


def _unmet(request: Request, tag: str, changed_at: datetime) -> int | None:
    """Return 412 or 304 when a condition of the caller's says so (RFC 9110, section 13.2.2), else None."""
    given = request.headers
    if (wanted := given.get("if-match")) is not None:
        if wanted.strip() != "*" and tag not in wanted.replace("W/" + tag, ""):
            return 412
    elif (before := _date(given.get("if-unmodified-since"))) and changed_at > before:
        return 412
    if (known := given.get("if-none-match")) is not None:
        return 304 if known.strip() == "*" or tag in _TAG.findall(known) else None
    since = _date(given.get("if-modified-since"))
    return 304 if since and changed_at <= since else None


def _date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _keep_satisfiable(request: Request, size: int) -> None:
    """Leave of the request's ranges those that the object has; all of them where it has none, for 416.

    A header that is malformed or of another unit does not count.
    """
    unit, _, rest = request.headers.get("range", "").partition("=")
    ranges = [_RANGE.fullmatch(part) for part in rest.split(",") if part.strip()]
    kept = [
        found[0]
        for found in ranges
        if found and (int(found[1]) < size if found[1] else int(found[3]) > 0 < size)
    ]
    wrong = any(found is None or (found[2] and int(found[2]) < int(found[1])) for found in ranges)
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
    if unit.strip().lower() == "bytes" and ranges and not wrong:
        text = ",".join(kept) if kept else f"{size}-"
        headers.append((b"range", f"bytes={text}".encode()))
    request.scope["headers"] = headers


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"status": status, "error": detail}, status_code=status)
