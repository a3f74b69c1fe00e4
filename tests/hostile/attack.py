"""A receiver in a process of its own, strangers who attack it, and the good callbacks that must be taken meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2
import psutil

from receiver.demo.stage import Child, clean_environment
from tests.support.clients import local_client
from tests.support.house import ForkedChild, Said, receiver
from tests.support.raw import head
from tests.support.running import settings_text
from tests.support.senders import Sent, deapi, transcript

MIB = 1024 * 1024
MOST_GROWTH = 200 * MIB
"""Most that strangers may make the process grow by."""
PATIENCE = 10.0
"""Seconds that a provider waits: a good callback must be answered by then, whatever strangers do."""
TOKEN_SECRET = "signs-callback-tokens-and-links-0123456789"


@dataclass
class Target:
    """The process under attack."""

    folder: Path
    port: int
    child: Child

    @property
    def config(self) -> str:
        return str(self.folder / "receiver.toml")

    @property
    def log(self) -> bytes:
        return (self.folder / "receiver.log").read_bytes()

    def run(self, *words: object) -> Said:
        """Run a command on the same settings, in a thread: it has an event loop of its own."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(receiver, "--config", self.config, *words).result()

    def resident(self) -> int:
        return int(psutil.Process(self.child.pid).memory_info().rss)

    def lines(self, event: str) -> int:
        return sum(line.get("event") == event for line in list(self.child.lines))


@contextlib.contextmanager
def target(folder: Path, extra: str = "", *, descriptors: tuple[int, int] | None = None) -> Iterator[Target]:
    """Start receiver with the sources `deepgram` and `deapi`, and end it; `descriptors` are its soft and hard limit."""
    text = settings_text(folder, extra=extra)
    if "[tokens]" not in extra:
        text += f'\n[tokens]\nsecrets = ["{TOKEN_SECRET}"]\n'
    (folder / "receiver.toml").write_text(text)
    words = ["--config", str(folder / "receiver.toml"), "serve", "--port", "0"]
    module = "receiver"
    if descriptors:
        module, words = "tests.hostile.limited", [*map(str, descriptors), *words]
    child = ForkedChild(
        module,
        words,
        log=str(folder / "receiver.log"),
        env=clean_environment(os.environ) | {"RECEIVER__SERVER__STOP_SECONDS": "0.5"},
    )
    try:
        ready = child.wait_for(lambda line: line.get("event") == "receiver.ready", seconds=60)
        assert ready, (folder / "receiver.log").read_text()
        yield Target(folder, ready["port"], child)
    finally:
        child.stop(seconds=3)


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """Let this process open as many connections as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Growth:
    """The most that a process grew by, looked at all the while."""

    def __init__(self, process: Target) -> None:
        self._process = process
        self._first = self.most = process.resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.most = max(self.most, self._process.resident())

    @property
    def bytes(self) -> int:
        return self.most - self._first


@contextlib.asynccontextmanager
async def client(process: Target, *, seconds: float = PATIENCE) -> AsyncIterator[httpx2.AsyncClient]:
    base = f"http://127.0.0.1:{process.port}"
    async with local_client(base_url=base, timeout=seconds) as http:
        yield http


async def send(http: httpx2.AsyncClient, sent: Sent) -> int:
    """Send one callback; return the answer's status, 0 when none came in time."""
    try:
        answer = await http.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    except httpx2.HTTPError:
        return 0
    return answer.status_code


async def send_good(process: Target, count: int = 10, *, seconds: float = PATIENCE) -> Counter[int]:
    """Send good callbacks to both sources; return how often each status came."""
    statuses: Counter[int] = Counter()
    async with client(process, seconds=seconds) as http:
        for number in range(count):
            name = f"{time.monotonic_ns()}-{number}"
            statuses[await send(http, transcript(name))] += 1
            statuses[await send(http, deapi(name))] += 1
    return statuses


def unproved(length: int) -> bytes:
    """Return the head of a callback whose signature is well formed, fresh and made up."""
    return head(
        "/callbacks/deapi",
        {
            "content-type": "application/json",
            "x-deapi-timestamp": str(int(time.time())),
            "x-deapi-signature": "sha256=" + "0" * 64,
            "content-length": str(length),
        },
    )


Stranger = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def strangers(process: Target, count: int, says: bytes = b"") -> AsyncIterator[list[Stranger]]:
    """Open connections that each say the same, read nothing and stay; those that receiver ends are not opened again."""
    opened: list[Stranger] = []
    some = asyncio.Semaphore(100)

    async def begin() -> None:
        async with some:
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection("127.0.0.1", process.port, limit=1024), PATIENCE
                )
            except OSError:
                return
            opened.append((reader, writer))
            with contextlib.suppress(OSError):
                writer.write(says)
                await asyncio.wait_for(writer.drain(), PATIENCE)

    with many_descriptors():
        await asyncio.gather(*(begin() for _ in range(count)))
        try:
            yield opened
        finally:
            for _, writer in opened:
                writer.transport.abort()


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float) -> bool:
    """Look again and again whether a condition holds; return whether it did in time."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)


def only_200(statuses: Counter[int]) -> bool:
    return set(statuses) == {200}
