"""Processes of a benchmark: receiver, the bare baselines, the sink; each ended by its id."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import tool
from bench.load import BASIC, SECRET

ROOT = Path(__file__).resolve().parents[1]
TOKEN_SECRET = "bench-token-secret-0123456789abcdefghij"
APP_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config(folder: Path, *, destination: int | None = None, source: str = "") -> Path:
    """Write a receiver.toml with both providers and perhaps a destination; return its path."""
    text = f"""
data = "{folder / "data"}"
[server]
log = "json"
[tokens]
secrets = ["{TOKEN_SECRET}"]
[sources.deepgram]
provider = "deepgram"
basic = ["{BASIC}"]
max_audio_bytes = 2000000000
[sources.deapi]
provider = "deapi"
secrets = ["{SECRET}"]
{source}
"""
    if destination is not None:
        text += f"""
[destinations.app]
url = "http://127.0.0.1:{destination}/hooks"
secrets = ["{APP_SECRET}"]
allow = ["127.0.0.0/8"]
concurrency = 64
"""
    path = folder / "receiver.toml"
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Version:
    """A checkout of receiver, and the interpreter that has its packages."""

    name: str
    root: Path
    python: str


HERE = Version("here", ROOT, sys.executable)


@contextlib.contextmanager
def process(*command: str, log: Path, root: Path = ROOT, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command in `root` until the block ends, then SIGTERM it and wait."""
    with (
        log.open("a") as out,
        subprocess.Popen(
            command, cwd=root, stderr=out, text=True, stdout=options.pop("stdout", out), **options
        ) as child,
    ):
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


@contextlib.contextmanager
def receiver(
    folder: Path,
    path: Path,
    *args: str,
    sync_ms: float = 0,
    command: str = "serve",
    version: Version = HERE,
) -> Iterator[tuple[int, int]]:
    """Run `receiver serve` (or `work`) of a version; give its port and process id."""
    ready = folder / f"ready-{os.urandom(3).hex()}"
    start = [version.python, "-m", *(["bench.slow_sync", str(sync_ms)] if sync_ms else ["receiver"])]
    flags = (
        ["--port", "0", "--ready-file", str(ready)] if command == "serve" else ["--ready-file", str(ready)]
    )
    words = [*start, "--config", str(path), command, *flags, *args]
    with process(*words, log=folder / "log", root=version.root) as child:
        until = time.monotonic() + 30
        while not ready.exists():
            if child.poll() is not None or time.monotonic() > until:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.01)
        told = json.loads(ready.read_text())
        yield int(told.get("port", 0)), child.pid


@contextlib.contextmanager
def bare(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the bare Starlette route; give its port and process id."""
    port = free_port()
    with process(sys.executable, "-m", "bench.bare", "serve", str(port), log=folder / "log") as child:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("POST", "/bare", b"x")
                connection.getresponse().read()
            except OSError:
                time.sleep(0.02)
            else:
                break
        yield port, child.pid


class Sink:
    """The sink's process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        assert child.stdout is not None
        self.port = int(child.stdout.readline())

    def ask(self, count: int) -> None:
        """Ask to be told when `count` requests have come."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"expect {count}\n")
        self._child.stdin.flush()

    def told(self) -> dict[str, float]:
        """Wait for that."""
        assert self._child.stdout is not None
        answer: dict[str, float] = json.loads(self._child.stdout.readline())
        return answer


@contextlib.contextmanager
def sink(folder: Path) -> Iterator[Sink]:
    """Run the counting sink."""
    words = tool.command("sink")
    with process(*words, log=folder / "log", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        yield Sink(child)


def run_json(*command: str) -> dict[str, Any]:
    """Run a program that prints one JSON line, a module of Python's by `-m`; return the line."""
    words = [sys.executable, *command] if command[0] == "-m" else command
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
