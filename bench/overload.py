"""More callbacks than a process can take, and a store that stalls: what is still accepted, how late, and how it ends.

The closed-loop capacity comes first, in the same round; then callbacks arrive at 0.5, 1, 2 and 4 times that rate, whatever
became of those before (`bench.open_loop`), with half the capacity before and after. All of it shares the cores of one
machine, so at 4 times the generator and the store take their part of them as well.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import apsw
import psutil

from bench import processes as p
from bench.measures import Row, cpu
from bench.open_loop import HUNG_UP
from bench.servers import Servers, servers

SECTION = "Overload"
ABOUT = (
    "Callbacks arrive at a fixed rate, whatever became of earlier ones, from clients that hang up after 10 s as Deepgram does; latencies count",
    "from the intended arrival. The rates are multiples of the closed-loop capacity of the same round (64 connections). The ratio compares the",
    "callbacks answered 200 each second with that capacity. One process runs. Generator, process and store share the two cores, so the generator",
    "takes processor time from the others at 4 times the capacity. A p99 is given for both halves of the overload: a growing queue would show",
    "there. Clients have at most 2,000 connections; when all wait for an answer, arrivals wait too. The loop's lag is the longest answer of",
    "`/healthz`, polled 50 times a second.",
)
FACTORS = (0.5, 1, 2, 4)
_KINDS = {"listen": "2 KB of JSON", "audio": "96 KB of audio"}
_BEFORE, _AFTER = 2.0, 4.0
_WINDOW = 0.25

Record = tuple[float, float, int]
"""Arrival and time to the answer in seconds, and the answer's status."""


# ---------------------------------------------------------------- sums


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which `part` of them lie; 0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def latencies(records: Sequence[Record], start: float, end: float, status: int) -> list[float]:
    """Return how long those that arrived from `start` to `end` waited for this answer."""
    return [took for arrival, took, told in records if start <= arrival < end and told == status]


def answered(records: Sequence[Record], start: float, end: float, status: int) -> float:
    """Return how many a second were given this answer from `start` to `end`, whenever they had arrived."""
    count = sum(1 for arrival, took, told in records if start <= arrival + took < end and told == status)
    return count / (end - start)


def recovery(records: Sequence[Record], end: float, normal: float) -> float:
    """Return how long after `end` arrivals were refused, given up or later than `normal` seconds (in quarter seconds)."""
    bad = [
        arrival - end for arrival, took, told in records if arrival >= end and (told != 200 or took > normal)
    ]
    # One in a hundred may be late without being a sign of anything: a window counts when more of it are.
    last = 0.0
    for number in range(int(max(bad, default=-1) / _WINDOW) + 1):
        low = end + number * _WINDOW
        late = sum(1 for at in bad if low <= at + end < low + _WINDOW)
        whole = sum(1 for arrival, _, _ in records if low <= arrival < low + _WINDOW)
        if late > 0.01 * whole:
            last = (number + 1) * _WINDOW
    return last


# ---------------------------------------------------------------- one run


@dataclass
class Watch:
    """What a process was seen to do meanwhile."""

    lag: float = 0.0
    peak: int = 0
    base: int = 0

    @property
    def grown_mib(self) -> float:
        """By how much the resident size grew."""
        return (self.peak - self.base) / 2**20


