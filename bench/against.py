"""This checkout beside an older one: the same load on both, round by round, so that the machine's moods fall on both.

    python -m bench.against REVISION [--rounds 5] [--seconds 3] [--only JSON,audio]

The older one is cloned into a folder that goes afterwards, with a virtual environment of its own from its lock file.
Compare the ratios: of rates (more is better) and of receiver's processor time for each callback or delivery (less is better).
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from bench import processes as p
from bench.__main__ import fresh_disk
from bench.measures import cpu, load
from bench.servers import Servers, servers

_EMBEDDED, _FLEET = "SQLite and a folder", "PostgreSQL and S3"
_SENT = {
    "JSON": ("listen", "/callbacks/deepgram"),
    "signed": ("deapi", "/callbacks/deapi"),
    "audio": ("speech", "/callbacks/deepgram"),
    "long": ("long", "/callbacks/deepgram"),
}
_CALLED = {
    "JSON": "2 KB of JSON",
    "signed": "2 KB of signed JSON",
    "audio": "8 KB of audio",
    "long": "200 KB of audio",
}


@dataclass
class Round:
    """What one version did in one round."""

    rate: float
    cpu_us: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0


@dataclass
class Road:
    """One line of the table: the rounds of both versions, the older first."""

    what: str
    rounds: list[tuple[Round, Round]] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Return medians of both and the medians of the rounds' ratios."""
        sides = [[pair[side] for pair in self.rounds] for side in (0, 1)]
        words = [
            f"{median(one.rate for one in side):,.0f}/s, {median(one.cpu_us for one in side):,.0f} µs"
            + (
                f", p50 {median(one.p50_ms for one in side):.0f}, p99 {median(one.p99_ms for one in side):.0f} ms"
                if side[0].p50_ms
                else ""
            )
            for side in sides
        ]
        ratios = (
            median(new.rate / old.rate for old, new in self.rounds),
            median(new.cpu_us / old.cpu_us for old, new in self.rounds),
        )
        return [self.what, *words, *(f"{ratio:.2f}" for ratio in ratios)]


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[p.Version]:
    """Clone a revision, and install what its lock file says."""
    with tempfile.TemporaryDirectory(prefix="receiver-against-") as name:
        root = Path(name, "receiver")
        subprocess.run(["git", "clone", "--quiet", str(p.ROOT), str(root)], check=True)
        subprocess.run(["git", "checkout", "--quiet", revision], cwd=root, check=True)
        subprocess.run([sys.executable, "-m", "venv", str(root / ".venv")], check=True)
        python = str(root / ".venv/bin/python")
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(root / "requirements.lock")], check=True)
        yield p.Version(revision, root, python)


class Place:
    """Where the data of one version is for one road: a folder, or a database and a prefix in a bucket."""

    def __init__(self, folder: Path, version: p.Version, up: Servers | None, port: int | None = None) -> None:
        """`up` has PostgreSQL and S3, else all is in `folder`; `port` is the destination's."""
        self.folder, self.version = folder / f"{version.name}-{len(list(folder.iterdir()))}", version
        if up is None:
            self.folder.mkdir()
            self.path = p.config(self.folder, destination=port)
        else:
            url = up.database.url(up.database.new_database())
            self.path = up.config(self.folder, url, destination=port)
            words = [version.python, "-m", "receiver", "--config", str(self.path), "migrate"]
            subprocess.run(words, cwd=version.root, check=True, capture_output=True)

    def run(self, *args: str, command: str = "serve") -> contextlib.AbstractContextManager[tuple[int, int]]:
        """Run it; gives its port and its process id."""
        return p.receiver(self.folder, self.path, *args, command=command, version=self.version)


