"""What each application may do: proved by its token, limited in rate, calls at once, bytes and jobs per day."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from receiver.core.errors import SubmissionRefused
from receiver.core.submission import Kind, ProviderApi
from receiver.settings.model import SubmitToken

DAY_MS = 86_400_000


class Bucket:
    """Lets through so many in a minute, all of them at once if need be."""

    def __init__(self, per_minute: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = per_minute / 60, burst, clock
        self._left, self._at = burst, clock()

    def take(self) -> float:
        """Take one; return 0, or the seconds after which there is one."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class Allowance:
    """One application's."""

    def __init__(self, settings: SubmitToken, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.application = settings.name
        self._calls = Bucket(settings.per_minute, settings.per_minute, clock)
        self._reads = Bucket(settings.reads_per_second * 60, settings.reads_per_second, clock)
        self._under_way = 0
        self._day, self._bytes = 0, 0

    def check(self, source: str, kind: Kind, now: int) -> None:
        """Count a call, unless it is not allowed: then raise `SubmissionRefused`. `now` in epoch milliseconds."""
        settings = self.settings
        if source not in settings.sources:
            raise SubmissionRefused(403, "this token is not for this source")
        if kind not in settings.may:
            raise SubmissionRefused(403, f"this token may not {kind}")
        bucket = self._reads if kind in ("read", "cancel") else self._calls
        wait = bucket.take()
        if wait:
            raise _later("too many calls", wait)
        if self._under_way >= settings.at_once:
            raise _later(f"{settings.at_once} calls are under way", 1)
        if self._used(now) >= settings.bytes_per_day:
            raise _later("the bytes of the day are used up", (DAY_MS - now % DAY_MS) / 1000)

    def check_jobs(self, jobs_today: int, now: int) -> None:
        """Raise `SubmissionRefused` when the jobs of the day are used up."""
        if jobs_today >= self.settings.jobs_per_day:
            raise _later("the jobs of the day are used up", (DAY_MS - now % DAY_MS) / 1000)

    def _used(self, now: int) -> int:
        if now // DAY_MS != self._day:
            self._day, self._bytes = now // DAY_MS, 0
        return self._bytes

    def add_bytes(self, count: int) -> None:
        """Count bytes of a body."""
        self._bytes += count

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Count a call while it is under way."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


def _later(message: str, seconds: float) -> SubmissionRefused:
    return SubmissionRefused(429, message, retry_after=max(1, round(seconds + 0.5)))


class Applications:
    """Finds out whose call it is. A token is looked up by its hash, so that the time this takes tells nothing of it."""

    def __init__(self, tokens: Iterable[SubmitToken], clock: Callable[[], float] = time.monotonic) -> None:
        self._by_hash: dict[bytes, Allowance] = {}
        self.allowances: dict[str, Allowance] = {}
        """By the application's name."""
        for token in tokens:
            allowance = self.allowances[token.name] = Allowance(token, clock)
            for secret in token.secrets:
                self._by_hash[_hash(secret.get_secret_value())] = allowance

    def prove(self, headers: Sequence[tuple[str, str]], api: ProviderApi) -> Allowance:
        """Return the allowance of the caller. Raises `SubmissionRefused` unless exactly one token is there, and is one of ours."""
        given = [value.strip() for name, value in headers if name == api.header]
        allowance = None
        if len(given) == 1:
            lower = given[0].lower()
            prefix = next((p for p in api.prefixes if lower.startswith(p.lower())), None)
            if prefix is not None:
                allowance = self._by_hash.get(_hash(given[0][len(prefix) :].strip()))
        if allowance is None:
            raise SubmissionRefused(
                401, f"send one token of receiver's in {api.header}, as the provider's key is sent"
            )
        return allowance


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
