"""The results: a line, a table, and the page docs/reliability.md."""

from __future__ import annotations

import asyncio
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

from rich.console import Console
from rich.table import Table

from chaos.cells import Cell
from chaos.load import Load
from chaos.oracle import Oracle
from chaos.peer import beside
from chaos.stage import RETRY_SECONDS, Stage

HEADINGS = (
    "fault",
    "acknowledged",
    "lost",
    "under two ids",
    "deliveries/s before",
    "during",
    "95 % again after",
    "all of it delivered after",
    "remarks",
)


@dataclass
class Row:
    """What one cell came to; times on the oracle's clock."""

    cell: Cell
    load: Load
    before: float
    during: float
    after: float
    recovered: float | None
    began: float
    end: float
    remark: str
    acknowledged: int = 0
    lost: set[str] = field(default_factory=set)
    doubled: set[str] = field(default_factory=set)
    kept: int = 0
    """Jobs whose provider gave up, and that were delivered all the same, from a journal."""
    whole_after: float = 0.0
    """Seconds from the fault's end to the last delivery of this cell's callbacks that were acknowledged."""

    def judge(self, oracle: Oracle) -> None:
        """Take from the oracle what concerns this cell."""
        mine = f"{self.cell.name}-"
        own = {job for job in oracle.promised if job.startswith(mine)}
        self.acknowledged = len(own)
        self.lost = own & oracle.lost()
        self.doubled = {job for job in oracle.doubled() if job.startswith(mine)}
        self.kept = len(oracle.delivered.keys() & set(self.load.given_up))
        self.whole_after = max((oracle.arrived[job] for job in own - self.lost), default=self.end) - self.end

    @property
    def name(self) -> str:
        """The cell's name."""
        return self.cell.name

    @property
    def holds(self) -> bool:
        """True when nothing was lost or doubled, and the rate came back."""
        return not (self.lost or self.doubled or self.load.refused) and self.recovered is not None

    def cells(self) -> list[str]:
        """Return the row's text."""
        remark = self.remark
        if self.load.given_up:
            remark += f"{'; ' if remark else ''}{len(self.load.given_up)} given up by their provider, {self.kept} of them delivered"
        if self.load.refused:
            remark += f"; unexpected answers: {len(self.load.refused)}"
        return [
            self.cell.what,
            f"{self.acknowledged:,}",
            str(len(self.lost)),
            str(len(self.doubled)),
            f"{self.before:.0f}",
            f"{self.during:.0f}",
            "never" if self.recovered is None else f"{self.recovered:.1f} s",
            f"{self.whole_after:.1f} s",
            remark,
        ]

    def line(self) -> str:
        """Return the row as one line."""
        told = "; ".join(
            f"{name} {value}" for name, value in zip(HEADINGS[1:], self.cells()[1:], strict=True)
        )
        return told + (f"; {self.load.refused[:3]}" if self.load.refused else "")


def _fsync_ms(folder: Path) -> float:
    took = []
    path = folder / f".chaos-{os.getpid()}"
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(200):
                began = perf_counter()
                os.pwrite(file.fileno(), b"\0" * 4096, 0)
                os.fdatasync(file.fileno())
                took.append(1000 * (perf_counter() - began))
    finally:
        path.unlink(missing_ok=True)
    return median(took)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {os.cpu_count()} cores"


async def facts(on: Stage) -> list[tuple[str, str]]:
    """Return what the run was on, and what was found in the whole at its end."""
    version = str(on.server.execute("SHOW server_version")[0][0])
    broken = await asyncio.to_thread(on.broken_audio)
    oracle = on.destination.oracle
    return [
        (
            "delivered",
            f"{len(oracle.times):,} events; {oracle.repeats:,} more requests repeated one under its id",
        ),
        ("signatures that were not right", str(on.destination.forged)),
        ("files in events", f"{len(on.destination.audio):,}, of which {broken} missing from S3 or different"),
        ("deliveries and pickups given up by receiver", str(on.dead())),
        ("callbacks left in the journals", str(on.journaled())),
        ("processor", _processor()),
        ("system", f"{platform.system()} {platform.release()}"),
        ("Python, PostgreSQL, S3", f"{platform.python_version()}, {version} (`fsync = on`), SeaweedFS"),
        ("4 KiB write and fdatasync", f"{_fsync_ms(on.disk.parent):.2f} ms (median of 200)"),
    ]


def show(rows: list[Row], told: list[tuple[str, str]]) -> None:
    """Print for a person."""
    table = Table(title="receiver under faults")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row.cells(), style=None if row.holds else "red")
    console = Console()
    console.print(table)
    for name, value in told:
        console.print(f"{name}: {value}")


def summary(rows: list[Row]) -> str:
    """Return the matrix in a sentence."""
    promised, back = sum(row.acknowledged for row in rows), sum(row.recovered is not None for row in rows)
    lost, doubled = sum(len(row.lost) for row in rows), sum(len(row.doubled) for row in rows)
    return (
        f"Of {promised:,} callbacks that were acknowledged, {lost} were lost and {doubled} delivered under two ids; "
        f"the rate came back in {back} of {len(rows)} rows."
    )