def callbacks(
    place: Path, versions: list[p.Version], up: Servers | None, kind: str, options: argparse.Namespace
) -> Road:
    """Send callbacks to both, by turns."""
    sent, path = _SENT[kind]
    road = Road(f"callbacks, {_CALLED[kind]}, {_FLEET if up else _EMBEDDED}")
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(Place(place, version, up).run("--no-work")) for version in versions]
        for port, _ in running:
            load([port], path, sent, 1)
        for turn in range(options.rounds):
            seen = {}
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                port, pid = running[side]
                before = cpu(pid)
                told = load([port], path, sent, options.seconds)
                cost = 1e6 * (cpu(pid) - before) / told["requests"]
                seen[side] = Round(told["rate"], cost, told["p50_ms"], told["p99_ms"])
            road.rounds.append((seen[0], seen[1]))
    return road


def deliveries(
    place: Path, versions: list[p.Version], up: Servers | None, options: argparse.Namespace
) -> Road:
    """Let both empty a backlog that each has recorded itself, by turns."""
    road = Road(f"deliveries, {_FLEET if up else _EMBEDDED}")
    with p.sink(place) as sink:
        for turn in range(options.rounds):
            order = versions if turn % 2 == 0 else versions[::-1]
            seen = {
                version.name: _emptied(Place(place, version, up, sink.port), sink, options)
                for version in order
            }
            road.rounds.append((seen[versions[0].name], seen[versions[1].name]))
    return road


def _emptied(place: Place, sink: p.Sink, options: argparse.Namespace) -> Round:
    with place.run("--no-work") as (port, _):
        count = int(load([port], "/callbacks/deepgram", "listen", options.seconds)["requests"])
    sink.ask(count)
    with place.run(command="work") as (_, pid):
        began = cpu(pid)
        told = sink.told()
        cost = 1e6 * (cpu(pid) - began) / count
    return Round(count / (told["last"] - told["first"]), cost)


def starts(place: Path, versions: list[p.Version], options: argparse.Namespace) -> list[list[str]]:
    """Start both, by turns: processor time until they are ready, and their resident memory then."""
    seen: dict[str, list[tuple[float, float]]] = {version.name: [] for version in versions}
    for _ in range(options.rounds):
        for version in versions:
            with Place(place, version, None).run() as (_, pid):
                seen[version.name].append((1000 * cpu(pid), psutil.Process(pid).memory_info().rss / 2**20))
    rows = []
    for part, (what, unit) in enumerate(
        (("start to ready, processor", "ms"), ("resident when ready", "MiB"))
    ):
        sides = [[one[part] for one in seen[version.name]] for version in versions]
        ratio = median(new / old for old, new in zip(*sides, strict=True))
        rows.append([what, *(f"{median(side):,.0f} {unit}" for side in sides), "", f"{ratio:.2f}"])
    return rows


def measure(folder: Path, versions: list[p.Version], options: argparse.Namespace) -> list[list[str]]:
    """Measure what is wanted; return the table's lines."""
    wanted = options.only.split(",")
    lines = starts(folder, versions, options) if "start" in wanted else []
    with contextlib.ExitStack() as stack:
        for up in (None, stack.enter_context(servers())):
            for kind in _SENT:
                if kind in wanted and not (up and kind == "signed"):
                    lines.append(callbacks(folder, versions, up, kind, options).cells())
                    print(*lines[-1], sep=" | ", file=sys.stderr)
            if "deliveries" in wanted:
                lines.append(deliveries(folder, versions, up, options).cells())
                print(*lines[-1], sep=" | ", file=sys.stderr)
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="what to compare with: a commit, a tag, a branch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each road (5)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="seconds of load for each version and round (3)"
    )
    parser.add_argument(
        "--only", default=",".join(["start", *_SENT, "deliveries"]), help="which roads (%(default)s)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        checkout(options.revision) as older,
        tempfile.TemporaryDirectory(prefix="receiver-bench-", dir=".") as name,
        fresh_disk(Path(name).resolve()) as folder,
    ):
        lines = measure(folder, [older, p.HERE], options)
    table = Table(title=f"{options.revision} and this checkout")
    for heading in ("what", options.revision, "here", "rate", "processor"):
        table.add_column(heading)
    for line in lines:
        table.add_row(*line)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
