"""Submissions: what of a provider's API an application may call through receiver, and what becomes of a call. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal
from urllib.parse import unquote_plus

import msgspec
from msgspec import Struct

from receiver.core import callback_urls
from receiver.core.callback import TokenClaims
from receiver.core.errors import ConfigError, SubmissionRefused
from receiver.core.tokens import SHORT_CHARS
from receiver.core.work import Pickup

Kind = Literal["submit", "upload", "read", "cancel"]
MAX_PATH, MAX_QUERY = 2048, 8192
"""Characters of what follows the source in a path, and of a query."""
_UNSAFE = re.compile(r"[^!-~]|[%\\]|//|(?:^|/)\.{1,2}(?:/|$)")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_REST = 6
"""Segments that `{rest}` may stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of request that is passed on."""

    method: str
    path: str
    """Segments that are as written, `{job}`, another `{name}`, or at the end `{rest}`."""
    kind: Kind
    """`submit` makes a job, `upload` makes none, `read` and `cancel` are about a job of the same application."""
    set_in: Literal["query", "body"] = "query"
    """Where the callback goes; a body is a JSON object, or a multipart form with fields of these names."""
    part: str = ""
    """The part of a multipart form that is a JSON object, and holds the callback in place of fields."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """What is put in; `{callback}`, `{secret}` and `{token}` in its texts stand for the job's own."""
    own: tuple[str, ...] = ()
    """The names under which a caller might give a callback of its own."""
    require: Mapping[str, Any] = field(default_factory=dict)
    """Members that a JSON body must have for the call to make a job."""
    refers: tuple[str, ...] = ()
    """Members of a JSON body that may name a job; it must be one of the same application."""
    needs_body: bool = False
    """A call without a body is the repetition of one whose body was lost."""
    job: str = ""
    """Where the job's id is in the answer: `data.request_id`."""
    format: Mapping[str, str] = field(default_factory=dict)
    """What is known of the job's format; `{name}` stands for that segment of the path."""
    rewrite: tuple[str, ...] = ()
    """Where the answer has URLs of the API that the caller's program goes on to ask."""
    fetch: bool = False
    """The provider does not call back: its result is fetched, beginning with what stands at `job`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderApi:
    """What of a provider's API applications may call."""

    base: str
    """The API's address without a path: `https://api.example.com`."""
    header: str = "authorization"
    """Where an application's token stands, as the provider's own programs send their key; lower case."""
    prefixes: tuple[str, ...] = ("Bearer ",)
    """What may stand before it there, without regard to case."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What proves us to the provider; none while a key is missing."""
    rules: tuple[Rule, ...]
    expect_seconds: float
    """How long a job's callback may take before it is overdue."""
    basic: str | None = field(default=None, repr=False)
    """`user:password` for the callback URL."""
    job_secrets: bool = False
    """The callback is signed with a secret that is given with the job."""
    secret: str = field(default="", repr=False)
    """What else the callback shall carry as a proof; the job's own secret in its place with `job_secrets`."""
    by_job: bool = False
    """Callbacks have no URL of their job's own, and are told apart by its id."""
    https_only: bool = False
    max_url: int = 2048
    """The most characters that the provider takes for a callback URL."""
    target_header: str = ""
    """Where requests to `/_target` name a URL in place of a path, as fal's package does behind a proxy; lower case."""
    target_base: str = ""
    """What such URLs must begin with: the address that is written into the package."""
    experimental: str = ""
    """What of it was not seen at the provider; "" when nothing."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """What to set in the provider's own packages, by package; `{url}` stands for receiver's address."""

    def place(self, path: str, query: str, target: str) -> tuple[str, str]:
        """Return path and query of a request; `target` is its URL in `target_header`. Raises `SubmissionRefused` for one elsewhere."""
        if self.target_header and path == "/_target":
            if not target.startswith(f"{self.target_base}/"):
                raise SubmissionRefused(404, f"{self.target_header} is to begin with {self.target_base}/")
            path, _, query = target[len(self.target_base) :].partition("?")
        if len(query) > MAX_QUERY or "#" in query or not query.isascii() or not query.isprintable():
            raise SubmissionRefused(404, "a query like this is not passed on")
        return path, query

    def find(self, method: str, path: str) -> tuple[Rule, Mapping[str, str]]:
        """Return the rule for a request, and the named segments of its path. Raises `SubmissionRefused` when none fits."""
        if len(path) <= MAX_PATH and not _UNSAFE.search(path):
            for rule in self.rules:
                names = _matched(rule.path, path) if rule.method == method else None
                if names is not None:
                    return rule, names
        shown = path[:100] if path.isascii() and path.isprintable() else "this path"
        raise SubmissionRefused(404, f"{method[:20]} {shown} is not passed on")

    def callback_url(self, public_url: str | None, source: str, token: str) -> str:
        """Return the URL for a job's callback. Raises `ConfigError` when the provider could not call it."""
        url = callback_urls.callback_url(
            public_url, source, https_only=self.https_only, token=token, basic=self.basic
        )
        if len(url) > self.max_url:
            raise ConfigError(
                f"public_url: {source} takes callback URLs of {self.max_url} characters at most"
            )
        return url


