"""One call of an application on its way: the request, its source, its state, and the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import msgspec

from receiver.core.callback import Body, TokenClaims
from receiver.core.destination_events import Routed
from receiver.core.errors import JournalUnavailable, SenderError, StoreUnavailable, SubmissionRefused
from receiver.core.observe import Observers, SubmissionReport
from receiver.core.submission import Submission
from receiver.core.tokens import CallbackTokens
from receiver.core.work import Pickup
from receiver.engine.submissions.allowances import Allowance
from receiver.engine.submissions.bodies import Outgoing
from receiver.outbound.client import Egress
from receiver.providers import PullProvider
from receiver.settings.model import SourceSettings, SubmitSettings
from receiver.settings.submitting import ProviderApi, Rule
from receiver.storage.store.store import Store
from receiver.system.body_buffer import BodyBuffer, Receive

UNKNOWN = "the provider may have the job, and its answer did not come whole; its callback is expected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An application's call, its body unread."""

    source: str
    method: str
    path: str
    """What follows the source, with its slash."""
    query: str
    headers: tuple[tuple[str, str], ...]
    ref: str | None
    receive: Receive

    def header(self, name: str) -> str:
        """Return a header's first value, "" when there is none."""
        return next((value for key, value in self.headers if key == name), "")


@dataclass(slots=True, kw_only=True)
class Answer:
    """The answer to the caller."""

    status: int
    headers: list[tuple[str, str]]
    body: AsyncIterator[bytes]
    delivered: bool = False
    """To be set when all of it was sent to a caller who was still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitSource:
    """A source that may be submitted to."""

    settings: SourceSettings
    api: ProviderApi
    upstream: Egress
    pull: PullProvider | None


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts that all calls of a process share."""

    settings: SubmitSettings
    public_url: str
    """"" where no job has a callback."""
    store: Store
    tokens: CallbackTokens
    bodies: BodyBuffer
    observer: Observers
    clock: Callable[[], int]
    routed: Routed
    """Returns the destinations of an event."""
    wake: Callable[[Iterable[str]], None]
    """Wakes the destinations of a new event."""


@dataclass(slots=True)
class Passing:
    """One call on its way."""

    parts: Parts
    call: Call
    source: SubmitSource
    rule: Rule
    allowance: Allowance
    report: SubmissionReport
    stack: AsyncExitStack
    """Resources that are released with the call."""
    query: str
    """As it is sent, with the callback where that belongs."""
    body: Outgoing = field(default_factory=Outgoing)
    """As it is sent."""
    held: Body | None = None
    """The caller's body, where all of it was read."""
    fingerprint: str | None = None
    """Of the whole call; None until a streamed body has ended."""
    claims: TokenClaims | None = None
    """Of the token in the callback; None when that is the caller's own."""
    submission: Submission | None = None
    expectation: Pickup | None = None
    began: bool = False
    """Sending began: the provider may have part of the request."""

    def count(self, size: int) -> None:
        """Count bytes of the caller's body."""
        self.report.bytes_in += size
        self.allowance.add_bytes(size)


def refusal(error: Exception, report: SubmissionReport, passing: Passing | None) -> Answer:
    """Return the answer to what went wrong. Whatever the provider may have of the call decides."""
    headers: list[tuple[str, str]] = []
    match error:
        case SubmissionRefused() | SenderError():
            status, message = error.status, error.message
            if isinstance(error, SubmissionRefused) and error.retry_after is not None:
                headers.append(("retry-after", str(error.retry_after)))
        case StoreUnavailable() | JournalUnavailable() | OSError() | MemoryError():
            status, message = 503, "nothing was sent: receiver cannot keep the job now; send it again"
            headers.append(("retry-after", "5"))
        case _:  # a bug of ours
            status, message = 503, "an internal error; nothing was sent"
    if passing is not None and passing.began and status == 503:
        status, message, headers = 424, UNKNOWN, []
    report.outcome = {424: "unknown", 503: "not_sent"}.get(status, "refused")
    report.reason = message
    payload = {"status": report.outcome, "error": message}
    if passing is not None and passing.submission is not None:
        payload["submission"] = passing.submission.id
    body = msgspec.json.encode(payload)
    headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
    return Answer(status=status, headers=headers, body=once(body))


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Yield bytes that are here."""
    yield data
