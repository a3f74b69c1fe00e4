"""Simulated providers in trouble: what they answer in place of the right thing is set at any time, from any thread."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from receiver.demo.deapi import Deapi
from receiver.demo.deepdub import Deepdub


def page(status: int = 200) -> Response:
    """Return a web page, as a proxy or a login answers."""
    return Response(b"<!DOCTYPE html><html><body>Not here</body></html>", status, media_type="text/html")


class FaultyDeapi(Deapi):
    """deAPI whose API or storage is in trouble: `busy` (429), `down` (503) or `page` (200, HTML)."""

    api_fault: str | None = None
    storage_fault: str | None = None

    def trouble(self, request: Request) -> Response | None:
        """Return the trouble of the part that is asked."""
        storage = request.url.path.startswith("/results/")
        match self.storage_fault if storage else self.api_fault:
            case "busy":
                waits = {"retry-after": "9", "x-ratelimit-type": "minute"}
                return JSONResponse({"message": "Too Many Attempts."}, status_code=429, headers=waits)
            case "down" if storage:
                return Response("slow down", status_code=503, headers={"retry-after": "3"})
            case "down":
                return Response("upstream connect error", status_code=503, media_type="text/plain")
            case "page":
                return page()
        return None


class FaultyDeepdub(Deepdub):
    """Deepdub in trouble: `busy` (429), `page` (502), `page-200`, `envelope` (200, an error document) or `no-credits` (402)."""

    fault: str | None = None
    busy_seconds = 7

    def trouble(self, request: Request) -> Response | None:
        """Return the trouble of a request for audio."""
        match self.fault if request.method == "GET" else None:
            case "busy":
                waits = {"retry-after": str(self.busy_seconds)}
                busy = {"success": False, "message": "Too many concurrent requests"}
                return JSONResponse(busy, status_code=429, headers=waits)
            case "page":
                return page(502)
            case "page-200":
                return page()
            case "envelope":
                return JSONResponse({"success": False, "message": "Generation failed"})
            case "no-credits":
                return JSONResponse({"success": False, "message": "Insufficient credits"}, status_code=402)
        return None
