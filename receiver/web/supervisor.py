"""`serve --processes N`: a supervisor and N serving processes that share one port.

The supervisor opens no part and takes no callback. It reserves the port, forks the processes, starts again those that end,
and passes on the signals that stop them. Each process listens on a socket of its own, over which the kernel spreads new
connections (SO_REUSEPORT): none of them waits for a process that died.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable

from msgspec import Struct

from receiver.app.log import LogObserver
from receiver.app.metrics import MetricsObserver, share_metrics
from receiver.core.errors import ReceiverError
from receiver.core.observe import Observers
from receiver.settings.model import Settings
from receiver.web.console.sessions import sessions_of
from receiver.web.server import Terminal, whereabouts, write_ready_file
from receiver.web.sockets import bind_all

Serve = Callable[[Settings, Callable[[], None]], None]
"""Serves by these settings, on a port that others share, until it is stopped; calls the function once it is ready."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds until a process that ended is started again; doubled each time the next one soon ends as well."""
SETTLED_SECONDS = 60.0
"""What lived this long ended for a new reason."""

_PR_SET_PDEATHSIG = 1


class _Slot(Struct):
    """One of the processes, and those that take its place later."""

    number: int
    due: float | None = None
    """When to start it; None while it runs, and before its turn."""
    pid: int = 0
    began: float = 0.0
    ready: bool = False
    pause: float = FIRST_PAUSE


def supervise(settings: Settings, count: int, serve: Serve, *, ready_file: str | None) -> int:
    """Run `serve` in `count` processes until a signal stops all of them; return the exit status, in each process its own.

    The first one starts alone: when it ends before it is ready, so does the supervisor, with the same status. So an error
    that all would meet is told once. Raises `ReceiverError` when a port is not free, or the system is not Linux.
    """
    if not hasattr(signal, "sigtimedwait"):
        raise ReceiverError("--processes needs Linux; without it one process serves")
    supervisor = _Supervisor(settings, count, ready_file)
    slot = None
    try:
        slot = supervisor.run()
    finally:
        if slot is None:
            supervisor.close()
    if slot is not None:  # this is a forked process
        serve(supervisor.settings, supervisor.begin(slot))
    return supervisor.status


class _Supervisor:
    def __init__(self, settings: Settings, count: int, ready_file: str | None) -> None:
        self.settings, self._reserved = _reserve(settings)
        self.status = 0
        self._pid = os.getpid()
        self._ready_file = ready_file
        self._slots = [_Slot(number) for number in range(1, count + 1)]
        self._slots[0].due = 0.0
        self._served = self._stopping = False
        self._signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGRTMIN}
        self._terminal = Terminal()
        self._mask: set[int] = set()
        self._metrics = tempfile.mkdtemp(prefix="receiver-metrics-")
        share_metrics(self._metrics, 0)
        log = LogObserver(style=settings.server.log, level=settings.server.log_level)
        self._observer = Observers([MetricsObserver(), log])

    def run(self) -> _Slot | None:
        """Return None when all have ended, and in each forked process its slot."""
        gc.freeze()  # what a collection does not touch stays shared between the processes
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        while any(slot.pid or slot.due is not None for slot in self._slots):
            for slot in self._slots:
                if slot.due is not None and slot.due <= time.monotonic():
                    slot.due, slot.ready, slot.began = None, False, time.monotonic()
                    sys.stdout.flush()
                    slot.pid = os.fork()
                    if slot.pid == 0:
                        return slot
            self._wait()
        return None

    def begin(self, slot: _Slot) -> Callable[[], None]:
        """Turn the forked process into one that serves; return what tells the supervisor that it is ready."""
        os.setpgid(0, 0)  # Ctrl-C reaches the supervisor alone, which passes it on
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # no process outlives the supervisor
        if os.getppid() != self._pid:
            os._exit(1)
        for sock in self._reserved:
            sock.close()
        share_metrics(self._metrics, slot.number)
        # A reload that comes before it listens to signals waits until then: else it would end here.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask | {signal.SIGHUP})
        return lambda: os.kill(self._pid, signal.SIGRTMIN)

    def close(self) -> None:
        """Give up what only the supervisor holds."""
        for sock in self._reserved:
            sock.close()
        shutil.rmtree(self._metrics, ignore_errors=True)
        if self._ready_file:
            with contextlib.suppress(OSError):
                os.unlink(self._ready_file)

    def _wait(self) -> None:
        """Wait until a process is due, or something happened to one."""
        due = [slot.due for slot in self._slots if slot.due is not None]
        seconds = max(0.0, min(due) - time.monotonic()) if due else 3600.0
        received = signal.sigtimedwait(self._signals, seconds)
        if received is None:
            return
        if received.si_signo == signal.SIGRTMIN:
            self._began(received.si_pid)
        elif received.si_signo == signal.SIGCHLD:
            self._reap()
        elif received.si_signo == signal.SIGHUP and not self._terminal.closed:
            self._pass_on(signal.SIGHUP)  # each reads its settings again
        else:
            self._stopping = True
            for slot in self._slots:
                slot.due = None
            self._pass_on(signal.SIGINT if received.si_signo == signal.SIGINT else signal.SIGTERM)

    def _pass_on(self, signum: signal.Signals) -> None:
        for slot in self._slots:
            if slot.pid:
                os.kill(slot.pid, signum)

    def _began(self, pid: int) -> None:
        for slot in self._slots:
            slot.ready = slot.ready or slot.pid == pid
            if not self._served and not slot.began and not self._stopping:
                slot.due = time.monotonic()
        self._served = True
        if self._ready_file and all(slot.ready for slot in self._slots):
            console = sessions_of(self.settings).on
            write_ready_file(self._ready_file, whereabouts(self.settings, console=console))

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for slot in self._slots:
                    if slot.pid == pid:
                        self._ended(slot, os.waitstatus_to_exitcode(status))

    def _ended(self, slot: _Slot, status: int) -> None:
        pid, slot.pid = slot.pid, 0
        if self._stopping:
            return
        if not self._served:
            self.status = max(status, 1)
            return
        now = time.monotonic()
        pause = FIRST_PAUSE if now - slot.began >= SETTLED_SECONDS else slot.pause
        slot.due, slot.pause = now + pause, min(2 * pause, LONGEST_PAUSE)
        how = {"signal": signal.Signals(-status).name} if status < 0 else {"status": status}
        self._observer.note("error", "process.ended", pid=pid, **how, again_in_seconds=pause)


def _reserve(settings: Settings) -> tuple[Settings, list[socket.socket]]:
    """Hold the ports without listening; return the settings with the port that is bound. Raises `ReceiverError`."""
    probes = bind_all(settings, shared=False)  # would fail where other processes share the port already
    server = settings.server.model_copy(update={"port": probes[0].getsockname()[1]})
    for probe in probes:
        probe.close()
    settings = settings.model_copy(update={"server": server})
    return settings, bind_all(settings, shared=True)
