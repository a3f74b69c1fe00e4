"""`POST, PUT /callbacks/{source}` and `/callbacks/{source}/{token}` (floor 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from receiver.model import Head

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from receiver.wiring import Receiver

_encode = msgspec.json.Encoder().encode


class Callbacks:
    """Hands a callback's head and its unread body to the intake; a plain ASGI application, since this is the hot path."""

    def __init__(self, receiver: Receiver) -> None:
        self._accept = receiver.intake.accept
        self._clock = receiver.clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one callback."""
        params = scope["path_params"]
        client = scope.get("client")
        head = Head(
            source=params["source"],
            method=scope["method"],
            headers=tuple((k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in scope["headers"]),
            token=params.get("token"),
            received_at=self._clock(),
            peer=client[0] if client else None,
        )
        answer = await self._accept(head, receive)
        body = _encode(answer.payload)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
