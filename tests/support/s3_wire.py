"""A wire to the S3 store that can be cut: bytes pass unchanged on loopback until a test says otherwise."""

from __future__ import annotations

import asyncio
from typing import Self

from tests.support.patience import PATIENCE


class Wire:
    """Listens on 127.0.0.1 at a port of its own and passes everything to `port`, while the `async with` lasts."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.cut_after: int | None = None
        """Bytes of a connection's way in after which it is cut."""
        self.sent = 0
        """Bytes that came on the way in, all connections together."""
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the port it had before if there was one."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def until(self, count: int) -> None:
        """Return when `count` bytes have come on the way in."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: self.sent >= count)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        transports = [writer.transport]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            transports.append(back.transport)
            ways = {
                asyncio.ensure_future(self._way_in(reader, back)),
                asyncio.ensure_future(self._way_out(there, writer)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            for transport in transports:
                transport.abort()
            self._tasks.discard(task)

    async def _way_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(65536):
            passed += len(data)
            async with self._changed:
                self.sent += len(data)
                self._changed.notify_all()
            if self.cut_after is not None and passed > self.cut_after:
                return
            writer.write(data)
            await writer.drain()

    async def _way_out(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
