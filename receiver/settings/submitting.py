"""`[submission]` of a provider: the parts of its API that applications may call through receiver, and where the callback goes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from msgspec import Struct
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from receiver.core.errors import SubmissionRefused
from receiver.settings.model import BaseUrl, Kind, Section

_REQUEST = re.compile(r"(GET|POST|PUT|DELETE) (/[A-Za-z0-9._{}/-]*)")
MAX_PATH, MAX_QUERY = 2048, 8192
"""Characters of what follows the source in a path, and of a query."""
_UNSAFE = re.compile(r"[^!-~]|[%\\]|//|(?:^|/)\.{1,2}(?:/|$)")
_SEGMENT = "[A-Za-z0-9._-]{1,128}"
TOKEN_SECONDS = 7 * 86_400
"""How long a submission's callback URL is good."""
_REST = f"{_SEGMENT}(?:/{_SEGMENT}){{0,5}}"
"""Up to six segments, for which `{rest}` may stand."""


@lru_cache(maxsize=1024)
def _pattern(request: str) -> re.Pattern[str]:
    """Return what fits a request, its names as groups. Raises `re.error`."""

    def group(name: re.Match[str]) -> str:
        return f"(?P<{name[1]}>{_REST if name[1] == 'rest' else _SEGMENT})"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(request)))


def _request(value: str) -> str:
    with contextlib.suppress(re.error):
        if _REQUEST.fullmatch(value) and _pattern(value).pattern:
            return value
    raise ValueError('write method and path: "POST /v1/jobs", "GET /v1/jobs/{job}", each name once')


