"""A provider's host for tests: a real HTTP or HTTPS server on loopback that may misbehave byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Self

TLS = Path(__file__).parent / "tls"
Headers = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One request as it came; names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass
class Talk:
    """The server's side of one request."""

    request: Request
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _told: asyncio.Event
    _released: asyncio.Event
    sent: int = 0

    async def send(self, data: bytes) -> None:
        """Write bytes as they are, and wait until the client takes them."""
        self._writer.write(data)
        self.sent += len(data)
        await self._writer.drain()

    async def forever(self, data: bytes) -> None:
        """Write `data` again and again until the client hangs up."""
        while True:
            await self.send(data)
            await asyncio.sleep(0)

    async def next(self) -> None:
        """Read the head of another request on the same connection; its body is left where it is."""
        await self._reader.readuntil(b"\r\n\r\n")

    async def until_told(self) -> None:
        """Wait for the test's `tell`."""
        await self._told.wait()

    async def hang(self) -> None:
        """Say nothing more until the test ends."""
        await self._released.wait()


Script = bytes | Callable[[Talk], Awaitable[None]]


def reply(
    status: int = 200,
    body: bytes = b"",
    headers: Headers | None = None,
    *,
    length: int | None = None,
    keep: bool = False,
) -> bytes:
    """Return a whole reply; `length` is a Content-Length that may lie, `keep` says that the connection stays open."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines.append(f"content-length: {len(body) if length is None else length}")
    lines.append(f"connection: {'keep-alive' if keep else 'close'}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; b"" is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
"""The head of a chunked reply, to be ended by more headers and an empty line."""


@dataclass
class ProviderHost:
    """Listens on 127.0.0.1 at a free port while the `async with` lasts; `scripts` says what each path answers."""

    tls: bool | ssl.SSLContext = False
    """True is a certificate for `app.test`."""
    scripts: dict[str, Script] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)
    port: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """A client left while it was being written to."""

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """Return the URL of a path here, under any name of this host."""
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    def tell(self) -> None:
        """Let every script go on that waits `until_told`."""
        self._told.set()

    async def __aenter__(self) -> Self:
        self._released = asyncio.Event()
        self._told = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        context = self.tls if isinstance(self.tls, ssl.SSLContext) else None
        if self.tls is True:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._released.set()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            self.hung_up.set()
        finally:
            writer.close()
            try:
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    await writer.wait_closed()
            finally:
                writer.transport.abort()  # where the test ends before the other side has hung up

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, target, _ = first.split()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, target, headers)
        talk = Talk(request, reader, writer, self._told, self._released)
        self.requests.append(request)
        self.talks.append(talk)
        script = self.scripts.get(request.path, reply(404))
        if isinstance(script, bytes):
            await talk.send(script)
        else:
            await script(talk)
