"""The limits of each application: checks its token and its concurrent calls, and over all processes its rate, bytes and jobs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from receiver.core.errors import SubmissionRefused
from receiver.core.submission import Usage
from receiver.settings.model import Kind, SubmitSettings, SubmitToken
from receiver.settings.submitting import Submission
from receiver.storage.store.store import Store


class _Limit(Struct):
    """A limit for a window of time over all processes. Each process reserves pieces of it in the store, and not each call."""

    what: str
    setting: str
    most: int
    seconds: int
    pieces: int = 10
    """A window's amount is reserved in so many pieces. What a process reserved and does not use is lost to the others."""
    window: int = -1
    left: int = 0
    """What this process reserved and has not used; negative: it used more."""
    used: int = 0
    """What all processes reserved, as last read from the store."""

    def wanted(self, now: int) -> int | None:
        """Return how much to reserve in the store; None if the present reserve is enough. Raises `SubmissionRefused`."""
        milliseconds = self.seconds * 1000
        if (window := now // milliseconds) != self.window:
            self.window, self.left, self.used = window, min(self.left, 0), 0
        elif self.left > 0:
            return None
        elif self.used >= self.most:
            wait = (milliseconds - now % milliseconds) / 1000
            message = f"the application's {self.what} are used up ({self.setting})"
            raise SubmissionRefused(429, message, retry_after=max(1, round(wait + 0.5)))
        return max(1, self.most // self.pieces, 1 - self.left)

    def took(self, usage: Usage, used: int) -> None:
        """Take over the store's count after a reservation, now `used`; past the limit nothing was reserved."""
        if usage.window == self.window:
            self.used = used
            self.left += max(0, usage.amount - max(0, used - self.most))


class Allowance:
    """One application's."""

    def __init__(self, settings: SubmitToken) -> None:
        self.settings = settings
        self._calls = _Limit("calls", "per_minute", settings.per_minute, 60)
        self._reads = _Limit("reads", "reads_per_second", settings.reads_per_second * 10, 10)
        self.bytes = _Limit("bytes", "bytes_per_day", settings.bytes_per_day, 86_400, pieces=250)
        """Counted as they come: whoever reads a body takes them from `left`."""
        self.jobs = _Limit("jobs", "jobs_per_day", settings.jobs_per_day, 86_400, pieces=250)
        self.under_way = 0
        self._reserving: asyncio.Task[None] | None = None

    async def admit(self, kind: Kind, store: Store, clock: Callable[[], int]) -> None:
        """Count a call. Raises `SubmissionRefused` if a limit is reached, `StoreUnavailable`. `clock` gives epoch milliseconds."""
        counted = [self._reads if kind in ("read", "cancel") else self._calls]
        if kind == "submit":
            counted.append(self.jobs)
        limits = [*counted, self.bytes]
        # Looked at anew each time: two calls that held to two windows would take each other's for ended, without end.
        while taking := [(one, amount) for one in limits if (amount := one.wanted(clock())) is not None]:
            # Calls at once wait for one reservation: each with its own would take the share of other processes.
            if self._reserving is None:
                self._reserving = asyncio.create_task(self._reserve(taking, store))
            await asyncio.shield(self._reserving)
        for one in counted:
            one.left -= 1

    async def _reserve(self, taking: Sequence[tuple[_Limit, int]], store: Store) -> None:
        try:
            usages = tuple(Usage(self.settings.name, one.what, one.window, amount) for one, amount in taking)
            totals = await store.count_usage(usages)
            for (one, _), usage, used in zip(taking, usages, totals, strict=True):
                one.took(usage, used)
        finally:
            self._reserving = None


class Applications:
    """Finds the application of a call. A token is looked up by its hash, so that timing reveals nothing about it."""

    def __init__(self, settings: SubmitSettings) -> None:
        self._at_once, self.under_way = settings.at_once, 0
        self._by_hash = {
            _hash(secret.get_secret_value()): allowance
            for allowance in map(Allowance, settings.tokens)
            for secret in allowance.settings.secrets
        }

    def prove(self, headers: Sequence[tuple[str, str]], table: Submission) -> Allowance:
        """Return the allowance of the caller. Raises `SubmissionRefused` unless exactly one token is there, and is one of ours."""
        given = [value for name, value in headers if name == table.header]
        lower = given[0].lower() if len(given) == 1 else ""
        for prefix in table.prefixes:
            if lower.startswith(prefix.lower()):
                allowance = self._by_hash.get(_hash(given[0][len(prefix) :].strip()))
                if allowance is not None:
                    return allowance
        message = f"send one token of receiver's in {table.header}, as the provider's key is sent"
        raise SubmissionRefused(401, message)

    @contextmanager
    def calling(self, allowance: Allowance, source: str, kind: Kind) -> Iterator[None]:
        """Count a call as under way. Raises `SubmissionRefused` if it may not be made, or too many are."""
        settings = allowance.settings
        if source not in settings.sources:
            raise SubmissionRefused(403, "this token is not for this source")
        if kind not in settings.may:
            raise SubmissionRefused(403, f"this token may not {kind}")
        if self.under_way >= self._at_once:
            raise SubmissionRefused(503, "receiver has as many calls under way as it takes", retry_after=2)
        if allowance.under_way >= settings.at_once:
            raise SubmissionRefused(429, f"{settings.at_once} calls are under way", retry_after=1)
        self.under_way += 1
        allowance.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            allowance.under_way -= 1


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
