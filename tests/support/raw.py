"""Raw bytes over a socket, for what no well-behaved client would send."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Iterable

from tests.support.patience import PATIENCE


async def exchange(
    port: int,
    pieces: Iterable[bytes] | AsyncIterable[bytes],
    *,
    half_close: bool = False,
    seconds: float = PATIENCE,
) -> tuple[int, dict[str, str], bytes]:
    """Send the pieces, read one answer; return status (0: none came), headers and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(seconds):
            # A server may answer and close before it read everything: what was answered still counts.
            with contextlib.suppress(ConnectionError):
                if isinstance(pieces, AsyncIterable):
                    async for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                else:
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                if half_close:
                    writer.write_eof()
            return await _answer(reader)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    try:
        top = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, {}, b""
    first, *lines = top.decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    try:
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        body = b""
    return int(first.split()[1]), headers, body


def head(path: str, headers: dict[str, str] | list[tuple[str, str]], *, method: str = "POST") -> bytes:
    """Return a request head; headers may repeat when given as pairs."""
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
