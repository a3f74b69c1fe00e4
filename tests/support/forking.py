"""Processes that start without the import of receiver, which is most of the cost of a start: a process that has imported it forks.

One for the whole run, kept as its servers are, imports and then forks a process for each request that comes on its socket. The
process is a process as any other: its own environment, folder and streams, and `python -m MODULE` run from its beginning. Nothing
but imported modules is there before the fork: no thread, no event loop, no connection, and not MODULE itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import starlette.routing
import typer.main

from tests.support import keeper

ROOT = Path(__file__).resolve().parents[2]
_LONGEST = 1 << 20
_IMPORTED = (
    "boto3",
    "psycopg",
    "tenacity",
    "receiver.storage.blobs.s3",
    "receiver.storage.store.postgres",
    "receiver.storage.store.sqlite",
    "receiver.cli.app",
    "receiver.cli.options",
    "receiver.cli.run",
    "receiver.web.app",
    "receiver.web.server",
    "receiver.app.check",
    "receiver.demo.application",
    "receiver.demo.simulate",
    "receiver.app.wiring",
    "uvicorn.loops.asyncio",
    "uvicorn.protocols.http.httptools_impl",
)


class _Pipe(asyncio.StreamReaderProtocol):
    """Reads a pipe to its end, whoever takes what came."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=1 << 30)
        super().__init__(self.reader)
        self.closed = asyncio.Event()

    @classmethod
    async def open(cls, fd: int) -> _Pipe:
        loop = asyncio.get_running_loop()
        _, pipe = await loop.connect_read_pipe(cls, os.fdopen(fd, "rb", 0))
        return pipe

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.closed.set()


class Forked:
    """One process, waited for as one of asyncio's own is."""

    def __init__(self, pid: int, stdout: _Pipe, ended: _Pipe) -> None:
        self.pid = pid
        self.stdout = stdout.reader
        self.returncode: int | None = None
        self._ending = asyncio.create_task(self._note_end(stdout, ended))

    async def _note_end(self, stdout: _Pipe, ended: _Pipe) -> int:
        self.returncode = _exit_code(await ended.reader.read())
        # A loop that ended before the pipes did would leave their transports open.
        await stdout.closed.wait()
        await ended.closed.wait()
        return self.returncode

    async def wait(self) -> int:
        """Wait until it and its output are at their end; return its exit code (negative: the signal)."""
        return await asyncio.shield(self._ending)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it is gone."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


_forkers: dict[int, socket.socket] = {}
"""The way of a process to the forker: a fork has its own."""
_asking = threading.Lock()
"""Held from the first way to the forker, and from a question to its answer."""
_spent = [0.0]


def _forker() -> socket.socket:
    if os.getpid() not in _forkers:
        way = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        way.connect(keeper.server("forker")["socket"])
        _forkers[os.getpid()] = way
    return _forkers[os.getpid()]


def spent() -> float:
    """Return the processor time in seconds of the processes that this one had forked and that ended."""
    return _spent[0]


def _exit_code(said: bytes) -> int:
    """Read what the forker tells of a process that ended; count its processor time."""
    assert said, "the process that forks has died"
    code, seconds = said.split()
    _spent[0] += float(seconds)
    return int(code)


def _ask(asked: bytes, streams: list[int]) -> int:
    with _asking:
        forker = _forker()
        socket.send_fds(forker, [asked], streams)
        return int(forker.recv(64))


def _fork(
    module: str, words: Sequence[str], environ: Mapping[str, str], folder: Path, errors: int | None
) -> tuple[int, int, int]:
    """Return a new process's id, its standard output, and where its exit code will be read."""
    out, its_out = os.pipe()
    ended, its_ended = os.pipe()
    asked = {"module": module, "words": list(words), "environ": dict(environ), "folder": str(folder)}
    streams = [its_out, its_out if errors is None else errors, its_ended]
    try:
        return _ask(json.dumps(asked).encode(), streams), out, ended
    finally:
        os.close(its_out)
        os.close(its_ended)


async def start(
    module: str,
    words: Sequence[str],
    environ: Mapping[str, str],
    *,
    folder: Path = ROOT,
    errors: int | None = 2,
) -> Forked:
    """Run `python -m module words` in `folder`; what it prints is in `stdout`, its errors too where `errors` is None."""
    pid, out, ended = await asyncio.to_thread(_fork, module, words, environ, folder, errors)
    return Forked(pid, await _Pipe.open(out), await _Pipe.open(ended))


