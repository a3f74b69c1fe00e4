"""Takes callbacks in: `accept` goes from a callback's head to its HTTP answer.

A 2xx is sent only after the callback is on disk. If nothing can be written (a full disk), the answer is 503. Whether a
journaled callback gets 200 or 503 depends only on how its provider retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import (
    Admission,
    Body,
    Head,
    MemoryBody,
    Reply,
    TokenClaims,
    VerifiedCallback,
)
from receiver.core.errors import (
    RESOURCE_ERRORS,
    CallbackRejected,
    IgnoredCallback,
    JournalUnavailable,
    KeysUnavailable,
    SenderError,
    StoreUnavailable,
    Unavailable,
    UnknownCoding,
    UnknownSource,
    WrongMethod,
    reason_of,
)
from receiver.core.event import EventDraft, Recorded, RecordStatus
from receiver.core.fetch import Failed, Fetch, KeysNeeded
from receiver.core.observe import CallbackReport, Observers
from receiver.core.tokens import CallbackTokens
from receiver.engine.overload import LoadShedder, Place, Storing, UnderWay
from receiver.engine.recorder import Recorder, kept_type, normalized, report_bug
from receiver.engine.rejections import Rejections
from receiver.providers import PushProvider
from receiver.settings.model import SourceSettings
from receiver.storage.journal import Journal
from receiver.storage.store.store import Store
from receiver.system.body_buffer import MEMORY_LIMIT, BodyBuffer, FileBody, Receive, too_large, wire_limit
from receiver.system.codings import KNOWN, coding

T = TypeVar("T")

METHODS = ("POST", "PUT")
KNOWN_METHODS = (*METHODS, "GET", "OPTIONS")
"""Methods that logs and metrics name; all others count as `other`, since strangers may invent any."""
_BIG_JSON = 256 * 1024
"""Bytes from which proving and normalizing leave the event loop for a thread."""
_LARGE = 1024 * 1024
"""Documents from this many bytes are decoded two at a time, since a decoded document takes many times its size in memory."""
_LOOK_SECONDS = 2.0
"""How long a callback waits for the store to look up the claims of its short token."""
_UNPROVED_BYTES = 64 * 1024
"""Longest body that is read without a proof in the head: of a handshake, or of a refused request that is kept."""


class Answer(Struct, frozen=True):
    """The HTTP response to a provider."""

    status: int
    payload: Mapping[str, Any]
    headers: Mapping[str, str] = {}
    reply: Reply | None = None
    """The answer to a handshake, in place of `payload`."""


class Intake:
    """Takes callbacks in. One for each process."""

    def __init__(
        self,
        *,
        providers: Mapping[str, PushProvider],
        sources: Mapping[str, SourceSettings],
        tokens: CallbackTokens,
        store: Store,
        recorder: Recorder,
        journal: Journal,
        bodies: BodyBuffer,
        observer: Observers,
        load: LoadShedder,
        rejections: Rejections,
        fetchers: Mapping[str, Fetch] = {},
    ) -> None:
        self.load = load
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._providers = providers
        self._sources = sources
        self._tokens = tokens
        self._store = store
        self._recorder = recorder
        self._journal = journal
        self._bodies = bodies
        self._observer = observer
        self._fetchers = fetchers
        self._large = asyncio.Semaphore(2)
        self.rejections = rejections

    # ------------------------------------------------------------ accept: the push road

    async def accept(self, head: Head, receive: Receive) -> Answer:
        """Take one callback: admit, read, verify, normalize, store, record. Never raises: each failure becomes an answer."""
        began = time.perf_counter()
        if self.sheds(head.source, head.method):
            return OVERLOADED
        report = CallbackReport(
            method=head.method if head.method in KNOWN_METHODS else "other",
            peer=head.peer,
            began=began,
        )
        try:
            answer = await self._take(head, receive, report)
        except SenderError as error:
            answer = self._refuse(head, error, report)
        except (JournalUnavailable, *RESOURCE_ERRORS) as error:
            report.answer, report.reason = "not_kept", reason_of(error)
            self._observer.note("error", "callback.not_kept", source=report.source, reason=report.reason)
            answer = _busy("nothing here can keep the callback now; send it again")
        except KeysUnavailable as error:
            report.answer, report.reason = "not_kept", error.message
            self._observer.note("error", "callback.no_keys", source=report.source)
            answer = _busy(error.message)
        except Exception as error:  # a bug of ours: nothing was promised, so the provider may send it again
            report_bug(self._observer, "accept", report.source, error)
            report.answer, report.reason = "not_kept", "an internal error"
            answer = _busy("receiver could not take the callback; send it again")
        report.status = answer.status
        report.seconds = time.perf_counter() - began
        self._observer.callback(report)
        return answer

    def sheds(self, source: str, method: str) -> bool:
        """Tell whether the next callback is refused (`OVERLOADED`), which keeps the answers to admitted ones in time.

        The refusals of one turn of the event loop share a report, so that refusing stays cheap.
        """
        known = source if source in self._providers else ""
        reason = self.load.refusal(known)
        if not reason:
            return False
        if not self._refused:
            asyncio.get_running_loop().call_soon(self._report_refused)
        self._refused[known or "unknown", method if method in METHODS else "other", reason] += 1
        return True

    def _report_refused(self) -> None:
        refused, self._refused = self._refused, Counter()
        for (source, method, reason), count in refused.items():
            provider = self._providers.get(source)
            self._observer.callback(
                CallbackReport(
                    source=source,
                    provider=provider.provider if provider else "",
                    method=method,
                    answer="overloaded",
                    status=OVERLOADED.status,
                    reason=reason,
                    count=count,
                )
            )

    async def _take(self, head: Head, receive: Receive, report: CallbackReport) -> Answer:
        """Read a callback's body and record it. Raises `SenderError`, `JournalUnavailable`."""
        provider = self._providers.get(head.source)
        if provider is None:
            report.content_type = head.media_type[0][:100]
            raise UnknownSource
        report.source, report.provider = head.source, provider.provider
        report.content_type = kept_type(provider.redact, head)
        if head.method not in provider.methods:
            return await self._take_unproved(provider, head, receive, report, WrongMethod())
        if head.token:
            head = await self.with_claims(head)
        try:
            try:
                admission = self._admit(provider, head)
            except KeysNeeded:
                admission = await self.with_keys(provider, head, self._admit, provider, head)
        except CallbackRejected as error:
            return await self._take_unproved(provider, head, receive, report, error)
        settings = self._sources[head.source]
        read = partial(
            self._bodies.read,
            receive,
            limit=admission.body_limit,
            idle=settings.idle_seconds,
            coding=_coding(head, admission.body_limit),
        )
        counted, room = UnderWay(head.source), self.load.waiting_room
        try:
            if admission.held:
                self.load.enter(counted, whole=False)
                body = await read(total=settings.body_seconds)
                self.load.enter(counted, whole=True)
            else:
                with Place(room, head.peer):
                    total = min(settings.body_seconds, room.SECONDS)
                    body = await read(total=total, piece=MEMORY_LIMIT)
            return await self._take_body(provider, admission, body, counted, report)
        finally:
            self.load.leave(counted)

    def _admit(self, provider: PushProvider, head: Head) -> Admission:
        try:
            return provider.admit(head)
        except (SenderError, KeysNeeded):
            raise
        except Exception as error:  # a bug of ours must not let a stranger in, nor show a traceback
            report_bug(self._observer, "admit", head.source, error)
            raise CallbackRejected("the callback could not be checked") from None

    async def with_claims(self, head: Head) -> Head:
        """Return the head with the claims of its short token.

        The token's signature is checked without the store, so callbacks are taken during an outage; the claims are read
        after it.
        """
        bare = self._tokens.read_short(head.source, head.token) if head.token else None
        if bare is None:
            return head
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                claims = await self._store.token_claims(bare)
        except (StoreUnavailable, TimeoutError):
            claims = bare
        return replace(head, claims=claims)

    async def with_keys(self, provider: PushProvider, head: Head, check: Callable[..., T], *args: Any) -> T:
        """Return the result of `check`. If it needs the provider's public keys, fetch them and check again.

        Raises what `check` raises, and `KeysUnavailable`.
        """
        try:
            return check(*args)
        except KeysNeeded as needed:
            fetch = self._fetchers.get(provider.source)
            if fetch is None or not await needed.fetch(fetch, head.received_at):
                raise KeysUnavailable from None
        try:
            return check(*args)
        except KeysNeeded:
            raise KeysUnavailable from None

    async def _take_unproved(
        self, provider: PushProvider, head: Head, receive: Receive, report: CallbackReport, error: SenderError
    ) -> Answer:
        """Answer a request whose head was refused with `error`. Its body is read only for a handshake, which carries no
        proof, or to keep the request for a person, when its URL shows that the sender may be the provider.
        """
        greets = head.method in provider.handshake_methods
        claims = self._claims_by_itself(head)
        if not greets and (isinstance(error, WrongMethod) or claims is None or claims.source != head.source):
            raise error
        room = self.load.waiting_room
        try:
            with Place(room, head.peer):
                body = await self._bodies.read(
                    receive,
                    limit=_UNPROVED_BYTES,
                    total=room.SECONDS,
                    idle=room.SECONDS,
                    piece=MEMORY_LIMIT,
                    coding=_coding(head, _UNPROVED_BYTES),
                )
        except SenderError:
            if greets:
                raise
            raise error from None
        try:
            reply = provider.handshake(head, body.load(), proved=False) if greets else None
            return _greeted(reply, report) if reply else self._refuse(head, error, report, body)
        finally:
            body.discard()

    async def _confirmed(self, provider: PushProvider, reply: Reply, report: CallbackReport) -> Answer:
        """Answer a proved handshake, after the fetch of the URL that confirms it."""
        fetch = self._fetchers.get(provider.source)
        if reply.confirm and fetch is not None:
            fetched = await fetch.ask(reply.confirm, headers={})
            if isinstance(fetched, Failed) or not 200 <= fetched.status < 300:
                report.answer, report.reason = "not_kept", _UNCONFIRMED
                self._observer.note("error", "handshake.not_confirmed", source=provider.source)
                return _busy(_UNCONFIRMED)
            self._observer.note("info", "handshake.confirmed", source=provider.source)
        return _greeted(reply, report)

    async def _take_body(
        self,
        provider: PushProvider,
        admission: Admission,
        body: MemoryBody | FileBody,
        counted: UnderWay,
        report: CallbackReport,
    ) -> Answer:
        """Prove a callback with its body, and record it."""
        try:
            report.size, report.body_seconds = body.size, time.perf_counter() - report.began
            try:
                proved = await self._proved(provider, admission, body)
            except IgnoredCallback:
                proved = None
            except CallbackRejected as error:
                reply = _asked(provider, admission.head, body, proved=False)
                if reply is None:
                    return self._refuse(admission.head, error, report, body)
                return _greeted(reply, report)
            reply = _asked(provider, admission.head, body, proved=True)
            if reply is not None:
                return await self._confirmed(provider, reply, report)
            if proved is None:
                report.answer = "ignored"
                return Answer(200, {"status": "ignored"})
            callback, draft = proved
            report.proved_seconds = time.perf_counter() - report.began
            self.load.enter(counted, whole=True)
            return await self._record(provider, callback, draft, counted, report)
        finally:
            body.discard()

    async def _proved(
        self, provider: PushProvider, admission: Admission, body: MemoryBody | FileBody
    ) -> tuple[VerifiedCallback, EventDraft]:
        try:
            if body.size <= _BIG_JSON:
                return self._prove(provider, admission, body)
            async with self._large if body.size > _LARGE else contextlib.nullcontext():
                return await asyncio.to_thread(self._prove, provider, admission, body)
        except KeysNeeded:
            return await self.with_keys(provider, admission.head, self._prove, provider, admission, body)

    def _prove(
        self, provider: PushProvider, admission: Admission, body: Body
    ) -> tuple[VerifiedCallback, EventDraft]:
        try:
            callback = provider.verify(admission, body)
        except (SenderError, KeysNeeded, *RESOURCE_ERRORS):
            raise
        except Exception as error:
            report_bug(self._observer, "verify", admission.head.source, error)
            raise CallbackRejected("the callback could not be checked") from None
        return callback, normalized(provider, callback, self._observer)

    async def _record(
        self,
        provider: PushProvider,
        callback: VerifiedCallback,
        draft: EventDraft,
        counted: UnderWay,
        report: CallbackReport,
    ) -> Answer:
        """Record a proved callback within its source's time, or keep it in the journal. Raises `JournalUnavailable`."""
        budget = self._sources[report.source].budget_seconds
        self.rejections.proved(report.source)
        report.event_type, report.job_id, report.ref = draft.type, draft.job_id, draft.ref
        report.proofs = ",".join(sorted(callback.proofs))
        report.token_secret = callback.claims.secret if callback.claims else 0
        report.reason = draft.parked or ""
        try:
            with Storing(self.load, counted, budget):
                if callback.claims is not None and callback.claims.unread:
                    raise StoreUnavailable("the store could not tell what the URL's token stands for")
                recorded = await self._recorder.record(provider, callback, draft, report)
        except Unavailable as error:
            report.reason = error.message
        except TimeoutError:
            report.reason = f"storing took over {budget:g} s"
        except Exception as error:
            report_bug(self._observer, "record", report.source, error)
            report.reason = "an internal error"
        else:
            return _recorded(recorded, draft, report)
        report.answer = "journaled"
        secret = provider.secret_headers
        await self._journal.keep(
            callback, key=draft.idempotency_key, reason=report.reason, secret_headers=secret
        )
        if provider.keeps_retrying:
            return _busy("the callback is kept, but not yet recorded; send it again")
        return Answer(200, {"status": "journaled"})

    async def record_accepted(self, provider: PushProvider, callback: VerifiedCallback) -> Recorded:
        """Record a refused callback that an operator accepted. Raises `Unavailable`, `IgnoredCallback`."""
        recorded = await self._recorder.record(
            provider, callback, normalized(provider, callback, self._observer)
        )
        fields = {"status": recorded.status.value, "event_id": recorded.event_id}
        self._observer.note("info", "rejection.accepted", source=callback.source, **fields)
        return recorded

    # ------------------------------------------------------------ refusals and bugs

    def _refuse(
        self, head: Head, error: SenderError, report: CallbackReport, body: Body | None = None
    ) -> Answer:
        report.answer, report.reason = error.label, error.message
        if isinstance(error, CallbackRejected | UnknownSource):
            claims = self._claims_by_itself(head)
            report.ref = claims.ref if claims else None
            self.rejections.add(head, error, report, claims, body)
        if isinstance(error, CallbackRejected) and error.setting not in error.message:
            report.reason = f"{error.message} (look at {error.setting})"
        headers = {}
        if error.status == 401:
            headers["www-authenticate"] = 'Basic realm="receiver", charset="UTF-8"'
        if error.status == 405:
            headers["allow"] = ", ".join(METHODS)
        if error.status == 415:
            headers["accept-encoding"] = KNOWN
        return Answer(error.status, {"status": error.label, "error": error.message}, headers)

    def _claims_by_itself(self, head: Head) -> TokenClaims | None:
        """Return the claims in the URL's token, without the store; None if the token is not one of ours."""
        if head.claims is not None or not head.token:
            return head.claims
        return self._tokens.read(head.token) or self._tokens.read_short(head.source, head.token)


