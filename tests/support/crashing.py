"""`python -m tests.support.crashing STEP WHEN CONFIG`: `receiver serve`, killed by SIGKILL at one step of the walk.

STEP names a port and its method (`store.record`); WHEN is `before`, `after` or `never`. The kill comes from inside the process,
at the exact call, so nothing runs after it: no handler, no flush, no atexit.

The environment may say more: CRASHING_STORE_OUT=N lets the first N records fail as an outage does (`all`: every one), and
CRASHING_NO_SYNC=all takes `os.fsync` away, CRASHING_NO_SYNC=folders that of folders only; CRASHING_PASSES=N lets the step pass
N times before it kills; CRASHING_AHEAD=MS gives it a clock that runs at the usual speed and is wrong by so much.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from receiver.app.wiring import Ports, Timing, build, open_receiver
from receiver.core.clock import wall_clock
from receiver.core.errors import StoreUnavailable
from receiver.settings.load import parse
from receiver.storage import journal
from receiver.storage.blobs import file_group, local
from receiver.system import body_buffer, files
from receiver.web.app import create_app

SPEED = 60
"""How much faster this process's clock runs: the lease of a killed worker ends within a second of the test's time."""


def fast_clock() -> int:
    """Return epoch milliseconds of a clock that left the wall's at CRASHING_SINCE and runs `SPEED` times as fast."""
    since = int(os.environ["CRASHING_SINCE"])
    return since + (wall_clock() - since) * SPEED


def _clock() -> Callable[[], int]:
    ahead = os.environ.get("CRASHING_AHEAD")
    if ahead is None:
        return fast_clock
    from receiver.storage.store.postgres import PostgresStore

    def wrong_clock() -> int:
        return wall_clock() + int(ahead)

    # The whole process's clock is wrong: what the adapter compares with the database's as well.
    defaults = PostgresStore.__init__.__kwdefaults__
    assert defaults is not None
    defaults["clock"] = wrong_clock
    return wrong_clock


STEPS = (
    "deepgram.admit",
    "deepgram.verify",
    "deepgram.normalize",
    "body.finish",
    "blobs.put",
    "file.write",
    "file.sync",
    "file.rename",
    "folder.sync",
    "store.record",
    "answer.send",
    "store.claim",
    "destination.send",
    "store.settle",
)
ON_DISK = ("file.write", "file.sync", "file.rename", "folder.sync")
"""Steps of storing audio in a folder; a bucket has none of them."""
PULL = (
    ("store.defer", 0),
    ("store.claim_pickups", 0),
    ("provider.collect", 0),
    ("provider.collect", 2),
    ("download.finish", 3),
    ("blobs.put", 0),
    ("folder.sync", 2),
    ("store.settle_pickup", 4),
    ("settle.transact", 1),
)
"""Steps of the pull road, each with how many times it passes first: the killed one is another provider's, or not the first attempt.
`settle.transact` is inside the transaction, between the attempt and the event that it ends with."""


JOURNAL = (
    ("journal.keep", "before"),
    ("journal.commit", "before"),
    ("journal.commit", "after"),
    ("journal.sync", "after"),
)
"""Moments of keeping a callback in the journal; `commit` is the second of two renames, which makes it count."""
DRAIN = (("journal.remove", "before"), ("journal.unlink", "after"), ("journal.remove", "after"))
"""Moments of taking it out again, once recorded; `unlink` removes the commit, with the body still there."""


SHARED = (
    *(("put.first", "before"), ("put.first", "after")),
    *(("commit.recorded", "before"), ("commit.recorded", "after")),
)
"""Moments that only S3 and PostgreSQL have: before and after the first try of a put, and the COMMIT of a transaction that
recorded something to deliver."""


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Dying:
    """Stands before a port and dies at one of its methods."""

    def __init__(self, inner: Any, method: str, when: str) -> None:
        self._inner, self._method, self._when = inner, method, when

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method:
            return found
        return _deadly(found, self._when)


_passes = [int(os.environ.get("CRASHING_PASSES", "0"))]


def _now() -> bool:
    """Tell whether this time is the one that kills."""
    _passes[0] -= 1
    return _passes[0] < 0


def _deadly(call: Callable[..., Any], when: str) -> Callable[..., Any]:
    if asyncio.iscoroutinefunction(call):

        async def deadly(*args: Any, **kwargs: Any) -> Any:
            if when == "before" and _now():
                die()
            result = await call(*args, **kwargs)
            # An empty claim is no step of anybody's walk.
            if when == "after" and result != [] and _now():
                die()
            return result

        return deadly

    def deadly_sync(*args: Any, **kwargs: Any) -> Any:
        if when == "before" and _now():
            die()
        result = call(*args, **kwargs)
        if when == "after" and _now():
            die()
        return result

    return deadly_sync


class _Out:
    """A store that is out for the first `times` records and deferrals."""

    def __init__(self, inner: Any, times: float) -> None:
        self._inner, self._left = inner, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def record(self, recording: Any) -> Any:
        self._fail()
        return await self._inner.record(recording)

    async def defer(self, deferral: Any) -> Any:
        self._fail()
        return await self._inner.defer(deferral)

    def _fail(self) -> None:
        if self._left > 0:
            self._left -= 1
            raise StoreUnavailable


