"""The engine's reports and their listeners, which are app/log.py and app/metrics.py; and the counts of them by the minute."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, Protocol

from msgspec import Struct

from receiver.core.work import Outcome

P = ParamSpec("P")


class CallbackReport(Struct, kw_only=True):
    """One callback and its answer. The intake fills it in on the way; listeners only read it."""

    source: str = "unknown"
    """Name of a configured source, or `unknown`: never what a stranger wrote in the path."""
    provider: str = ""
    method: str
    answer: str = ""
    """`recorded`, `duplicate`, `late`, `parked`, `journaled`, or a sender error's label (`rejected`, `too_large`, …)."""
    status: int = 0
    began: float = 0.0
    """When its head had arrived, in seconds of `time.perf_counter`."""
    body_seconds: float = 0.0
    """From its head to the end of its body."""
    proved_seconds: float = 0.0
    """From its head to its proof."""
    seconds: float = 0.0
    """From the first header to the answer."""
    size: int = 0
    """Body bytes read."""
    event_id: str | None = None
    event_type: str | None = None
    job_id: str | None = None
    ref: str | None = None
    content_type: str = ""
    peer: str | None = None
    proofs: str = ""
    token_secret: int = 0
    """The position in `tokens.secrets`, counted from 1, of the secret that signed the URL's token; 0 if none did."""
    reason: str = ""
    """Why it was refused, parked or journaled: names the setting to look at, never a secret."""
    count: int = 1
    """Number of callbacks in this report. Refusals as `overloaded` in one turn of the event loop share a report."""


class AttemptReport(Struct, frozen=True, kw_only=True):
    """One attempt of a delivery and its consequence."""

    destination: str
    delivery_id: str
    event_id: str
    event_type: str
    number: int
    outcome: Outcome
    seconds: float
    waited_seconds: float
    """From recording to the start of this attempt."""
    state: str
    """The delivery's state afterwards; `lost` when another worker held the claim by then."""
    due_at: int | None


class PickupReport(Struct, frozen=True, kw_only=True):
    """One attempt of a pickup and its consequence."""

    source: str
    provider: str
    pickup_id: str
    job_id: str | None
    ref: str | None
    number: int
    outcome: Outcome
    seconds: float
    state: str
    """The pickup's state afterwards; `lost` when another worker held the claim by then."""
    due_at: int | None
    event_id: str | None = None
    """The event that ended it."""
    event_type: str | None = None


class SubmissionReport(Struct, kw_only=True):
    """One call of an application's to a provider. It is filled in on the way; listeners only read it."""

    application: str = ""
    source: str = "unknown"
    request: str = ""
    """Method and path of the rule that it fits."""
    outcome: str = ""
    """`forwarded`, `replayed`, `refused`, `not_sent` or `unknown`."""
    status: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    """Of the caller's body."""
    bytes_out: int = 0
    """Of the answer's body."""
    submission_id: str | None = None
    job_id: str | None = None
    ref: str | None = None
    reason: str = ""


