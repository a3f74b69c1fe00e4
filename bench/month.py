"""A month of arrivals at many times today's volume through a model of the fleet: how many processes, how large a store.

    python -m bench.month --per-day 100000 --times 100 [--processes 4] [--page docs/scaling.md]

A discrete-event simulation without sleeping: what arrives within ten seconds and goes the same way is one cohort. The made-up
month has days and nights, quiet weekends, bursts, a destination that is out for hours and a deploy. What each step costs is
measured: `python -m bench --only fleet --json bench/figures.json`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from receiver.core.retry import RetryPolicy, policy
from receiver.core.work import Outcome, OutcomeKind

FIGURES = Path(__file__).with_name("figures.json")
DAY = 86_400
_HOURS = (
    0.3,
    0.2,
    0.2,
    0.2,
    0.3,
    0.5,
    0.8,
    1.2,
    1.6,
    1.9,
    2.0,
    1.9,
    1.7,
    1.8,
    1.9,
    1.9,
    1.8,
    1.5,
    1.2,
    1.0,
    0.8,
    0.6,
    0.5,
    0.4,
)
_WEEKDAYS = (1.15, 1.2, 1.2, 1.15, 1.1, 0.65, 0.55)
_FAILED = Outcome(kind=OutcomeKind.TIMEOUT, detail="")


@dataclass(frozen=True)
class Costs:
    """Processor milliseconds of one callback and of one attempt, and the bytes that each leaves."""

    intake_ms: float
    deliver_ms: float
    store_in_ms: float
    store_out_ms: float
    rows_bytes: float = 1_350.0
    """Of a callback's rows in the database: callback, event and delivery with their indexes."""
    attempt_bytes: float = 180.0
    body_bytes: float = 2_000.0
    audio_bytes: float = 50_000.0

    @classmethod
    def measured(cls, figures: Mapping[str, float], audio_share: float) -> Costs:
        """Take what `python -m bench --json` wrote, for this share of callbacks that carry audio."""

        def mixed(part: str) -> float:
            audio, text = figures[f"speech.2.{part}_cpu_ms"], figures[f"listen.2.{part}_cpu_ms"]
            return audio_share * audio + (1 - audio_share) * text

        rows = sum(figures[f"bytes.{name}"] for name in ("callbacks", "events", "deliveries"))
        return cls(
            intake_ms=mixed("receiver"),
            deliver_ms=figures["deliveries.2.receiver_cpu_ms"],
            store_in_ms=mixed("store"),
            store_out_ms=figures["deliveries.2.store_cpu_ms"],
            rows_bytes=rows,
            attempt_bytes=figures["bytes.attempts"],
        )


@dataclass(frozen=True)
class Plan:
    """A month, and the fleet that takes it. Times in seconds."""

    costs: Costs
    per_day: float = 100_000.0
    times: float = 100.0
    days: int = 30
    slot: float = 10.0
    seed: int = 1
    processes: int = 2
    """Each has a core of its own; all of them take callbacks in and work."""
    store_cores: float = 4.0
    concurrency: int = 64
    """Of each process for each destination."""
    answer_seconds: float = 0.2
    timeout_seconds: float = 15.0
    retry: str = "standard"
    audio_share: float = 0.5
    partner_share: float = 0.2
    """What goes to the destination that has the outage; all else goes to the other."""
    bursts: int = 12
    burst_factor: float = 6.0
    burst_seconds: float = 900.0
    outage: tuple[float, float] = (9.4 * DAY, 3 * 3600.0)
    """When it begins, and how long it lasts."""
    refuses: bool = False
    """During the outage the destination refuses at once; otherwise it keeps every attempt until the timeout."""
    deploy: tuple[float, float] = (16.4 * DAY, 600.0)
    """When it begins, and how long one process after the other is away."""

    @property
    def slots(self) -> int:
        """Of the month."""
        return round(self.days * DAY / self.slot)


@dataclass
class Weighted:
    """Values with how many have them."""

    counts: dict[float, int] = field(default_factory=dict)

    def add(self, value: float, count: int = 1) -> None:
        """Note a value."""
        self.counts[value] = self.counts.get(value, 0) + count

    def at(self, share: float) -> float:
        """Return the value that this share does not exceed; 0 without any."""
        left = share * sum(self.counts.values())
        for value, count in sorted(self.counts.items()):
            left -= count
            if left <= 1e-9:
                return value
        return max(self.counts, default=0.0)


