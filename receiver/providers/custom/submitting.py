"""`[submission]` of a recipe: what of the provider's API applications may call, and where the callback is put in."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from receiver.core.submission import Kind, ProviderApi, Rule
from receiver.settings.model import BaseUrl, Section

_REQUEST = re.compile(r"(GET|POST|PUT|DELETE) (/[A-Za-z0-9._{}/-]*)")


def _request(value: str) -> str:
    if not _REQUEST.fullmatch(value):
        raise ValueError('write method and path: "POST /v1/jobs", "GET /v1/jobs/{job}"')
    return value


Request = Annotated[str, AfterValidator(_request)]
"""A method and a path, whose segments may be `{job}`, another `{name}`, or `{rest}` at the end."""


class SubmissionJob(Section):
    """`[[submission.jobs]]`: a request that makes a job."""

    request: Request
    """Method and path."""
    set_in: Literal["query", "body"] = "body"
    """Where the callback is put: the query, or the body: JSON, or the fields of a multipart form."""
    part: str = ""
    """Of a multipart form: the part that is JSON and holds the callback, in place of fields."""
    set: Mapping[str, Any] = Field(default_factory=dict)
    """What is put in. `{callback}` is the URL, `{secret}` the newest of `secrets`, `{token}` the URL's token, `{ref}` the ref."""
    own: tuple[str, ...] = ()
    """More names under which a caller may give a callback of its own; those of `set` are known."""
    require: Mapping[str, Any] = Field(default_factory=dict)
    """Members that the JSON must have for the request to make a job."""
    refers: tuple[str, ...] = ()
    """Members of the JSON that may name a job, which must be one of the same application."""
    needs_body: bool = False
    """Refuse an empty body, where the callback is in the query."""
    job: str
    """Where the job's id is in the answer: `data.id`."""
    rewrite: tuple[str, ...] = ()
    """Where the answer has URLs of the API that the caller goes on to ask: they are changed to receiver's."""

    @model_validator(mode="after")
    def _seen(self) -> Self:
        if self.set_in == "query" and (self.require or self.refers):
            raise ValueError(
                'require and refers need set_in = "body": with "query", the body is passed on unread'
            )
        return self


class Submission(Section):
    """`[submission]`: applications may submit jobs through receiver, where the source has `submit = true`."""

    base: BaseUrl
    """The API's address without a path. Another region: `[sources.NAME.submission] base = "…"`."""
    header: str = "Authorization"
    """Where the provider's own packages send the key, and applications their token."""
    prefixes: tuple[str, ...] = ("Bearer ",)
    """What stands before it."""
    expect_seconds: float = Field(6 * 3600, gt=0)
    """How long a callback may take before it is overdue."""
    max_url: int = Field(2048, ge=64)
    """The most characters that the provider takes for a callback URL."""
    target_header: str = ""
    """A header that names the URL in requests to `/_target`, as packages send them that know proxies only so."""
    target_base: BaseUrl | None = None
    """What such URLs must begin with; without it, `base`."""
    by_job: bool = False
    """True: callbacks go to an address that is registered once, so they are told apart by the job's id alone."""
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
    """What to set in the provider's packages, by package; `{url}` stands for receiver's address."""

    def api(self, key: str, secret: str) -> ProviderApi:
        """Return what applications may call, proved by `key`; `secret` is what proves callbacks."""
        header = self.header.lower()
        value = key if self.prefixes[0] != "Basic " else base64.b64encode(key.encode()).decode()
        return ProviderApi(
            base=self.base,
            header=header,
            prefixes=tuple(sorted(self.prefixes, key=len, reverse=True)),
            headers={header: self.prefixes[0] + value} if key else {},
            rules=tuple(self._rules()),
            expect_seconds=self.expect_seconds,
            max_url=self.max_url,
            by_job=self.by_job,
            target_header=self.target_header.lower(),
            target_base=self.target_base or self.base,
            secret=secret,
            programs=self.packages,
            experimental=self.experimental,
        )

    def _rules(self) -> Iterator[Rule]:
        for job in self.jobs:
            method, _, path = job.request.partition(" ")
            yield Rule(
                method=method,
                path=path,
                kind="submit",
                set_in=job.set_in,
                part=job.part,
                set=job.set,
                own=(*(name for name in job.set if name not in job.require), *job.own),
                require=job.require,
                refers=job.refers,
                needs_body=job.needs_body,
                job=job.job,
                rewrite=job.rewrite,
            )
        others: tuple[tuple[Kind, tuple[str, ...]], ...] = (
            ("upload", self.uploads),
            ("read", self.reads),
            ("cancel", self.cancels),
        )
        for kind, requests in others:
            for request in requests:
                method, _, path = request.partition(" ")
                yield Rule(method=method, path=path, kind=kind, needs_body=kind == "upload")
