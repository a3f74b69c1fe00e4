"""What every test run shares."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer  # type: ignore[import-untyped]  # xdist has no types
from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]  # xdist has no types

from tests.support import forking
from tests.support.processes import end_all

# Hundreds of processes start in a run. Without its bytecode on the disk each would compile receiver anew, a third of its start,
# so it is kept even where the environment says not to.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What tests write is gone when they end, so it lies in memory where there is plenty: a sync costs nothing there, and a new
# SQLite file a third. That syncs are made, and in the right order, the file system of the power-loss tests shows.
_IN_MEMORY, _PLENTY = "/dev/shm", 8 << 30
if "TMPDIR" not in os.environ and os.path.isdir(_IN_MEMORY) and shutil.disk_usage(_IN_MEMORY).free > _PLENTY:
    os.environ["TMPDIR"] = tempfile.tempdir = _IN_MEMORY

# The same examples in every run, so that a red build is about the change; HYPOTHESIS_PROFILE=explore looks for new ones.
# How long an example takes says how busy the machine is.
settings.register_profile(
    "steady",
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


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
"""Of those handed out one by one, the ones that come first: begun last, one of them would keep a single worker busy."""


class _ByFile(LoadGroupScheduling):  # type: ignore[misc]  # xdist has no types: the base is Any
    """Hands out whole files, so that what a file's tests share is made once; slow tests one by one.

    xdist hands out the units with most tests first, and units of one size in the order of the tests: single slow tests come
    last, the longest first, and even out the ends of the workers.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file.startswith(_SLOW) and file not in _TOGETHER else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByFile:
    """Tell xdist who hands out the tests."""
    return _ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""

    def rank(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(_LONG) if item.nodeid.startswith(start)), len(_LONG))

    items.sort(key=rank)


_SET_CHILD_SUBREAPER = 36
"""Of prctl(2): what a dead child of this process had started becomes this process's child."""


def pytest_configure(config: pytest.Config) -> None:
    """Be the parent of what a killed test or worker leaves behind."""
    if not hasattr(config, "workerinput"):
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what is left, by its id, also after Ctrl-C; the servers of the run see its end themselves."""
    if hasattr(config, "workerinput"):
        return
    left = psutil.Process().children()
    while left:
        child = left.pop()
        with contextlib.suppress(psutil.NoSuchProcess):
            if "tests.support.keeper" not in child.cmdline():
                left += child.children()
                child.kill()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Let no garbage collection walk over thousands of tests that stay to the end."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Let one worker compile a module and the others read what it wrote: all would compile all at the same time."""
    if not isinstance(collector, pytest.Module) or "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with collector.path.open("rb") as source:
        fcntl.flock(source, fcntl.LOCK_EX)
        return (yield)


_BUDGETS = {"unit": 40, "contract": 50, "flow": 70, "crash": 50, "property": 10, "hostile": 5, "docs": 10}
"""Seconds that a layer may take of a whole run on two quiet cores: under four minutes in all."""
_seconds: defaultdict[str, float] = defaultdict(float)
_processor: defaultdict[str, float] = defaultdict(float)
_spent_before = [0.0]


def _spent() -> float:
    """Return this process's processor time in seconds, with that of its children that ended."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system + forking.spent()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol() -> None:
    """Count from here."""
    _spent_before[0] = _spent()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note the processor time of a whole test where its fixtures have ended."""
    report = yield
    report.processor = _spent() - _spent_before[0] if call.when == "teardown" else 0.0
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add what a test took to its layer, fixtures included."""
    layer = report.nodeid.split("/")[1]
    _seconds[layer] += report.duration
    _processor[layer] += getattr(report, "processor", 0.0)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each layer took beside its budget. Nothing fails for it: another machine has other seconds."""
    if sum(_seconds.values()) < 60:
        return
    workers = int(getattr(terminalreporter.config.option, "numprocesses", None) or 1)
    say = terminalreporter.write_line
    say(f"{'layer':10}{'seconds':>9}{'budget':>9}{'processor':>11}")
    for name in filter(_seconds.get, _BUDGETS):
        say(f"{name:10}{_seconds[name] / workers:9.0f}{_BUDGETS[name]:9}{_processor[name]:11.0f}")
    servers = sum(_of_tree(child) for child in psutil.Process().children())
    rest = _spent() - sum(_processor.values())
    say(
        f"processor time besides: PostgreSQL and S3 {servers:.0f} s, starts of workers and reports {rest:.0f} s"
    )


def _of_tree(process: psutil.Process) -> float:
    """Return the processor time of a process and all that it started."""
    spent = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            spent += sum(each.cpu_times()[:4])
    return spent


@pytest.fixture
async def nothing_left_running() -> AsyncIterator[None]:
    """No process outlives its test."""
    yield
    await end_all()
