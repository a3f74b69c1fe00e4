"""`/submit/{source}/…`: applications' calls to their providers' APIs, and the same by host name."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from receiver.engine.submissions import Answer, Call
from receiver.outbound.client import ReplyBroken

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from receiver.app.wiring import Receiver

PREFIX = "/submit/"
_REF = re.compile(r"ref:([^/]*)(/.*)")


class Submit:
    """Passes an application's call to the engine. Requests to other paths go on to `others`."""

    def __init__(self, receiver: Receiver, others: ASGIApp) -> None:
        self._submissions = receiver.submissions
        settings = receiver.settings.submit
        self._hosts = {host.lower(): source for host, source in settings.hosts.items()}
        self._is_on = bool(settings.tokens)
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, or pass the request on."""
        caller = _Caller(receive)
        call = self._call(scope, caller) if self._is_on and scope["type"] == "http" else None
        if call is None:
            return await self._others(scope, receive, send)
        with contextlib.suppress(ReplyBroken, TimeoutError):  # then the answer ends where the provider's did
            async with self._submissions.passing(call) as answer:
                await _send(answer, send, caller)
        caller.stop()
        return None

    def _call(self, scope: Scope, caller: _Caller) -> Call | None:
        """Return what is asked, None when it is for others."""
        read = [(k.decode("latin-1"), v.decode("latin-1").strip(" \t")) for k, v in scope["headers"]]
        path = scope["raw_path"].decode("latin-1")
        host = dict(read).get("host", "").lower()
        source = self._hosts.get(host.rpartition(":")[0] or host) or self._hosts.get(host)
        if source is None:
            if not path.startswith(PREFIX):
                return None
            source, slash, path = path[len(PREFIX) :].partition("/")
            path = slash + path
        ref = next((v for k, v in scope["headers"] if k == b"x-receiver-ref"), b"").decode("utf-8", "replace")
        if (found := _REF.fullmatch(path[1:])) is not None:
            ref, path = ref or unquote(found[1]), found[2]
        return Call(
            source=source,
            method=scope["method"],
            path=path,
            query=scope["query_string"].decode("latin-1"),
            headers=tuple(read),
            ref=ref or None,
            receive=caller.receive,
        )


class _Caller:
    """Notices when the caller hangs up, from the end of its body on."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._leaving: asyncio.Future[Message] | None = None

    async def receive(self) -> Message:
        """Return the next piece of the body."""
        message = await self._receive()
        if not message.get("more_body", False) and self._leaving is None:
            self._leaving = asyncio.ensure_future(self._receive())
        return message

    @property
    def gone(self) -> bool:
        """Whether the caller has hung up; the end of an answer looks the same."""
        return self._leaving is not None and self._leaving.done()

    def stop(self) -> None:
        """Watch no more."""
        if self._leaving is not None:
            self._leaving.cancel()


async def _send(answer: Answer, send: Send, caller: _Caller) -> None:
    lines = [(k.encode("latin-1"), v.encode("utf-8", "surrogateescape")) for k, v in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": lines})
    last = b""
    async for piece in answer.body:
        if last:
            await send({"type": "http.response.body", "body": last, "more_body": True})
        last = piece
    answer.delivered = not caller.gone
    await send({"type": "http.response.body", "body": last})
