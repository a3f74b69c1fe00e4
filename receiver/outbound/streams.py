"""Replies whose bodies are streams of any length, by aiohttp. Loaded with the first of them: most processes need none.

aiohttp bounds a reply's head to 128 headers of 8 KiB; what precedes it (1xx answers) is bounded here.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import ClientError
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection

from receiver.outbound.client import DNS_SECONDS, PIECE, AddrInfo, ReplyBroken
from receiver.system.http1 import INTERIM_LIMIT, InterimFlood, NoAnswer, NotHttp

__all__ = ["UNCONNECTED", "ClientError", "Incoming", "new_session", "translated"]

UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Errors of requests that had no connection."""


class Incoming:
    """A reply whose body is read as it comes. The caller of `get` closes it."""

    def __init__(self, response: aiohttp.ClientResponse, where: str) -> None:
        self._response = response
        self.where = where
        """Host and port, for a person."""
        self.status = response.status
        self.headers: dict[str, str] = {}
        """Names in lower case; of a name that came twice, the first."""
        for name, value in response.headers.items():
            self.headers.setdefault(name.lower(), value)
        protocol = None if response.connection is None else response.connection.protocol
        self._closed = None if protocol is None else protocol.closed
        if self._closed is not None:
            self._closed.add_done_callback(self._hung_up)

    @property
    def length(self) -> int | None:
        """The body's length in bytes as `Content-Length` promises it."""
        return self._response.content_length

    @property
    def received(self) -> int:
        """Bytes of the body that came so far, as they crossed the wire."""
        return self._response.content.total_bytes

    async def read(self) -> bytes:
        """Return the next piece (`PIECE` at most), b"" at the end. Raises `ReplyBroken`. Sets no time limit itself."""
        try:
            return await self._response.content.read(PIECE)
        except (aiohttp.ClientError, OSError):
            raise ReplyBroken from None

    def close(self) -> None:
        """Hang up, unless the body came to its end: then the connection is back in the pool already."""
        if self._closed is not None:
            self._closed.remove_done_callback(self._hung_up)
        self._response.close()

    def _hung_up(self, closed: asyncio.Future[None]) -> None:
        """Wake the reader: after bytes that are no HTTP, aiohttp hangs up and leaves it waiting."""
        closed.exception()
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError())


class _Response(aiohttp.ClientResponse):
    """A reply that does not wait through 1xx answers without end."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        if protocol is None:
            return await super().start(connection)
        read, left = protocol.read, INTERIM_LIMIT

        async def counted() -> Any:
            nonlocal left
            if left < 0:
                raise InterimFlood
            left -= 1
            return await read()

        protocol.read = counted  # type: ignore[method-assign]  # for this one reply, on this one connection
        try:
            return await super().start(connection)
        finally:
            del protocol.read


class _Request(aiohttp.ClientRequest):
    """A request that takes no connection on which something came unasked: it would be read as this request's answer."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if conn.protocol is None or conn.protocol.should_close:
            conn.close()
            raise aiohttp.ServerDisconnectedError  # aiohttp tries a GET once more, over another connection
        return await super().send(conn)


def new_session(
    resolver: AbstractResolver,
    *,
    limit: int,
    socket_factory: Callable[[AddrInfo], socket.socket],
    trust: ssl.SSLContext,
    idle_seconds: float | None,
    connect_seconds: float | None,
) -> aiohttp.ClientSession:
    """Return a session without cookies, redirects, the environment's proxies, and time limits but that of connecting.

    `idle_seconds` is how long a connection is kept for the next request; with None it is for one.
    """
    connector = aiohttp.TCPConnector(
        limit=limit,
        resolver=resolver,
        ttl_dns_cache=DNS_SECONDS,
        keepalive_timeout=idle_seconds,
        force_close=idle_seconds is None,
        socket_factory=socket_factory,
        ssl=trust,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=connect_seconds
        ),  # timed from outside, piece by piece
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        read_bufsize=PIECE,
        request_class=_Request,
        response_class=_Response,
    )


def translated(error: Exception) -> Exception:
    """Return an error of aiohttp as the client of deliveries would raise it; others as they are."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return error.certificate_error
        case aiohttp.ClientConnectorError():
            return error.os_error
        case aiohttp.ServerDisconnectedError():
            return NoAnswer()
        case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
            return NotHttp()
    return error
