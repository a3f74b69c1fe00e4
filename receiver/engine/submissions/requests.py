"""Makes the provider's request of an application's call: the job's token is issued, and the callback set in query or body."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from receiver.core.callback import MemoryBody, TokenClaims, split_media_type
from receiver.core.errors import OwnCallback, SubmissionRefused
from receiver.core.submission import filled, names_in
from receiver.core.tokens import CallbackTokens
from receiver.engine.requests import FORMAT_KEYS
from receiver.engine.submissions import injection
from receiver.engine.submissions.bodies import Held, Outgoing, Stream
from receiver.engine.submissions.call import Passing
from receiver.engine.submissions.repeats import fingerprint_of
from receiver.settings.model import SubmitSettings
from receiver.system.files import BodyBuffer, FileBody

TOKEN_SECONDS = 7 * 86_400
"""How long a submission's callback URL is good."""
_READ_SECONDS = 1800.0
"""How long a whole body may take in which the callback is set."""
Ended = Callable[[Passing, str], Awaitable[None]]
"""Told of a streamed body's hash before its last piece is sent."""


@dataclass(slots=True, kw_only=True)
class Request:
    """What is sent to the provider."""

    query: str
    body: Outgoing | None
    fingerprint: str | None
    """Of the whole call; None until a streamed body has ended."""
    claims: TokenClaims | None
    """Of the token in the callback; None when that is the caller's own."""


class Requests:
    """Makes requests of calls."""

    def __init__(
        self,
        settings: SubmitSettings,
        public_url: str | None,
        tokens: CallbackTokens,
        bodies: BodyBuffer,
        clock: Callable[[], int],
    ) -> None:
        self._settings, self._public_url, self._tokens = settings, public_url, tokens
        self._bodies, self._clock = bodies, clock

    async def made(self, passing: Passing, ended: Ended) -> Request:
        """Return the request of a call that makes a job. Raises `SubmissionRefused`, `SenderError`."""
        claims, values = self._issue(passing)
        try:
            return await self._with_callback(passing, claims, values, ended)
        except OwnCallback as own:
            if passing.source.settings.own_callback != "pass":
                raise
            passing.report.reason = own.message
        return await self._as_it_came(passing, ended)

    def _issue(self, passing: Passing) -> tuple[TokenClaims, Mapping[str, Any]]:
        """Return the claims of the job's token, and what is put into the request."""
        call, api, rule, now = passing.call, passing.source.api, passing.rule, self._clock()
        seconds = passing.source.settings.submit_expect_seconds or api.expect_seconds
        asked = {name: value for name, value in names_in(call.query) if name in FORMAT_KEYS}
        token, claims = self._tokens.issue_short(
            call.source,
            ref=call.ref,
            format={**asked, **filled(rule.format, passing.names)},
            expires_at=now + TOKEN_SECONDS * 1000,
            job_secret=api.job_secrets,
            now=now,
            expect_by=now + round(seconds * 1000),
        )
        secret = self._tokens.job_secrets(token)[0] if api.job_secrets else api.secret
        url = "" if rule.fetch else api.callback_url(self._public_url, call.source, token)
        values = {"callback": url, "secret": secret, "token": token, "ref": call.ref or ""}
        return claims, filled(rule.set, values)

    async def _with_callback(
        self, passing: Passing, claims: TokenClaims, values: Mapping[str, Any], ended: Ended
    ) -> Request:
        call, rule = passing.call, passing.rule
        if rule.set_in == "query":
            query = injection.into_query(call.query, rule, values)
            return await self._streamed(passing, query, claims, ended)
        media_type, _ = split_media_type(call.header("content-type"))
        body: Outgoing
        if media_type == "application/json":
            held = await self._read(passing, self._settings.max_json_bytes)
            changed = await asyncio.to_thread(lambda: injection.into_json(held.load(), rule, values))
            body, digest = Held(held, (changed,)), held.sha256
        elif rule.require or rule.refers:  # what they say of the JSON cannot be seen in another form
            raise SubmissionRefused(
                415, "send application/json: what it says decides whether it is passed on"
            )
        elif media_type == "multipart/form-data":
            held = await self._read(passing, self._settings.max_form_bytes)
            form = await asyncio.to_thread(
                injection.into_form, held, call.header("content-type"), rule, values
            )
            body, digest = Held(held, form.segments, form.content_type), form.digest
        else:
            raise SubmissionRefused(
                415, "send application/json or multipart/form-data: the callback is set in it"
            )
        print_ = fingerprint_of(passing, digest)
        return Request(query=call.query, body=body, fingerprint=print_, claims=claims)

    async def _as_it_came(self, passing: Passing, ended: Ended) -> Request:
        """Return a request with the caller's own callback."""
        query, held = passing.call.query, passing.held
        if held is None:
            return await self._streamed(passing, query, None, ended)
        body = Held(held, ((0, held.size),))
        return Request(query=query, body=body, fingerprint=fingerprint_of(passing, held.sha256), claims=None)

    async def _streamed(
        self, passing: Passing, query: str, claims: TokenClaims | None, ended: Ended
    ) -> Request:
        body = await self.stream(passing, ended)
        digest = body.whole() if body else ""
        print_ = None if digest is None else fingerprint_of(passing, digest)
        return Request(query=query, body=body, fingerprint=print_, claims=claims)

    async def _read(self, passing: Passing, most: int) -> MemoryBody | FileBody:
        """Read a whole body; it goes with the call."""
        body = await self._bodies.read(
            passing.call.receive, limit=most, total=_READ_SECONDS, idle=self._settings.idle_seconds
        )
        passing.held = body
        passing.stack.callback(body.discard)
        passing.count(body.size)
        return body

    async def stream(self, passing: Passing, ended: Ended) -> Stream | None:
        """Return a body to be passed through, its first piece read; None when it is empty."""
        length = passing.call.header("content-length")
        stream = Stream(
            passing.call.receive,
            int(length) if length.isdecimal() else None,
            most=self._settings.max_body_bytes,
            count=passing.count,
            ended=lambda digest: ended(passing, digest),
        )
        if await stream.begin(self._settings.idle_seconds):
            return stream
        if passing.rule.needs_body:
            raise SubmissionRefused(422, "the body is empty")
        return None
