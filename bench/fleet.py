"""One store and one bucket for many processes: callbacks and deliveries a second for 1, 2 and 4 of them.

Beside each figure: the embedded parts in the same rounds, and bare loops that run the same statements, 64 rows at a time,
without receiver's engine. All of it shares the cores of one machine, the servers included, so more processes are not more
cores: what a larger machine does is told by the processor time of each part.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import processes as p
from bench.measures import Row, cpu, fill, load
from bench.servers import Servers, execute, preload, servers
from receiver.storage.store.sqlite import SqliteStore

SECTION = "PostgreSQL and S3"
PROCESSES = (1, 2, 4)
_KINDS = {"listen": "2 KB of JSON, store only", "speech": "8 KB of audio, by way of S3"}


@dataclass
class Figures:
    """What the rounds gave, by name."""

    seen: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Note the figure of a round."""
        self.seen.setdefault(name, []).append(value)

    def of(self, name: str) -> float:
        """Return the median of the rounds."""
        return median(self.seen[name])

    def ratio(self, one: str, other: str) -> float:
        """Return the median of the rounds' ratios."""
        return median(a / b for a, b in zip(self.seen[one], self.seen[other], strict=True))


# ---------------------------------------------------------------- the road in


def ingest(folder: Path, rounds: int, seconds: float) -> list[Row]:
    """Callbacks a second of processes that only take callbacks."""
    found = Figures()
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(servers())
        url = up.new_database()
        alone = folder / "fleet-embedded"
        alone.mkdir()
        embedded = [stack.enter_context(p.receiver(alone, p.config(alone), "--no-work"))]
        many = []
        for number in range(max(PROCESSES)):
            place = folder / f"fleet-{number}"
            path = up.config(place, url)
            many.append(stack.enter_context(p.receiver(place, path, "--no-work")))
        setups = {"embedded": embedded} | {str(n): many[:n] for n in PROCESSES}
        for kind in _KINDS:
            for name, chosen in setups.items():
                _ingest_once(up, Figures(), kind, name, chosen, 1)
            for _ in range(rounds):
                for name, chosen in setups.items():
                    _ingest_once(up, found, kind, name, chosen, seconds)
                told = p.run_json("-m", "bench.bare_store", "record", url, str(round(8_000 * seconds)))
                found.add(f"{kind} loop", told["count"] / (told["last"] - told["first"]))
    return [_ingest_row(found, kind, count) for kind in _KINDS for count in PROCESSES]


def _ingest_once(
    up: Servers, found: Figures, kind: str, name: str, chosen: list[tuple[int, int]], seconds: float
) -> None:
    def used() -> tuple[float, float, float]:
        return cpu(*(pid for _, pid in chosen)), up.database_cpu(), up.weed_cpu()

    before = used()
    told = load([port for port, _ in chosen], "/callbacks/deepgram", kind, seconds)
    for part, after, was in zip(("receiver", "store", "blobs"), used(), before, strict=True):
        found.add(f"{kind} {name} {part}", 1000 * (after - was) / told["requests"])
    for figure in ("rate", "p50_ms", "p99_ms"):
        found.add(f"{kind} {name} {figure}", told[figure])


def _ingest_row(found: Figures, kind: str, count: int) -> Row:
    name = f"{kind} {count}"
    parts = {part: found.of(f"{name} {part}") for part in ("receiver", "store", "blobs")}
    loop = found.ratio(f"{name} rate", f"{kind} loop")
    about = f", {loop:.2f} of the loop of statements ({found.of(f'{kind} loop'):,.0f}/s)"
    blobs = f", S3 server {parts['blobs']:.2f}" if kind == "speech" else ""
    return Row(
        f"callbacks/s, {_processes(count)}, {_KINDS[kind]}, 64 connections",
        f"{found.of(f'{name} rate'):,.0f}/s, ack p50 {found.of(f'{name} p50_ms'):.1f} ms, "
        f"p99 {found.of(f'{name} p99_ms'):.1f} ms (embedded {found.of(f'{kind} embedded rate'):,.0f}/s{about}); "
        f"processor ms each: receiver {parts['receiver']:.2f}, PostgreSQL {parts['store']:.2f}{blobs}",
        found.ratio(f"{name} rate", f"{kind} embedded rate"),
        "",
        None,
        SECTION,
        {
            f"{kind}.{count}.rate": found.of(f"{name} rate"),
            f"{kind}.{count}.p99_ms": found.of(f"{name} p99_ms"),
            **{f"{kind}.{count}.{part}_cpu_ms": value for part, value in parts.items()},
        },
    )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


# ---------------------------------------------------------------- the road out


