"""One operation of the API: its scope, what it takes and gives, and how a request becomes a call and its result an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec.structs import fields
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.core.errors import (
    BlobsUnavailable,
    ConfigError,
    JournalUnavailable,
    NotFound,
    StoreUnavailable,
    UsageError,
)
from receiver.settings.load import did_you_mean
from receiver.settings.model import ApiScope
from receiver.web.api.access import Access
from receiver.web.api.acts import Again, new_act, refuse_other
from receiver.web.api.call import Call, Given
from receiver.web.api.lists import Moment
from receiver.web.api.problems import Refused, answer, out, problem

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver

PREFIX = "/api/"
BODY_BYTES = 64 * 1024
"""Most bytes of a request's body."""
_BODY_SECONDS = 10.0
_STORE_SECONDS = 10.0

T = TypeVar("T")
Q = TypeVar("Q")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    name: str
    """Method and path, as `GET /pickups/{pickup_id}`; the path is under `/api/v1`."""
    scope: ApiScope
    does: str
    """A sentence without its point."""
    handle: Callable[[Call[Any, Any]], Awaitable[Any]]
    """Returns a struct, a `Given`, or a whole `Response`."""
    gives: Any = field(kw_only=True)
    """The type of the result; a media type in words where it is no JSON."""
    query: Any = field(default=None, kw_only=True)
    """The struct of the query."""
    body: Any = field(default=None, kw_only=True)
    """The struct of the body."""
    statuses: Sequence[int] = field(default=(200,), kw_only=True)
    """The statuses of success, the usual one first."""
    again: Again = field(default=Again.RUNS, kw_only=True)
    """What becomes of a request whose idempotency key was used before."""

    @property
    def method(self) -> str:
        """`GET`, `POST` …"""
        return self.name.partition(" ")[0]

    @property
    def path(self) -> str:
        """The path under `/api/v1`, variable parts in braces."""
        return self.name.partition(" ")[2]


def routes(receiver: Receiver, operations: Sequence[Operation]) -> list[Route]:
    """Return a route for each path; methods that a path lacks are answered 405 with those that it has."""
    server = _Server(receiver)
    paths = dict.fromkeys(operation.path for operation in operations)
    return [server.route(path, [one for one in operations if one.path == path]) for path in paths]


class _Server:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._access = Access(receiver.settings.api.tokens)

    def route(self, path: str, operations: Sequence[Operation]) -> Route:
        by_method = {operation.method: operation for operation in operations}

        async def serve(request: Request) -> Response:
            return await self._guarded(
                by_method["GET" if request.method == "HEAD" else request.method], request
            )

        return Route(f"{PREFIX}v1{path}", serve, methods=list(by_method))

    async def _guarded(self, operation: Operation, request: Request) -> Response:
        return await self._told(self._served(operation, request))

    async def _told(self, answering: Awaitable[Response]) -> Response:
        """Answer; whatever goes wrong becomes a problem."""
        try:
            async with asyncio.timeout(_BODY_SECONDS + _STORE_SECONDS):
                return await answering
        except Refused as refused:
            return problem(refused.status, refused.detail, refused.headers)
        except NotFound as error:
            return problem(404, error.message)
        except (UsageError, ConfigError) as error:
            return problem(422, error.message)
        except (StoreUnavailable, BlobsUnavailable, JournalUnavailable) as error:
            return out(error.message)
        except TimeoutError:
            return out(f"the store did not answer within {_STORE_SECONDS:g} s")
        except ClientDisconnect:
            return problem(400, "the connection ended before the body did")
        except Exception as error:  # a fault of ours is told to operators, never to whoever asks
            self._receiver.observer.note("error", "api.internal_error", error=type(error).__name__)
            return problem(500, "an internal error; the log says more")

    async def _served(self, operation: Operation, request: Request) -> Response:
        """Serve a request. Nothing of its body is read before its token was found right."""
        holder = self._access.admit(request.headers.getlist("authorization"), operation.scope)
        query = _query(request, operation.query)
        raw = b"" if operation.body is None else await _read_in_time(request)
        call: Call[Any, Any] = Call(
            receiver=self._receiver,
            holder=holder,
            query=query,
            body=None if operation.body is None else _decoded(raw, operation.body),
            path=request.path_params,
            request=request,
        )
        if operation.method == "GET":
            return await _run(operation, call)
        return await self._act(operation, call, raw)

    async def _act(self, operation: Operation, call: Call[Any, Any], raw: bytes) -> Response:
        """Note who does what, then do it; what has the key of an earlier request is not done twice."""
        store, act = self._receiver.store, new_act(operation.name, call, raw)
        noted = await store.begin_act(act)
        if noted.id != act.id:
            refuse_other(noted, act, again=operation.again)
            if noted.answer is not None:
                return answer(msgspec.Raw(noted.answer), status=noted.status or 200)
        response = await self._told(_run(operation, call))
        # What failed by a fault of ours is not an answer: whoever asks again with the key has it done.
        settled = operation.again is Again.ANSWERED and response.status_code < 500
        kept = bytes(response.body) if settled else None
        await store.end_act(noted.id, status=response.status_code, answer=kept)
        return response


async def _run(operation: Operation, call: Call[Any, Any]) -> Response:
    result = await operation.handle(call)
    if isinstance(result, Response):
        return result
    if isinstance(result, Given):
        return answer(result.content, status=result.status, headers=result.headers)
    return answer(result, status=operation.statuses[0])


async def _read_in_time(request: Request) -> bytes:
    """Return the request's body. Raises `Refused` when it is too large or too slow."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _read(request)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {_BODY_SECONDS:g} s") from None


def _decoded(body: bytes, kind: type[T]) -> T:
    """Return a JSON body as `kind`. Raises `Refused` naming what is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(422, _plain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "the body is not valid JSON") from None


async def _read(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES:
            raise Refused(413, f"the body is larger than {BODY_BYTES} bytes")
    return body


def _query(request: Request, kind: Any) -> Any:
    """Return the request's query as `kind`. Raises `Refused` naming what is wrong; a parameter that nobody reads is wrong."""
    pairs = request.query_params.multi_items()
    twice = {name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1}
    if twice:
        raise Refused(400, f"the query has {min(twice)[:100]} twice")
    known = _parameters(kind)
    for name, value in pairs:
        if name not in known:
            there = f"there is: {', '.join(known)}" if known else "this operation has none"
            raise Refused(400, f"there is no parameter {name[:100]}; {did_you_mean(name, known) or there}")
        if known[name] and _is_number(value):  # it would be taken for seconds since 1970
            raise Refused(400, f"{name} is not a time: write 2026-11-21T10:00:00Z")
    if kind is None:
        return None
    try:
        return msgspec.convert(dict(pairs), type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(400, _plain(error)) from None


@cache
def _parameters(kind: Any) -> Mapping[str, bool]:
    """Return the parameters of a query, and whether each is a time."""
    return {} if kind is None else {field.name: field.type == Moment | None for field in fields(kind)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(error: msgspec.ValidationError) -> str:
    """Return what msgspec says is wrong; it names fields and kinds of value, never a value but an enum's."""
    return str(error)[:300]
