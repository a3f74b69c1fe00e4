"""Processes that start without the import of receiver, which is most of the cost of a start: a process that has imported it forks.

`python -m tests.support.forking FD` imports, and then forks a process for each request that comes on the socket FD. The process
is a process as any other: its own environment, folder and streams, and `python -m MODULE` run from its beginning. Nothing but
imported modules is there before the fork: no thread, no event loop, no connection, and not MODULE itself.
"""

from __future__ import annotations

import asyncio
import atexit
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import starlette.routing
import typer.main

ROOT = Path(__file__).resolve().parents[2]
_LONGEST = 1 << 20
_IMPORTED = (
    "boto3",
    "psycopg",
    "tenacity",
    "receiver.storage.blobs.s3",
    "receiver.storage.store.postgres",
    "receiver.cli.app",
    "receiver.cli.options",
    "receiver.cli.serve",
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
        said = await ended.reader.read()
        assert said, "the process that forks has died"
        self.returncode = int(said)
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
_asking = threading.Lock()
"""Held from a question to its answer."""


def _forker() -> socket.socket:
    """Return the way to this process's forker, started by the first to ask; it ends when the other end is closed."""
    if os.getpid() not in _forkers:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            command = [sys.executable, "-m", "tests.support.forking", str(its.fileno())]
            child = subprocess.Popen(command, cwd=ROOT, pass_fds=[its.fileno()])
        atexit.register(child.wait, 20)
        atexit.register(ours.close)
        _forkers[os.getpid()] = ours
        _forker_ids.append(child.pid)
    return _forkers[os.getpid()]


_forker_ids: list[int] = []


def spent() -> float:
    """Return the processor time in seconds of this process's forker and of what it forked, once that ended."""
    seconds = 0.0
    for pid in _forker_ids:
        with contextlib.suppress(OSError):
            times = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[11:15]
            seconds += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return seconds


def _ask(forker: socket.socket, asked: bytes, streams: list[int]) -> int:
    with _asking:
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
        return _ask(_forker(), json.dumps(asked).encode(), streams), out, ended
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
            self.returncode = int(os.read(self._ended, 64))
            os.close(self._ended)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


# ---------------------------------------------------------------- in the process that forks


class _Forker:
    """Forks when asked, and tells how each process ended."""

    def __init__(self, asking: socket.socket) -> None:
        self._asking = asking
        self._ended: dict[int, int] = {}
        """Where to write how a process ended."""

    def run(self) -> tuple[str, list[str]] | None:
        """Serve; in a process that was forked, return what it is to run, and None when nobody asks any more."""
        woken, waking = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable, _, _ = select.select([self._asking.fileno(), woken], [], [])
            if woken in readable:
                os.read(woken, 4096)
                self._reap()
            if self._asking.fileno() not in readable:
                continue
            asked, fds, _, _ = socket.recv_fds(self._asking, _LONGEST, 3)
            if not asked:
                self._end_all()
                return None
            out, err, ended = fds
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.dup2(out, 1)
                os.dup2(err, 2)
                for fd in (*fds, woken, waking, *self._ended.values()):
                    os.close(fd)
                self._asking.close()
                return _become(json.loads(asked))
            self._ended[pid] = ended
            os.close(out)
            os.close(err)
            self._asking.send(str(pid).encode())

    def _reap(self) -> None:
        while self._ended:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            ended = self._ended.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # the test did not wait for it
                os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(ended)

    def _end_all(self) -> None:
        for pid in self._ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


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


def main(fd: int) -> None:
    """Fork for whoever holds the other end of the socket `fd`."""
    _import()
    found = _Forker(socket.socket(fileno=fd)).run()
    if found is not None:
        module, words = found
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
