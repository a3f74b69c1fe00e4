"""A proxy on loopback that passes bytes, until it is told to stop forwarding or to answer as a store in trouble."""

from __future__ import annotations

import asyncio
import itertools
from typing import Self

PIECE = 65536
_MANNERS = ("500", "503", "cut", "swallow", "once")
_BODY = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{0}</Code><Message>{0}</Message></Error>'
_TOLD = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Slow Down", "SlowDown")}


class Wire:
    """Listens on 127.0.0.1 at a free port and passes everything to `port`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self._open = asyncio.Event()
        self._open.set()
        self._flaky = False
        self._manners = itertools.cycle(_MANNERS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Break every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def freeze(self) -> None:
        """Forward nothing, close nothing; what is sent meanwhile arrives after `thaw`, as over a real network."""
        self._open.clear()

    def thaw(self) -> None:
        """Forward again."""
        self._open.set()

    async def misbehave(self, flaky: bool) -> None:
        """Let each connection fail in its own manner: HTTP 500, 503 SlowDown, cut on the way in, an answer that is swallowed.

        The fifth is served, for one request.
        """
        self._flaky = flaky
        await self.cut()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        manner = next(self._manners) if self._flaky else "pass"
        try:
            if manner in _TOLD:
                await _refuse(reader, writer, *_TOLD[manner])
            else:
                await self._forward(reader, writer, manner)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, TimeoutError):
            return
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: str) -> None:
        await self._open.wait()
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [
            asyncio.ensure_future(self._pump(reader, back, 200 if manner == "cut" else None)),
            asyncio.ensure_future(self._pump(there, writer, None, manner)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            back.transport.abort()  # first, as the next line may be cancelled as well
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None, manner: str = ""
    ) -> None:
        while data := await reader.read(PIECE):
            await self._open.wait()
            answered = manner in {"swallow", "once"} and not data.startswith(b"HTTP/1.1 100")
            if answered and manner == "swallow":
                return
            writer.write(data[:limit])
            await writer.drain()
            if answered or limit is not None:
                await asyncio.sleep(0.05)
                return


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: str, code: str) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = _BODY.format(code).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    writer.write_eof()
    async with asyncio.timeout(0.5):  # a body that is still coming would turn the close into a reset
        while await reader.read(PIECE):
            pass
