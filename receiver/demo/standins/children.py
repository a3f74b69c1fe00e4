"""Child processes whose JSON lines are heard as they are written; for the demo and for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

Line = dict[str, Any]


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without what would change a receiver's settings."""
    ours = ("PORT", "DATABASE_URL")
    return {k: v for k, v in environ.items() if not k.startswith("RECEIVER") and k not in ours}


class Child:
    """A Python module running as a process; both its outputs go to a file, and JSON lines are remembered."""

    def __init__(self, module: str, arguments: Sequence[str], *, log: str, env: Mapping[str, str]) -> None:
        self.name = module
        self.lines: list[Line] = []
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
        )
        reading = (self._process.stdout, log)
        self._reader = threading.Thread(target=self._read, args=reading, name=f"reads {module}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def wait_for(self, wanted: Callable[[Line], bool], *, seconds: float, after: int = 0) -> Line | None:
        """Return the first fitting line from index `after` on, waiting for it; None when time or the process ended."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for line in self.lines[after:]:
                    if wanted(line):
                        return line
                after = len(self.lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._news.wait(left)

    def stop(self, signum: signal.Signals = signal.SIGTERM, *, seconds: float = 15.0) -> int:
        """Send a signal and return the exit status; killed when it has not ended after `seconds`."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signum)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(seconds)
        return self._process.returncode

    def _read(self, output: IO[bytes], log: str) -> None:
        with output, open(log, "ab", buffering=0) as file:
            for raw in output:
                file.write(raw)
                line = _parsed(raw)
                if line is not None:
                    with self._news:
                        self.lines.append(line)
                        self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