def deliveries(folder: Path, rounds: int, count: int) -> list[Row]:
    """Deliveries a second of workers that empty a backlog."""
    found = Figures()
    with servers() as up, p.sink(folder) as sink:
        for turn in range(rounds):
            place = folder / f"work-{turn}"
            place.mkdir()
            found.add("embedded", _embedded(place, sink, count))
            for number in PROCESSES:
                _work_once(up, found, place, sink, number, count)
                found.add(f"{number} loop", _loop_once(up, number, count))
                sink.ask(count)
                found.add(f"{number} sending loop", _loop_once(up, number, count, str(sink.port)))
                sink.told()
            found.add("engine", _engine_once(up, count))
    rows = [_work_row(found, number) for number in PROCESSES]
    ratio = found.ratio("engine", "1 loop")
    rows.append(
        Row(
            "deliveries/s of one process to a destination that answers at once, without HTTP",
            f"{found.of('engine'):,.0f}/s (bare loop of the statements {found.of('1 loop'):,.0f}/s)",
            ratio,
            "0.5 of the loop of statements",
            ratio >= 0.5,
            SECTION,
            {"deliveries.engine_of_loop": ratio},
        )
    )
    return rows


def _embedded(folder: Path, sink: p.Sink, count: int) -> float:
    path = p.config(folder, destination=sink.port)
    (folder / "data").mkdir()
    fill(SqliteStore(str(folder / "data" / "receiver.db")), count, migrate=True)
    sink.ask(count)
    with p.receiver(folder, path, command="work"):
        told = sink.told()
    return count / (told["last"] - told["first"])


@contextlib.contextmanager
def _database(up: Servers) -> Iterator[str]:
    """Give the URL of a new database that goes again."""
    url = up.new_database()
    try:
        yield url
    finally:
        up.database.drop_database(url.rsplit("/", 1)[1])


def _soon(url: str, count: int, *, working: bool = False) -> int:
    """Preload a backlog that falls due in a moment, when everybody waits for it; return when (epoch milliseconds).

    With `working`, workers wait already: where it fell due too early, they empty it, and it is made anew.
    """
    for patience in (1, 3, 9):
        due_at = int(time.time() * 1000) + patience * (2_500 + count // 8)
        preload(url, count, due_at)
        execute(url, "ANALYZE", "CHECKPOINT")
        if time.time() * 1000 < due_at - 500:
            return due_at
        while working and execute(url, "SELECT 1 FROM deliveries WHERE due_at IS NOT NULL LIMIT 1"):
            time.sleep(0.2)
        execute(url, "TRUNCATE events, deliveries, attempts")
    raise RuntimeError("the machine is too slow to preload the backlog before it is due")


def _work_once(up: Servers, found: Figures, folder: Path, sink: p.Sink, number: int, count: int) -> None:
    with _database(up) as url, contextlib.ExitStack() as stack:
        pids = []
        for one in range(number):
            place = folder / f"{number}-{one}"
            path = up.config(place, url, destination=sink.port)
            pids.append(stack.enter_context(p.receiver(place, path, command="work"))[1])
        _soon(url, count, working=True)
        sink.ask(count)
        before = cpu(*pids), up.database_cpu()
        told = sink.told()
        after = cpu(*pids), up.database_cpu()
        found.add(f"{number} rate", count / (told["last"] - told["first"]))
        found.add(f"{number} receiver", 1000 * (after[0] - before[0]) / count)
        found.add(f"{number} store", 1000 * (after[1] - before[1]) / count)


def _loop_once(up: Servers, number: int, count: int, *port: str) -> float:
    with _database(up) as url:
        start = str(_soon(url, count) + 1_500)
        command = [sys.executable, "-m", "bench.bare_store", "deliver", url, start, *port]
        children = [
            subprocess.Popen(command, cwd=p.ROOT, stdout=subprocess.PIPE, text=True) for _ in range(number)
        ]
        told = [json.loads(child.communicate()[0]) for child in children]
    assert sum(one["count"] for one in told) == count
    seconds: float = max(one["last"] for one in told) - min(one["first"] for one in told)
    return count / seconds


def _engine_once(up: Servers, count: int) -> float:
    with _database(up) as url:
        told = p.run_json("-m", "bench.engine", url, str(count), str(_soon(url, count) + 1_500))
    seconds: float = told["last"] - told["first"]
    return count / seconds


def _work_row(found: Figures, number: int) -> Row:
    parts = {part: found.of(f"{number} {part}") for part in ("receiver", "store")}
    loop, sending = (
        (found.ratio(f"{number} rate", f"{number} {kind}"), found.of(f"{number} {kind}"))
        for kind in ("loop", "sending loop")
    )
    return Row(
        f"deliveries/s, {_processes(number)}, 64 in flight each",
        f"{found.of(f'{number} rate'):,.0f}/s ({found.ratio(f'{number} rate', 'embedded'):.2f} of embedded, "
        f"{found.of('embedded'):,.0f}/s; {sending[0]:.2f} of as many bare loops that also send, {sending[1]:,.0f}/s; "
        f"bare loops of the statements alone {loop[1]:,.0f}/s); "
        f"processor ms each: receiver {parts['receiver']:.2f}, PostgreSQL {parts['store']:.2f}",
        loop[0],
        "0.5 of the loop of statements",
        loop[0] >= 0.5,
        SECTION,
        {
            f"deliveries.{number}.rate": found.of(f"{number} rate"),
            f"deliveries.{number}.of_sending_loop": sending[0],
            **{f"deliveries.{number}.{part}_cpu_ms": value for part, value in parts.items()},
        },
    )
