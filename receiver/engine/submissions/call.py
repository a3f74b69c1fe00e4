"""One call of an application on its way: the request, its source, its state, and the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack

import msgspec
from msgspec import Struct, field

from receiver.core.errors import ReceiverError, SenderError, SubmissionRefused
from receiver.core.observe import Observers, SubmissionReport
from receiver.core.own_events import Routed
from receiver.core.submission import Submission, SubmissionFilter
from receiver.core.work import Pickup
from receiver.engine.requests import IssuedUrl
from receiver.engine.submissions.allowances import Allowance
from receiver.engine.submissions.bodies import Outgoing
from receiver.engine.submissions.source import SubmitSource
from receiver.settings.model import SubmitSettings
from receiver.settings.submitting import Rule
from receiver.storage.store.store import Store
from receiver.system.body_buffer import BodyBuffer, Receive

UNKNOWN = "the provider may have the job, and its answer did not come whole; its callback is expected"


class Call(Struct, frozen=True, kw_only=True):
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


class Answer(Struct, kw_only=True):
    """The answer to the caller."""

    status: int
    headers: list[tuple[str, str]]
    body: AsyncIterator[bytes]
    delivered: bool = False
    """To be set when all of it was sent to a caller who was still there."""


class Parts(Struct, kw_only=True):
    """The parts that all calls of a process share."""

    settings: SubmitSettings
    store: Store
    bodies: BodyBuffer
    observer: Observers
    clock: Callable[[], int]
    routed: Routed
    """Returns the destinations of an event."""
    wake: Callable[[Iterable[str]], None]
    """Wakes the destinations of a new event."""
    unrecorded: list[tuple[Submission, str, Pickup | None]] = field(default_factory=list)
    """What submissions came to while the store could not take it, with the provider and the pickup of the result."""


class Passing(Struct):
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
    fingerprint: str | None = None
    """Of the whole call; None until a streamed body has ended."""
    at: int = 0
    """When the job's row and its callback URL were made, in epoch milliseconds."""
    issued: IssuedUrl | None = None
    """The callback URL; None when the callback is the caller's own, or none comes."""
    submission: Submission | None = None
    began: bool = False
    """Sending began: the provider may have part of the request."""

    def count(self, size: int) -> None:
        """Count bytes of the caller's body."""
        self.report.bytes_in += size
        self.allowance.add_bytes(size)

    async def own(self, job_id: str, where: str = "") -> None:
        """Raise `SubmissionRefused` unless the job belongs to the application; `where` says how the call names it."""
        of = self.allowance.application
        wanted = SubmissionFilter(application=of, source=self.call.source, job_id=job_id, limit=1)
        if not await self.parts.store.submissions(wanted):
            raise SubmissionRefused(404, f"{where}no job of this application has this id")


def refusal(error: BaseException, report: SubmissionReport, passing: Passing | None) -> Answer:
    """Return the answer to what went wrong. Whatever the provider may have of the call decides."""
    status, message, wait = 503, "an internal error; nothing was sent", None
    if isinstance(error, SubmissionRefused | SenderError):
        status, message, wait = error.status, error.message, getattr(error, "retry_after", None)
    elif isinstance(error, ReceiverError | OSError | MemoryError):
        message, wait = "nothing was sent: receiver cannot keep the job now; send it again", 5
    if passing is not None and passing.began and status == 503:
        status, message, wait = 424, UNKNOWN, None
    report.outcome = {424: "unknown", 503: "not_sent"}.get(status, "refused")
    report.reason = message
    payload = {"status": report.outcome, "error": message}
    if passing is not None and passing.submission is not None:
        payload["submission"] = passing.submission.id
    body = msgspec.json.encode(payload)
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    if wait is not None:
        headers.append(("retry-after", str(wait)))
    return Answer(status=status, headers=headers, body=once(body))


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Yield bytes that are here."""
    yield data
