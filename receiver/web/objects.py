"""`GET /objects/{token}`: signed, expiring links to locally stored audio, with byte ranges."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import FileResponse, JSONResponse, Response

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.app.wiring import Receiver


class Objects:
    """Serves stored objects to callers with a link that receiver issued."""

    def __init__(self, receiver: Receiver) -> None:
        self._links = receiver.links
        self._blobs = receiver.blobs
        self._clock = receiver.clock

    async def get(self, request: Request) -> Response:
        """Answer 200 or 206 with the bytes, 404 for an unknown link, 410 for an expired one."""
        claims = self._links.read(request.path_params["token"])
        if claims is None:
            return _problem(404, "there is no such link; copy it whole from the event")
        key, content_type, expires_at = claims
        if self._clock() > expires_at:
            return _problem(
                410, "the link has expired; `receiver replay` sends the event again with a fresh one"
            )
        found = await asyncio.to_thread(self._blobs.local, key)
        if found is None:
            return _problem(404, "the object is not here any more")
        return FileResponse(
            found.path,
            media_type=content_type,
            filename=key.rpartition("/")[2],
            content_disposition_type="inline",
            headers={
                "x-content-type-options": "nosniff",
                "content-security-policy": "default-src 'none'; sandbox",
                "cache-control": "private, max-age=300",
            },
        )


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"status": status, "error": detail}, status_code=status)
