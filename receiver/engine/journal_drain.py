"""Drains the journal: when the store accepts writes again, its callbacks are normalized and recorded like fresh ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from receiver.core.callback import VerifiedCallback
from receiver.core.errors import IgnoredCallback, JournalUnavailable, Unavailable, reason_of
from receiver.core.event import Recorded, RecordStatus
from receiver.core.observe import Observer
from receiver.core.submission import ENDED, SubmissionState, ended_in
from receiver.engine.erasure import drop_erased
from receiver.engine.recorder import Recorder, normalized, parked
from receiver.engine.submissions.passing import Parts as SubmissionParts
from receiver.providers import PushProvider
from receiver.storage.journal import Entry, Journal
from receiver.storage.store.store import Store
from receiver.system.background import BackgroundPart

PAUSES = (1.0, 5.0)
"""Seconds between two drains of a journal that is not empty: at first, and at most."""
_BIG_JSON = 256 * 1024
"""Bytes from which normalizing leaves the event loop for a thread."""


class JournalDrain(BackgroundPart):
    """Drains this process's journal. One for each process that takes callbacks in."""

    def __init__(
        self,
        *,
        providers: Mapping[str, PushProvider],
        store: Store,
        recorder: Recorder,
        journal: Journal,
        observer: Observer,
        submissions: SubmissionParts,
        secrets: Sequence[str],
        pauses: tuple[float, float] = PAUSES,
    ) -> None:
        """`secrets` sign callback tokens: erasures name a token by them."""
        super().__init__()
        self._providers = providers
        self._store = store
        self._recorder = recorder
        self._journal = journal
        self._submissions = submissions
        self._observer = observer
        self._secrets = secrets
        self._pauses = pauses
        self._error = ""
        """Why the last drain stopped, as last reported."""

    async def _run(self) -> None:
        first, longest = self._pauses
        pause = first
        while True:
            if self._journal.depth == 0:
                self._journal.kept.clear()
                await self._journal.kept.wait()
            await asyncio.sleep(pause)
            try:
                done = await self.drain()
            except Exception as error:  # a bug must not leave callbacks in the journal until the next start
                self._observer.note("error", "journal.drain_failed", error=type(error).__name__)
                done = 0
            pause = first if done else min(pause * 2, longest)

    async def drain(self) -> int:
        """Empty the journal as far as the parts allow; return how many callbacks were recorded."""
        reported, self._error = self._error, ""
        try:
            return await self._journal.drain(self.take_back, self.able)
        except Unavailable as error:
            # The journal itself reports what kept single entries back.
            if isinstance(error, JournalUnavailable) and error.message != self._journal.refused:
                self._error = error.message
                if reported != error.message:
                    self._observer.note("warning", "journal.drain_stopped", error=error.message)
            return 0

    def able(self, entry: Entry) -> bool:
        """Tell whether the settings have what an entry needs: a callback's source, if that could be read."""
        return not entry.source or entry.source in self._providers or ENDED in entry.proofs

    async def take_back(self, callback: VerifiedCallback) -> Recorded | None:
        """Normalize and record a callback from the journal; return the result, None for what a submission came to.

        Raises `Unavailable` while the outage goes on, `OSError` or `MemoryError` when it cannot be read for now.
        """
        if ENDED in callback.proofs:
            submission, pickup = ended_in(callback)
            if await drop_erased(self._store, self._secrets, callback, submission.draft):
                submission, pickup = replace(submission, state=SubmissionState.OPEN), None  # so it is removed
            await self._submissions.commit(submission, pickup)
            return None
        provider = self._providers[callback.source]
        if callback.claims is not None and callback.claims.unread:
            # One that was removed meanwhile had proved the callback all the same.
            claims = await self._store.token_claims(callback.claims) or replace(callback.claims, unread=False)
            callback = replace(callback, claims=claims)
        try:
            if callback.body.size <= _BIG_JSON:
                draft = normalized(provider, callback, self._observer)
            else:
                draft = await asyncio.to_thread(normalized, provider, callback, self._observer)
        except IgnoredCallback:  # by settings that are newer than the callback
            draft = parked(provider, callback, "the settings say now that it is ignored")
        except RuntimeError as error:  # no thread can be started
            raise JournalUnavailable(f"the callback cannot be read for now: {reason_of(error)}") from None
        erased = await drop_erased(self._store, self._secrets, callback, draft)
        if erased is not None:
            self._observer.note("info", "journal.erased", source=callback.source)
            return Recorded(status=RecordStatus.DUPLICATE, event_id=erased)
        recorded = await self._recorder.record(provider, callback, draft)
        fields = {"status": recorded.status.value, "event_id": recorded.event_id}
        self._observer.note("info", "journal.drained", source=callback.source, **fields)
        return recorded
