"""Every figure of receiver, beside a bare baseline in the same run.

python -m bench [--quick] [--rounds 2] [--only all] [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import apsw
from rich.console import Console
from rich.table import Table

from bench import fleet, growth, history, lanes, measures, overload, tool
from bench.measures import Row
from bench.store_rates import claim_cost

FLEET = "fleet-in,fleet-out,growth"
QUICK = "ingest,relay,latency,fleet-in"
"""What `--quick` measures, in about two minutes."""


def claims(folder: Path, many: int) -> list[Row]:
    """What a claim costs beside 1,000 and beside `many` delivered rows."""
    # Interleaved, since the machine's speed drifts; the files are told apart by their folder.
    costs: dict[int, list[float]] = {1_000: [], many: []}
    for turn in range(3):
        for count, found in costs.items():
            place = folder / f"claims-{turn}-{count}"
            place.mkdir()
            found.append(1e6 * asyncio.run(claim_cost(place, count)))
    few_us, many_us = median(costs[1_000]), median(costs[many])
    ratio = many_us / few_us
    figure = f"{few_us:,.0f} µs beside 1,000 delivered rows, {many_us:,.0f} µs beside {many:,}"
    return [Row("claim of 32 deliveries", figure, ratio, "within 1.3", ratio <= 1.3)]


def machine(folder: Path) -> list[tuple[str, str]]:
    """What the figures were measured on."""
    cpu = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return [
        ("processor", f"{cpu}, {os.cpu_count()} cores"),
        ("system", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("SQLite", apsw.sqlite_lib_version()),
        ("4 KiB write and fdatasync", f"{measures.fdatasync_ms(folder):.2f} ms (median of 200)"),
        ("load generator and destination", tool.about()),
        (
            "file system of the data",
            "a fresh ext4" if folder.name == _DISK else "that of this folder, not a fresh one",
        ),
        ("making an empty file", f"{measures.creat_us(folder):.0f} µs (median of 200)"),
    ]


_DISK = "fresh-disk"


@contextlib.contextmanager
def fresh_disk(folder: Path) -> Iterator[Path]:
    """Give a fresh ext4, where this user may mount one; else the folder itself.

    On a file system that has seen many files, making one can cost more than all that receiver does with it.
    """
    place, image = folder / _DISK, folder / "disk.img"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * 2**30)  # holes take no room; overload writes some gigabytes of audio
    making = (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(place)])
    try:
        for words in making:
            subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield folder
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def show(rows: list[Row], facts: list[tuple[str, str]]) -> None:
    """Print for a person."""
    table = Table(title="receiver, measured")
    for heading in ("what", "figure", "ratio", "goal", ""):
        table.add_column(heading)
    for row in rows:
        mark = {None: "", True: "holds", False: "MISSED"}[row.holds]
        table.add_row(row.what, row.figure, f"{row.ratio:.2f}" if row.ratio else "", row.goal, mark)
    console = Console()
    console.print(table)
    for name, value in facts:
        console.print(f"{name}: {value}")


_SOAK = Path("docs/pictures/soak.svg")


def markdown(
    rows: list[Row], facts: list[tuple[str, str]], runs: list[dict[str, Any]], command: str, minutes: float
) -> str:
    """Return the page docs/benchmarks.md, which `command` made in so many minutes."""
    lines = [
        "# Benchmarks",
        "",
        f"`{command}` made this page in {minutes:.0f} minutes. Each figure is the median of interleaved rounds. A ratio compares the figure with the",
        "bare baseline of the same rounds, on the same cores, so it depends less on the machine than the figure does. Load generator, receiver,",
        "destination and baseline share the machine below. Durable means SQLite with `synchronous=FULL`: every answer waited for the sync that covers it.",
        "",
        "`make bench` measures all of it and writes this page; `make bench ARGS='--quick --only all --rounds 2'` does that with shorter rounds and",
        "smaller tables. `make bench-quick` measures the main figures in about two minutes and writes nothing. `make bench-against REV=…` measures an",
        "older commit and this one by turns. `make million` sends a million callbacks through one process and draws memory, descriptors and answers;",
        "`make storm KILLS=200` kills receivers under load, looks for what was lost, and tells how soon they were back.",
    ]
    if _SOAK.exists():
        lines += ["", "![Memory, descriptors and answers over a long run](pictures/soak.svg)"]
    for section in dict.fromkeys(row.section for row in rows):
        if section:
            lines += ["", f"## {section}", "", *ABOUT[section]]
        lines += ["", "| what | figure | ratio | goal | |", "| --- | --- | --- | --- | --- |"]
        for row in (row for row in rows if row.section == section):
            mark = {None: "", True: "holds", False: "missed"}[row.holds]
            ratio = f"{row.ratio:.2f}" if row.ratio else ""
            lines.append(f"| {row.what} | {row.figure} | {ratio} | {row.goal} | {mark} |")
    lines += ["", *history.page(runs)]
    lines += [
        "",
        "## The machine",
        "",
        "| machine | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in facts),
    ]
    lines += ["", *NOTES]
    return "\n".join(lines) + "\n"


_FLEET = (
    "PostgreSQL (`fsync=on`) and SeaweedFS run on the same two cores as the processes, the load generator and the destination, so more processes",
    "do not bring more cores here. The processor milliseconds are what each part costs on a machine of its own, and [scaling](scaling.md) does the",
    "arithmetic. The ratio of callbacks compares with one process on embedded parts in the same rounds. The ratio of deliveries compares with as",
    "many bare loops, which claim and settle 64 rows at a time by the same statements, without sending anything.",
)
ABOUT = {fleet.SECTION: _FLEET, overload.SECTION: overload.ABOUT}
NOTES = (
    "Notes:",
    "",
    "- *bare* is a Starlette route under the same uvicorn that reads the body and answers; it stores nothing.",
    "- The disk of a virtual machine syncs fast. The rows with milliseconds added to each sync show the same ingest on a slower disk. Commits are",
    "  grouped, so throughput falls far less than it would with one commit for each callback.",
    "- With fewer connections the process waits for each group's commit; with more, it takes the next callbacks meanwhile.",
    "- The loop of statements sends nothing, so it shows the store's limit. A bare loop that claims, sends by bare aiohttp and settles has 0.3 of its",
    "  rate. With that client on these cores, no relay can reach half of it; without HTTP receiver's relay is faster.",
    "- The machine is virtual, and its neighbours are not always quiet: bare and receiver do not slow down alike. Processor time varies less than rates.",
    "- *200 MB PUT* is limited by one core that receives and hashes; `dd` had 307 MB/s on one day and 1,449 MB/s on another.",
)


def main() -> None:
    """Measure, print, perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"one short round of {QUICK}")
    parser.add_argument(
        "--write", metavar="FILE", help="also write the page, and this run into bench/history.json"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures that other programs read")
    parser.add_argument("--rounds", type=int, help="rounds of each (5, with --quick 1)")
    parser.add_argument(
        "--only",
        help="comma-separated, or all: ingest, slow, described, relay, large, latency, claims, hung, rules, fleet (fleet-in, fleet-out, growth), overload",
    )
    options = parser.parse_args()
    # However it ends, its servers are stopped and its disk is unmounted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rounds, seconds = (1, 2.0) if options.quick else (5, 4.0)
    rounds = options.rounds or rounds
    parts = {
        "ingest": lambda f: measures.ingest(f, rounds, seconds),
        "slow": lambda f: measures.ingest(f, rounds, seconds, sync_ms=5),
        "described": lambda f: measures.described(f, rounds, seconds),
        "relay": lambda f: measures.relay(f, rounds, 4_000 if options.quick else 20_000),
        "large": lambda f: measures.large(f, rounds),
        "latency": lambda f: measures.latency(f, 20 if options.quick else 200),
        "claims": lambda f: claims(f, 20_000 if options.quick else 1_000_000),
        "hung": lambda f: lanes.hung(f, rounds, 10_000 if options.quick else 100_000),
        "rules": lambda f: lanes.rules(f, rounds, 3_000 if options.quick else 20_000),
        "fleet-in": lambda f: fleet.ingest(f, rounds, seconds),
        "fleet-out": lambda f: fleet.deliveries(f, rounds, 3_000 if options.quick else 20_000),
        "growth": lambda f: growth.growth(rounds, 20_000 if options.quick else 1_000_000),
        "overload": lambda f: overload.overload(f, min(rounds, 3), 4.0 if options.quick else 8.0),
    }
    only = options.only or (QUICK if options.quick else "all")
    wanted = list(parts) if only == "all" else re.sub(r"\bfleet(?=,|$)", FLEET, only).split(",")
    rows: list[Row] = []
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="receiver-bench-", dir=".") as name,
        fresh_disk(Path(name).resolve()) as folder,
    ):
        facts = machine(folder)
        for part in wanted:
            print(f"measuring {part} …", end=" ", file=sys.stderr, flush=True)
            part_began = time.monotonic()
            rows += parts[part](folder)
            print(f"{time.monotonic() - part_began:.0f} s", file=sys.stderr)
    show(rows, facts)
    if options.json:
        numbers = {name: value for row in rows for name, value in row.numbers.items()}
        Path(options.json).write_text(json.dumps(numbers, indent=1))
    if options.write:
        command, minutes = (
            shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
            (time.monotonic() - began) / 60,
        )
        Path(options.write).write_text(markdown(rows, facts, history.add(rows, facts), command, minutes))


if __name__ == "__main__":
    main()