@dataclass
class Outcomes:
    """What became of the month."""

    arrived: int = 0
    delivered: int = 0
    dead: int = 0
    waiting: int = 0
    attempts: int = 0
    delays: Weighted = field(default_factory=Weighted)
    """From the arrival to the delivery, in seconds; less than a slot counts as 0."""
    backlog: Weighted = field(default_factory=Weighted)
    """At the end of each slot, how long the delivery that has been due for longest has been due."""
    process_use: Weighted = field(default_factory=Weighted)
    """Share of the processes' time, slot by slot, in thousandths."""
    store_use: Weighted = field(default_factory=Weighted)
    process_seconds: float = 0.0
    store_seconds: float = 0.0


def rates(plan: Plan) -> Iterator[float]:
    """Yield the expected arrivals of each slot."""
    dice = random.Random(plan.seed)
    begins = [dice.random() * plan.days * DAY for _ in range(plan.bursts)]
    base = plan.per_day * plan.times / DAY * plan.slot
    hours = sum(_HOURS) / 24
    week = sum(_WEEKDAYS) / 7
    for number in range(plan.slots):
        at = number * plan.slot
        shape = _HOURS[int(at % DAY // 3600)] / hours * _WEEKDAYS[int(at // DAY) % 7] / week
        burst = any(begin <= at < begin + plan.burst_seconds for begin in begins)
        yield base * shape * (plan.burst_factor if burst else 1.0)


def poisson(dice: random.Random, mean: float) -> int:
    """Draw how many arrive."""
    if mean > 50:
        return max(0, round(dice.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, dice.random()
    while product > limit:
        product *= dice.random()
        count += 1
    return count


class Budget:
    """The seconds of one slot that the processes and the store have."""

    def __init__(self, plan: Plan, processes: float) -> None:
        self.process = self.process_all = processes * plan.slot
        self.store = self.store_all = plan.store_cores * plan.slot

    def take(self, wanted: int, process_ms: float, store_ms: float) -> int:
        """Return how many of `wanted` there is time for, and spend it."""
        fits = [wanted]
        if process_ms:
            fits.append(int(self.process * 1000 / process_ms))
        if store_ms:
            fits.append(int(self.store * 1000 / store_ms))
        count = max(0, min(fits))
        self.process -= count * process_ms / 1000
        self.store -= count * store_ms / 1000
        return count


class Lane:
    """What is owed to one destination: cohorts of (due, attempts, arrival, how many), the one due first on top."""

    def __init__(self, plan: Plan, outage: tuple[float, float] | None) -> None:
        self._plan = plan
        self._policy: RetryPolicy = policy(plan.retry)
        self._outage = outage
        self.owed: list[tuple[float, int, float, int]] = []

    def add(self, now: float, arrived: float, count: int) -> None:
        """Owe `count` more."""
        if count:
            heapq.heappush(self.owed, (now, 0, arrived, count))

    def work(self, now: float, processes: float, budget: Budget, found: Outcomes) -> None:
        """Attempt what is due, oldest first, as far as workers and time allow."""
        plan, costs = self._plan, self._plan.costs
        out = self._outage is not None and self._outage[0] <= now < sum(self._outage)
        seconds = plan.answer_seconds if not out or plan.refuses else plan.timeout_seconds
        workers = int(processes * plan.concurrency * plan.slot / seconds)
        while workers > 0 and self.owed and self.owed[0][0] <= now:
            due, attempts, arrived, count = heapq.heappop(self.owed)
            tried = budget.take(min(count, workers), costs.deliver_ms, costs.store_out_ms)
            if tried < count:
                heapq.heappush(self.owed, (due, attempts, arrived, count - tried))
            if not tried:
                return
            workers -= tried
            found.attempts += tried
            if not out:
                found.delivered += tried
                found.delays.add(now - arrived, tried)
                continue
            delay = self._policy.next_delay(attempts + 1, _FAILED)
            if delay is None:
                found.dead += tried
            else:
                heapq.heappush(self.owed, (now + delay, attempts + 1, arrived, tried))


def simulate(plan: Plan) -> Outcomes:
    """Play the month."""
    random.seed(plan.seed)  # the policy's jitter
    dice = random.Random(plan.seed)
    found = Outcomes()
    outside: deque[tuple[float, int]] = deque()
    """Callbacks that wait for their answer: at the provider's, or in the journal."""
    app, partner = Lane(plan, None), Lane(plan, plan.outage)
    for number, mean in enumerate(rates(plan)):
        now = number * plan.slot
        up = plan.processes - (plan.deploy[0] <= now < sum(plan.deploy))
        budget = Budget(plan, up)
        fresh = poisson(dice, mean)
        found.arrived += fresh
        outside.append((now, fresh))
        while outside:
            arrived, count = outside.popleft()
            taken = budget.take(count, plan.costs.intake_ms, plan.costs.store_in_ms)
            to_partner = round(taken * plan.partner_share)
            partner.add(now, arrived, to_partner)
            app.add(now, arrived, taken - to_partner)
            if taken < count:
                outside.appendleft((arrived, count - taken))
                break
        for lane in (app, partner) if number % 2 else (partner, app):
            lane.work(now, up, budget, found)
        _note(found, budget, now, [at for at, count in outside if count][:1], (app, partner))
    found.waiting = sum(count for _, count in outside)
    found.waiting += sum(cohort[3] for lane in (app, partner) for cohort in lane.owed)
    return found


def _note(found: Outcomes, budget: Budget, now: float, outside: list[float], lanes: tuple[Lane, ...]) -> None:
    oldest = [*outside, *(lane.owed[0][0] for lane in lanes if lane.owed)]
    found.backlog.add(max(0.0, now - min(oldest, default=now)))
    process, store = budget.process_all - budget.process, budget.store_all - budget.store
    found.process_seconds += process
    found.store_seconds += store
    if budget.process_all:
        found.process_use.add(round(1000 * process / budget.process_all))
    found.store_use.add(round(1000 * store / budget.store_all))


def needed(plan: Plan, share: float = 0.7) -> int:
    """Return how many processes have enough time, and workers, with a share of both to spare, but for a thousandth of the slots.

    Two at least, because one of them may be away.
    """
    seen = Weighted()
    for mean in rates(plan):
        seen.add(mean / plan.slot)
    a_second = seen.at(0.999)
    busy = a_second * (plan.costs.intake_ms + plan.costs.deliver_ms) / 1000
    share_of_lane = max(plan.partner_share, 1 - plan.partner_share)
    lanes = a_second * share_of_lane * plan.answer_seconds / plan.concurrency
    return max(2, math.ceil(max(busy, lanes) / share))


def report(plan: Plan, found: Outcomes) -> list[tuple[str, str]]:
    """Return what a person wants to know."""
    costs, arrived = plan.costs, found.arrived
    month = plan.days * DAY
    daily = arrived / plan.days
    gb = 1e9
    kept = {
        "bodies (30 d, in the store)": (1 - plan.audio_share) * daily * 30 * costs.body_bytes,
        "attempts (30 d)": found.attempts / plan.days * 30 * costs.attempt_bytes,
        "events, their callbacks and deliveries (90 d)": daily * 90 * costs.rows_bytes,
        "audio (90 d, in S3)": plan.audio_share * daily * 90 * costs.audio_bytes,
    }
    use = found.process_seconds / (plan.processes * month), found.process_use
    store = found.store_seconds / (plan.store_cores * month), found.store_use
    delays = [f"{name} {_time(found.delays.at(share), plan.slot)}" for name, share in _QUANTILES.items()]
    ages = [f"{name} {_time(found.backlog.at(share))}" for name, share in _QUANTILES.items()]
    return [
        (
            "arrivals",
            f"{arrived:,} in {plan.days} days: {arrived / month:,.0f}/s, {_peak(plan):,.0f}/s in a burst",
        ),
        ("processes, one core each", f"{plan.processes}, {plan.concurrency} workers each for a destination"),
        ("use of the processes", _used(*use)),
        (f"use of {plan.store_cores:g} cores of PostgreSQL", _used(*store)),
        ("delivered, dead, waiting at the end", f"{found.delivered:,}, {found.dead:,}, {found.waiting:,}"),
        ("attempts", f"{found.attempts:,}"),
        (f"age of the backlog, every {plan.slot:g} s", ", ".join(ages)),
        ("from arrival to delivery", ", ".join(delays)),
        *((f"held in the long run: {name}", f"{size / gb:,.0f} GB") for name, size in kept.items()),
        ("requests to S3 in the month", f"{round(plan.audio_share * arrived):,} PUT"),
    ]


_QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "longest": 1.0}


def _used(mean: float, slots: Weighted) -> str:
    p99, most = slots.at(0.99) / 1000, slots.at(1) / 1000
    return f"{_share(mean)} on average, {_share(p99)} p99, {_share(most)} at most"


def _peak(plan: Plan) -> float:
    return max(rates(plan)) / plan.slot


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _time(seconds: float, slot: float = 0.0) -> str:
    if seconds < slot:
        return f"under {slot:g} s"
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def node(figures: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Return what one core does, from the processor time that each part takes."""
    found: list[tuple[str, ...]] = [
        ("", "receiver, ms", "PostgreSQL, ms", "S3 server, ms", "a core of receiver", "a core of PostgreSQL")
    ]
    for what, name in (
        ("callback, 2 KB of JSON", "listen.2"),
        ("callback, 8 KB of audio", "speech.2"),
        ("delivery", "deliveries.2"),
    ):
        ours, store = figures[f"{name}.receiver_cpu_ms"], figures[f"{name}.store_cpu_ms"]
        blobs = f"{figures[f'{name}.blobs_cpu_ms']:.2f}" if name == "speech.2" else ""
        rates = (f"{1000 / ours:,.0f}/s", f"{1000 / store:,.0f}/s")
        found.append((what, f"{ours:.2f}", f"{store:.2f}", blobs, *rates))
    return found


def write(page: Path, mark: str, rows: Sequence[Sequence[str]]) -> None:
    """Put a table, its heading first, between two marks of the page."""
    heading, *others = ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join([heading, "|" + " --- |" * len(rows[0]), *others])
    text, count = re.subn(
        f"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)",
        lambda marks: f"{marks[1]}\n{table}\n\n{marks[2]}",
        page.read_text("utf-8"),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{page} has no place for it: <!-- {mark} --> … <!-- end of {mark} -->")
    page.write_text(text, "utf-8")


def main() -> None:
    """Read the flags, play, print."""
    parser = argparse.ArgumentParser(description="A month of arrivals through a model of the fleet.")
    parser.add_argument("--per-day", type=float, default=100_000, help="callbacks a day today")
    parser.add_argument("--times", type=float, default=100, help="how many times as many")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, help="as many as are needed, if not given")
    parser.add_argument("--store-cores", type=float, default=4)
    parser.add_argument("--retry", choices=["standard", "deepgram"], default="standard")
    parser.add_argument("--audio-share", type=float, default=0.5, help="callbacks that carry audio (0 to 1)")
    parser.add_argument("--answer-seconds", type=float, default=0.2, help="until a destination answers")
    parser.add_argument("--refuses", action="store_true", help="the outage refuses, instead of hanging")
    parser.add_argument("--slow", type=float, default=1.0, help="all service times, this many times")
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, help="JSON that `python -m bench --json` wrote"
    )
    parser.add_argument("--page", type=Path, help="also put the tables into this page")
    given = parser.parse_args()
    figures = json.loads(given.figures.read_text("utf-8"))
    costs = Costs.measured(figures, given.audio_share)
    plan = Plan(
        costs=slower(costs, given.slow),
        per_day=given.per_day,
        times=given.times,
        days=given.days,
        seed=given.seed,
        store_cores=given.store_cores,
        retry=given.retry,
        audio_share=given.audio_share,
        answer_seconds=given.answer_seconds,
        refuses=given.refuses,
    )
    plan = replace(plan, processes=given.processes or needed(plan))
    rows = report(plan, simulate(plan))
    for name, value in rows:
        print(f"{name:<70}{value}")
    if given.page:
        write(given.page, "node", node(figures))
        write(given.page, "month", [("a month", f"{given.per_day:,.0f} a day, {given.times:g} times"), *rows])


def slower(costs: Costs, times: float) -> Costs:
    """Return costs with all service times multiplied."""
    return replace(
        costs,
        intake_ms=times * costs.intake_ms,
        deliver_ms=times * costs.deliver_ms,
        store_in_ms=times * costs.store_in_ms,
        store_out_ms=times * costs.store_out_ms,
    )


if __name__ == "__main__":
    main()
