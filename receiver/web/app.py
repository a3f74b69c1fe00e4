"""The ASGI applications: every route, spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.web.api import descriptions
from receiver.web.api.problems import problem
from receiver.web.api.routes import OPERATIONS
from receiver.web.api.serving import PREFIX, routes
from receiver.web.callbacks import Callbacks
from receiver.web.console.sessions import Sessions, sessions_of
from receiver.web.health import Health
from receiver.web.objects import Objects
from receiver.web.submit import Submit

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from receiver.app.wiring import Receiver


def create_app(receiver: Receiver, *, intake: bool = True, sessions: Sessions | None = None) -> ASGIApp:
    """Return the ASGI application over running parts; without `intake` it takes no callbacks, and answers all else.

    `sessions` log people in to the console; None is as the settings have it.
    """
    health, objects = Health(receiver, intake=intake), Objects(receiver)
    app = Starlette(
        routes=[
            Route("/healthz", health.live),
            Route("/readyz", health.ready),
            Route("/readyz/intake", health.taking),
            Route("/metrics", health.metrics),
            objects.route(),
            *routes(receiver, OPERATIONS),
            *descriptions.routes(),
            *_console(receiver, sessions or sessions_of(receiver.settings)),
        ],
        exception_handlers={404: _not_found, 405: _wrong_method},
    )
    app.router.redirect_slashes = False  # a redirect names the host that the caller says
    if not intake:
        return app
    return Callbacks(receiver, app if receiver.settings.submit.listen else Submit(receiver, app))


def create_submit_app(receiver: Receiver) -> ASGIApp:
    """Return the application of `submit.listen`, which takes submissions and nothing else."""
    return Submit(receiver, Starlette(exception_handlers={404: _not_found}))


def _console(receiver: Receiver, sessions: Sessions) -> list[Route]:
    """Return the console's routes; what it is made of is loaded only where somebody could log in."""
    if not sessions.on:
        return []
    from receiver.web.console.routes import routes as console_routes

    return console_routes(receiver, sessions)


async def _not_found(request: Request, error: Exception) -> Response:
    if request.url.path.startswith(PREFIX):
        return problem(404, "nothing is here; docs/api.md lists the operations")
    hint = "callbacks go to /callbacks/{source}; the console needs a token with the scope admin in [[api.tokens]]"
    return JSONResponse({"status": "not_found", "error": f"nothing is here; {hint}"}, status_code=404)


async def _wrong_method(request: Request, error: Exception) -> Response:
    headers = dict(getattr(error, "headers", None) or {})
    if request.url.path.startswith(PREFIX):
        return problem(405, f"use {headers.get('Allow', 'another method')} here", headers)
    return JSONResponse({"status": "wrong_method", "error": "use GET here"}, status_code=405, headers=headers)