Request = Annotated[str, AfterValidator(_request)]
"""A method and a path, whose segments may be `{job}`, another `{name}`, or `{rest}` at the end."""
Requests = Annotated[
    tuple[Request, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
HeaderName = Annotated[str, AfterValidator(str.lower)]


class SubmissionJob(Section):
    """`[[submission.jobs]]`: a request that makes a job."""

    request: Requests = Field(min_length=1)
    """Method and path; a list of those that are alike."""
    set_in: Literal["query", "body"] = "body"
    """Where the callback is put: the query, or the body: JSON, or the fields of a multipart form."""
    part: str = ""
    """Of a multipart form: the part that is JSON and holds the callback, in place of fields."""
    set: Mapping[str, Any] = Field(default_factory=dict)
    """What is put in. `{callback}` is the URL, `{secret}` the newest of `secrets`, `{token}` the URL's token, `{ref}` the ref. A field with `{secret}` is left out where there is none."""
    beside: tuple[str, ...] = ()
    """Names of `set` that a query may have several times, so that the caller's stay beside receiver's."""
    own: tuple[str, ...] = ()
    """More names under which a caller may give a callback of its own; those of `set` are known."""
    require: Mapping[str, Any] = Field(default_factory=dict)
    """Members that the JSON must have for the request to make a job."""
    refers: tuple[str, ...] = ()
    """Members of the JSON that may name a job, which must be one of the same application."""
    job: str
    """Where the job's id is in the answer: `data.id`."""
    rewrite: tuple[str, ...] = ()
    """Where the answer has URLs of the API that the caller goes on to ask: they are changed to receiver's."""
    fetch: bool = False
    """True: nobody calls back, so the result is fetched, beginning with what stands at `job`."""
    format: Mapping[str, str] = Field(default_factory=dict)
    """What is known of the job's format: `product`, `encoding` …; `{name}` stands for that segment of the path."""

    @model_validator(mode="after")
    def _seen(self) -> Self:
        if self.set_in == "query" and (self.require or self.refers):
            raise ValueError('require and refers need set_in = "body": a query\'s body is passed on unread')
        return self


class Submission(Section):
    """`[submission]`: applications may submit jobs through receiver, where the source has `submit = true`."""

    base: BaseUrl
    """The API's address; requests are below it. Another region: `[sources.NAME.submission] base = "…"`."""
    header: HeaderName = "authorization"
    """Where the provider's own packages send the key, and applications their token."""
    prefixes: tuple[str, ...] = ("Bearer ",)
    """What stands before it."""
    headers: Mapping[HeaderName, str] = Field(default_factory=dict)
    """Headers that every request has, in place of the caller's."""
    expect_seconds: float = Field(6 * 3600, gt=0, le=TOKEN_SECONDS)
    """How long a callback may take before it is overdue."""
    max_url: int = Field(2048, ge=64)
    """The most characters that the provider takes for a callback URL."""
    target_header: HeaderName = ""
    """A header that names the URL in requests to `/_target`, as packages send them that know proxies only so."""
    target_base: BaseUrl | None = None
    """What such URLs must begin with; without it, `base`."""
    by_job: bool = False
    """True: callbacks go to an address that is registered once, so they are told apart by the job's id alone."""
    callbacks_have_key: bool = False
    """True: callbacks carry the account's key, so none may go to a URL of the caller's."""
    jobs: tuple[SubmissionJob, ...] = Field(min_length=1)
    """The requests that make jobs, each a table of its own."""
    uploads: tuple[Request, ...] = ()
    """Requests that are passed on with their body."""
    reads: tuple[Request, ...] = ()
    """Requests about a job; those with `{job}` only about one of the same application."""
    cancels: tuple[Request, ...] = ()
    """Requests that end a job, for tokens with the right `cancel`."""
    experimental: str = ""
    """What of it was not seen at the provider; "" when nothing."""
    packages: Mapping[str, str] = Field(default_factory=dict)
    """What to set in the provider's packages, by package; `{url}` stands for receiver's address, `{path}` for the path of `base`."""

    @property
    def folder(self) -> str:
        """The path of the API's address, "" mostly."""
        return urlsplit(self.base).path

    def place(self, path: str, query: str, target: str) -> tuple[str, str]:
        """Return path below `base` and query of a request; `target` is its URL in `target_header`. Raises `SubmissionRefused` for one elsewhere."""
        within, path_below = self.folder, path
        if self.target_header and path == "/_target":
            within, (path_below, _, query) = self.target_base or self.base, target.partition("?")
        if not path_below.startswith(f"{within}/"):
            raise SubmissionRefused(404, f"what is passed on begins with {within}/")
        if len(query) > MAX_QUERY or "#" in query or not query.isascii() or not query.isprintable():
            raise SubmissionRefused(404, "a query like this is not passed on")
        return path_below[len(within) :], query

    def find(self, method: str, path: str) -> Rule:
        """Return what a request may do. Raises `SubmissionRefused` when it is not passed on."""
        if len(path) <= MAX_PATH and not _UNSAFE.search(path):
            for request, kind, job in self._allowed():
                if (found := _pattern(request).fullmatch(f"{method} {path}")) is not None:
                    return Rule(request, kind, found.groupdict(), job)
        shown = path[:100] if path.isascii() and path.isprintable() else "this path"
        raise SubmissionRefused(404, f"{method[:20]} {shown} is not passed on")

    def _allowed(self) -> Iterator[tuple[str, Kind, SubmissionJob | None]]:
        yield from ((request, "submit", job) for job in self.jobs for request in job.request)
        yield from ((request, "upload", None) for request in self.uploads)
        yield from ((request, "read", None) for request in self.reads)
        yield from ((request, "cancel", None) for request in self.cancels)


class Rule(Struct, frozen=True):
    """What a request may do."""

    request: str
    """Method and path, as the table has them."""
    kind: Kind
    """`submit` makes a job, `upload` makes none, `read` and `cancel` are about a job of the same application."""
    names: Mapping[str, str]
    """The named segments of its path."""
    job: SubmissionJob | None
    """How the callback is set, for `submit`."""


@dataclass(frozen=True, slots=True)
class ProviderApi:
    """What of one source's API applications may call, and what receiver adds."""

    table: Submission
    auth: Mapping[str, str] = field(repr=False)
    """The headers that authenticate receiver; empty while a key is missing."""
    secret: str = field(default="", repr=False)
    """What else the callback shall carry as a proof."""
