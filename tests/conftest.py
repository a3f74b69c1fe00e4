"""What every test run shares."""

from __future__ import annotations

import contextlib
import ctypes
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

from tests.support import forking
from tests.support.processes import end_all

pytest_plugins = ("tests.support.workers",)

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


_SET_CHILD_SUBREAPER = 36
"""Of prctl(2): what a dead child of this process had started becomes this process's child."""


def pytest_configure() -> None:
    """Be the parent of what a killed test or worker leaves behind."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_unconfigure() -> None:
    """End what is left, by its id, also after Ctrl-C; the servers of the run see its end themselves."""
    left = psutil.Process().children()
    while left:
        child = left.pop()
        with contextlib.suppress(psutil.NoSuchProcess):
            if not _runs(child, "tests.support.keeper", "tests.support.forking"):
                left += child.children()
                child.kill()


def _runs(process: psutil.Process, *modules: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return not set(modules).isdisjoint(process.cmdline())
    return False


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Let no garbage collection walk over thousands of tests that stay to the end."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


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
    workers = int(terminalreporter.config.getoption("workers") or 1)
    say = terminalreporter.write_line
    say(f"{'layer':10}{'seconds':>9}{'budget':>9}{'processor':>11}")
    for name in filter(_seconds.get, _BUDGETS):
        say(f"{name:10}{_seconds[name] / workers:9.0f}{_BUDGETS[name]:9}{_processor[name]:11.0f}")
    children = psutil.Process().children()
    servers = sum(_of_tree(child) for child in children if _runs(child, "tests.support.keeper"))
    forkers = sum(sum(child.cpu_times()[:4]) for child in children if _runs(child, "tests.support.forking"))
    rest = _spent() + forkers - sum(_processor.values())
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
