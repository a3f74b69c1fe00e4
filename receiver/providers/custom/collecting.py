"""Results that lie at the provider: a link that is fetched, or a question that is answered with the result, or with the way to it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from receiver.core.callback import MemoryBody
from receiver.core.errors import MalformedCallback, PickupRefused
from receiver.core.event import EventDraft, JobError, Stage
from receiver.core.fetch import Downloaded, Failed, Fetch, FetchResponse
from receiver.core.work import OutcomeKind, Pickup
from receiver.providers import Collected, Lookup, NotYet, Result, SenderState
from receiver.providers.custom.language import Auth, CustomSettings, ResultSettings, Then, Watch
from receiver.providers.custom.meaning import NO_REQUEST, Reading, job_key
from receiver.providers.custom.request import as_text, first
from receiver.providers.documents import Document, decode_object, encode, opaque_id
from receiver.providers.toolkit import unsigned
from receiver.settings.model import SourceSettings

_EXPIRED = (400, 401, 403, 404, 410)
"""What a storage answers for a link that it does not honour."""


_WHOLE_DOCUMENT = Then.model_validate({})


class Collecting:
    """Fetches the results of one source."""

    def __init__(self, settings: SourceSettings, options: CustomSettings, reading: Reading, key: str) -> None:
        self._settings, self._options, self._reading, self._key = settings, options, reading, key

    @property
    def asks(self) -> bool:
        """Whether a job can be asked for by its id alone."""
        return any(self._by_job(result) for result in self._options.result.values())

    @staticmethod
    def _by_job(result: ResultSettings) -> bool:
        return (
            result.from_ == "get" and result.url is not None and result.url.fill(None, {}, "job") is not None
        )

    def lookup(self, text: str) -> Lookup:
        """Understand a job id. Raises `PickupRefused`."""
        job = opaque_id(text)
        if job is None:
            raise PickupRefused("that is no job id: hand over the id that the provider gave the job")
        return Lookup(key=job_key(job, f"{self._reading.own_family}.completed"), job_id=job)

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether there is a URL to ask at."""
        return self._url(pickup, self._result(pickup)) is not None

    def _result(self, pickup: Pickup) -> ResultSettings:
        return self._options.result_of(self._reading.family_of(pickup))

    def _url(self, pickup: Pickup, result: ResultSettings) -> str | None:
        if pickup.target is not None:
            return pickup.target
        if result.from_ != "get" or result.url is None or pickup.job_id is None:
            return None
        return result.url.fill(None, {}, pickup.job_id)

    # ------------------------------------------------------------ one attempt

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt."""
        result = self._result(pickup)
        url = self._url(pickup, result)
        if url is None:
            return Failed(kind=OutcomeKind.UNUSABLE, detail="there is no URL to fetch the result from")
        if result.from_ == "link" or (result.then is None and result.state == () and self._is_bytes(pickup)):
            return await self._fetched(pickup, fetch, url, result, now)
        answer = await self._ask(fetch, url, result)
        if isinstance(answer, Failed):
            return answer
        if answer.status in result.not_yet:
            return NotYet(
                retry_in=answer.retry_after or result.every, detail=f"the provider answers {answer.status}"
            )
        if answer.status != 200:
            return self._refused(answer)
        return await self._read(pickup, fetch, result, answer, now)

    def _is_bytes(self, pickup: Pickup) -> bool:
        return self._reading.family_of(pickup) in ("speech", "media")

    async def _ask(self, fetch: Fetch, url: str, result: Then | Watch) -> FetchResponse | Failed:
        """GET a document, from the named hosts only."""
        found = await fetch.download(
            url,
            hosts=result.hosts,
            limit=self._settings.max_json_bytes,
            headers={"accept": "application/json", **self._headers(result.auth)},
        )
        if isinstance(found, Downloaded):
            try:
                return FetchResponse(status=200, headers=found.headers, body=found.body.load())
            finally:
                found.body.discard()
        return found

    async def _read(
        self, pickup: Pickup, fetch: Fetch, result: ResultSettings, answer: FetchResponse, now: int
    ) -> Result:
        """Read the answer to a question: not yet, failed, or the result or the way to it."""
        try:
            document = decode_object(answer.body)
        except MalformedCallback as error:
            return Failed(kind=OutcomeKind.UNUSABLE, detail=f"the provider's answer: {error.message}")
        if result.state:
            word = as_text(first(result.state, NO_REQUEST, document))
            if word in result.failed:
                return Collected(draft=self._failed(pickup, result, document, now))
            if word not in result.completed:
                return NotYet(retry_in=result.every, detail="the provider says that the job goes on")
        return await self._final(pickup, fetch, result.then or _WHOLE_DOCUMENT, document, now)

    async def _final(self, pickup: Pickup, fetch: Fetch, then: Then, document: Document, now: int) -> Result:
        family = self._reading.family_of(pickup)
        if then.from_ == "link":
            url = as_text(first(then.at, NO_REQUEST, document))
            if then.url is not None:
                url = then.url.fill(None, document, pickup.job_id)
            if not url:
                return Failed(
                    kind=OutcomeKind.UNUSABLE, detail="the provider's answer has no link to the result"
                )
            return await self._fetched(pickup, fetch, url, then, now)
        try:
            draft = self._reading.within(
                self._begun(pickup, document, now), then, NO_REQUEST, document, family
            )
        except MalformedCallback as error:
            return Failed(kind=OutcomeKind.UNUSABLE, detail=error.message)
        body = MemoryBody(draft.content) if draft.content is not None else None
        return Collected(draft=replace(draft, content=None), body=body)

    async def _fetched(self, pickup: Pickup, fetch: Fetch, url: str, result: Then, now: int) -> Result:
        """Download the result from its link."""
        headers = self._headers(result.auth) or None
        found = await fetch.download(
            url, hosts=result.hosts, limit=self._settings.max_audio_bytes, headers=headers
        )
        if isinstance(found, FetchResponse):
            if (
                isinstance(result, ResultSettings)
                and result.from_ == "get"
                and found.status in result.not_yet
            ):
                return NotYet(
                    retry_in=found.retry_after or result.every, detail=f"the provider answers {found.status}"
                )
            return self._refused(found)
        if isinstance(found, Failed):
            return found
        family = self._reading.family_of(pickup)
        stated = result.content_type or found.headers.get("content-type", "")
        judged = self._reading.judged(found.body, stated, family, pickup.format)
        if isinstance(judged, Failed):
            found.body.discard()
            return judged
        draft = self._reading.holding(self._begun(pickup, {}, now), found.body, judged, family)
        return Collected(draft=draft, body=found.body)

    def _refused(self, answer: FetchResponse) -> Failed:
        detail = f"the provider answers {answer.status}"
        if answer.status in (401, 403):
            detail += f": check sources.{self._settings.name}.api_key"
        return Failed(
            kind=OutcomeKind.REFUSED, status=answer.status, detail=detail, retry_after=answer.retry_after
        )

    def _headers(self, auth: Auth) -> Mapping[str, str]:
        if auth.kind == "none" or not self._key:
            return {}
        if auth.kind == "bearer":
            return {"authorization": f"Bearer {self._key}"}
        if auth.kind == "basic":
            return {"authorization": "Basic " + base64.b64encode(self._key.encode()).decode()}
        return {auth.header.lower(): auth.prefix + self._key}

    # ------------------------------------------------------------ the provider's webhook

    async def sender_state(self, watch: Watch, fetch: Fetch) -> SenderState | None:
        """Ask for the state of the webhooks that call this source."""
        answer = await self._ask(fetch, watch.url, watch)
        if isinstance(answer, Failed) or answer.status != 200:
            return None
        try:
            document = decode_object(answer.body)
        except MalformedCallback:
            return None
        listed = first(watch.list, NO_REQUEST, document) if watch.list else [document]
        states = [
            SenderState(failing=word in watch.failing, detail=self._told(watch, one, word))
            for one in (listed if isinstance(listed, list) else [])
            if isinstance(one, dict) and self._calls_us(watch, one)
            if (word := as_text(first(watch.state, NO_REQUEST, one))) is not None
        ]
        return next((state for state in states if state.failing), states[0] if states else None)

    def _calls_us(self, watch: Watch, webhook: Document) -> bool:
        url = as_text(watch.callback_url.value(NO_REQUEST, webhook)) or ""
        path, ours = url.partition("?")[0], f"/callbacks/{self._settings.name}"
        return path.endswith(ours) or f"{ours}/" in path

    @staticmethod
    def _told(watch: Watch, webhook: Document, word: str) -> str:
        said = first(watch.detail, NO_REQUEST, unsigned(webhook))
        reason = as_text(said) or (encode(said).decode() if said else "")
        return f"{watch.state[0].name} is {word}{', ' if reason else ''}{reason}"[:500]

    # ------------------------------------------------------------ drafts

    def _begun(self, pickup: Pickup, document: Document, now: int) -> EventDraft:
        """Return the draft as the callback left it, or a new one."""
        if pickup.draft is not None:
            ref = pickup.ref if pickup.ref is not None else pickup.draft.ref
            return replace(
                pickup.draft, idempotency_key=pickup.key, second_key=pickup.key, ref=ref, remote=None
            )
        return EventDraft(
            type=f"{self._reading.family_of(pickup)}.completed",
            idempotency_key=pickup.key,
            second_key=pickup.key,
            job_id=pickup.job_id,
            ref=pickup.ref,
            occurred_at=now,
            stage=Stage.FINAL,
        )

    def _failed(self, pickup: Pickup, result: ResultSettings, document: Document, now: int) -> EventDraft:
        said = first(result.error, NO_REQUEST, document)
        words = as_text(said) or (encode(said).decode() if said else "the provider gave no reason")
        family = self._reading.family_of(pickup)
        key = job_key(pickup.job_id or pickup.key, f"{family}.failed")
        bare: Any = unsigned(words)
        return replace(
            self._begun(pickup, document, now),
            type=f"{family}.failed",
            idempotency_key=key,
            second_key=key,
            error=JobError(message=str(bare)[:2000]),
        )
