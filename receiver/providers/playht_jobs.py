"""PlayHT's jobs, asked for: the event stream or the JSON of a job, then the audio that it names.

Contract: https://docs.play.ht/reference/api-get-tts-data; the stream's events as in the samples of
https://github.com/playht/text-to-speech-api. What a job answers 48 hours on, and the name of the stream's error event, are
not documented: 404 is taken for a job that is gone, and `error` or `failed` for the job's failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.errors import MalformedCallback
from receiver.core.event import AudioDraft, EventDraft, JobError, Stage
from receiver.core.fetch import Answer, Downloaded, Failed, Fetch, ServerSentEvent, Stream
from receiver.core.pickup import Found, Pickup
from receiver.core.redaction import Redactor
from receiver.providers.base import Collected, Gone, NotYet, Result
from receiver.providers.bases import origin
from receiver.providers.jsonbody import (
    Document,
    decode_object,
    encode,
    join_key,
    number,
    opaque_id,
    printable,
    table,
    text,
)
from receiver.providers.redaction import unsigned
from receiver.providers.results import discard, judge

MAX_LINK = 8192
_JSON, _EVENTS = "application/json", "text/event-stream"
_PACE = (2.0, 1.5, 30.0)
"""Seconds before the second question, how they grow, and where that ends."""
_RESUME = (1.0, 2.0, 30.0)
"""The same for a stream that ended early."""
_AGAIN = frozenset((403, 404, 410))
"""What a link answers that has run out: the job may have a fresh one."""


class Completed(Struct, frozen=True, kw_only=True):
    """A job that has ended well, as the provider told it."""

    url: str
    document: Document


class _Seen(Struct, kw_only=True):
    """How far an event stream told of the job, while it is followed."""

    latest: Document | None = None
    step: str | None = None


class JobReader:
    """Asks one source's API for jobs, and downloads what they name."""

    def __init__(
        self,
        *,
        source: str,
        base_url: str,
        headers: Mapping[str, str] | None,
        mode: str,
        hosts: Sequence[str],
        limit: int,
        follow_seconds: float,
        progress_seconds: float,
        silence_seconds: float,
        secrets: Sequence[str],
    ) -> None:
        self._source, self._base_url, self.headers = source, base_url, headers
        self._mode, self._hosts, self._limit = mode, tuple(hosts), limit
        self._follow_seconds, self._progress_seconds = follow_seconds, progress_seconds
        self._silence_seconds = silence_seconds
        self._secrets, self._redactor = tuple(secrets), Redactor(secrets)

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int, askable: bool) -> Result:
        """Make one attempt. A link that a callback told is tried first; when it has run out, the job is asked for a new one."""
        told: Failed | None = None
        if pickup.target:
            found = await self._download(pickup, fetch, Completed(url=pickup.target, document={}), now)
            if not (isinstance(found, Failed) and found.status in _AGAIN and askable):
                return found
            told = found
        if self.headers is None or pickup.job_id is None or not askable:
            setting = f"[sources.{self._source}]"
            return Failed(
                kind=Found.REFUSED, detail=f"nothing to ask by: set api_key and user_id in {setting}"
            )
        read = self._follow if self._mode == "sse" else self._ask
        answer = await read(pickup, pickup.job_id, fetch, self.headers, now)
        if isinstance(answer, Completed):
            return await self._download(pickup, fetch, answer, now)
        # A callback said that the job had ended: the link's trouble says more than "not yet".
        return told if told is not None and isinstance(answer, NotYet) else answer

    # ------------------------------------------------------------ asking for the JSON

    async def _ask(
        self, pickup: Pickup, job_id: str, fetch: Fetch, headers: Mapping[str, str], now: int
    ) -> Completed | Result:
        answer = await fetch.ask(self._url(job_id), headers={**headers, "Accept": _JSON})
        return answer if isinstance(answer, Failed) else self._job(pickup, answer)

    def _url(self, job_id: str) -> str:
        return f"{self._base_url}/tts/{quote(job_id, safe='')}"

    def _job(self, pickup: Pickup, answer: Answer) -> Completed | Result:
        """Return what a job's JSON says; `output` is null until the job has ended."""
        if answer.status not in (200, 201):
            return self._refused(answer)
        try:
            document = decode_object(answer.body)
        except MalformedCallback as error:
            return _unusable(f"the job cannot be read: {error.message}", answer.status)
        output = document.get("output")
        if isinstance(output, dict):
            url = http_link(output.get("url"))
            if url is None:
                return _unusable("the job has ended, and names no audio", answer.status)
            return Completed(url=url, document=document)
        if "error_message" in document:
            return Gone(error=error_of(self._clean(document)))
        return NotYet(retry_in=_growing(_PACE, pickup.attempts), detail="the job has no output yet")

    def _refused(self, answer: Answer) -> Gone | Failed:
        """Return what a status that is no job means. `error_message` is PlayHT's, as its SDK reads it."""
        try:
            said = text(self._clean(decode_object(answer.body)), "error_message", 300)
        except MalformedCallback:
            said = None
        why = f": {printable(said, 300)}" if said else ""
        if answer.status == 404:
            message = f"PlayHT does not know the job: it keeps them for 48 hours{why}"
            return Gone(error=JobError(code="unknown_job", message=message))
        if answer.status in (401, 403):
            why = f"; compare api_key and user_id in [sources.{self._source}]{why}"
        elif 300 <= answer.status < 400:
            why = f", which leads elsewhere; correct base_url in [sources.{self._source}]"
        return Failed(
            kind=Found.REFUSED,
            status=answer.status,
            detail=f"{origin(self._base_url)} answered {answer.status}{why}",
            retry_after=answer.retry_after,
        )

    # ------------------------------------------------------------ following the stream

    async def _follow(
        self, pickup: Pickup, job_id: str, fetch: Fetch, headers: Mapping[str, str], now: int
    ) -> Completed | Result:
        accept = {**headers, "Accept": _EVENTS}
        async with fetch.stream(
            self._url(job_id), headers=accept, idle_seconds=self._silence_seconds
        ) as stream:
            if isinstance(stream, Failed):
                return stream
            kind = stream.answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if stream.answer.status not in (200, 201) or kind != _EVENTS:
                return self._job(pickup, stream.answer)  # asked for a stream, and got the JSON all the same
            return await self._until_decided(pickup, job_id, stream, now)

    async def _until_decided(
        self, pickup: Pickup, job_id: str, stream: Stream, now: int
    ) -> Completed | Result:
        """Follow the stream to the job's end, to its own, or until there is progress worth telling.

        Progress is told when an attempt ends. So news (another tenth of the way, or another stage) ends it `progress_seconds`
        later, and the next attempt follows on at once; without news one attempt lasts `follow_seconds` at most.
        """
        seen = _Seen()
        try:
            async with asyncio.timeout(self._follow_seconds) as limit:
                decided = await self._read(job_id, stream.events(), seen, limit, first=pickup.attempts == 0)
        except TimeoutError:
            return self._under_way(pickup, job_id, seen, now, retry_in=0.0)
        if decided is not None:
            return decided
        wait = _growing(_RESUME, pickup.attempts)
        return self._under_way(pickup, job_id, seen, now, retry_in=wait, cut=True)

    async def _read(
        self,
        job_id: str,
        events: AsyncIterator[ServerSentEvent | Failed],
        seen: _Seen,
        limit: asyncio.Timeout,
        *,
        first: bool,
    ) -> Completed | Gone | Failed | None:
        """Return what the events decide; None when they end before that. Other events, `ping` for one, say nothing."""
        async for event in events:
            if isinstance(event, Failed):
                return (
                    event if seen.latest is None else None
                )  # cut off, and it told something new all the same
            if event.event == "completed":
                return _completed(job_id, event)
            document = _table(event)
            if document is None:
                continue
            if event.event in ("error", "failed"):
                return Gone(error=error_of(self._clean(document)))
            if event.event == "generating":
                document = self._clean(document)
                step = _step(document)
                if first if seen.step is None else step != seen.step:
                    self._bring_forward(limit)
                seen.latest, seen.step = document, step
        return None

    def _bring_forward(self, limit: asyncio.Timeout) -> None:
        """Let the attempt end `progress_seconds` from now, unless it ends before."""
        soon = asyncio.get_running_loop().time() + self._progress_seconds
        limit.reschedule(min(limit.when() or soon, soon))

    def _under_way(
        self, pickup: Pickup, job_id: str, seen: _Seen, now: int, *, retry_in: float, cut: bool = False
    ) -> NotYet:
        detail = "the event stream ended before the job" if cut else "the job is under way"
        if seen.latest is None:
            return NotYet(retry_in=retry_in, detail=detail)
        progress = EventDraft(
            type="speech.processing",
            idempotency_key=join_key("job", job_id, "generating", seen.step),
            job_id=job_id,
            ref=pickup.ref,
            occurred_at=now,
            stage=Stage.PROGRESS,
            provider_data=seen.latest,
        )
        return NotYet(retry_in=retry_in, detail=detail, progress=progress)

    # ------------------------------------------------------------ the audio

    async def _download(self, pickup: Pickup, fetch: Fetch, done: Completed, now: int) -> Collected | Failed:
        """Download without any header of ours: the link is enough, and the key is the API's alone."""
        got = await fetch.download(done.url, hosts=self._hosts, limit=self._limit)
        match got:
            case Failed():
                return got
            case Answer():
                return Failed(
                    kind=Found.REFUSED,
                    status=got.status,
                    detail=f"{origin(done.url)} answered {got.status} for the audio",
                    retry_after=got.retry_after,
                )
            case Downloaded():
                asked = _asked(done.document) | dict(pickup.format)
                kind = got.headers.get("content-type", "")
                judged = judge(got.body, content_type=kind, format=asked, wanted="audio")
                if isinstance(judged, AudioDraft):
                    return Collected(draft=self._whole(pickup, done, judged, now), body=got.body)
                discard(got.body)
                return judged if isinstance(judged, Failed) else _unusable("the result is no audio", None)

    def _whole(self, pickup: Pickup, done: Completed, audio: AudioDraft, now: int) -> EventDraft:
        """Return the whole event: what a callback told of it, if one did, and what the job told now."""
        told = pickup.draft or EventDraft(
            type="speech.completed", idempotency_key=pickup.key, job_id=pickup.job_id, occurred_at=now
        )
        return replace(
            told,
            type="speech.completed",
            idempotency_key=pickup.key,
            second_key=pickup.key,
            ref=pickup.ref,
            stage=Stage.FINAL,
            audio=audio,
            remote=None,
            error=None,
            provider_data={**told.provider_data, **self._clean(done.document)},
            document=None,
        )

    def _clean(self, document: Document) -> Document:
        """Return a document without our keys and without what signs its links."""
        raw = encode(document)
        kept = self._redactor.clean_document(document, raw)
        shown: Document = unsigned(document if kept is raw else decode_object(kept))
        return shown


