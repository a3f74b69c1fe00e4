"""What is measured: each function returns rows of (what, figure, ratio, goal)."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from bench import processes as p
from bench import tool
from bench.load import BASIC, SECRET
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
    told = p.run_json(*tool.command("load"), where, str(connections), str(seconds), path, kind)
    if set(told["statuses"]) != {"200"}:
        raise RuntimeError(f"unexpected answers: {told['statuses']}")
    return told


def cpu(*pids: int) -> float:
    """Return the seconds of processor time that these processes have used."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


_SENT = {
    "listen": ("2 KB of JSON", "/callbacks/deepgram", "0.35 of bare"),
    "deapi": ("2 KB of signed JSON", "/callbacks/deapi", "0.35 of bare"),
    "speech": ("8 KB of audio", "/callbacks/deepgram", ""),
}


def ingest(folder: Path, rounds: int, seconds: float, *, sync_ms: float = 0) -> list[Row]:
    """Callbacks a second, durable and verified, beside a bare route that reads the body."""
    rows, note = [], f", {sync_ms:g} ms added to each sync" if sync_ms else ""
    for kind, (what, path, goal) in _SENT.items():
        place = folder / f"ingest-{kind}-{sync_ms:g}"
        place.mkdir()
        found: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
        with p.receiver(place, p.config(place), sync_ms=sync_ms) as ours, p.bare(place) as bare:
            load([ours[0]], path, kind, 1)
            for _ in range(rounds):
                for name, where, (port, pid) in (("ours", path, ours), ("bare", "/bare", bare)):
                    before = cpu(pid)
                    told = load([port], where, kind, seconds)
                    found[name].append(told | {"cpu_us": 1e6 * (cpu(pid) - before) / told["requests"]})
        mine = {
            figure: median(one[figure] for one in found["ours"])
            for figure in found["ours"][0]
            if figure != "statuses"
        }
        theirs = {figure: median(one[figure] for one in found["bare"]) for figure in ("rate", "cpu_us")}
        ratio = _ratio(found, "rate")
        rows.append(
            Row(
                f"callbacks/s, {what}, 64 connections{note}",
                f"{mine['rate']:,.0f}/s, ack p50 {mine['p50_ms']:.1f} ms, p99 {mine['p99_ms']:.1f} ms (bare {theirs['rate']:,.0f}/s); "
                f"processor µs each: receiver {mine['cpu_us']:,.0f}, bare {theirs['cpu_us']:,.0f}",
                ratio,
                "" if sync_ms else goal,
                None if sync_ms or not goal else ratio >= 0.35,
                numbers={}
                if sync_ms
                else {
                    f"embedded.{kind}.{figure}": mine[figure]
                    for figure in ("rate", "p50_ms", "p99_ms", "cpu_us")
                }
                | {f"embedded.{kind}.of_bare": ratio, f"embedded.{kind}.bare_cpu_us": theirs["cpu_us"]},
            )
        )
    return rows


_DESCRIBED = f"""
[sources.described]
provider = "custom"
secrets = ["{SECRET}"]
[[sources.described.proof]]
kind = "hmac"
header = "X-DeAPI-Signature"
prefix = "sha256="
message = "{{timestamp}}.{{body}}"
timestamp = {{from = "header:X-DeAPI-Timestamp"}}
[sources.described.event]
family = "speech"
id = "delivery_id"
job = "data.job_request_id"
state = "event"
completed = ["job.completed"]
[sources.described.result]
from = "link"
at = "data.result_url"
hosts = ["results.example.test"]
"""
"""What deAPI's adapter does with such a callback, in the language of recipes."""


