"""`POST, PUT /callbacks/{source}` and `/callbacks/{source}/{token}`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from receiver.core.callback import Head
from receiver.engine.intake import Answer
from receiver.settings.load import public_base
from receiver.system.body_buffer import WholeBody
from receiver.web.proxies import Proxies

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from receiver.app.wiring import Receiver

PREFIX = "/callbacks/"
EXCHANGE = "receiver.exchange"
"""The key, in the scope's state, of the `Exchange` that web/protocol.py made for a callback."""
Lines = list[tuple[bytes, bytes]]
_encode = msgspec.json.Encoder().encode


class Callbacks:
    """Passes a callback's head and its unread body to the intake.

    A plain ASGI application in front of Starlette, whose routing and middleware the hot path does without. Requests to
    other paths go on to `others`.
    """

    def __init__(self, receiver: Receiver, others: ASGIApp) -> None:
        self._accept = receiver.intake.accept
        self._clock = receiver.clock
        self._others = others
        self._base = public_base(receiver.settings)
        self._trusted = Proxies(receiver.settings.server.trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one callback, or pass the request on."""
        path = scope["path"] if scope["type"] == "http" else ""
        if not path.startswith(PREFIX):
            path = "/" + path.lstrip("/")  # //callbacks/… is what a base URL with a slash at its end makes
            if not path.startswith(PREFIX):
                return await self._others(scope, receive, send)
        source, _, token = path[len(PREFIX) :].rstrip("/").partition("/")
        if not source or "/" in token:
            return await self._others(scope, receive, send)
        headers = tuple(
            [(k.decode("latin-1"), v.decode("latin-1").strip(" \t")) for k, v in scope["headers"]]
        )
        client = scope.get("client")
        query = scope["query_string"].decode("latin-1")
        head = Head(
            source=source,
            method=scope["method"],
            headers=headers,
            token=token or None,
            received_at=self._clock(),
            peer=self._trusted.caller(client[0], headers) if client else None,
            query=query,
            url=f"{self._base}{scope['raw_path'].decode('latin-1')}{'?' if query else ''}{query}",
        )
        # Taken out: the exchange leads to the scope, and a circle would keep each body until the garbage collector comes.
        exchange = scope.get("state", {}).pop(EXCHANGE, None)
        whole = None if exchange is None else exchange.body()
        try:
            answer = await self._accept(head, receive if whole is None else WholeBody(whole))
        except asyncio.CancelledError:  # the process ends, and this callback took longer than it could wait
            answer = Answer(503, {"status": "unavailable", "error": "receiver is stopping; send it again"})
        lines, body = lines_and_body(answer)
        # What a handshake is answered with may hold what its sender wrote: messages are checked.
        if exchange is not None and answer.reply is None and exchange.answer(answer.status, lines, body):
            return None
        await send({"type": "http.response.start", "status": answer.status, "headers": lines})
        await send({"type": "http.response.body", "body": body})
        return None


def lines_and_body(answer: Answer) -> tuple[Lines, bytes]:
    """Return an answer's headers and body as HTTP sends them."""
    reply = answer.reply
    body = _encode(answer.payload) if reply is None else reply.body
    kind = b"application/json" if reply is None else reply.content_type.encode()
    lines = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if reply is not None:
        lines.append((b"x-content-type-options", b"nosniff"))
    if answer.headers:
        lines += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    return lines, body
