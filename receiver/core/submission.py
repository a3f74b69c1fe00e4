"""Submissions: the parts of an application's call that go to a provider, and the job's record. Pure, no I/O."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any
from urllib.parse import unquote_plus

import msgspec
from msgspec import Struct

from receiver.core.callback import Head, MemoryBody, TokenClaims, VerifiedCallback, expectation_of
from receiver.core.event import EventDraft
from receiver.core.work import Pickup


def text_at(raw: bytes, place: str, *, most: int = 500) -> str | None:
    """Return the text at a place of a JSON document, None when there is none that could be a job's id."""
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError, LookupError, TypeError):
        value = msgspec.json.decode(raw)
        for name in place.split("."):
            value = value[int(name) if isinstance(value, list) else name]
        return value if is_name(value, most) else None
    return None


def is_name(value: Any, most: int = 500) -> bool:
    """Tell whether a value may be a job's id, or another name."""
    return isinstance(value, str) and 0 < len(value) <= most and value.isascii() and value.isprintable()


def filled(template: Any, values: Mapping[str, str]) -> Any:
    """Return a rule's template with the job's values in its texts. A value is not looked through: it may be the caller's."""
    if isinstance(template, str):
        return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)
    if isinstance(template, Mapping):
        return {name: filled(inner, values) for name, inner in template.items()}
    if isinstance(template, list | tuple):
        return [filled(inner, values) for inner in template]
    return template


# ---------------------------------------------------------------- headers

_DROPPED = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade", "http2-settings", "expect", "host", "content-length"),
        *("cookie", "forwarded", "via", "x-real-ip", "accept-encoding", "idempotency-key"),
        # Every provider's credentials, so that a program cannot slip in a second pair; and what selects an account.
        *("authorization", "xi-api-key", "x-api-key", "x-gladia-key", "api-subscription-key", "x-user-id"),
        *("openai-organization", "openai-project", "x-fal-target-url"),
        # Headers by which some frameworks (Laravel, Rails, IIS) change the method or path, past the rules for the request.
        *("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"),
    )
)
METHOD_FIELDS = frozenset(
    ("_method", "_httpmethod", "$httpmethod", "x-http-method", "x-http-method-override", "x-method-override")
)
"""Fields of a query, of JSON or of a form, in lower case, by which some frameworks change a request's method."""
_DROPPED_BACK = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "trailer", "transfer-encoding", "upgrade"),
        *("set-cookie", "location", "server", "date", "alt-svc", "strict-transport-security"),
        *("dg-project-id", "openai-organization", "openai-project"),
    )
)


def headers_out(
    headers: Sequence[tuple[str, str]], token_header: str, ours: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return the headers of a request as they are passed on, with `ours` and without the application's token."""
    ours = {name.lower(): value for name, value in ours.items()}
    kept = [
        (name, value)
        for name, value in headers
        if name not in _DROPPED
        and "_" not in name  # some servers read it as `-`, so that one of those above would come by it
        and name != token_header
        and not name.startswith(("x-receiver-", "x-forwarded-"))
        and name not in ours
        and value.isascii()
    ]
    return [*kept, *ours.items(), ("accept-encoding", "identity")]


def headers_back(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers of a provider's answer as they are passed back."""
    return [
        (name, value)
        for name, value in headers.items()
        if name not in _DROPPED_BACK
        and not name.startswith(("access-control-", "x-receiver-"))
        # Bytes that are no text could neither be kept nor be sent as they came.
        and value.isascii()
        and value.isprintable()
    ]


def names_in(query: str) -> list[tuple[str, str]]:
    """Return names and values of a query, decoded, as any server may read it: `;` parts fields as `&` does."""
    fields = [field.partition("=") for field in re.split("[&;]", query) if field]
    return [(unquote_plus(name), unquote_plus(value)) for name, _, value in fields]


# ---------------------------------------------------------------- rows


class SubmissionState(StrEnum):
    """`open → accepted`, `refused` or `unknown`."""

    OPEN = "open"
    """It is being passed on."""
    ACCEPTED = "accepted"
    """The provider answered 2xx: there is a job."""
    REFUSED = "refused"
    """The provider answered otherwise: there is none."""
    UNKNOWN = "unknown"
    """No whole answer came, so there may be a job; its callback is expected all the same."""


REPEAT_SECONDS = 600
"""How long an identical submission is taken for the repetition of one whose answer was lost."""


class Submission(Struct, frozen=True, kw_only=True):
    """One job that an application submitted."""

    id: str
    application: str
    """The name of the token that it came with."""
    source: str
    request: str
    """Method and path of the rule."""
    token_id: str | None = None
    """The id of the token in the callback URL of the job."""
    ref: str | None = None
    job_id: str | None = None
    state: SubmissionState = SubmissionState.OPEN
    status: int | None = None
    """The provider's HTTP status, or 424."""
    idempotency_key: str | None = None
    fingerprint: str | None = None
    """A hash of the whole request; None until its body has ended."""
    delivered: bool = False
    """The answer was sent to a caller that was still there."""
    answer: bytes | None = None
    """Headers and body of the answer, for whoever asks again."""
    created_at: int
    updated_at: int

    @property
    def expectation(self) -> str:
        """The `key` of the pickup that watches for its callback."""
        return expectation_of(self.token_id or "")

    @property
    def draft(self) -> EventDraft:
        """What tells whose it is to an erasure that finds it in a journal."""
        key, at = self.id, self.updated_at
        return EventDraft(type="", idempotency_key=key, ref=self.ref, job_id=self.job_id, occurred_at=at)


ENDED = "submission"
"""The proof of an entry of the journal that is what a submission came to."""


def as_entry(ended: Submission, pickup: Pickup | None) -> VerifiedCallback:
    """Return what a submission came to, and the pickup of its result, as an entry of the journal."""
    head = Head(source=ended.source, method="", headers=(), received_at=ended.updated_at)
    claims = TokenClaims(source=ended.source, token_id="", ref=ended.ref)
    body = MemoryBody(msgspec.json.encode((ended, pickup)))
    return VerifiedCallback(head=head, claims=claims, proofs=frozenset((ENDED,)), body=body)


def ended_in(entry: VerifiedCallback) -> tuple[Submission, Pickup | None]:
    """Return what such an entry says."""
    return msgspec.json.decode(entry.body.load(), type=tuple[Submission, Pickup | None])


class Usage(Struct, frozen=True, order=True):
    """What a process takes of one of an application's limits, for its calls to come."""

    application: str
    what: str
    """`calls`, `reads`, `bytes` or `jobs`."""
    window: int
    """The number of the window of time."""
    amount: int


class SubmissionFilter(Struct, frozen=True, kw_only=True):
    """Which submissions to list, newest first; `after` is the last id of the page before."""

    application: str | None = None
    source: str | None = None
    state: SubmissionState | None = None
    job_id: str | None = None
    ref: str | None = None
    before: int | None = None
    """Made before this time, in epoch milliseconds."""
    after: str | None = None
    limit: int = 50
