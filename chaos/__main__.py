"""`python -m chaos [--cell NAME] [--seconds N] [--write docs/reliability.md]`: every fault under load, and what became of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path

from chaos.cells import CELLS, Cell
from chaos.fleet import until_up
from chaos.load import Load
from chaos.page import Row, facts, markdown, show
from chaos.stage import Stage, stage

BEFORE, SETTLE, AFTER, LONGEST = 8.0, 3.0, 8.0, 60.0
"""Seconds of load that are measured before a fault, that pass before those, at least after it, and at most."""
DRAIN, LAST_DRAIN = 15.0, 150.0
"""Seconds to wait for all that was acknowledged: after a cell, and after the last. A dead worker's claims hold 34 to 79 s."""


async def measure(on: Stage, cell: Cell, rate: float, seconds: float) -> Row:
    """Run one cell; what is lost is known only after the last drain."""
    oracle, over = on.destination.oracle, asyncio.Event()
    load = Load(cell.name, rate, on.ports, oracle, on.api, on.api_base)
    running = asyncio.create_task(load.run(over))
    try:
        await asyncio.sleep(SETTLE + BEFORE)
        began = time.monotonic()
        before = oracle.rate(began - BEFORE, began)
        remark = await cell.fault(on, seconds)
        end = time.monotonic()
        found = None
        while time.monotonic() - end < (AFTER if found is not None else LONGEST):
            await asyncio.sleep(0.2)
            found = oracle.recovered(end, time.monotonic(), before)
        now = time.monotonic()
        during, after = oracle.rate(began, end), oracle.rate(now - AFTER, now)
        over.set()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await until_up(on.nodes)
    await drained(on, DRAIN)
    return Row(cell, load, before, during, after, found, began, end, remark)


async def drained(on: Stage, seconds: float) -> None:
    """Wait until nothing is owed and the journals are empty, or that time has passed."""
    until = time.monotonic() + seconds
    while (on.destination.oracle.lost() or on.journaled()) and time.monotonic() < until:
        await asyncio.sleep(0.2)


async def run(
    cells: list[Cell], rate: float, seconds: float | None
) -> tuple[list[Row], list[tuple[str, str]]]:
    """Run the cells one after the other over the same processes; judge at the end."""
    rows = []
    async with stage() as on:
        for cell in cells:
            print(f"{cell.name} …", file=sys.stderr, flush=True)
            row = await measure(on, cell, rate, seconds or cell.seconds)
            rows.append(row)
            row.judge(on.destination.oracle)
            print(f"  {row.line()}", file=sys.stderr, flush=True)
        await drained(on, LAST_DRAIN)
        for row in rows:
            row.judge(on.destination.oracle)
        return rows, await facts(on)


def main() -> None:
    """Run, print, perhaps write; the status tells whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cell",
        action="append",
        choices=[cell.name for cell in CELLS],
        help="only this one; may be repeated",
    )
    parser.add_argument("--seconds", type=float, help="how long each fault lasts, in place of its own time")
    parser.add_argument("--rate", type=float, default=60, help="callbacks a second")
    parser.add_argument("--write", metavar="FILE", help="also write the page")
    options = parser.parse_args()
    cells = [cell for cell in CELLS if not options.cell or cell.name in options.cell]

    async def whole() -> tuple[list[Row], list[tuple[str, str]]]:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await run(cells, options.rate, options.seconds)

    with contextlib.suppress(asyncio.CancelledError):
        rows, told = asyncio.run(whole())
        show(rows, told)
        if options.write:
            Path(options.write).write_text(markdown(rows, told, options.rate), "utf-8")
        sys.exit(0 if all(row.holds for row in rows) else 1)
    sys.exit(130)


if __name__ == "__main__":
    main()