def shape(step: str, when: str) -> Callable[[Ports], Ports]:
    """Return what wraps the port that `step` names."""
    part, method = step.split(".")
    out = os.environ.get("CRASHING_STORE_OUT", "0")

    def wrap(ports: Ports) -> Ports:
        if out != "0":
            store: Any = _Out(ports.store, float("inf" if out == "all" else out))
            ports.store = store
        if when == "never":
            return ports

        def dying(inner: Any) -> Any:
            return _Dying(inner, method, when)

        if part == "store":
            ports.store = dying(ports.store)
        elif part == "blobs":
            ports.blobs = dying(ports.blobs)
        elif part == "deepgram":
            ports.providers = {name: dying(p) for name, p in ports.providers.items()}
        elif part == "provider":
            ports.pulls = {name: dying(p) for name, p in ports.pulls.items()}
        elif part == "destination":
            ports.destinations = {name: dying(d) for name, d in ports.destinations.items()}
        return ports

    return wrap


def _patch_inside(step: str, when: str) -> None:
    """Steps inside an adapter, between two system calls of one promise."""
    if step == "folder.sync":
        local.sync_folder = file_group.sync_folder = _deadly(files.sync_folder, when)  # type: ignore[attr-defined]
    elif step in ON_DISK:
        method = step.removeprefix("file.")
        setattr(file_group.NewFile, method, _deadly(getattr(file_group.NewFile, method), when))
    if step == "put.first":
        from receiver.storage.blobs.s3_signed import FirstTries

        FirstTries.put = _deadly(FirstTries.put, when)  # type: ignore[method-assign]
    if step == "body.finish":
        body_buffer._Writer.finish = _deadly(body_buffer._Writer.finish, when)  # type: ignore[method-assign]
    if step == "download.finish":
        from receiver.core.fetch import Downloaded
        from receiver.outbound import fetcher

        vars(fetcher)["Downloaded"] = _deadly(Downloaded, when)
    if step == "settle.transact":
        from receiver.storage.store import pickups

        pickups._end = _deadly(pickups._end, when)
    if step == "commit.recorded":
        _patch_commit(when)
    if step == "journal.keep":
        journal.Journal._keep = _deadly(journal.Journal._keep, when)  # type: ignore[method-assign]
    if step == "journal.commit":
        os.rename = _deadly_for(os.rename, lambda _, new: str(new).endswith(".json"), when)
    if step == "journal.sync":
        journal.sync_folder = _deadly(files.sync_folder, when)  # type: ignore[attr-defined]
    if step == "journal.remove":
        journal.Journal._remove = _deadly(journal.Journal._remove, when)  # type: ignore[method-assign]
    if step == "journal.unlink":
        os.unlink = _deadly_for(os.unlink, lambda path: str(path).endswith(".json"), when)


def _patch_commit(when: str) -> None:
    from receiver.storage.store.postgres import PostgresBackend

    real = PostgresBackend.commit
    deadly = _deadly(real, when)

    def commit(self: PostgresBackend) -> None:
        recorded = self._session is not None and bool(self._session.changes)
        (deadly if recorded else real)(self)

    PostgresBackend.commit = commit  # type: ignore[method-assign]


def _without_sync(of: str) -> None:
    real = os.fsync
    if of == "all":
        os.fsync = lambda fd: None
    elif of == "folders":
        os.fsync = lambda fd: None if stat.S_ISDIR(os.fstat(fd).st_mode) else real(fd)  # type: ignore[arg-type]


def _deadly_for(call: Callable[..., Any], chosen: Callable[..., bool], when: str) -> Callable[..., Any]:
    deadly = _deadly(call, when)
    return lambda *args, **kwargs: (deadly if chosen(*args) else call)(*args, **kwargs)


async def main(step: str, when: str, config: str) -> None:
    """Serve until killed; prints `ready PORT` once it listens."""
    settings = parse(Path(config).read_text("utf-8"), os.environ, lambda name: Path(name).read_text("utf-8"))
    if when != "never":
        _patch_inside(step, when)
    _without_sync(os.environ.get("CRASHING_NO_SYNC", ""))
    timing = Timing(drain=(0.05, 0.2))
    receiver = build(settings, observers=[], clock=_clock(), shape=shape(step, when), timing=timing)
    async with open_receiver(receiver):
        app: Any = create_app(receiver)
        if step == "answer.send" and when != "never":
            app = _dying_answer(app, when)
        server = uvicorn.Server(
            uvicorn.Config(
                app, port=0, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False
            )
        )
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        print(f"ready {port}", flush=True)
        await task


def _dying_answer(app: Any, when: str) -> Any:
    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def deadly(message: Any) -> None:
            if message["type"] == "http.response.body" and when == "before":
                die()
            await send(message)
            if message["type"] == "http.response.body" and when == "after":
                die()

        await app(scope, receive, deadly)

    return wrapped


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
