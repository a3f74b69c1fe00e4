"""The road in: `accept` takes a callback from its head to its answer.

What is answered 2xx is on disk before. The sender's retry rule decides the answer, nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from receiver.core.callback import Admission, Head, VerifiedCallback
from receiver.core.errors import (
    BodyTooLarge,
    CallbackRejected,
    JournalUnavailable,
    MalformedCallback,
    SenderError,
    StoreUnavailable,
    Unavailable,
    UnknownSource,
    WrongMethod,
)
from receiver.core.event import EventDraft, Recorded, RecordStatus, Rejection, Stage
from receiver.core.observe import CallbackReport, Observers
from receiver.engine.overload import Crowd
from receiver.engine.recorder import Recorder
from receiver.providers.base import PushProvider
from receiver.settings.model import SourceSettings
from receiver.storage.journal import Journal
from receiver.storage.store.base import Store
from receiver.system.bodies import SHORTAGE, Receive, Spool, Spooled, why

METHODS = ("POST", "PUT")
_BIG_JSON = 256 * 1024
"""Bytes from which proving and normalizing leave the event loop for a thread."""
_BIG_PARKED = 4 * 1024 * 1024
"""Bytes from which a body that was not understood is kept from file to file, not through memory."""
_ALERT_AFTER = 3
"""Rejections in a row that are reported as an error: deAPI switches webhooks off after 10 failures."""
_KEPT_REJECTIONS = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider is told."""

    status: int
    payload: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Progress:
    """What is known so far of one callback, for its report."""

    provider: str = ""
    source: str = "unknown"
    size: int = 0
    event_type: str | None = None
    job_id: str | None = None
    ref: str | None = None
    proofs: str = ""
    reason: str = ""


