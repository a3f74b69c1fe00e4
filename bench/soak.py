"""A million callbacks through one process, and what becomes of its memory, its descriptors and its answers meanwhile.

    python -m bench.soak [--count 1000000] [--slice 10] [--write docs/pictures/soak.svg]

Two of three are 2 KB of JSON, one is 8 KB of audio; all of them are delivered. A million takes 5 to 20 minutes and 15 GB of the
folder that this is started in.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import measures
from bench import processes as p

_MIX = (("listen", 2 / 3), ("speech", 1 / 3))
"""What is sent, and its share of the time."""


@dataclass(frozen=True)
class Sample:
    """What was seen at the end of a slice."""

    callbacks: int
    """Answered so far."""
    resident_mib: float
    descriptors: int
    p99_ms: float
    """Of the answers in this slice, the worst of its kinds."""


def soak(folder: Path, count: int, seconds: float) -> list[Sample]:
    """Send `count` callbacks in slices of so many seconds; raises `RuntimeError` unless all are answered 200."""
    samples: list[Sample] = []
    with p.sink(folder) as sink, p.receiver(folder, p.config(folder, destination=sink.port)) as (port, pid):
        sent, watched = 0, psutil.Process(pid)
        while sent < count:
            p99 = 0.0
            for kind, share in _MIX:
                told = measures.load([port], "/callbacks/deepgram", kind, seconds * share)
                sent += int(told["requests"])
                p99 = max(p99, told["p99_ms"])
            resident = watched.memory_info().rss / 2**20
            samples.append(Sample(sent, resident, watched.num_fds(), p99))
            print(
                f"{sent:>9,} {resident:6.1f} MiB {watched.num_fds()} descriptors, ack p99 {p99:.0f} ms",
                file=sys.stderr,
            )
        sink.ask(sent)
        assert sink.told()["seen"] == sent, "each event arrived once"
    return samples


_WIDTH, _HEIGHT, _LEFT, _GAP = 760, 130, 60, 40


def picture(samples: Sequence[Sample]) -> str:
    """Return the samples as SVG: one curve below the other, over the number of callbacks."""
    curves = (
        ("resident memory, MiB", [one.resident_mib for one in samples]),
        ("open descriptors", [float(one.descriptors) for one in samples]),
        ("p99 of the answers, ms", [one.p99_ms for one in samples]),
    )
    height = len(curves) * (_HEIGHT + _GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    last = samples[-1].callbacks
    for number, (name, values) in enumerate(curves):
        top = number * (_HEIGHT + _GAP) + 24
        most = 1.1 * max(values)
        points = " ".join(
            f"{_LEFT + _WIDTH * one.callbacks / last:.1f},{top + _HEIGHT * (1 - value / most):.1f}"
            for one, value in zip(samples, values, strict=True)
        )
        parts += [
            f'<text x="{_LEFT}" y="{top - 6}">{name}</text>',
            f'<path d="M{_LEFT},{top}V{top + _HEIGHT}H{_LEFT + _WIDTH}" fill="none" stroke="#999"/>',
            f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{most:,.0f}</text>',
            f'<text x="{_LEFT - 6}" y="{top + _HEIGHT}" text-anchor="end">0</text>',
            f'<polyline points="{points}" fill="none" stroke="#1565c0" stroke-width="1.5"/>',
        ]
    parts.append(
        f'<text x="{_LEFT + _WIDTH}" y="{height - 8}" text-anchor="end">{last:,} callbacks</text></svg>'
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    """Send, print, perhaps draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--slice", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--write", metavar="FILE", help="draw the curves into this SVG file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="receiver-soak-", dir=".") as name:
        samples = soak(Path(name).resolve(), options.count, options.slice)
    if options.write:
        Path(options.write).write_text(picture(samples))


if __name__ == "__main__":
    main()
