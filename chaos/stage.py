"""All that takes part: PostgreSQL, SeaweedFS, wires, three intakes, three workers, the application, deAPI's other side."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg

from chaos.destination import Destination
from chaos.fleet import Node, free_port, until_up
from chaos.wire import Wire
from receiver.demo.deapi import Deapi
from receiver.demo.serving import served
from receiver.storage.store.postgres import PostgresStore
from tests.support import postgres
from tests.support.running import APP_SECRET, BASIC, DEAPI_SECRET
from tests.support.s3 import BUCKET, Weed

MAX_CONNECTIONS = 60
SMALL_DISK = 8
"""MiB of the file system that is filled."""
KEY = "provider-key-0123456789abcdef"
RETRY_SECONDS = 3
_READ_BACK = 300
"""Objects that are read and hashed at the end; all are looked for, and their sizes compared."""


@dataclass
class Stage:
    """What the faults act on."""

    server: postgres.Server
    weed: Weed
    store_wire: Wire
    """Between the third machine and PostgreSQL."""
    blob_wires: tuple[Wire, Wire]
    """Between machines one and two, and between three, and S3."""
    intakes: list[Node]
    workers: list[Node]
    destination: Destination
    api: Deapi
    api_base: str
    disk: Path
    """The second intake's data folder."""
    tiny: bool
    """That folder is a file system of its own."""

    @property
    def nodes(self) -> list[Node]:
        """All processes of receiver."""
        return [*self.intakes, *self.workers]

    def ports(self) -> list[int]:
        """Return where callbacks are taken."""
        return [node.port for node in self.intakes]

    def journaled(self) -> int:
        """Return how many callbacks lie in the journals."""
        return sum(node.journaled() for node in self.intakes)

    def dead(self) -> int:
        """Return how many deliveries and pickups were given up."""
        rows = postgres.execute(
            self.server.url("chaos"),
            "SELECT (SELECT count(*) FROM deliveries WHERE state = 'dead') + "
            "(SELECT count(*) FROM pickups WHERE state NOT IN ('pending', 'collected'))",
        )
        return int(str(rows[0][0]))

    def broken_audio(self) -> int:
        """Return how many files that events name are missing from the bucket or are not what the event says. Blocks."""
        client = self.weed.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        sizes = {
            f"s3://{BUCKET}/{item['Key']}": item["Size"]
            for page in pages
            for item in page.get("Contents", ())
        }
        named = self.destination.audio
        broken = {uri for uri, (_, size) in named.items() if sizes.get(uri) != size}

        def read(uri: str) -> bool:
            key = uri.removeprefix(f"s3://{BUCKET}/")
            body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            return hashlib.sha256(body).hexdigest() == named[uri][0]

        some = [uri for uri in named if uri not in broken][:: max(1, len(named) // _READ_BACK)]
        with ThreadPoolExecutor(8) as threads:
            broken.update(uri for uri, good in zip(some, threads.map(read, some), strict=True) if not good)
        client.close()
        return len(broken)


def _settings(data: Path, store: str, blobs: str, destination: int, api: str) -> str:
    return f"""
data = "{data}"
[server]
log = "json"
log_level = "warning"
[store]
url = "{store}"
[blobs]
url = "s3://{BUCKET}/chaos"
endpoint_url = "{blobs}"
region = "us-east-1"
[tokens]
secrets = ["one-secret-for-all-machines-0123456789"]
[sources.deepgram]
provider = "deepgram"
basic = ["{BASIC}"]
[sources.deapi]
provider = "deapi"
secrets = ["{DEAPI_SECRET}"]
api_key = "{KEY}"
api_url = "{api}"
result_hosts = ["127.0.0.1"]
allow = ["127.0.0.0/8"]
attempt_seconds = 2
pickup_concurrency = 8
[destinations.app]
url = "http://127.0.0.1:{destination}/hooks"
secrets = ["{APP_SECRET}"]
retry = {{retries = 500, wait = {RETRY_SECONDS}}}
allow = ["127.0.0.0/8"]
timeout_seconds = 2
"""


def _prepare(server: postgres.Server) -> str:
    """Make the database and an ordinary user; migrate; return the URL's part behind the port."""
    server.execute("CREATE ROLE receiver LOGIN")
    server.execute("CREATE DATABASE chaos OWNER receiver TEMPLATE template0")

    async def migrate() -> None:
        await PostgresStore(server.url("chaos", user="receiver")).migrate()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(migrate())).result()
    return "chaos"


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Make `folder` a file system of its own if we may; yield whether it is one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Set everything up and wait until all processes are ready; take everything down afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="receiver-chaos-")))
        tiny = stack.enter_context(_small_disk(folder / "two"))
        limit = f"max_connections={MAX_CONNECTIONS}"
        server = stack.enter_context(postgres.server(limit, durable=True))
        _prepare(server)
        weed = Weed()
        stack.callback(weed.close)
        await asyncio.to_thread(weed.start)
        store_wire = await stack.enter_async_context(Wire(server.port))
        near = await stack.enter_async_context(Wire(weed.http_port))
        far = await stack.enter_async_context(Wire(weed.http_port))
        destination = await stack.enter_async_context(Destination(APP_SECRET))
        api = Deapi(KEY)
        api_base = stack.enter_context(served(api.app))
        made: dict[str, list[Node]] = {"intake": [], "worker": []}
        for kind, nodes in made.items():
            for number, place in enumerate(("one", "two", "three"), 1):
                data = folder / place if kind == "intake" else folder / f"{place}-work"
                store = server.url("chaos", user="receiver")
                if number == 3:
                    store = store.replace(f":{server.port}/", f":{store_wire.port}/")
                blobs = (near, near, far)[number - 1]
                config = folder / f"{kind}-{number}.toml"
                text = _settings(data, store, f"http://127.0.0.1:{blobs.port}", destination.port, api_base)
                config.write_text(text)
                nodes.append(Node(f"{kind} {number}", data, config, free_port() if kind == "intake" else 0))
        found = Stage(
            server=server,
            weed=weed,
            store_wire=store_wire,
            blob_wires=(near, far),
            intakes=made["intake"],
            workers=made["worker"],
            destination=destination,
            api=api,
            api_base=api_base,
            disk=folder / "two",
            tiny=tiny,
        )
        try:
            for node in found.nodes:
                node.start()
            await until_up(found.nodes)
            yield found
        finally:
            await asyncio.gather(*(node.stop() for node in found.nodes))


def sql(server: postgres.Server, text: str) -> list[tuple[object, ...]]:
    """Ask as the owner, who has connections of its own left; an error is no answer."""
    try:
        return server.execute(text)
    except psycopg.Error:
        return []
