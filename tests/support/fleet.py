"""Settings of receivers that share a PostgreSQL database and an S3 bucket; each has a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2

from tests.support import postgres
from tests.support.clients import local_client
from tests.support.ingress import Child
from tests.support.patience import PATIENCE
from tests.support.processes import ROOT
from tests.support.running import settings_text
from tests.support.s3 import BUCKET, Weed, credentials, environment
from tests.support.senders import Sent

TOKEN_SECRET = "fleet-token-secret-0123456789"


@dataclass(frozen=True)
class Shared:
    """What all of a fleet's receivers have in common."""

    database: str
    """Its URL."""
    s3_url: str
    prefix: str
    """This fleet's part of the bucket, ending in a slash."""

    @property
    def settings(self) -> str:
        """The sections that place store and blobs there."""
        return f"""
[store]
url = "{self.database}"
[blobs]
url = "s3://{BUCKET}/{self.prefix}"
endpoint_url = "{self.s3_url}"
region = "us-east-1"
[tokens]
secrets = ["{TOKEN_SECRET}"]
"""

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its processes, bucket credentials included."""
        return environment(**credentials())


@contextlib.contextmanager
def shared(weed: Weed, *, s3_url: str | None = None) -> Iterator[Shared]:
    """Give a migrated database without rows, and an empty part of the bucket."""
    with postgres.database() as url:
        yield Shared(url, s3_url or weed.http, f"{uuid.uuid4().hex}/")


def node(
    shared: Shared,
    folder: Path,
    *,
    destination: str | None = None,
    extra: str = "",
    retry: str = "{retries = 100, wait = 0.2}",
) -> Path:
    """Write the settings of one of them into a folder of its own; return the file."""
    folder.mkdir(exist_ok=True)
    path = folder / "receiver.toml"
    path.write_text(
        settings_text(folder, destination=destination, extra=shared.settings + extra, retry=retry), "utf-8"
    )
    path.chmod(0o600)
    return path


class Node:
    """One `receiver serve` (or `work`) of a fleet, as a process."""

    def __init__(self, shared: Shared, config: Path, *words: str, **environ: str) -> None:
        self.config = config
        self._words = words or ("serve", "--port", "0")
        self._environ = shared.environ | {"PYTHONPATH": str(ROOT)} | environ
        self._child: Child | None = None
        self.base = ""
        """Where it listens."""

    @property
    def journal(self) -> Path:
        """The folder of its own journal."""
        return self.config.parent / "data" / "journal"

    @property
    def child(self) -> Child:
        """The running process."""
        assert self._child is not None
        return self._child

    async def start(self) -> None:
        """Start, and wait until it is ready."""
        command = [sys.executable, "-m", "receiver", "--config", str(self.config), *self._words]
        self._child = await Child.start(command, self._environ, self.config.parent)
        await self._child.said('"receiver.ready"')
        ready = next(line for line in self._child.lines if '"receiver.ready"' in line)
        self.base = json.loads(ready).get("url", "")

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait until it is gone."""
        return await self.child.stop(how)

    async def end(self) -> None:
        """Leave nothing running."""
        if self._child is not None and self._child.process.returncode is None:
            await self._child.stop(signal.SIGKILL)


@contextlib.asynccontextmanager
async def started(*nodes: Node) -> AsyncIterator[None]:
    """Start nodes at once; none outlives the block."""
    try:
        await asyncio.gather(*(one.start() for one in nodes))
        yield
    finally:
        await asyncio.gather(*(one.end() for one in nodes))


class Balancer:
    """What a load balancer with health checks does: asks every node, takes turns among those that say yes, tries nothing again."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._turn = itertools.count()
        self._up: set[int] = set()
        self._clients: dict[int, httpx2.AsyncClient] = {}
        self._changed = asyncio.Condition()
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        limits = httpx2.Limits(max_keepalive_connections=8)
        self._clients = {
            number: local_client(timeout=20, limits=limits) for number in range(len(self._nodes))
        }
        self._asking = asyncio.create_task(self._ask_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._asking is not None
        self._asking.cancel()
        await asyncio.gather(self._asking, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()

    async def _ask_forever(self) -> None:
        async with local_client(timeout=10) as client:
            while True:
                up = {n for n, node in enumerate(self._nodes) if await self._says_yes(client, node)}
                async with self._changed:
                    self._up = up
                    self._changed.notify_all()
                await asyncio.sleep(0.05)

    async def _says_yes(self, client: httpx2.AsyncClient, node: Node) -> bool:
        try:
            return (await client.get(f"{node.base}/readyz/intake")).status_code == 200
        except (httpx2.HTTPError, httpx2.InvalidURL):
            return False

    async def until(self, *up: int) -> None:
        """Wait until exactly these nodes say yes."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: self._up == set(up))

    async def send(self, sent: Sent) -> httpx2.Response:
        """Pass one callback on. Raises `httpx2.HTTPError` when the connection fails."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._up))
        up = sorted(self._up)
        chosen = up[next(self._turn) % len(up)]
        url = f"{self._nodes[chosen].base}{sent.path}"
        return await self._clients[chosen].request(sent.method, url, headers=sent.headers, content=sent.body)
