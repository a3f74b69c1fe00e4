"""`python -m bench.calls [-v]`: how many calls, functions and files of receiver one callback takes, and one delivery.

A count, not a time: it tells how much of the code somebody has to know who follows a callback or a delivery. The callback is one
speech of Deepgram's with its audio in the body, on SQLite and a folder, then a transcript; the delivery is one event to one HTTP
destination.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import receiver
from receiver.core.clock import wall_clock
from tests.support.running import APP_SECRET, BASIC, Running, running
from tests.support.senders import Sent, speech, transcript
from tests.support.sink import Sink

PACKAGE = str(Path(receiver.__file__).parent)
WARM = 3
_CLAIM = ("storage/store/queue.py", "Queue.claim")
TRIES = 5
"""Deliveries that are counted; of most, some work in the background is counted as well."""


class Tracer:
    """Counts calls into the package, in every thread, while it is on. A coroutine counts once, however often it waits."""

    def __init__(self) -> None:
        self.on = False
        self.calls: Counter[tuple[str, str]] = Counter()

    def install(self) -> None:
        """Watch this thread and those that begin from now on."""
        threading.setprofile(self._seen)
        sys.setprofile(self._seen)

    def remove(self) -> None:
        """Stop watching."""
        sys.setprofile(None)
        threading.setprofile(None)

    def _seen(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if self.on and event == "call" and frame.f_lasti <= 4 and code.co_filename.startswith(PACKAGE):
            self.calls[code.co_filename.removeprefix(PACKAGE + "/"), code.co_qualname] += 1

    def summary(self, name: str, *, verbose: bool) -> str:
        """Return what was counted, in one line, and the counts of each function if `verbose`."""
        files = {file for file, _ in self.calls}
        lines = [f"one {name}: {self.calls.total()} calls, {len(self.calls)} functions, {len(files)} files"]
        if verbose:
            lines += [
                f"  {count:3} {file} {function}" for (file, function), count in sorted(self.calls.items())
            ]
        return "\n".join(lines)


def _settings(folder: Path, *, destination: str = "") -> str:
    """Return a receiver.toml with one source and, if given, one destination."""
    text = f"""
data = "{folder / "data"}"
[sources.deepgram]
provider = "deepgram"
basic = ["{BASIC}"]
"""
    if destination:
        text += f"""
[destinations.app]
url = "{destination}"
secrets = ["{APP_SECRET}"]
retry = {{retries = 1, wait = 1}}
allow = ["127.0.0.0/8"]
"""
    return text


async def _send(up: Running, request: Sent) -> None:
    answer = await up.client.request(
        request.method, request.path, content=request.body, headers=request.headers
    )
    assert answer.status_code == 200, answer.text


async def callback(folder: Path, tracer: Tracer, make: Callable[[str], Sent] = speech) -> None:
    """Count one callback while nothing is delivered."""
    async with running(folder, _settings(folder), work=False) as up:
        for number in range(WARM):
            await _send(up, make(f"warm-{number}"))
        tracer.on = True
        await _send(up, make("counted"))
        tracer.on = False


async def json(folder: Path, tracer: Tracer) -> None:
    """Count one callback that is a transcript."""
    await callback(folder, tracer, transcript)


async def delivery(folder: Path, tracer: Tracer) -> None:
    """Count one delivery, from its claim to the report that it is settled: the least of several."""
    async with Sink() as sink, running(folder, _settings(folder, destination=sink.url)) as up:
        for number in range(WARM):
            await _send(up, speech(f"warm-{number}"))
        await up.seen.until(lambda: len(up.seen.attempts) == WARM)
        store, found = up.receiver.store, []
        for number in range(WARM + 1, WARM + 1 + TRIES):
            await store.replay([up.seen.attempts[0].delivery_id], now=wall_clock())
            await asyncio.sleep(0.05)  # what the replay was for is over
            tracer.calls = Counter()
            up.receiver.relay.wake(["app"])
            tracer.on = True
            await up.seen.until(partial(_settled, up, number))
            tracer.on = False
            if _CLAIM in tracer.calls:  # else the lane had looked by itself before
                found.append(tracer.calls)
        tracer.calls = min(found, key=Counter.total)


def _settled(up: Running, count: int) -> bool:
    return len(up.seen.attempts) == count


def main() -> None:
    """Print these counts, and those of each function with `-v`."""
    for what in (callback, json, delivery):
        tracer = Tracer()
        tracer.install()
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(what(Path(folder), tracer))
        tracer.remove()
        print(tracer.summary(what.__name__, verbose="-v" in sys.argv))


if __name__ == "__main__":
    main()