@contextlib.contextmanager
def watching(port: int, pid: int) -> Iterator[Watch]:
    """Ask `/healthz` and look at the resident size, again and again."""
    process = psutil.Process(pid)
    size = process.memory_info().rss
    seen, done = Watch(0.0, size, size), threading.Event()

    def look() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not done.wait(0.02):
            asked = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            seen.lag = max(seen.lag, time.perf_counter() - asked)
            seen.peak = max(seen.peak, process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@dataclass
class Told:
    """What the generator told."""

    records: list[Record]
    without_retry_after: int
    late_p99_ms: float


def generate(port: int, kind: str, what: str, meanwhile: Callable[[], None] | None = None) -> Told:
    """Run the generator; `meanwhile` is called when it has begun."""
    command = [sys.executable, "-m", "bench.open_loop", str(port), kind, what]
    with subprocess.Popen(command, cwd=p.ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        if meanwhile:
            meanwhile()
        told = json.loads(child.stdout.readline())
    records = [(arrival, took, status) for arrival, took, status in told["records"]]
    return Told(records, told["without_retry_after"], told["late_p99_ms"])


def using(pid: int, wait: float, seconds: float, found: list[float]) -> Callable[[], None]:
    """Return what waits, then adds to `found` the part of a core that the process uses for so long."""

    def measure() -> None:
        time.sleep(wait)
        used, began = cpu(pid), time.perf_counter()
        time.sleep(seconds)
        found.append((cpu(pid) - used) / (time.perf_counter() - began))

    return measure


def capacity(port: int, pid: int, kind: str, seconds: float) -> tuple[float, float]:
    """Return how many a second a closed loop is answered 200, and the part of a core that this takes."""
    share: list[float] = []
    told = generate(port, kind, f"64c{seconds}", using(pid, 0.5, seconds - 0.6, share))
    return answered(told.records, 0.5, seconds, 200), share[0]


@dataclass
class Figures:
    """What the rounds gave, by name."""

    seen: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Note the figures of a round."""
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> float:
        return median(self.seen[name])


def _overload_once(
    found: Figures, at: tuple[int, int], kind: str, able: tuple[float, float], factor: float, seconds: float
) -> None:
    (port, pid), (full, full_share) = at, able
    half = f"{full / 2:.1f}"
    share: list[float] = []
    plan = f"{half}x{_BEFORE},{full * factor:.1f}x{seconds},{half}x{_AFTER}"
    with watching(port, pid) as seen:
        told = generate(port, kind, plan, using(pid, _BEFORE, seconds, share))
    start, end = _BEFORE, _BEFORE + seconds
    middle = (start + end) / 2
    records = told.records
    normal = max(0.05, 3 * quantile(latencies(records, 0, start, 200), 0.99))
    accepted = latencies(records, start, end, 200)
    goodput = answered(records, start, end, 200)
    found.add(
        capacity=full,
        offered=sum(1 for record in records if start <= record[0] < end) / seconds,
        goodput=goodput,
        ratio=goodput / full,
        refused=answered(records, start, end, 503),
        p50=quantile(accepted, 0.5),
        first=quantile(latencies(records, start, middle, 200), 0.99),
        second=quantile(latencies(records, middle, end, 200), 0.99),
        refusal=quantile(latencies(records, start, end, 503), 0.99),
        grown=seen.grown_mib,
        lag=seen.lag,
        recovery=recovery(records, end, normal),
        failed=sum(1 for record in records if record[2] not in (200, 503)),
        silent=told.without_retry_after,
        late=told.late_p99_ms / 1000,
        share=share[0],
        earned=goodput / share[0] / (full / full_share),
    )


def _row(name: str, kind: str, factor: float, found: Figures) -> Row:
    figure = (
        f"offered {found['offered']:,.0f}/s; accepted {found['goodput']:,.0f}/s of {found['capacity']:,.0f}/s, p50 {_ms(found['p50'])}, "
        f"p99 {_ms(found['first'])} then {_ms(found['second'])}; refused {found['refused']:,.0f}/s, p99 {_ms(found['refusal'])}; "
        f"lag {_ms(found['lag'])} (the generator's own lateness p99 {_ms(found['late'])}; the process had {found['share']:.2f} of a core, and accepted {found['earned']:.2f} as many for each second of it); resident size +{found['grown']:.0f} MiB; p99 as before after {found['recovery']:.2f} s; "
        f"neither 200 nor 503: {sum(found.seen['failed']):.0f}"
    )
    holds = None
    if factor > 1:
        bounded = found["second"] <= max(1.0, 1.5 * found["first"])
        holds = found["ratio"] >= 0.7 and bounded and not sum(found.seen["failed"] + found.seen["silent"])
    names = ("ratio", "first", "second", "refusal", "grown", "lag", "recovery", "late", "share", "earned")
    return Row(
        f"{factor:g} times the capacity, {_KINDS[kind]}, {name}",
        figure,
        found["ratio"],
        "0.7 of capacity; p99 does not grow; only 200, or 503 with Retry-After" if factor > 1 else "",
        holds,
        SECTION,
        {f"overload.{name}.{kind}.{factor:g}.{one}": found[one] for one in names},
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


# ---------------------------------------------------------------- a stall


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold SQLite's write lock, as a program would that should not have the file open."""
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


@contextlib.contextmanager
def _stopped(up: Servers) -> Iterator[None]:
    """Stop PostgreSQL without a word."""
    up.database.signal_all(signal.SIGSTOP)
    try:
        yield
    finally:
        up.database.signal_all(signal.SIGCONT)


def metrics(port: int) -> dict[str, float]:
    """Return how many callbacks were given each answer, and the `depth` of the journal."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    told: Counter[str] = Counter()
    for name, n in re.findall(r'receiver_callbacks_total{answer="(\w+)".*} (\S+)', text):
        told[name] += int(float(n))
    depth = re.search(r"^receiver_journal_depth (\S+)", text, re.MULTILINE)
    return {**told, "depth": float(depth[1]) if depth else 0.0}


def _stall(
    name: str,
    port: int,
    pid: int,
    full: float,
    stall: Callable[[], contextlib.AbstractContextManager[None]],
    seconds: float,
) -> Row:
    """Half the capacity all along; in its midst the store answers nobody for a while."""

    def meanwhile() -> None:
        time.sleep(_BEFORE)
        with stall():
            time.sleep(seconds)

    before = metrics(port)
    end = _BEFORE + seconds
    with watching(port, pid) as seen:
        told = generate(port, "listen", f"{full / 2:.1f}x{end + 2 * _AFTER}", meanwhile)
    began = time.perf_counter()
    while (after := metrics(port))["depth"] and time.perf_counter() < began + 120:
        time.sleep(0.25)
    drained = time.perf_counter() - began
    records = told.records
    normal = max(0.05, 3 * quantile(latencies(records, 0, _BEFORE, 200), 0.99))
    longest = max(took for _, took, _ in records)
    no = latencies(records, 0, end + 2 * _AFTER, 503)
    count = {
        one: after.get(one, 0) - before.get(one, 0)
        for one in ("recorded", "duplicate", "journaled", "overloaded")
    }
    failed = sum(1 for record in records if record[2] not in (200, 503))
    return Row(
        f"half the capacity while the store is stopped for {seconds:g} s, {_KINDS['listen']}, {name}",
        f"offered {full / 2:,.0f}/s; recorded {count['recorded']:,.0f}, to the journal {count['journaled']:,.0f}, refused "
        f"{count['overloaded']:,.0f}; any 503 p50 {_ms(quantile(no, 0.5))}; "
        f"longest answer {longest:.1f} s; lag {_ms(seen.lag)}; resident size +{seen.grown_mib:.0f} MiB; "
        f"p99 as before {recovery(records, end, normal):.2f} s after; journal empty {drained + 2 * _AFTER:.0f} s after; "
        f"hung up on: {sum(1 for record in records if record[2] == HUNG_UP)}",
        None,
        "every client is answered within its 10 s",
        failed == 0 and not told.without_retry_after,
        SECTION,
        {f"overload.{name}.stall.longest": longest, f"overload.{name}.stall.lag": seen.lag},
    )


# ---------------------------------------------------------------- all of it


def overload(folder: Path, rounds: int, seconds: float) -> list[Row]:
    """Measure one process on the embedded parts and one on PostgreSQL and S3."""
    found: dict[tuple[str, str, float], Figures] = {}
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(servers())
        alone = folder / "overload-embedded"
        alone.mkdir()
        shared = folder / "overload-shared"
        path = up.config(shared, up.new_database())
        setups = {
            "embedded": stack.enter_context(p.receiver(alone, p.config(alone))),
            "PostgreSQL and S3": stack.enter_context(p.receiver(shared, path)),
        }
        for _ in range(rounds):
            for kind in _KINDS:
                for name, (port, pid) in setups.items():
                    capacity(port, pid, kind, 1)
                    full, share = capacity(port, pid, kind, seconds / 2)
                    for factor in FACTORS:
                        figures = found.setdefault((name, kind, factor), Figures())
                        _overload_once(figures, (port, pid), kind, (full, share), factor, seconds)
                        last = {one: round(values[-1], 3) for one, values in figures.seen.items()}
                        print(f"  {name}, {kind}, {factor:g}: {last}", file=sys.stderr, flush=True)
        rows = [_row(name, kind, factor, figures) for (name, kind, factor), figures in found.items()]
        stalls: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
            "embedded": lambda: _locked(alone / "data" / "receiver.db"),
            "PostgreSQL and S3": lambda: _stopped(up),
        }
        for name, (port, pid) in setups.items():
            full = found[name, "listen", 1]["capacity"]
            rows.append(_stall(name, port, pid, full, stalls[name], seconds))
    return rows
