"""Results that lie at the provider: a link that is fetched, or a question that is answered with the result, or with the way to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

from msgspec.structs import replace

from receiver.core.callback import MemoryBody
from receiver.core.errors import MalformedCallback, PickupRefused
from receiver.core.event import EventDraft, FileDraft, JobError
from receiver.core.fetch import Downloaded, Failed, Fetch, FetchResponse
from receiver.core.work import Pickup
from receiver.providers import NO_REASON, PullProvider, SenderState
from receiver.providers.custom.language import (
    WHOLE_DOCUMENT,
    CustomSettings,
    Question,
    ResultSettings,
    Watch,
)
from receiver.providers.custom.meaning import Reading, job_key
from receiver.providers.documents import decode_object, encode, opaque_id
from receiver.providers.pickups import Collected, Lookup, NotYet, Result, collected, collected_draft
from receiver.providers.proofs.request import Request, answered, as_text, first, spelled
from receiver.providers.toolkit import is_url, refused, unsigned, unusable

_REDIRECTS = (301, 302, 303, 307, 308)
_PAGES = 20
"""Pages of a provider's list of webhooks that are read, at most."""


class Collecting(PullProvider):
    """The half of a custom source that polls."""

    _options: CustomSettings
    _reading: Reading
    _api_key: str

    @property
    def deadline_seconds(self) -> float:
        """How long a result is tried for before it is given up."""
        return max((result.deadline for result in self._options.result.values()), default=86400.0)

    def lookup(self, text: str, format: Mapping[str, Any]) -> Lookup:
        """Understand a job id. Raises `PickupRefused`."""
        job, table = opaque_id(text), f"[sources.{self._settings.name}.result]"
        urls = [url for result in self._options.result.values() if (url := _asked_at(result, job or "job"))]
        if not urls:
            raise PickupRefused(
                f'{table} has no from = "get" whose url needs {{job}} alone: no job can be asked for'
            )
        if job is None:
            raise PickupRefused("that is no job id: hand over the id that the provider gave the job")
        if not all(map(is_url, urls)):
            raise PickupRefused(f"{table} asks the job's own URL: hand over the job's whole URL, https://…")
        return Lookup(key=job_key(job, f"{self._reading.own_family}.completed"), job_id=job)

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether there is a URL to begin with."""
        return self._url(pickup) is not None

    def _url(self, pickup: Pickup) -> str | None:
        return pickup.target or _asked_at(self._options.result_of(self.family(pickup)), pickup.job_id)

    def family(self, pickup: Pickup) -> str:
        """Return `speech`, `transcript`, `analysis` or `media`."""
        return self._reading.family_of(pickup)

    # ------------------------------------------------------------ one attempt

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt: fetch the link, or ask, and go where each answer leads."""
        family, url = self.family(pickup), self._url(pickup)
        step, is_bytes = self._options.result_of(family), family in ("speech", "media")
        while url and step.from_ != "link" and not (is_bytes and step.then is None and not step.state):
            answer = await self._ask(fetch, url, step)
            if not isinstance(answer, Request):
                return answer
            word = as_text(first(step.state, answer))
            if step.state and word in step.failed:
                return Collected(draft=self._failed(pickup, step, answer, now))
            if step.state and word not in step.completed:
                return NotYet(retry_in=step.every, detail="the provider says that the job goes on")
            step = step.then or WHOLE_DOCUMENT
            if step.from_ not in ("link", "get"):
                return self._found(pickup, step, answer, now)
            url = step.link(answer, pickup.job_id)
        if not url:
            at = " or ".join(map(str, step.at)) or "result.url"
            return unusable(f"nothing says where the result is: {at} has no link")
        return await self._fetched(pickup, fetch, url, step, now)

    async def _get(self, fetch: Fetch, url: str, asked: Question, limit: int) -> Downloaded | NotYet | Failed:
        """Ask for a result or a document, from the named hosts only."""
        headers = asked.auth.headers(self._api_key) or None
        found = await fetch.download(url, hosts=asked.hosts, limit=limit, headers=headers)
        if isinstance(found, FetchResponse) and found.status in _REDIRECTS and "location" in found.headers:
            # What is asked with a key is not redirected: the place that it leads to is fetched without.
            place = urljoin(url, found.headers["location"])
            found = await fetch.download(place, hosts=asked.hosts, limit=limit)
        if not isinstance(found, FetchResponse):
            return found
        detail = f"the provider answers {found.status}"
        if isinstance(asked, ResultSettings) and asked.from_ == "get" and found.status in asked.not_yet:
            return NotYet(retry_in=found.retry_after or asked.every, detail=detail)
        if found.status in (401, 403):
            detail += f": check sources.{self._settings.name}.api_key"
        return refused(found, detail)

    async def _ask(self, fetch: Fetch, url: str, asked: Question) -> Request | NotYet | Failed:
        """Return the document that an API answers with, to be read like a request."""
        answer = await self._get(fetch, url, asked, self._settings.max_json_bytes)
        if not isinstance(answer, Downloaded):
            return answer
        try:
            return answered(decode_object(answer.body.load()))
        except MalformedCallback as error:
            return unusable(f"the provider's answer: {error.message}")
        finally:
            answer.body.discard()

    def _found(self, pickup: Pickup, step: ResultSettings, answer: Request, now: int) -> Result:
        """Return the result that an answer holds: bytes, or a text, or nothing but itself. Beside a text the answer is kept."""
        family = self.family(pickup)
        try:
            draft = self._reading.within(collected_draft(pickup, family, now), step, answer, family)
        except MalformedCallback as error:
            return unusable(error.message)
        if draft.content is not None:
            return Collected(draft=replace(draft, content=None), body=MemoryBody(draft.content))
        body = MemoryBody(self.redact(encode(answer.document)))
        file = FileDraft(part="document", content_type="application/json", extension="json")
        return Collected(draft=replace(draft, file=file, document=None), body=body)

    async def _fetched(
        self, pickup: Pickup, fetch: Fetch, url: str, step: ResultSettings, now: int
    ) -> Result:
        """Download the result from its link."""
        found = await self._get(fetch, url, step, self._settings.max_audio_bytes)
        if not isinstance(found, Downloaded):
            return found
        stated = step.content_type or found.headers.get("content-type", "")
        return collected(pickup, self.family(pickup), found.body, stated, now, document=None)

    def _failed(self, pickup: Pickup, step: ResultSettings, answer: Request, now: int) -> EventDraft:
        words, family = unsigned(spelled(first(step.error, answer)) or NO_REASON), self.family(pickup)
        type_ = f"{family}.failed"
        key = job_key(pickup.job_id or pickup.key, type_)
        ends = {"idempotency_key": key, "second_key": key, "error": JobError(message=words[:2000])}
        return collected_draft(pickup, family, now, type=type_, **ends)

    # ------------------------------------------------------------ the provider's webhook

    async def sender_state(self, fetch: Fetch) -> SenderState | None:
        """Ask for the state of the webhooks that call this source; None when the provider does not say."""
        watch, url, found = self._options.watch, self._options.watched_at, list[SenderState]()
        for _ in range(_PAGES):
            page = await self._ask(fetch, url, watch) if watch and url else None
            if watch is None or not isinstance(page, Request):
                return None  # half a list may lack the webhook that was switched off
            listed = first(watch.list, page) if watch.list else [page.document]
            webhooks = map(answered, listed if isinstance(listed, list) else ())
            found += (state for webhook in webhooks if (state := self._state(watch, webhook)))
            following = as_text(first(watch.next, page))
            if not following:
                break
            url = urljoin(url or "", following)
        return next((state for state in found if state.failing), found[0] if found else None)

    def _state(self, watch: Watch, webhook: Request) -> SenderState | None:
        """Return the state of a webhook; None for one that does not call this source, or tells none."""
        path = (as_text(watch.callback_url.value(webhook)) or "").partition("?")[0]
        ours = f"/callbacks/{self._settings.name}"
        word = as_text(first(watch.state, webhook))
        if word is None or not (path.endswith(ours) or f"{ours}/" in path):
            return None
        reason = unsigned(spelled(first(watch.detail, webhook)))
        detail = f"{watch.state[0].name} is {word}{', ' if reason else ''}{reason}"
        return SenderState(failing=word in watch.failing, detail=detail[:500])


def _asked_at(result: ResultSettings, job: str | None) -> str | None:
    return result.link(answered({}), job) if result.from_ == "get" else None
