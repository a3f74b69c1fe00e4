"""The admin API: authorization, parsing of requests, and problem responses.

Errors are problem documents (RFC 9457). Nothing of a request's body is read before its bearer token was found to be right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from receiver.core.errors import ConfigError, NotFound, StoreUnavailable, UsageError
from receiver.core.proofs import same_as_any
from receiver.core.work import PickupFilter, PickupState
from receiver.engine.requests import (
    MAX_REF,
    MAX_SECONDS,
    checked_format,
    issue_callback_url,
    new_pickup,
    pollable,
    source_named,
)
from receiver.web.views import issued_url, page, view

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
            except (UsageError, ConfigError) as error:
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


Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]


class NewPickup(Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a POST."""

    source: str
    result: Annotated[str, Meta(min_length=1)]
    """The provider's URL, or its job id."""
    ref: str | None = None
    deadline_seconds: Seconds | None = None
    format: dict[str, str | int] = field(default_factory=dict)


class Wanted(Struct, forbid_unknown_fields=True, frozen=True):
    """The query of a list."""

    source: str | None = None
    state: PickupState | None = None
    job_id: str | None = None
    ref: str | None = None
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class Pickups:
    """Adds, lists and shows pickups."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def collection(self, request: Request) -> Response:
        """POST adds one, GET lists."""
        return await (self._add(request) if request.method == "POST" else self._list(request))

    async def _add(self, request: Request) -> Response:
        requested = await read(request, NewPickup)
        receiver = self._receiver
        source = source_named(receiver.settings, requested.source)
        made = new_pickup(
            pollable(source, receiver.ports.pulls.get(source.name)),
            requested.result,
            ref=requested.ref,
            deadline_seconds=requested.deadline_seconds,
            format=checked_format(requested.format),
            now=receiver.clock(),
        )
        pickup, new = await receiver.store.add_pickup(made)
        receiver.collector.wake([pickup.source])
        place = {"location": f"/api/v1/pickups/{pickup.id}"}
        return answer(view(pickup), status=201 if new else 200, headers=place)

    async def _list(self, request: Request) -> Response:
        requested = asked(request, Wanted)
        found = await self._receiver.store.pickups(
            PickupFilter(
                source=requested.source,
                state=requested.state,
                job_id=requested.job_id,
                ref=requested.ref,
                after=requested.after,
                limit=requested.limit,
            )
        )
        after = found[-1].id if len(found) == requested.limit else None
        return answer(page([view(pickup) for pickup in found], after))

    async def one(self, request: Request) -> Response:
        """Show one with its attempts."""
        store = self._receiver.store
        found = await store.pickup(request.path_params["pickup_id"])
        attempts = await store.pickup_attempts(found.id)
        made = [view(attempt) for attempt in attempts]
        return answer(view(found) | {"attempts_made": made})


class NewCallbackUrl(Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a POST."""

    source: str
    ref: Annotated[str, Meta(max_length=MAX_REF)] | None = None
    expires_seconds: Annotated[float, Meta(gt=0, le=10 * 365 * 86400)] | None = None
    format: dict[str, str | int] = field(default_factory=dict)
    expect_within_seconds: Seconds | None = None
    job_secret: bool = False
    short: bool = False


class CallbackUrls:
    """Hands callback URLs out."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def make(self, request: Request) -> Response:
        """Answer 201 with a fresh URL; with `expect_within_seconds` its expectation is stored before."""
        requested = await read(request, NewCallbackUrl)
        receiver = self._receiver
        source = source_named(receiver.settings, requested.source)
        made = issue_callback_url(
            receiver.settings.public_url,
            source,
            receiver.tokens,
            provider=receiver.ports.pulls.get(source.name),
            ref=requested.ref,
            format=checked_format(requested.format),
            expires_seconds=requested.expires_seconds,
            expect_seconds=requested.expect_within_seconds,
            job_secret=requested.job_secret,
            short=requested.short,
            now=receiver.clock(),
        )
        if made.claims is not None:
            await receiver.store.add_token(made.claims)
        if made.expectation is not None:
            await receiver.store.add_pickup(made.expectation)
            receiver.collector.wake([source.name])
        return answer(issued_url(made), status=201)