class ForkedPopen:
    """One process, used as one of `subprocess`; its errors are in `stdout` too, unless another place is given."""

    def __init__(
        self, module: str, words: Sequence[str], environ: Mapping[str, str], errors: int | None = None
    ) -> None:
        self.pid, out, self._ended = _fork(module, words, environ, Path.cwd(), errors)
        self.stdout = os.fdopen(out, "rb")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = _exit_code(os.read(self._ended, 64))
            os.close(self._ended)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


# ---------------------------------------------------------------- in the process that forks


class _Forker:
    """Forks when asked, and tells how each process ended."""

    def __init__(self, listening: socket.socket, owner: int) -> None:
        self._listening = listening
        self._owner = os.pidfd_open(owner)
        self._askers: dict[int, socket.socket] = {}
        self._ended: dict[int, tuple[int, int]] = {}
        """By process: who asked for it, and where to write how it ended."""

    def run(self) -> tuple[str, list[str]] | None:
        """Serve; in a process that was forked, return what it is to run, and None when the run of tests is over."""
        woken, waking = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        listening = self._listening.fileno()
        while True:
            readable, _, _ = select.select([self._owner, woken, listening, *self._askers], [], [])
            if self._owner in readable:
                self._end(self._ended)
                return None
            if woken in readable:
                os.read(woken, 4096)
                self._reap()
            if listening in readable:
                asker, _ = self._listening.accept()
                self._askers[asker.fileno()] = asker
            for fd in self._askers.keys() & readable:
                found = self._answer(fd, (woken, waking))
                if found is not None:
                    return found

    def _answer(self, asker: int, own: tuple[int, ...]) -> tuple[str, list[str]] | None:
        """Fork; return what to run in the new process."""
        asked, fds, _, _ = socket.recv_fds(self._askers[asker], _LONGEST, 3)
        if not asked:
            self._end([pid for pid, (whose, _) in self._ended.items() if whose == asker])
            self._askers.pop(asker).close()
            return None
        out, err, ended = fds
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(out, 1)
            os.dup2(err, 2)
            for fd in (*fds, *own, self._owner, *(ended for _, ended in self._ended.values())):
                os.close(fd)
            for each in (self._listening, *self._askers.values()):
                each.close()
            return _become(json.loads(asked))
        self._ended[pid] = (asker, ended)
        os.close(out)
        os.close(err)
        self._askers[asker].send(str(pid).encode())
        return None

    def _reap(self) -> None:
        while self._ended:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            _, ended = self._ended.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # the test did not wait for it
                os.write(
                    ended, f"{os.waitstatus_to_exitcode(status)} {usage.ru_utime + usage.ru_stime}".encode()
                )
            os.close(ended)

    def _end(self, pids: Iterable[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def _become(asked: dict[str, Any]) -> tuple[str, list[str]]:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    # The forker's own may be files, where these are pipes.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end, as Python's own are
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return asked["module"], asked["words"]


def _import() -> None:
    for name in _IMPORTED:
        __import__(name)
    from receiver.app.check import all_codes
    from receiver.cli.app import app
    from receiver.outbound.client import trust
    from receiver.web.api.routes import OPERATIONS
    from receiver.web.api.serving import PREFIX

    trust(None)  # the system's certificate authorities are read once
    all_codes()  # every provider and kind of destination is imported
    dict(typer.main.get_group(app).commands)  # and every command made
    for operation in OPERATIONS:
        starlette.routing.compile_path(f"{PREFIX}v1{operation.path}")  # which `re` keeps
    gc.collect()
    gc.freeze()  # so that collecting garbage does not copy what the processes have in common


def main(owner: int, folder: Path) -> None:
    """Fork for whoever connects, until the process `owner` is gone."""
    _import()
    path = folder / "forker.socket"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(path))
    listening.listen()
    print(json.dumps({"socket": str(path)}), flush=True)
    found = _Forker(listening, owner).run()
    if found is None:
        keeper.remove("forker", folder)
        return
    module, words = found
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[2]), Path(sys.argv[3]))
