"""The admin API's ground: who may ask, what is read, and how trouble is told.

Errors are problem documents (RFC 9457). Nothing of a request's body is read before its bearer token was found to be right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from receiver.core.errors import ConfigError, NotFound, PickupRefused, StoreUnavailable
from receiver.core.signing import same_as_any

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.app.wiring import Receiver

BODY_BYTES = 64 * 1024
"""Most bytes of a request's body."""
PREFIX = "/api/"
_TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    413: "Content too large",
    422: "Unprocessable content",
    500: "Internal error",
    503: "Service unavailable",
}
_BODY_SECONDS = 10.0
_STORE_SECONDS = 10.0
_RETRY_AFTER_SECONDS = 5

T = TypeVar("T")
Headers = dict[str, str]
_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """A request that is answered with a problem."""

    def __init__(self, status: int, detail: str, headers: Headers | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def answer(fields: Any, *, status: int = 200, headers: Headers | None = None) -> Response:
    """Return a JSON answer that nobody keeps."""
    return Response(
        _encode(fields),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store"} | (headers or {}),
    )


def problem(status: int, detail: str, headers: Headers | None = None) -> Response:
    """Return a problem document."""
    fields = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    return Response(
        _encode(fields),
        status_code=status,
        media_type="application/problem+json",
        headers={"cache-control": "no-store"} | (headers or {}),
    )


class Api:
    """Lets the holders of an admin token in, and turns what goes wrong into problems."""

    def __init__(self, receiver: Receiver) -> None:
        self._tokens = tuple(token.get_secret_value() for token in receiver.settings.server.admin_tokens)
        self._observer = receiver.observer

    def guarded(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return `handle` behind the proof of who asks; whatever it raises is answered as a problem."""

        async def guarded(request: Request) -> Response:
            try:
                self._prove(request)
                async with asyncio.timeout(_BODY_SECONDS + _STORE_SECONDS):
                    return await handle(request)
            except Refused as refused:
                return problem(refused.status, refused.detail, refused.headers)
            except NotFound as error:
                return problem(404, error.message)
            except (PickupRefused, ConfigError) as error:
                return problem(422, error.message)
            except StoreUnavailable as error:
                return _out(error.message)
            except TimeoutError:
                return _out(f"the store did not answer within {_STORE_SECONDS:g} s")
            except ClientDisconnect:
                return problem(400, "the connection ended before the body did")
            except Exception as error:  # a fault of ours is told to operators, never to whoever asks
                self._observer.note("error", "api.internal_error", error=type(error).__name__)
                return problem(500, "an internal error; the log says more")

        return guarded

    def _prove(self, request: Request) -> None:
        if not self._tokens:
            raise Refused(
                403, "no admin token is configured: set server.admin_tokens, and send one as Bearer"
            )
        given = request.headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token.strip() or not same_as_any(token.strip(), self._tokens):
            detail = "send one of server.admin_tokens as `Authorization: Bearer …`"
            raise Refused(401, detail, {"www-authenticate": 'Bearer realm="receiver"'})


async def read(request: Request, kind: type[T]) -> T:
    """Return the request's JSON body as `kind`. Raises `Refused` naming what is wrong."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = await _body(request)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {_BODY_SECONDS:g} s") from None
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(422, _plain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "the body is not valid JSON") from None


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES:
            raise Refused(413, f"the body is larger than {BODY_BYTES} bytes")
    return body


def asked(request: Request, kind: type[T]) -> T:
    """Return the request's query as `kind`. Raises `Refused` naming what is wrong."""
    pairs = request.query_params.multi_items()
    twice = {name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1}
    if twice:
        raise Refused(400, f"the query has {min(twice)[:100]} twice")
    try:
        return msgspec.convert(dict(pairs), type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(400, _plain(error)) from None


def _plain(error: msgspec.ValidationError) -> str:
    """Return what msgspec says is wrong; it names fields and kinds of value, never a value but an enum's."""
    return str(error)[:300]


def _out(detail: str) -> Response:
    return problem(503, detail, {"retry-after": str(_RETRY_AFTER_SECONDS)})