# ---------------------------------------------------------------- reading what PlayHT says


def final_key(job_id: str) -> str:
    """Return the identity of a job's result, the same by callback and by asking."""
    return join_key("job", job_id, "complete")


def http_link(value: Any) -> str | None:
    """Return a link that can be downloaded, None when `value` is none."""
    if not isinstance(value, str) or not value.startswith(("https://", "http://")) or len(value) > MAX_LINK:
        return None
    return value


def error_of(document: Document) -> JobError:
    """Return why a job failed, as far as PlayHT says it."""
    said = text(document, "error_message") or text(document, "message") or text(document, "error")
    return JobError(message=said or "the provider gave no reason")


def _completed(job_id: str, event: ServerSentEvent) -> Completed | Failed:
    document = _table(event)
    if document is None:
        return _unusable("the event completed is not JSON", None)
    if opaque_id(document.get("id")) not in (None, job_id):
        return _unusable("the event completed is about another job", None)
    url = http_link(document.get("url"))
    if url is None:
        return _unusable("the event completed names no audio", None)
    return Completed(url=url, document=document)


def _table(event: ServerSentEvent) -> Document | None:
    try:
        return decode_object(event.data.encode("utf-8", "replace"))
    except MalformedCallback:
        return None


def _step(document: Document) -> str:
    """Return where a job stands, coarsely: its stage, and the tenths of the way."""
    share = number(document, "progress")
    tenths = min(int(share * 10 + 1e-9), 10) if share is not None else 0
    return f"{printable(text(document, 'stage', 40) or 'unknown', 40)}:{tenths}"


def _asked(document: Document) -> dict[str, Any]:
    """Return what the job asked for, as far as it decides raw formats."""
    given = table(document, "input")
    return {name: given[name] for name in ("output_format", "sample_rate") if name in given}


def _growing(pace: tuple[float, float, float], attempts: int) -> float:
    start, factor, most = pace
    return min(most, start * factor ** min(attempts, 20))


def _unusable(detail: str, status: int | None) -> Failed:
    return Failed(kind=Found.UNUSABLE, detail=detail, status=status)
