"""How a request of the API becomes a call of its operation, and the result an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.core.errors import UsageError
from receiver.web.api.access import Access
from receiver.web.api.acts import act_of, refuse_other
from receiver.web.api.operation import Again, Operation, Served
from receiver.web.api.problems import Refused, answer, problem, refusal_of
from receiver.web.api.reading import BODY_BYTES, read_body, read_query
from receiver.web.proxies import Proxies

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver

PREFIX = "/api/"
_BODY_SECONDS = 10.0
_STORE_SECONDS = 10.0


def routes(receiver: Receiver, operations: Sequence[Operation]) -> list[Route]:
    """Return a route for each path; methods that a path lacks are answered 405 with those that it has."""
    server = _Server(receiver)
    by_path: dict[str, list[Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(operation)
    return [server.route(path, of_path) for path, of_path in by_path.items()]


class _Server:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._access = Access(receiver.settings.api.tokens)
        self._proxies = Proxies(receiver.settings.server.trusted_proxies)

    def route(self, path: str, operations: Sequence[Operation]) -> Route:
        by_method = {operation.method: operation for operation in operations}

        async def serve(request: Request) -> Response:
            operation = by_method["GET" if request.method == "HEAD" else request.method]
            return await self._told(self._served(operation, request))

        return Route(f"{PREFIX}v1{path}", serve, methods=list(by_method))

    async def _told(self, answering: Awaitable[Response]) -> Response:
        """Answer; whatever goes wrong becomes a problem."""
        try:
            async with asyncio.timeout(_BODY_SECONDS + _STORE_SECONDS):
                return await answering
        except Exception as error:
            refused = refusal_of(error)
            if refused.status == 500:  # a fault of ours is told to operators, never to whoever asks
                self._receiver.observer.note("error", "api.internal_error", error=type(error).__name__)
            return problem(refused.status, refused.detail, refused.headers)

    async def _served(self, operation: Operation, request: Request) -> Response:
        """Serve a request. Nothing of its body is read before its token was found right."""
        holder = self._access.admit(request.headers.getlist("authorization"), operation.scope)
        query = read_query(request.query_params.multi_items(), operation.query)
        raw = b"" if operation.body is None else await received(request)
        call: Served[Any, Any] = Served(
            store=self._receiver.store,
            settings=self._receiver.settings,
            now=self._receiver.clock(),
            receiver=self._receiver,
            holder=holder,
            query=query,
            body=None if operation.body is None else read_body(raw, operation.body),
            path=request.path_params,
            request=request,
            peer=self._proxies.caller_of(request),
        )
        if operation.method != "GET":
            return await self._act(operation, call, raw)
        try:
            return await _run(operation, call)
        except UsageError as error:  # nothing but its query can be wrong
            raise Refused(400, error.message) from None

    async def _act(self, operation: Operation, call: Served[Any, Any], raw: bytes) -> Response:
        """Note who does what, then do it; what has the key of an earlier request is not done twice."""
        store, act = self._receiver.store, act_of(operation.name, call, raw)
        noted = await store.begin_act(act)
        if noted.id != act.id:
            refuse_other(noted, act, again=operation.again)
            if noted.answer is not None:
                return answer(msgspec.Raw(noted.answer), status=noted.status or 200)
        response = await self._told(_run(operation, call))
        # A failure of receiver's own is no final answer: a retry with the same key runs the request again.
        settled = operation.again is Again.ANSWERED and response.status_code < 500
        kept = bytes(response.body) if settled else None
        await store.end_act(noted.id, status=response.status_code, answer=kept)
        return response


async def _run(operation: Operation, call: Served[Any, Any]) -> Response:
    result = await operation.handle(call)
    if isinstance(result, Response):
        return result
    return answer(result, status=operation.statuses[0])


async def received(request: Request) -> bytes:
    """Return the request's body. Raises `Refused` when it is too large or too slow."""
    body, size = b"", int(request.headers.get("content-length", 0))
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            pieces = request.stream()
            while size <= BODY_BYTES and (piece := await anext(pieces, None)) is not None:
                body += piece
                size = max(size, len(body))
    except TimeoutError:
        raise Refused(408, f"the body did not come within {_BODY_SECONDS:g} s") from None
    if size > BODY_BYTES:  # by its announced length already, before the sender is told to go on
        raise Refused(413, f"the body is larger than {BODY_BYTES} bytes")
    return body