class Intake:
    """Takes callbacks in. One for each process."""

    def __init__(
        self,
        *,
        providers: Mapping[str, PushProvider],
        sources: Mapping[str, SourceSettings],
        store: Store,
        recorder: Recorder,
        journal: Journal,
        spool: Spool,
        observer: Observers,
        most: int = 1000,
    ) -> None:
        """`most` callbacks are under way at once; one more is refused before its body is read."""
        self.crowd = Crowd(most)
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._providers = providers
        self._sources = sources
        self._store = store
        self._recorder = recorder
        self._journal = journal
        self._spool = spool
        self._observer = observer
        self._rejected_in_row: dict[str, int] = {}
        self._rejections: deque[Rejection] = deque(maxlen=_KEPT_REJECTIONS * 10)
        self._stopped = ""

    def open(self) -> None:
        """Make the spool folder ready. Raises `JournalUnavailable`."""
        self._spool.open()

    # ------------------------------------------------------------ accept: the push road

    async def accept(self, head: Head, receive: Receive) -> Answer:
        """Take one callback: admit, read, verify, normalize, store, record. Never raises; every way ends in an answer."""
        began = time.perf_counter()
        progress = _Progress()
        reason = self.crowd.refusal()
        if reason:
            return self.overloaded(head.source, head.method, reason)
        self.crowd.under_way += 1
        try:
            answer, label = await self._accept(head, receive, progress)
        except SenderError as error:
            answer, label = self._refuse(head, error, progress), error.label
        except (JournalUnavailable, *SHORTAGE) as error:
            progress.reason = why(error)
            self._observer.note("error", "callback.not_kept", source=progress.source, reason=progress.reason)
            answer, label = _busy("nothing here can keep the callback now; send it again"), "not_kept"
        except Exception as error:  # a bug of ours: nothing was promised, so the provider may send it again
            self._bug("accept", progress.source, error)
            progress.reason = "an internal error"
            answer, label = _busy("receiver could not take the callback; send it again"), "not_kept"
        finally:
            self.crowd.under_way -= 1
        self._report(head, answer, label, progress, time.perf_counter() - began)
        return answer

    def overloaded(self, source: str, method: str, reason: str) -> Answer:
        """Refuse early: a queue that grows without end makes every answer late, and then none in time.

        Those of one turn of the event loop are told together: refusing takes its time from those that could be taken.
        """
        if not self._refused:
            asyncio.get_running_loop().call_soon(self._tell_refused)
        known = source if source in self._providers else "unknown"
        self._refused[known, method if method in METHODS else "other", reason] += 1
        return OVERLOADED

    def _tell_refused(self) -> None:
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
                    seconds=0.0,
                    size=0,
                    reason=reason,
                    count=count,
                )
            )

    async def _accept(self, head: Head, receive: Receive, progress: _Progress) -> tuple[Answer, str]:
        provider = self._providers.get(head.source)
        if provider is None:
            raise UnknownSource
        progress.source, progress.provider = head.source, provider.provider
        if head.method not in METHODS:
            raise WrongMethod
        settings = self._sources[head.source]
        if head.all("upgrade"):
            # The HTTP parser drops the body of such a request: taken as it is, a result would be kept without its bytes.
            raise SenderError("an offer to upgrade the connection is not taken: send it without `Upgrade`")
        admission = self._admit(provider, head)
        _check_length(head, admission.body_limit)
        body = await self._spool.take(
            receive, limit=admission.body_limit, total=settings.body_seconds, idle=settings.idle_seconds
        )
        try:
            progress.size = body.size
            return await self._prove(provider, settings, admission, body, progress)
        finally:
            body.discard()

    def _admit(self, provider: PushProvider, head: Head) -> Admission:
        try:
            return provider.admit(head)
        except SenderError:
            raise
        except Exception as error:  # a bug of ours must not let a stranger in, nor show a traceback
            self._bug("admit", head.source, error)
            raise CallbackRejected("the callback could not be checked") from None

    async def _prove(
        self,
        provider: PushProvider,
        settings: SourceSettings,
        admission: Admission,
        body: Spooled,
        progress: _Progress,
    ) -> tuple[Answer, str]:
        def work() -> tuple[VerifiedCallback, EventDraft]:
            try:
                callback = provider.verify(admission, body)
            except (SenderError, *SHORTAGE):
                raise
            except Exception as error:
                self._bug("verify", admission.head.source, error)
                raise CallbackRejected("the callback could not be checked") from None
            return callback, self._normalize(provider, callback)

        if body.path is None or body.size <= _BIG_JSON:
            callback, draft = work()
        else:
            callback, draft = await asyncio.to_thread(work)
        self._rejected_in_row.pop(callback.source, None)
        progress.event_type, progress.job_id, progress.ref = draft.type, draft.job_id, draft.ref
        progress.proofs = ",".join(sorted(callback.proofs))
        progress.reason = draft.parked or ""
        storing = self.crowd.begin()
        try:
            async with asyncio.timeout(settings.budget_seconds):
                recorded = await self._recorder.record(provider, callback, draft)
        except Unavailable as error:
            return await self._journal_it(provider, callback, draft, error.message, progress)
        except TimeoutError:
            reason = f"storing took over {settings.budget_seconds:g} s"
            return await self._journal_it(provider, callback, draft, reason, progress)
        except Exception as error:
            self._bug("record", callback.source, error)
            return await self._journal_it(provider, callback, draft, "an internal error", progress)
        finally:
            self.crowd.end(storing)
        return _recorded(recorded, draft)

    def _normalize(self, provider: PushProvider, callback: VerifiedCallback) -> EventDraft:
        try:
            return provider.normalize(callback)
        except MalformedCallback as error:
            return _parked(provider, callback, error.message)
        except SHORTAGE:
            raise
        except Exception as error:  # proved, so it is kept whatever our own code makes of it
            self._bug("normalize", callback.source, error)
            return _parked(provider, callback, "receiver could not read it (an internal error)")

    async def _journal_it(
        self,
        provider: PushProvider,
        callback: VerifiedCallback,
        draft: EventDraft,
        reason: str,
        progress: _Progress,
    ) -> tuple[Answer, str]:
        progress.reason = reason
        await self._journal.keep(callback, key=draft.idempotency_key, reason=reason)
        if provider.keeps_retrying:
            return _busy("the callback is kept, but not yet recorded; send it again"), "journaled"
        return Answer(200, {"status": "journaled"}), "journaled"

    # ------------------------------------------------------------ the journal's way back

    async def take_back(self, callback: VerifiedCallback) -> Recorded:
        """Take a journaled callback down the same road; return what became of it.

        Raises `Unavailable` while the outage goes on, `OSError` or `MemoryError` when it cannot be read for now.
        """
        provider = self._providers.get(callback.source)
        if provider is None:
            raise LookupError(f"no source is named {callback.source} any more")
        try:
            draft = await asyncio.to_thread(self._normalize, provider, callback)
        except RuntimeError as error:  # no thread can be started
            raise JournalUnavailable(f"the callback cannot be read for now: {why(error)}") from None
        recorded = await self._recorder.record(provider, callback, draft)
        told = {"status": recorded.status.value, "event_id": recorded.event_id}
        self._observer.note("info", "journal.drained", source=callback.source, **told)
        return recorded

    async def drain(self) -> int:
        """Empty the journal as far as the parts allow; return how many callbacks were recorded."""
        told, self._stopped = self._stopped, ""
        try:
            return await self._journal.drain(self.take_back)
        except Unavailable as error:
            # What it had of single entries the journal told itself.
            if isinstance(error, JournalUnavailable) and error.message != self._journal.refused:
                self._stopped = error.message
                if told != error.message:
                    self._observer.note("warning", "journal.drain_stopped", error=error.message)
            return 0

    # ------------------------------------------------------------ rejections and reports

    async def flush_rejections(self) -> None:
        """Write the rejections since the last call; called about once a second, never on the road to an answer."""
        if not self._rejections:
            return
        batch = list(self._rejections)
        self._rejections.clear()
        try:
            await self._store.reject(batch, keep=_KEPT_REJECTIONS)
        except StoreUnavailable:  # the newest are worth most when there is not room for all
            self._rejections = deque([*batch, *self._rejections], maxlen=self._rejections.maxlen)

    def _refuse(self, head: Head, error: SenderError, progress: _Progress) -> Answer:
        progress.reason = error.message
        if isinstance(error, CallbackRejected):
            self._count_rejection(head, error, progress)
        headers = {}
        if error.status == 401:
            headers["www-authenticate"] = 'Basic realm="receiver", charset="UTF-8"'
        if error.status == 405:
            headers["allow"] = ", ".join(METHODS)
        return Answer(error.status, {"status": error.label, "error": error.message}, headers)

    def _count_rejection(self, head: Head, error: CallbackRejected, progress: _Progress) -> None:
        count = self._rejected_in_row.get(head.source, 0) + 1
        self._rejected_in_row[head.source] = count
        if error.setting and error.setting not in error.message:
            progress.reason = f"{error.message} (look at {error.setting})"
        if count == _ALERT_AFTER:
            fields = {"in_a_row": count, "look_at": error.setting or f"sources.{head.source}"}
            self._observer.note("error", "source.rejecting", source=head.source, **fields)
        self._rejections.append(
            Rejection(
                source=head.source,
                at=head.received_at,
                status=error.status,
                reason=error.message,
                method=head.method,
                peer=head.peer,
                content_type=head.content_type(),
                user_agent=(head.all("user-agent") or [""])[0][:200],
            )
        )

    def _report(self, head: Head, answer: Answer, label: str, progress: _Progress, took: float) -> None:
        self._observer.callback(
            CallbackReport(
                source=progress.source,
                provider=progress.provider,
                method=head.method if head.method in METHODS else "other",
                answer=label,
                status=answer.status,
                seconds=took,
                size=progress.size,
                event_id=answer.payload.get("event_id"),
                event_type=progress.event_type,
                job_id=progress.job_id,
                ref=progress.ref,
                content_type=head.content_type(),
                peer=head.peer,
                reason=progress.reason,
                proofs=progress.proofs,
            )
        )

    def _bug(self, step: str, source: str, error: Exception) -> None:
        self._observer.note("error", "intake.bug", step=step, source=source, error=type(error).__name__)


