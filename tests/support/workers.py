"""`-n N`: the tests run in N processes, each forked from the one that has collected them, which takes seconds.

The first process hands out units, a file's tests or a single one, and reports what the others tell. A worker asks for its next
unit when the last test of its unit begins: only who knows the next test knows which fixtures may stay.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pytest
from _pytest.config import create_terminal_writer

from tests.support import keeper  # noqa: F401 - the run's servers end with this process, not with the worker that starts them

_SLOW = ("tests/crash/", "tests/flow/")
"""Folders whose tests are handed out one by one."""
_TOGETHER = {
    f"tests/{name}.py"
    for name in (
        "crash/test_pull_walk",
        "flow/test_cli_check",
        "flow/test_console",
        "flow/test_console_browser",
        "flow/test_postgres_silence",
        "flow/test_pull_secrets",
        "flow/test_second_look",
    )
}
"""Files there whose tests share what takes long to start: a receiver, a browser, a server."""
_LONG = (
    "tests/crash/test_storm.py",
    "tests/crash/test_takeover.py",
    "tests/flow/test_demo.py",
    "tests/flow/test_fleet.py",
    "tests/flow/test_ingress.py",
    "tests/crash/",
)
"""What comes first, the longest at the top: begun last, one of them would keep a single worker busy."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take `-n N`."""
    group = parser.getgroup("workers", "several processes")
    group._addoption("-n", dest="workers", type=int, default=0, help="Processes that run tests; 0: this one")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the tests in workers, unless none are wanted or nothing is to run."""
    count = session.config.getoption("workers")
    if not count or session.testsfailed or session.config.option.collectonly:
        return None
    _Run(session).run(count)
    return True


def _units(items: list[pytest.Item]) -> deque[list[int]]:
    """Return the places of tests in `items` that one worker runs after each other, in the order they are handed out."""
    found: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        file = item.nodeid.partition("::")[0]
        unit = item.nodeid if file.startswith(_SLOW) and file not in _TOGETHER else file
        found.setdefault(unit, []).append(place)

    def rank(unit: str) -> tuple[int, int]:
        long = next((n for n, start in enumerate(_LONG) if unit.startswith(start)), len(_LONG))
        return long, -len(found[unit])

    return deque(found[unit] for unit in sorted(found, key=rank))


@dataclass
class _Worker:
    pid: int
    way: Connection
    given: deque[int] = field(default_factory=deque)
    """What it has not begun yet."""
    at: int | None = None


class _Run:
    """In the first process: hands out units until none is left and all workers have ended."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._units = _units(session.items)
        self._workers: dict[Connection, _Worker] = {}

    def run(self, count: int) -> None:
        """Run all tests. Raises what pytest raises where one failure is enough."""
        try:
            for _ in range(min(count, len(self._units))):
                self._start()
            while self._workers:
                for way in wait(list(self._workers)):
                    self._hear(self._workers[way])  # type: ignore[index]  # it waits for what it was given
                if self._session.shouldfail:
                    raise self._session.Failed(self._session.shouldfail)
                if self._session.shouldstop:
                    raise self._session.Interrupted(self._session.shouldstop)
        finally:
            for worker in self._workers.values():
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)

    def _start(self) -> None:
        ours, its = multiprocessing.Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            for other in self._workers:
                other.close()
            _work(self._session, its)
        its.close()
        self._workers[ours] = _Worker(pid, ours)

    def _hear(self, worker: _Worker) -> None:
        try:
            word, value = worker.way.recv()
        except (EOFError, ConnectionResetError):
            self._note_end(worker)
            return
        hook = self._session.config.hook
        match word:
            case "next":
                unit = self._units.popleft() if self._units else []
                worker.given.extend(unit)
                worker.way.send(unit)
            case "begin":
                worker.at = worker.given.popleft()
            case "end":
                worker.at = None
            case "report":
                report = hook.pytest_report_from_serializable(config=self._session.config, data=value)
                hook.pytest_runtest_logreport(report=report)
            case "broken":
                raise RuntimeError(f"a worker broke:\n{value}")

    def _note_end(self, worker: _Worker) -> None:
        """Report the test that took its worker with it; what that worker was to run is for another."""
        worker.way.close()
        del self._workers[worker.way]
        _, status = os.waitpid(worker.pid, 0)
        if worker.at is not None:
            item = self._session.items[worker.at]
            text = f"The worker ended in this test: exit code {os.waitstatus_to_exitcode(status)}."
            report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
            self._session.config.hook.pytest_runtest_logreport(report=report)
        if worker.given:
            self._units.appendleft(list(worker.given))
        if self._units and status:
            self._start()


class _Silent:
    """In place of the terminal reporter: a worker prints nothing but the stacks of a test that takes too long."""

    def __init__(self, config: pytest.Config) -> None:
        self._tw = create_terminal_writer(config, sys.stderr)


class _Telling:
    """Tells the first process what this one reports."""

    def __init__(self, config: pytest.Config, way: Connection) -> None:
        self._config, self._way = config, way

    def pytest_runtest_logreport(self, report: Any) -> None:
        told = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._way.send(("report", told))


def _work(session: pytest.Session, way: Connection) -> NoReturn:
    """Run in a worker what the first process gives, then end."""
    code = 1
    try:
        _part_from_the_first(session.config)
        session.config.pluginmanager.register(_Telling(session.config, way))
        tests = _given(session.items, way)
        test = next(tests, None)
        while test:
            following = next(tests, None)
            way.send(("begin", None))
            session.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            way.send(("end", None))
            test = following
        code = 0
    except (KeyboardInterrupt, OSError):  # the run ends, or the first process is gone
        pass
    except BaseException:
        way.send(("broken", traceback.format_exc()))
    finally:
        os._exit(code)  # the first process does what is left to do at the end


def _part_from_the_first(config: pytest.Config) -> None:
    """Have a terminal, captured output and a folder for temporary files of its own."""
    plugins = config.pluginmanager
    plugins.unregister(name="terminalreporter")
    plugins.register(_Silent(config), "terminalreporter")
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    capture.suspend_global_capture()
    factory = config._tmp_path_factory  # type: ignore[attr-defined]  # tmp_path's own
    factory._basetemp = factory.mktemp(f"worker-{os.getpid()}", numbered=False)


def _given(items: list[pytest.Item], way: Connection) -> Iterator[pytest.Item]:
    while True:
        way.send(("next", None))
        unit = way.recv()
        if not unit:
            return
        yield from (items[place] for place in unit)
