"""Results that lie at the provider: a link that is fetched, or a question that is answered with the result, or with the way to it."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from msgspec.structs import replace

from receiver.core.callback import MemoryBody
from receiver.core.errors import MalformedCallback, PickupRefused
from receiver.core.event import EventDraft, JobError
from receiver.core.fetch import Downloaded, Failed, Fetch, FetchResponse
from receiver.core.work import Pickup
from receiver.providers import NO_REASON, SenderState
from receiver.providers.custom.language import Auth, CustomSettings, ResultSettings, Then, Watch
from receiver.providers.custom.meaning import Reading, job_key
from receiver.providers.custom.request import NO_REQUEST, as_text, first, spelled
from receiver.providers.documents import Document, decode_object, opaque_id
from receiver.providers.pickups import Collected, Lookup, NotYet, Result, collected, collected_draft
from receiver.providers.toolkit import refused, unsigned, unusable
from receiver.settings.model import SourceSettings

_WHOLE_DOCUMENT = Then.model_validate({})


class Collecting:
    """Fetches the results of one source."""

    def __init__(self, settings: SourceSettings, options: CustomSettings, reading: Reading, key: str) -> None:
        self._settings, self._options, self._reading, self._key = settings, options, reading, key

    def lookup(self, text: str) -> Lookup:
        """Understand a job id. Raises `PickupRefused`."""
        if not any(self._asked_at(result, "job") for result in self._options.result.values()):
            table = f"[sources.{self._settings.name}.result]"
            raise PickupRefused(
                f'{table} has no from = "get" whose url needs {{job}} alone: no job can be asked for'
            )
        job = opaque_id(text)
        if job is None:
            raise PickupRefused("that is no job id: hand over the id that the provider gave the job")
        return Lookup(key=job_key(job, f"{self._reading.own_family}.completed"), job_id=job)

    def url(self, pickup: Pickup) -> str | None:
        """Return where a pickup begins, None when nothing says that."""
        return pickup.target or self._asked_at(self._result(pickup), pickup.job_id)

    @staticmethod
    def _asked_at(result: ResultSettings, job: str | None) -> str | None:
        return result.url.url(NO_REQUEST, {}, job) if result.from_ == "get" and result.url else None

    def _result(self, pickup: Pickup) -> ResultSettings:
        return self._options.result_of(self._reading.family_of(pickup))

    # ------------------------------------------------------------ one attempt

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt."""
        result, url = self._result(pickup), self.url(pickup)
        if url is None:
            return unusable("there is no URL to fetch the result from")
        is_bytes = self._reading.family_of(pickup) in ("speech", "media")
        if result.from_ == "link" or (is_bytes and result.then is None and not result.state):
            return await self._fetched(pickup, fetch, url, result, now)
        answer = await self._get(fetch, url, result, self._settings.max_json_bytes)
        if not isinstance(answer, Downloaded):
            return answer
        try:
            document = decode_object(answer.body.load())
        except MalformedCallback as error:
            return unusable(f"the provider's answer: {error.message}")
        finally:
            answer.body.discard()
        word = as_text(first(result.state, NO_REQUEST, document))
        if result.state and word in result.failed:
            return Collected(draft=self._failed(pickup, result, document, now))
        if result.state and word not in result.completed:
            return NotYet(retry_in=result.every, detail="the provider says that the job goes on")
        return await self._final(pickup, fetch, result.then or _WHOLE_DOCUMENT, document, now)

    async def _get(
        self, fetch: Fetch, url: str, result: Then | Watch, limit: int
    ) -> Downloaded | NotYet | Failed:
        """Ask for a result or a document, from the named hosts only."""
        headers = self._headers(result.auth) or None
        found = await fetch.download(url, hosts=result.hosts, limit=limit, headers=headers)
        if not isinstance(found, FetchResponse):
            return found
        detail = f"the provider answers {found.status}"
        asks = isinstance(result, ResultSettings) and result.from_ == "get"
        if isinstance(result, ResultSettings) and asks and found.status in result.not_yet:
            return NotYet(retry_in=found.retry_after or result.every, detail=detail)
        if found.status in (401, 403):
            detail += f": check sources.{self._settings.name}.api_key"
        return refused(found, detail)

    async def _final(self, pickup: Pickup, fetch: Fetch, then: Then, document: Document, now: int) -> Result:
        """Return the result that an answer holds or leads to."""
        if then.from_ == "link":
            url = as_text(first(then.at, NO_REQUEST, document))
            if then.url is not None:
                url = then.url.url(NO_REQUEST, document, pickup.job_id)
            if not url:
                at = " or ".join(map(str, then.at)) or "result.then.url"
                return unusable(f"the provider's answer has no link to the result at {at}")
            return await self._fetched(pickup, fetch, url, then, now)
        family = self._reading.family_of(pickup)
        begun = collected_draft(pickup, family, now)
        try:
            draft = self._reading.within(begun, then, NO_REQUEST, document, family)
        except MalformedCallback as error:
            return unusable(error.message)
        body = MemoryBody(draft.content) if draft.content is not None else None
        return Collected(draft=replace(draft, content=None), body=body)

    async def _fetched(self, pickup: Pickup, fetch: Fetch, url: str, result: Then, now: int) -> Result:
        """Download the result from its link."""
        found = await self._get(fetch, url, result, self._settings.max_audio_bytes)
        if not isinstance(found, Downloaded):
            return found
        stated = result.content_type or found.headers.get("content-type", "")
        family = self._reading.family_of(pickup)
        return collected(pickup, family, found.body, stated, now, document=None)

    def _failed(self, pickup: Pickup, result: ResultSettings, document: Document, now: int) -> EventDraft:
        words = unsigned(spelled(first(result.error, NO_REQUEST, document)) or NO_REASON)
        family = self._reading.family_of(pickup)
        key = job_key(pickup.job_id or pickup.key, f"{family}.failed")
        error = JobError(message=words[:2000])
        ends = {"type": f"{family}.failed", "idempotency_key": key, "second_key": key, "error": error}
        return collected_draft(pickup, family, now, **ends)

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
        """Ask for the state of the webhooks that call this source; None when the provider does not say."""
        answer = await self._get(fetch, watch.url, watch, self._settings.max_json_bytes)
        if not isinstance(answer, Downloaded):
            return None
        try:
            document = decode_object(answer.body.load())
        except MalformedCallback:
            return None
        finally:
            answer.body.discard()
        listed = first(watch.list, NO_REQUEST, document) if watch.list else [document]
        states = [
            SenderState(failing=word in watch.failing, detail=_told(watch, one, word))
            for one in (listed if isinstance(listed, list) else [])
            if isinstance(one, dict) and self._calls_us(watch, one)
            if (word := as_text(first(watch.state, NO_REQUEST, one))) is not None
        ]
        return next((state for state in states if state.failing), states[0] if states else None)

    def _calls_us(self, watch: Watch, webhook: Document) -> bool:
        url = as_text(watch.callback_url.value(NO_REQUEST, webhook)) or ""
        path, ours = url.partition("?")[0], f"/callbacks/{self._settings.name}"
        return path.endswith(ours) or f"{ours}/" in path


def _told(watch: Watch, webhook: Document, word: str) -> str:
    reason = spelled(first(watch.detail, NO_REQUEST, unsigned(webhook)))
    return f"{watch.state[0].name} is {word}{', ' if reason else ''}{reason}"[:500]
