"""What is measured: each function returns rows of (what, figure, ratio, goal)."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from bench import processes as p
from bench.load import BASIC, listen
from receiver.core.event import CallbackRow, Event, Recording, Stage, new_id
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    ratio: float | None = None
    goal: str = ""
    holds: bool | None = None
    section: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What other programs read (`--json`)."""


def fdatasync_ms(folder: Path, count: int = 200) -> float:
    """Return the median milliseconds of a 4 KiB write and fdatasync in `folder`."""
    path = folder / "probe"
    took = []
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            took.append(1000 * (time.perf_counter() - began))
    path.unlink()
    return median(took)


def creat_us(folder: Path, count: int = 200) -> float:
    """Return the median microseconds of making an empty file in `folder`. Some file systems take as long as for a sync."""
    took = []
    for number in range(count):
        began = time.perf_counter()
        os.close(os.open(folder / f"probe-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        took.append(1e6 * (time.perf_counter() - began))
    for number in range(count):
        os.unlink(folder / f"probe-{number}")
    return median(took)


def load(
    ports: Sequence[int], path: str, kind: str, seconds: float, connections: int = 64
) -> dict[str, float]:
    """Load the processes that listen on `ports`; raises `RuntimeError` unless every answer was 200."""
    where = ",".join(map(str, ports))
    told = p.run_json("-m", "bench.load", where, str(connections), str(seconds), path, kind)
    if set(told["statuses"]) != {"200"}:
        raise RuntimeError(f"unexpected answers: {told['statuses']}")
    return told


def ingest(folder: Path, rounds: int, seconds: float, *, sync_ms: float = 0) -> list[Row]:
    """Small callbacks a second, durable and verified, beside a bare route that reads the body."""
    rows, note = [], f", {sync_ms:g} ms added to each sync" if sync_ms else ""
    for kind, path in (("listen", "/callbacks/deepgram"), ("deapi", "/callbacks/deapi")):
        ours, theirs = [], []
        place = folder / f"ingest-{kind}-{sync_ms:g}"
        place.mkdir()
        with p.receiver(place, p.config(place), sync_ms=sync_ms) as (port, _), p.bare(place) as bare_port:
            load([port], path, kind, 1)
            for _ in range(rounds):
                ours.append(load([port], path, kind, seconds))
                theirs.append(load([bare_port], "/bare", kind, seconds))
        ratio = median(a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True))
        rate = median(a["rate"] for a in ours)
        p50, p99 = median(a["p50_ms"] for a in ours), median(a["p99_ms"] for a in ours)
        goal = "" if sync_ms else "0.35 of bare"
        rows.append(
            Row(
                f"callbacks/s, {kind} 2 KB, 64 connections{note}",
                f"{rate:,.0f}/s, ack p50 {p50:.1f} ms, p99 {p99:.1f} ms (bare {rate / ratio:,.0f}/s)",
                ratio,
                goal,
                None if sync_ms else ratio >= 0.35,
            )
        )
    return rows


def fill(store: Store, count: int, *, due_at: int | None = None, migrate: bool = False) -> None:
    """Record `count` events, each owed to the destination `app`, due now or then."""

    async def work() -> None:
        if migrate:
            await store.migrate()
        await store.open()
        data = json.dumps({"event_id": "x" * 30, "schema": 1, "provider_data": {"x": "a" * 1800}}).encode()

        async def one(number: int) -> None:
            now = due_at or int(time.time() * 1000)
            event = Event(
                id=new_id("evt", now),
                type="transcript.completed",
                source="deepgram",
                provider="deepgram",
                job_id=str(number),
                ref=None,
                stage=Stage.FINAL,
                occurred_at=now,
                recorded_at=now,
                data=data,
            )
            callback = CallbackRow(
                id=new_id("cb", now),
                source="deepgram",
                idempotency_key=f"k{number}-{os.urandom(4).hex()}",
                second_key=None,
                method="POST",
                content_type="application/json",
                received_at=now,
                body_size=2,
                body_sha256="",
                body=b"{}",
                proofs="basic",
            )
            await store.record(Recording(callback=callback, event=event, destinations=("app",)))

        for start in range(0, count, 500):
            await asyncio.gather(*(one(number) for number in range(start, min(count, start + 500))))
        await store.close()

    asyncio.run(work())


def relay(folder: Path, rounds: int, count: int) -> list[Row]:
    """Deliveries a second of one process to a sink in another, beside a bare aiohttp loop with the same bodies."""
    ours, theirs = [], []
    with p.sink(folder) as sink:
        for number in range(rounds):
            place = folder / f"relay-{number}"
            place.mkdir()
            path = p.config(place, destination=sink.port)
            (place / "data").mkdir()
            fill(SqliteStore(str(place / "data" / "receiver.db")), count, migrate=True)
            sink.ask(count)
            with p.receiver(place, path, command="work"):
                told = sink.told()
            ours.append(count / (told["last"] - told["first"]))
            sink.ask(count)
            theirs.append(
                p.run_json("-m", "bench.bare", "post", str(sink.port), str(count), "64", "2000")["rate"]
            )
            sink.told()
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    rate = median(ours)
    return [
        Row(
            "deliveries/s of one process, 64 in flight",
            f"{rate:,.0f}/s (bare aiohttp loop {median(theirs):,.0f}/s)",
            ratio,
            "0.3 of bare; 3,000/s",
            ratio >= 0.3 and rate >= 3000,
        )
    ]


def large(folder: Path, rounds: int, size: int = 200 * 2**20) -> list[Row]:
    """PUT of one large body, beside `dd conv=fsync` of as many bytes, and what it does to the resident size."""
    place = folder / "large"
    place.mkdir()
    ours, theirs, grown = [], [], []
    piece = os.urandom(2**20)
    with p.receiver(place, p.config(place)) as (port, pid):
        _put(port, piece, 1)
        for _ in range(rounds):
            before = psutil.Process(pid).memory_info().rss
            seconds, peak = _put(port, piece, size // len(piece), pid)
            ours.append(size / seconds)
            grown.append(peak - before)
            began = time.perf_counter()
            target = place / "dd"
            subprocess.run(
                ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={size // 2**20}", "conv=fsync"],
                check=True,
                capture_output=True,
            )
            theirs.append(size / (time.perf_counter() - began))
            target.unlink()
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    return [
        Row(
            "200 MB PUT",
            f"{median(ours) / 1e6:,.0f} MB/s (dd {median(theirs) / 1e6:,.0f} MB/s), resident size +{max(grown) / 2**20:.1f} MiB",
            ratio,
            "0.5 of dd; +32 MiB",
            ratio >= 0.5 and max(grown) < 32 * 2**20,
        )
    ]


def _put(port: int, piece: bytes, pieces: int, pid: int | None = None) -> tuple[float, int]:
    """Send a body; return the seconds to the answer and the highest resident size seen meanwhile."""
    import base64

    peak = 0
    watched = psutil.Process(pid) if pid else None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.perf_counter()
    connection.putrequest("PUT", "/callbacks/deepgram")
    connection.putheader("authorization", "Basic " + base64.b64encode(BASIC.encode()).decode())
    connection.putheader("content-type", "audio/l16;rate=24000")
    connection.putheader("dg-request-id", os.urandom(6).hex())
    connection.putheader("content-length", str(len(piece) * pieces))
    connection.endheaders()
    for number in range(pieces):
        connection.send(piece)
        if watched and number % 8 == 0:
            peak = max(peak, watched.memory_info().rss)
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - began
    if answer.status != 200:
        raise RuntimeError(f"PUT was answered {answer.status}")
    connection.close()
    return took, peak


def latency(folder: Path, count: int) -> list[Row]:
    """From sending a callback to an idle receiver until the sink has its event."""
    took = []
    place = folder / "latency"
    place.mkdir()
    with p.sink(place) as sink, p.receiver(place, p.config(place, destination=sink.port)) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in range(count):
            time.sleep(0.02)
            sink.ask(1)
            headers, body = listen(f"latency-{number}")
            pairs = dict(line.split(": ", 1) for line in headers.strip().splitlines())
            began = time.perf_counter()
            connection.request("POST", "/callbacks/deepgram", body, pairs)
            connection.getresponse().read()
            took.append(1000 * (sink.told()["first"] - began))
    ordered = sorted(took)
    p50, p99 = median(ordered), ordered[int(0.99 * len(ordered))]
    return [
        Row(
            "idle to first delivery",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            None,
            "under 50 ms",
            p50 < 50,
        )
    ]


Measure = Callable[[Path], list[Row]]
