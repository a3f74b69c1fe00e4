"""Receiver as many processes: each with its own folder, started again whenever it ends, as a supervisor would."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import s3

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.3
"""Seconds before an ended process is started again."""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Let the kernel end this child with its parent, whatever way that ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class Node:
    """One process: `serve --no-work` if it has a port, else `work`."""

    name: str
    folder: Path
    config: Path
    port: int = 0
    child: asyncio.subprocess.Process | None = None
    starts: int = 0
    held: bool = False
    """Not to be started again for now."""
    _keeper: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def _ready(self) -> Path:
        return self.config.with_suffix(".ready")

    @property
    def up(self) -> bool:
        """True when it runs and said that it is ready."""
        return self.child is not None and self.child.returncode is None and self._ready.exists()

    def journaled(self) -> int:
        """Return how many callbacks lie in its journal."""
        return sum(1 for _ in (self.folder / "journal").glob("*.json"))

    def start(self) -> None:
        """Start it, and again whenever it ends."""
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        command = ["serve", "--no-work", "--port", str(self.port)] if self.port else ["work"]
        while True:
            while self.held:
                await asyncio.sleep(0.05)
            self._ready.unlink(missing_ok=True)
            with self.config.with_suffix(".log").open("ab") as log:
                self.child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "receiver.cli.app", "--config", str(self.config)),
                    *(*command, "--ready-file", str(self._ready)),
                    cwd=ROOT,
                    env=s3.environment(**s3.credentials()),
                    stdout=log,
                    stderr=log,
                    preexec_fn=_end_with_parent,
                )
            self.starts += 1
            await self.child.wait()
            await asyncio.sleep(PAUSE)

    def kill(self) -> None:
        """SIGKILL."""
        self._ready.unlink(missing_ok=True)
        if self.child is not None and self.child.returncode is None:
            self.child.kill()

    async def stop(self) -> None:
        """End it for good: SIGTERM, and SIGKILL if that does not do."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self.child is None or self.child.returncode is not None:
            return
        self.child.terminate()
        try:
            async with asyncio.timeout(15):
                await self.child.wait()
        except TimeoutError:
            self.child.kill()
            await self.child.wait()


async def until_up(nodes: list[Node], seconds: float = 60) -> None:
    """Wait until all are ready."""
    async with asyncio.timeout(seconds):
        while not all(node.up for node in nodes):
            await asyncio.sleep(0.1)
