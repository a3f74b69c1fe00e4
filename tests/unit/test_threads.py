"""Threads that can be let go: where the system gives none, what was asked for is refused or waits, and nothing is forgotten."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from receiver.system.background import NoThread, Threads


@contextlib.contextmanager
def unstartable_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no thread be started whose name begins so, as where a limit of processes is reached."""
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name.startswith(name):
            raise RuntimeError("can't start new thread")
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        yield


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(2, "own")
    yield made
    made.close()
    made.join(20)
    assert not any(thread.name.startswith("own") for thread in threading.enumerate())


def test_threads_that_could_not_be_started_take_no_place(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    with unstartable_threads("own", monkeypatch):
        for _ in range(3):
            with pytest.raises(NoThread):
                threads.submit(lambda: done.append("refused"))
    both = threading.Barrier(2, timeout=20)
    for future in [threads.submit(both.wait) for _ in range(2)]:
        future.result(20)
    assert done == [], "who was told that it is not done must not find it done later"


def test_what_no_further_thread_can_do_waits_for_those_that_there_are(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(20)

    first = threads.submit(work)
    begun.wait(20)
    with unstartable_threads("own", monkeypatch):
        second = threads.submit(lambda: "done")
    go_on.set()
    first.result(20)
    assert second.result(20) == "done"
