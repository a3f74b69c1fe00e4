"""What every test run shares."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

import psutil
import pytest
from hypothesis import settings
from xdist.remote import Producer  # type: ignore[import-untyped]  # xdist has no types
from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]  # xdist has no types

from tests.support.processes import end_all

# Hundreds of processes start in a run. Without its bytecode on the disk each would compile receiver anew, a third of its start,
# so it is kept even where the environment says not to.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The same examples in every run, so that a red build is about the change; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("steady", derandomize=True, database=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


_TOGETHER = {"tests/flow/test_cli_check.py", "tests/flow/test_pull_secrets.py"}
"""Files whose tests share a fixture that takes seconds: in one process it is made once."""


class _Together(LoadGroupScheduling):  # type: ignore[misc]  # xdist has no types: the base is Any
    """Hands out tests one by one, those of some files together.

    By file and not by the mark xdist_group: that changes a test's id, which pytest 9.2 does not take notice of.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        scope: str = file if file in _TOGETHER else super()._split_scope(nodeid)
        return scope


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Together:
    """Tell xdist who hands out the tests."""
    return _Together(config, log)


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


_BUDGETS = {"unit": 40, "contract": 50, "flow": 70, "crash": 50, "property": 15, "docs": 10}
"""Seconds that a layer may take of a whole run on two quiet cores: under four minutes in all."""
_used: defaultdict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add what a test took to its layer, fixtures included."""
    _used[report.nodeid.split("/")[1]] += report.duration


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each layer took beside its budget. Nothing fails for it: another machine has other seconds."""
    workers = int(getattr(terminalreporter.config.option, "numprocesses", None) or 1)
    if sum(_used.values()) > 60:
        layers = ", ".join(
            f"{name} {_used[name] / workers:.0f} of {budget}"
            for name, budget in _BUDGETS.items()
            if name in _used
        )
        terminalreporter.write_line(
            f"seconds by layer: {layers} (summed over {workers} workers: {sum(_used.values()):.0f})"
        )


@pytest.fixture
async def nothing_left_running() -> AsyncIterator[None]:
    """No process outlives its test."""
    yield
    await end_all()
