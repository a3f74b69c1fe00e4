"""The cells of the matrix: what goes wrong, each as a coroutine that makes the fault, lasts, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psycopg

from chaos.stage import MAX_CONNECTIONS, SMALL_DISK, Stage, sql

Fault = Callable[[Stage, float], Awaitable[str]]
"""Makes the fault for that many seconds; returns a remark for the table."""
_RANDOM = random.Random(20261121)
_TERMINATE_ONE = (
    "SELECT pg_terminate_backend(pid) FROM "
    "(SELECT pid FROM pg_stat_activity WHERE usename = 'receiver' ORDER BY random() LIMIT 1) AS chosen"
)
_TERMINATE_OURS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE usename = 'receiver' AND application_name <> 'glutton'"
)


async def kill_worker(stage: Stage, seconds: float) -> str:
    """One worker dies, and is started again only after a while."""
    node = stage.workers[0]
    node.held = True
    node.kill()
    await asyncio.sleep(seconds)
    node.held = False
    return "what it had claimed is due again when the leases end"


async def kill_loop(stage: Stage, seconds: float) -> str:
    """Every 2 s one of the six processes dies; each is started again at once."""
    until, kills = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        living = [node for node in stage.nodes if node.up]
        if living:
            _RANDOM.choice(living).kill()
            kills += 1
        await asyncio.sleep(2)
    return f"{kills} kills of workers and intakes"


async def postgres_stops(stage: Stage, seconds: float) -> str:
    """PostgreSQL is shut down and started again."""
    await asyncio.to_thread(stage.server.stop)
    await asyncio.sleep(seconds)
    kept = stage.journaled()
    await asyncio.to_thread(stage.server.start)
    return f"{kept} callbacks in the journals"


async def postgres_crashes(stage: Stage, seconds: float) -> str:
    """PostgreSQL ends at once (SIGQUIT) and recovers from its log."""
    await asyncio.to_thread(stage.server.stop, signal.SIGQUIT)
    await asyncio.sleep(seconds)
    kept = stage.journaled()
    await asyncio.to_thread(stage.server.start)
    return f"{kept} callbacks in the journals"


async def backends_die(stage: Stage, seconds: float) -> str:
    """Five times a second a connection is ended by the server."""
    until, killed = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        killed += len(await asyncio.to_thread(sql, stage.server, _TERMINATE_ONE))
        await asyncio.sleep(0.2)
    return f"{killed} connections ended"


async def connections_run_out(stage: Stage, seconds: float) -> str:
    """Another program takes every connection, and receiver's are ended, so that it needs new ones."""
    url = stage.server.url("chaos", user="receiver", more="?application_name=glutton")
    held: list[psycopg.Connection[tuple[object, ...]]] = []

    def take() -> None:
        sql(stage.server, _TERMINATE_OURS)
        with contextlib.suppress(psycopg.Error):
            while len(held) < MAX_CONNECTIONS:
                held.append(psycopg.connect(url))

    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.to_thread(take)
            await asyncio.sleep(0.1)
    finally:
        for connection in held:
            connection.close()
    return f"{len(held)} of {MAX_CONNECTIONS} connections taken"


async def s3_stops(stage: Stage, seconds: float) -> str:
    """SeaweedFS is killed and started again."""
    await asyncio.to_thread(stage.weed.kill)
    await asyncio.sleep(seconds)
    kept = stage.journaled()
    await asyncio.to_thread(stage.weed.start)
    return f"{kept} callbacks in the journals"


async def s3_fails(stage: Stage, seconds: float) -> str:
    """S3 answers 500, 503 SlowDown, cuts requests, swallows answers; one request of five is served."""
    for wire in stage.blob_wires:
        await wire.misbehave(True)
    await asyncio.sleep(seconds)
    for wire in stage.blob_wires:
        await wire.misbehave(False)
    return ""


async def disk_fills(stage: Stage, seconds: float) -> str:
    """The second intake cannot write a byte, while S3 is away, so that it would need its journal."""
    await asyncio.to_thread(stage.weed.kill)
    filler = stage.disk / "filler"
    child = stage.intakes[1].child
    assert child is not None
    if stage.tiny:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            for _ in range(SMALL_DISK * 1024):
                file.write(b"\0" * 1024)
        said = f"a tmpfs of {SMALL_DISK} MiB, filled"
    else:
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        said = "stand-in: a limit of 0 bytes for files of that process"
    await asyncio.sleep(seconds)
    if stage.tiny:
        filler.unlink()
    elif child.returncode is None:
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    kept, at_two = stage.journaled(), stage.intakes[1].journaled()
    await asyncio.to_thread(stage.weed.start)
    return f"{said}; {kept} callbacks in the journals, {at_two} of them there"


def _destination(manner: str) -> Fault:
    async def fault(stage: Stage, seconds: float) -> str:
        refused = stage.destination.refused
        stage.destination.behave(manner)
        await asyncio.sleep(seconds)
        stage.destination.behave("well")
        return f"{stage.destination.refused - refused:,} attempts failed"

    return fault


async def partition(stage: Stage, seconds: float) -> str:
    """The third machine's packets to PostgreSQL and S3 are held back; nothing is closed, and all arrive afterwards."""
    wires = (stage.store_wire, stage.blob_wires[1])
    for wire in wires:
        wire.freeze()
    await asyncio.sleep(seconds)
    kept = stage.journaled()
    for wire in wires:
        wire.thaw()
    return f"{kept} callbacks in the journals"


@dataclass(frozen=True)
class Cell:
    """One row of the matrix."""

    name: str
    what: str
    seconds: float
    fault: Fault


CELLS = (
    Cell("kill-worker", "SIGKILL a worker, 5 s down", 5, kill_worker),
    Cell("kill-loop", "SIGKILL in a loop, any of the six, every 2 s", 20, kill_loop),
    Cell("postgres-stops", "PostgreSQL stopped and started", 8, postgres_stops),
    Cell("postgres-crashes", "PostgreSQL crashes (SIGQUIT) and recovers", 5, postgres_crashes),
    Cell("backends-die", "connections ended by the server, five a second", 12, backends_die),
    Cell("connections-run-out", "`max_connections` used up by another program", 12, connections_run_out),
    Cell("s3-stops", "S3 away for 10 minutes (model time)", 20, s3_stops),
    Cell("s3-fails", "S3: 500, 503 SlowDown, cut requests, swallowed answers", 15, s3_fails),
    Cell("disk-fills", "full disk at one intake while S3 is away", 10, disk_fills),
    Cell("destination-hangs", "the destination hangs", 12, _destination("hang")),
    Cell(
        "destination-fails", "the destination answers 500 for an hour (model time)", 60, _destination("fail")
    ),
    Cell("destination-trickles", "the destination trickles its reply", 12, _destination("trickle")),
    Cell("partition", "one machine cut off from PostgreSQL and S3", 20, partition),
)