def described(folder: Path, rounds: int, seconds: float) -> list[Row]:
    """Signed callbacks a second of a source that its settings describe, beside the same callbacks at the adapter in code."""
    place = folder / "described"
    place.mkdir()
    found: dict[str, list[dict[str, float]]] = {"described": [], "deapi": []}
    with p.receiver(place, p.config(place, source=_DESCRIBED), "--no-work") as (port, pid):
        for name in found:
            load([port], f"/callbacks/{name}", "deapi", 1)
        for turn in range(rounds):
            for name in list(found) if turn % 2 else reversed(list(found)):
                before = cpu(pid)
                told = load([port], f"/callbacks/{name}", "deapi", seconds)
                found[name].append(told | {"cpu_us": 1e6 * (cpu(pid) - before) / told["requests"]})
    pairs = list(zip(found["described"], found["deapi"], strict=True))
    ratio = median(one["rate"] / other["rate"] for one, other in pairs)
    mine, theirs = ({f: median(one[f] for one in found[n]) for f in ("rate", "cpu_us")} for n in found)
    return [
        Row(
            "callbacks/s, 2 KB of signed JSON, a source described in settings",
            f"{mine['rate']:,.0f}/s (the adapter in code {theirs['rate']:,.0f}/s); processor µs each: {mine['cpu_us']:,.0f}, "
            f"in code {theirs['cpu_us']:,.0f}",
            ratio,
            "0.9 of the adapter in code",
            ratio >= 0.9,
            numbers={
                "embedded.described.of_code": ratio,
                "embedded.described.cpu_of_code": mine["cpu_us"] / theirs["cpu_us"],
            },
        )
    ]


def _ratio(found: Mapping[str, list[dict[str, float]]], figure: str) -> float:
    return median(
        one[figure] / other[figure] for one, other in zip(found["ours"], found["bare"], strict=True)
    )


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
    ours, theirs, costs = [], [], []
    with p.sink(folder) as sink:
        for number in range(rounds):
            place = folder / f"relay-{number}"
            place.mkdir()
            path = p.config(place, destination=sink.port)
            (place / "data").mkdir()
            fill(SqliteStore(str(place / "data" / "receiver.db")), count, migrate=True)
            sink.ask(count)
            with p.receiver(place, path, command="work") as (_, pid):
                began = cpu(pid)
                told = sink.told()
                costs.append(1e6 * (cpu(pid) - began) / count)
            ours.append(count / (told["last"] - told["first"]))
            sink.ask(count)
            bare = p.run_json("-m", "bench.bare", "post", str(sink.port), str(count), "64", "2000")
            theirs.append(bare["rate"])
            sink.told()
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    rate = median(ours)
    return [
        Row(
            "deliveries/s of one process, 64 in flight",
            f"{rate:,.0f}/s (bare aiohttp loop {median(theirs):,.0f}/s); processor µs each: receiver {median(costs):,.0f}",
            ratio,
            "0.6 of bare",
            ratio >= 0.6,
            numbers={
                "embedded.deliveries.rate": rate,
                "embedded.deliveries.of_bare": ratio,
                "embedded.deliveries.cpu_us": median(costs),
            },
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
    """How long each of `count` events takes, 50 a second: needs the compiled tool, which looks at each by its id."""
    program = tool.compiled()
    if program is None:
        return [
            Row(
                "50 events a second",
                "not measured: the latency of each event needs the compiled load generator",
            )
        ]
    place = folder / "latency"
    place.mkdir()
    port = p.free_port()
    with p.receiver(place, p.config(place, destination=port)) as (ours, pid):
        words = [program, "events", str(port), str(ours), "4"]
        p.run_json(*words, "20", "50", "/callbacks/deepgram", "listen")
        before = cpu(pid)
        told = p.run_json(*words, str(count), "50", "/callbacks/deepgram", "listen")
        cost = 1e6 * (cpu(pid) - before) / count
    if told["lost"]:
        raise RuntimeError(f"events did not arrive: {told}")
    ack, after, whole = (f"{part}_p50_ms" for part in ("ack", "ack_to_sink", "send_to_sink"))
    return [
        Row(
            "50 events a second: each from its sending to the destination",
            f"p50 {told[whole]:.1f} ms, p99 {told['send_to_sink_p99_ms']:.1f} ms (answer p50 {told[ack]:.1f} ms, from there "
            f"{told[after]:.1f} ms); processor µs each: receiver {cost:,.0f}; doubled {told['doubled']}",
            None,
            "p50 1.5 ms",
            told[whole] <= 1.5,
            numbers={f"event.{figure}": told[figure] for figure in (ack, after, whole)}
            | {"event.cpu_us": cost},
        )
    ]