def _coding(head: Head, limit: int) -> str:
    """Return the content coding of a body, "" for none. Raises `UnknownCoding`, and `BodyTooLarge` by its length."""
    codings = head.all("content-encoding")
    found = coding(", ".join(codings)) if codings else ""
    if found is None:  # which one is left out: a stranger who invents another each time would fill the log
        raise UnknownCoding(
            f"the body's Content-Encoding is not understood: send it with {KNOWN}, or without"
        )
    length, most = head.one("content-length"), wire_limit(limit) if found else limit
    if length is not None and length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise too_large(limit)
    return found


def _asked(provider: PushProvider, head: Head, body: MemoryBody | FileBody, *, proved: bool) -> Reply | None:
    """Return the answer to a handshake, None if the request is no handshake."""
    if head.method not in provider.handshake_methods or body.size > _UNPROVED_BYTES:
        return None
    return provider.handshake(head, body.load(), proved=proved)


def _greeted(reply: Reply, report: CallbackReport) -> Answer:
    report.answer = "handshake"
    return Answer(200, {}, reply.headers, reply)


def _recorded(recorded: Recorded, draft: EventDraft, report: CallbackReport) -> Answer:
    report.event_id, report.answer = recorded.event_id, recorded.status.value
    if recorded.status is RecordStatus.RECORDED and draft.parked is not None:
        report.answer = "parked"
    payload = {
        "status": "recorded" if recorded.status is RecordStatus.LATE else report.answer,
        "event_id": recorded.event_id,
    }
    if recorded.pickup_id is not None:
        payload["pickup_id"] = recorded.pickup_id
    return Answer(200, payload)


def _busy(message: str, *, seconds: int = 30) -> Answer:
    return Answer(503, {"status": "unavailable", "error": message}, {"retry-after": str(seconds)})


_UNCONFIRMED = "the provider's own URL, by which this is confirmed, could not be fetched; send it again"
OVERLOADED = _busy("receiver has as much as it can take at this moment; send it again", seconds=2)
"""The answer to a callback that load shedding refuses."""
