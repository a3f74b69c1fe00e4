"""The HTTP face (floor 8): every route, spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.web.callbacks import Callbacks
from receiver.web.health import Health
from receiver.web.objects import Objects

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from receiver.wiring import Receiver


def create_app(receiver: Receiver, *, intake: bool = True) -> ASGIApp:
    """Return the ASGI application over running parts; without `intake` it answers probes and links only."""
    health, objects = Health(receiver, intake=intake), Objects(receiver)
    app = Starlette(
        routes=[
            Route("/healthz", health.live),
            Route("/readyz", health.ready),
            Route("/metrics", health.metrics),
            Route("/objects/{token}", objects.get),
        ],
        exception_handlers={404: _not_found, 405: _wrong_method},
    )
    return Callbacks(receiver, app) if intake else app


async def _not_found(request: Request, error: Exception) -> Response:
    return JSONResponse(
        {"status": "not_found", "error": "nothing is here; callbacks go to /callbacks/{source}"},
        status_code=404,
    )


async def _wrong_method(request: Request, error: Exception) -> Response:
    headers = getattr(error, "headers", None)
    return JSONResponse({"status": "wrong_method", "error": "use GET here"}, status_code=405, headers=headers)
