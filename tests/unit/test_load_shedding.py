"""What load shedding admits, on a model of a process: one queue, a rate of answers, and a clock of its own."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest

from receiver.engine.overload import ALWAYS_ADMITTED, LoadShedder, UnderWay

_STEP = 0.005
_LOOKS = 10
"""Steps from one look to the next."""
_BUDGET = 6.0
"""Seconds after which a callback goes to the journal."""


@dataclass
class Model:
    """A process that gives `rate` answers a second, the oldest callback first, in groups of `group`."""

    rate: float
    group: int = 1
    now: float = 0.0
    waits: list[tuple[float, float]] = field(default_factory=list)
    """When each answered callback came, and for how long it waited."""
    refused: Counter[str] = field(default_factory=Counter)
    journaled: int = 0

    def __post_init__(self) -> None:
        self.load = LoadShedder(1000, lambda: self.now)
        self._queue: deque[UnderWay] = deque()

    def run(self, arrivals: float, seconds: float, others: float = 0.0) -> None:
        """Let so many callbacks of one source arrive each second, and so many of another."""
        able = 0.0
        came = {"one": 0.0, "other": 0.0}
        for step in range(int(seconds / _STEP)):
            self.now += _STEP
            for source, each in (("one", arrivals), ("other", others)):
                came[source] += each * _STEP
                for _ in range(int(came[source])):
                    self._arrive(source)
                came[source] -= int(came[source])
            able = able + self.rate * _STEP if self._queue else 0.0
            if able >= min(self.group, len(self._queue) or 1):
                for _ in range(min(int(able), len(self._queue))):
                    self.waits.append(self._end())
                able -= int(able)
            while self._queue and self.now - self._queue[0].began > _BUDGET:
                self._end()
                self.journaled += 1
            if step % _LOOKS == 0:
                self.load.look()

    def _arrive(self, source: str) -> None:
        if self.load.refusal(source):
            self.refused[source] += 1
            return
        callback = UnderWay(source)
        self.load.enter(callback, whole=True)
        self._queue.append(callback)

    def _end(self) -> tuple[float, float]:
        callback = self._queue.popleft()
        self.load.leave(callback)
        return callback.began, self.now - callback.began


@pytest.mark.parametrize("times", [2, 4, 16])
@pytest.mark.parametrize(("rate", "group"), [(60, 1), (60, 16), (130, 1), (400, 1), (400, 64)])
async def test_under_overload_a_process_answers_all_that_it_can_and_early(
    rate: float, group: int, times: float
) -> None:
    model = Model(rate, group)
    model.run(times * rate, 7)
    assert model.journaled == 0
    assert max(wait for _, wait in model.waits) < 0.8 * _BUDGET
    assert max(wait for came, wait in model.waits if came > 4) < 2.0, "for a second, a group and a window"
    assert len(model.waits) > 0.93 * 7 * rate


async def test_what_a_process_keeps_up_with_is_never_refused() -> None:
    for rate, arrivals in ((60, 57), (400, 390), (2000, 1900)):
        model = Model(rate)
        model.run(arrivals, 5)
        assert not model.refused


async def test_a_burst_to_an_idle_process_is_taken_whole() -> None:
    model = Model(400)
    model.run(900 / _STEP, _STEP)
    model.run(0, 3)
    assert (model.refused, len(model.waits)) == ({}, 900)


async def test_after_an_overload_nothing_is_refused_within_a_second() -> None:
    model = Model(200)
    model.run(800, 3)
    model.run(150, 1)
    model.refused.clear()
    model.run(150, 3)
    assert not model.refused


async def test_in_an_outage_without_errors_a_few_come_to_the_journal() -> None:
    model = Model(0)
    model.run(50, 20)
    assert model.journaled >= 2 * ALWAYS_ADMITTED
    assert model.refused.total() > model.journaled


async def test_bodies_that_wait_for_their_senders_are_no_sign_of_overload() -> None:
    model = Model(200)
    for _ in range(500):
        model.load.enter(UnderWay("slow"), whole=False)
    model.run(150, 3)
    assert not model.refused
    model.run(800, 3)
    assert model.refused


async def test_a_source_that_floods_leaves_the_others_their_share() -> None:
    model = Model(200)
    model.run(1600, 8, others=40)
    assert model.refused["one"]
    assert not model.refused["other"]
    assert len(model.waits) > 0.93 * 8 * 200
    assert max(wait for came, wait in model.waits if came > 4) < 2.0
    assert model.load.refusal(""), "a name that no source has gets no share"


async def test_with_more_sources_than_the_bound_each_has_a_place() -> None:
    load = LoadShedder(limit=2)
    for source in ("one", "two", "three"):
        assert not load.refusal(source)
        load.enter(UnderWay(source), whole=True)
    assert load.refusal("one")
    assert not load.refusal("four")