def checked_api(public_url: str | None, url: str | None, source: str, api: ProviderApi | None) -> ProviderApi:
    """Return what applications may call of a source. Raises `ConfigError` when nothing could be submitted to it."""
    if api is None:
        raise ConfigError("receiver does not know what may be passed on to this provider: leave submit out")
    if not api.headers:
        raise ConfigError(f"submissions need the provider's key: set sources.{source}.api_key")
    if url is None and any(rule.rewrite for rule in api.rules):
        raise ConfigError(
            "answers of this provider have URLs that are to lead back to receiver: set submit.url"
        )
    if any(rule.kind == "submit" and not rule.fetch for rule in api.rules):
        api.callback_url(public_url, source, "a" * SHORT_CHARS)
    return api


def _matched(pattern: str, path: str) -> Mapping[str, str] | None:
    wanted, given = pattern.split("/"), path.split("/")
    if wanted[-1] == "{rest}":
        wanted = wanted[:-1]
        rest = given[len(wanted) :]
        if not 0 < len(rest) <= _REST or not all(map(_SEGMENT.fullmatch, rest)):
            return None
        given = given[: len(wanted)]
    if len(wanted) != len(given):
        return None
    names = {}
    for segment, text in zip(wanted, given, strict=True):
        if segment.startswith("{"):
            if not _SEGMENT.fullmatch(text):
                return None
            names[segment[1:-1]] = text
        elif segment != text:
            return None
    return names


def text_at(raw: bytes, place: str, *, most: int = 500) -> str | None:
    """Return the text at a place of a JSON document, None when there is none that could be a job's id."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for name in place.split("."):
        if isinstance(value, list) and name.isdecimal():
            value = dict(enumerate(value)).get(int(name))
        else:
            value = value.get(name) if isinstance(value, dict) else None
    good = isinstance(value, str) and 0 < len(value) <= most and value.isascii() and value.isprintable()
    return value if good else None


def filled(template: Any, values: Mapping[str, str]) -> Any:
    """Return what a rule puts in, with the job's own values in its texts."""
    if isinstance(template, str):
        for name, value in values.items():
            template = template.replace(f"{{{name}}}", value)
        return template
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
        # What makes another request of it for some frameworks (Laravel, Rails, IIS): one that no rule was asked about.
        *("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"),
    )
)
_DROPPED_BACK = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "trailer", "transfer-encoding", "upgrade"),
        *("set-cookie", "location", "server", "date", "alt-svc", "strict-transport-security"),
        *("dg-project-id", "openai-organization", "openai-project"),
    )
)


def headers_out(headers: Sequence[tuple[str, str]], api: ProviderApi) -> list[tuple[str, str]]:
    """Return the headers of a request as they are passed on, with what proves us."""
    kept = [
        (name, value)
        for name, value in headers
        if name not in _DROPPED
        and name != api.header
        and not name.startswith(("x-receiver-", "x-forwarded-"))
        and name not in api.headers
        and value.isascii()
    ]
    return [*kept, *api.headers.items(), ("accept-encoding", "identity")]


def headers_back(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers of a provider's answer as they are passed back."""
    return [
        (name, value)
        for name, value in headers.items()
        if name not in _DROPPED_BACK and not name.startswith("access-control-")
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


class Submission(Struct, frozen=True, kw_only=True):
    """One job that an application submitted."""

    id: str
    application: str
    """The name of the token that it came with."""
    source: str
    request: str
    """Method and path of the rule."""
    token_id: str | None = None
    """Of the callback URL that was set."""
    ref: str | None = None
    job_id: str | None = None
    state: SubmissionState = SubmissionState.OPEN
    status: int | None = None
    """The provider's, or 424."""
    idempotency_key: str | None = None
    fingerprint: str | None = None
    """A hash of the whole request; None until its body has ended."""
    delivered: bool = False
    """The answer was sent to a caller that was still there."""
    answer: bytes | None = None
    """Headers and body of the answer, for whoever asks again."""
    created_at: int
    updated_at: int


class NewSubmission(Struct, frozen=True, kw_only=True):
    """A submission with what is committed before anything of it is sent."""

    submission: Submission
    claims: TokenClaims | None
    expectation: Pickup | None
    """None where the callback is the caller's own."""
    repeats_since: int
    """An identical submission since then whose answer was lost stands for this one."""
    remembered_since: int
    """One with the same idempotency key since then does."""


class SubmissionEnd(Struct, frozen=True, kw_only=True):
    """What a submission came to."""

    id: str
    state: SubmissionState | None
    """None: nothing was sent, and nothing of it is kept."""
    status: int | None = None
    job_id: str | None = None
    answer: bytes | None = None
    expectation: tuple[str, str] | None
    """Source and key of its pickup: it learns of the job, or goes where there is none."""
    pickup: Pickup | None = None
    """The fetching of the result, in place of the expectation."""
    now: int


class Usage(Struct, frozen=True):
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