def _check_length(head: Head, limit: int) -> None:
    """Refuse a body that says it is too large before it is read."""
    length = head.one("content-length")
    if length is not None and length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise BodyTooLarge(f"the body is over this source's limit of {limit} bytes")


def _recorded(recorded: Recorded, draft: EventDraft) -> tuple[Answer, str]:
    status = recorded.status.value
    if recorded.status is RecordStatus.RECORDED and draft.parked is not None:
        status = "parked"
    shown = "recorded" if recorded.status is RecordStatus.LATE else status
    payload = {"status": shown, "event_id": recorded.event_id}
    if recorded.pickup_id is not None:
        payload["pickup_id"] = recorded.pickup_id
    return Answer(200, payload), status


def _busy(message: str, *, seconds: int = 30) -> Answer:
    return Answer(503, {"status": "unavailable", "error": message}, {"retry-after": str(seconds)})


OVERLOADED = _busy("receiver has as much as it can take at this moment; send it again", seconds=2)
"""What is told to whoever comes past the bound."""


def _parked(provider: PushProvider, callback: VerifiedCallback, why: str) -> EventDraft:
    """A proved callback that was not understood: kept whole (secrets removed) for a person."""
    small = callback.body.size <= _BIG_PARKED
    return EventDraft(
        type="callback.parked",
        idempotency_key=provider.fallback_key(callback),
        ref=callback.ref,
        occurred_at=callback.head.received_at,
        stage=Stage.OPEN,
        parked=why,
        provider_data={"content_type": callback.head.media_type()[0], "bytes": callback.body.size},
        document=provider.redact(callback.body.load()) if small else None,
    )