def markdown(rows: list[Row], told: list[tuple[str, str]], rate: float) -> str:
    """Return the page."""
    lines = [
        _TOP.format(rate=rate),
        summary(rows),
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + " --- |" * len(HEADINGS),
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
        "",
        "| the whole run | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in told),
        "",
        *beside(rows),
        _BOTTOM.format(wait=RETRY_SECONDS),
    ]
    return "\n".join(lines)


_TOP = """\
# Reliability

`make chaos` writes this page in about ten minutes. Three `receiver serve --no-work` and three `receiver work`, one PostgreSQL and one S3 store run on
the machine below, under {rate:.0f} callbacks a second: Deepgram's audio (8 KB, some 160 KB) and transcripts (some too long for a row), deAPI's jobs with a
link to download, and deAPI's failures. The faults are made one after the other under this load. A test oracle outside of receiver records which callbacks
were answered 2xx, and which events the destination received.
"""

_BOTTOM = """\
## How to read it

- *acknowledged*: callbacks of this row that were answered 2xx. *lost*: acknowledged callbacks whose event the destination did not receive.
  *under two ids*: jobs that the destination received under two event ids, or under another id than the provider's answer named. Both must be 0. Delivery is
  at-least-once: the same event may come twice under one id, and the second table counts that.
- *95 % again after*: from the end of the fault to the first three seconds in which events were delivered at 95 % of the rate before.
  *All of it delivered after*: from the end of the fault to the last delivery of this row's acknowledged callbacks. The load goes on for at least 8 seconds
  after the fault, so about 8 s is the best possible value.
- *given up by their provider*: the provider's last retry was not answered 2xx, so receiver had promised nothing. If such a callback was delivered all the same,
  it had been answered 503 and kept in a journal.
- The rate recovers while the backlog of the fault is still being delivered: 95 % is reached early, and *all of it* shows how long the backlog took.
- Work that a killed worker had claimed waits for the end of its lease: 34 s for a delivery and 79 s for a pickup, with these settings. No other event waits
  for that. A pickup that could not store its file is retried after 5 s, 10 s, 20 s and so on.
- A process that ends is restarted after 0.3 s, as a supervisor would do. A callback that meets a refused connection is sent to the next intake, as a load
  balancer would do.

## Model time

One second stands for 30 of the providers' seconds. Deepgram retries ten times, 1 s apart instead of 30 s, and then gives up; deAPI's first wait is 2 s instead of 60 s.
So 20 s without S3 are 10 minutes. In the row of an hour, a second stands for 60. The destination's retries are {wait} s apart. All other times are real: the 5 s
timeout of S3, the 6 s for storing, the 10 s timeout of PostgreSQL, the 2 s timeout of the destination, and the leases.

## How each fault is made

- Processes and servers are real and are ended by signals: SIGKILL for receiver and SeaweedFS, SIGINT (a fast shutdown) and SIGQUIT for PostgreSQL. Connections
  are ended with `pg_terminate_backend`. To use up `max_connections`, another session takes all connections after receiver's own were ended.
- S3 faults: a proxy on loopback stands between receiver and S3. Of five connections the first gets 500, the second gets 503 SlowDown, the third is cut within the
  request, the fourth carries out the request and drops the answer, and the fifth is served.
- The full disk: the data folder of one intake is a tmpfs of 8 MiB that is filled to the last byte. Where no tmpfs can be mounted, the process may write no file longer
  than 0 bytes. S3 is unavailable at the same time, because an intake writes to its disk only to journal a callback or to buffer a long body. The intake then answers
  503, and the provider's next retry meets another intake.
- The partition: one intake and one worker reach PostgreSQL and S3 through proxies that stop forwarding and close nothing. The bytes sent meanwhile arrive
  afterwards, as they do in a real network.

## What this does not show

- All processes share one machine, its kernel and its two cores with the load and the stores: the rates are no benchmark.
- No power is lost. SeaweedFS acknowledges before its data is synced to the disk; another S3 store has its own guarantees. PostgreSQL runs with `fsync = on`;
  `tests/flow/test_power_loss.py` shows the embedded store on a disk that forgets unsynced data.
- A journal lies on one machine's disk. If that disk is lost, the callbacks that are only in the journal are lost.
- `tests/flow/test_postgres_failover.py` tests the failover to a standby.
- `tests/crash` tests SIGKILL at each single step.
- There is one destination and one run: the figures of another run differ by a second or two.

## Run it

```
make chaos
.venv/bin/python -m chaos --cell partition --cell kill-loop
```

`make chaos` runs all rows and writes this page; the second command prints two rows. `--seconds` and `--rate` set how long each fault lasts and how many callbacks come.
The status is 1 when an event was lost or doubled, or when a rate did not recover.
"""
