"""A provider's API on loopback that keeps every whole request, and answers, hangs up or waits as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.running import BASIC, DEAPI_SECRET, Running, running

PUBLIC = "https://hooks.example.com"
READER = "a-token-of-the-api-of-some-length"
TOKEN, OTHER = "rcvsub" + "a" * 40, "rcvsub" + "b" * 40
DEEPGRAM_KEY, DEAPI_KEY = "dg-key-0123456789abcdef", "dpn-sk-0123456789abcdef"


@dataclass
class Asked:
    """One request that came whole."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Behave = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def response(status: int, body: bytes, *headers: str) -> bytes:
    """Return an answer as HTTP/1.1 sends it."""
    lines = [
        f"HTTP/1.1 {status} X",
        f"content-length: {len(body)}",
        "content-type: application/json",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def accepted(fields: dict[str, Any], status: int = 200) -> Behave:
    """Answer with a JSON document."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(response(status, json.dumps(fields).encode()))

    return behave


@dataclass
class Api:
    """The API."""

    base: str
    asked: list[Asked] = field(default_factory=list)
    broken_off: int = 0
    """Requests whose body did not end."""
    received: int = 0
    """Bytes of bodies."""
    behave: Behave = field(
        default_factory=lambda: accepted({"request_id": "job-1", "data": {"request_id": "job-1"}})
    )
    keep_bodies: bool = True
    early: bytes | None = None
    """The answer, before a byte of the body is read."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await self._read(reader, writer)
            self.asked.append(asked)
            await self.behave(asked, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            self.broken_off += 1
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, line
            headers[name.lower()] = value.strip()
        if self.early is not None:
            writer.write(self.early)
            await writer.drain()
        body = bytearray()
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await self._take(reader, size, body)
                await reader.readexactly(2)
            await reader.readexactly(2)
        else:
            await self._take(reader, int(headers.get("content-length", "0")), body)
        return Asked(method, target, headers, bytes(body))

    async def _take(self, reader: asyncio.StreamReader, size: int, body: bytearray) -> None:
        while size:
            piece = await reader.read(min(size, 65536))
            if not piece:
                raise ConnectionError
            size -= len(piece)
            self.received += len(piece)
            if self.keep_bodies:
                body += piece


@contextlib.asynccontextmanager
async def api() -> AsyncIterator[Api]:
    """Serve one."""
    made = Api("")
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20)
    made.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


def settings(
    folder: Path,
    base: str,
    *,
    submit: str = "",
    answer_seconds: str = "1.5",
    source: str = "",
    deapi: str = "",
    extra: str = "",
    limits: str = "",
    more: str = "",
) -> str:
    """Return settings with Deepgram and deAPI to be submitted to, and two applications."""
    return f"""
public_url = "{PUBLIC}"
data = "{folder / "data"}"
[sources.deepgram]
provider = "deepgram"
basic = ["{BASIC}"]
require_token = true
submit = true
api_key = "{DEEPGRAM_KEY}"
base_url = "{base}"
allow = ["127.0.0.0/8"]
{source}
[sources.deapi]
provider = "deapi"
secrets = ["{DEAPI_SECRET}"]
api_key = "{DEAPI_KEY}"
api_url = "{base}"
submit = true
allow = ["127.0.0.0/8"]
{deapi}
{extra}
[submit]
answer_seconds = {answer_seconds}
{submit}
[[api.tokens]]
name = "console"
secret = "{READER}"
[[submit.tokens]]
name = "crm"
secrets = ["{TOKEN}"]
sources = ["deepgram", "deapi"]
per_minute = 1000
{limits}
[[submit.tokens]]
name = "billing"
secrets = ["{OTHER}"]
sources = ["deapi"]
may = ["read"]
{more}
"""


@contextlib.asynccontextmanager
async def submitting(folder: Path, **parts: str) -> AsyncIterator[tuple[Running, Api]]:
    """Run a receiver before an API."""
    async with api() as there, running(folder, settings(folder, there.base, **parts), work=False) as up:
        up.client.headers["authorization"] = f"Token {TOKEN}"
        yield up, there