class Observer(Protocol):
    """A listener. Must not raise and must not block."""

    def callback(self, report: CallbackReport) -> None:
        """One callback was answered."""

    def attempt(self, report: AttemptReport) -> None:
        """One attempt was settled."""

    def pickup(self, report: PickupReport) -> None:
        """One attempt of a pickup was settled."""

    def submission(self, report: SubmissionReport) -> None:
        """One call of an application's was answered."""

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """The journal's depth changed."""

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Something a person should know; `level` is `info`, `warning` or `error`, `event` a dotted fact."""


class Observers:
    """Several listeners as one. One that fails (a closed stream, a full disk, a bug) never fails the engine: the others are told."""

    def __init__(self, listeners: Iterable[Observer]) -> None:
        every = tuple(listeners)
        self.note = _all([one.note for one in every], lambda _: None)
        self.callback = _all([one.callback for one in every], self._failed)
        self.attempt = _all([one.attempt for one in every], self._failed)
        self.pickup = _all([one.pickup for one in every], self._failed)
        self.submission = _all([one.submission for one in every], self._failed)
        self.journal = _all([one.journal for one in every], self._failed)

    def _failed(self, error: Exception) -> None:
        self.note("error", "listener.failed", error=type(error).__name__)


def _all(listeners: Sequence[Callable[P, None]], failed: Callable[[Exception], None]) -> Callable[P, None]:
    """Return what reports to every listener; `failed` gets what one of them raises."""

    def report(*args: P.args, **fields: P.kwargs) -> None:
        for listener in listeners:
            try:
                listener(*args, **fields)
            except Exception as error:
                failed(error)

    return report


class Repeats:
    """Limits lines that repeat: a few of each kind in half a minute, then one that says how many were left out."""

    SECONDS = 30.0
    LINES = 5
    KINDS = 256
    """Kinds that are told apart at once; past that all begin anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[object, list[float]] = {}
        """For each kind: when its half minute began, its lines since then, and those left out."""

    def left_out(self, kind: object) -> int | None:
        """Return the number of suppressed lines since the last of this kind; None if this line is to be suppressed as well."""
        now = self._clock()
        seen = self._seen.get(kind)
        if seen is None or now - seen[0] >= self.SECONDS:
            if len(self._seen) >= self.KINDS:
                self._seen.clear()
            self._seen[kind] = [now, 1, 0]
            return int(seen[2]) if seen else 0
        if seen[1] < self.LINES:
            seen[1] += 1
            return 0
        seen[2] += 1
        return None


_STEERING = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """Return JSON text in which no character can steer a terminal: what JSON itself lets through is escaped as well."""
    if text.isascii() and "\x7f" not in text:  # nearly always, and a tenth of the search's time
        return text
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def no_secrets(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` without values under names that carry secrets; the last line of defence for logs."""
    return {key: ("[redacted]" if _SECRET_NAME.search(key) else value) for key, value in fields.items()}


_SECRET_NAME = re.compile("authorization|secret|password|token|dg-project-id|cookie|api_key", re.IGNORECASE)


# ---------------------------------------------------------------- counts per minute over all processes, and the live processes

CALLBACKS, DELIVERIES, ACK = "callbacks", "deliveries", "ack"
"""What is counted: callbacks of a source by their answer; attempts to a destination by outcome; callbacks of a source by how long
they took, the outcome being the milliseconds that it took at most.
"""
MINUTE = 60_000
HOUR = 60 * MINUTE
BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000)
"""Milliseconds that acknowledging may take at most, by which it is counted."""
_NAMES = tuple(map(str, BOUNDS))


class Tally(Struct, frozen=True, kw_only=True):
    """One count: how often one outcome occurred in one minute."""

    minute: int
    """When the minute began, in epoch milliseconds."""
    kind: str
    name: str
    """The source's or the destination's."""
    outcome: str
    count: int


class Process(Struct, frozen=True, kw_only=True):
    """A process that takes callbacks or works, as it last told."""

    id: str
    host: str
    version: str
    role: str
    """`serve`, `intake` or `work`."""
    started_at: int
    seen_at: int


class TallyBatch(NamedTuple):
    """What a process adds at once."""

    process: Process
    tallies: tuple[Tally, ...]
    before: int
    """Minutes that are older are added to their hours; processes that were not seen since are forgotten."""
    hours_before: int = 0
    """Hours that are older are forgotten."""


def bound_of(seconds: float) -> str:
    """Return the bound that an acknowledgement is counted by."""
    return _NAMES[bisect_left(BOUNDS, seconds * 1000, hi=len(BOUNDS) - 1)]


def within(tallies: Iterable[Tally], share: float) -> int | None:
    """Return the milliseconds within which a share of callbacks were answered; None without any."""
    counts = [(int(one.outcome), one.count) for one in tallies]
    whole, reached = sum(count for _, count in counts), 0
    for bound, count in sorted(counts):
        reached += count
        if reached >= share * whole:
            return bound
    return None
