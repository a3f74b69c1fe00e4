"""PlayHT: the dashboard's JSON callbacks, and results that are asked for (playht_jobs).

PlayHT's own service closed at the end of 2025; what is served by its contract elsewhere (self-hosted, compatible) and the
callbacks of either payload are understood as before. Contract: https://docs.play.ht/reference/api-tts-webhooks and
https://docs.play.ht/reference/api-get-tts-data. Callbacks are not signed: PlayHT echoes the account's own key in a header.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from msgspec import Struct
from pydantic import Field, SecretStr, field_validator

from receiver.core.callback import Admission, Head, VerifiedCallback
from receiver.core.errors import Code, Finding, MalformedCallback, PickupRefused, RejectionKind
from receiver.core.event import EventDraft, JobError, Stage
from receiver.core.fetch import Failed, Fetch, FetchResponse, ServerSentEvent, Stream
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import in_clear
from receiver.core.work import OutcomeKind, Pickup
from receiver.providers import NO_REASON, PullProvider, PushProvider, toolkit
from receiver.providers.documents import (
    Document,
    decode_object,
    encode,
    first_text,
    join_key,
    link,
    number,
    opaque_id,
    printable,
    table,
    text,
)
from receiver.providers.pickups import Collected, Gone, Lookup, NotYet, Result, collected
from receiver.providers.toolkit import (
    Hosts,
    SecretList,
    growing,
    origin,
    refused,
    reveal,
    revealed,
    shown,
    unusable,
)
from receiver.settings.model import BaseUrl, Section, SourceSettings
from receiver.settings.submitting import ProviderApi

JOB_SECONDS = 48 * 3600
"""PlayHT deletes a job after 48 hours (https://docs.play.ht/reference/api-generate-tts-audio-stream)."""
RESULT_HOSTS = ("peregrine-results.s3.amazonaws.com", "play.ht", "play.ai")
"""Where PlayHT's samples place results; never all of amazonaws.com, where anybody may have a bucket."""
_STAGES = (
    dict.fromkeys(("complete", "success"), "completed")
    | dict.fromkeys(("error", "failed"), "failed")
    | dict.fromkeys(("queued", "created", "inprogress"), "processing")
    | dict.fromkeys(("generating", "active", "preload", "generate", "postprocessing"), "processing")
)
"""By both payloads' words, and by the stages of the event stream: they are seen as a status as well."""
_ERROR_FIELDS = ("error_message", "message", "error")
_FORMAT_FIELDS = ("output_format", "sample_rate")
"""What of a job's `input` decides raw formats."""
_FORMAT_QUERY = re.compile(r"\?format=[a-z-]+$")
"""What PlayHT's own Content-Location adds to a job's URL."""
_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,500}")
_JSON, _EVENTS = "application/json", "text/event-stream"
_POLL_WAITS = (2.0, 1.5, 30.0)
"""Seconds before the second question, how they grow, and where that ends."""
_RESUME_WAITS = (1.0, 2.0, 30.0)
"""The same for a stream that ended early."""
_EXPIRED = frozenset((403, 404, 410))
"""What a link answers that has run out: the job may have a fresh one."""


class PlayhtSettings(Section):
    """[sources.NAME] of provider `playht`."""

    api_key: SecretStr | None = None
    """For asking PlayHT about a job; also what its callbacks carry, unless `callback_keys` says otherwise."""
    user_id: str | None = Field(default=None, coerce_numbers_to_str=True)
    """The account's user id, sent as `X-USER-ID`."""
    base_url: BaseUrl = "https://api.play.ht/api/v2"
    """The API that is asked, up to and without `/tts`."""
    mode: Literal["sse", "json"] = "sse"
    """How a job is asked for: its event stream is followed, or its JSON is asked for again and again."""
    result_hosts: Hosts = Field(default=RESULT_HOSTS, min_length=1)
    """Host names that a result may be downloaded from, with all below them."""
    callback_keys: SecretList = ()
    """The keys that callbacks carry; newest last. Without them, `api_key`."""
    require_token: bool = False
    """Refuse a callback whose URL carries no token of ours; one that carries it needs no key."""
    deadline_seconds: float = Field(default=JOB_SECONDS, gt=0, le=30 * 86400)
    """How long a result is waited for."""
    progress_seconds: float = Field(default=5.0, gt=0, le=60)
    """The least time between two progress events of a job."""
    silence_seconds: float = Field(default=20.0, gt=0, le=60)
    """An event stream that says nothing for so long has failed."""

    @field_validator("api_key", "user_id")
    @classmethod
    def _header_value(cls, value: SecretStr | str | None) -> SecretStr | str | None:
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        if plain is not None and not _HEADER_VALUE.fullmatch(plain):
            raise ValueError("it travels in a header: 1 to 500 printable ASCII characters without spaces")
        return value


class FinishedJob(Struct, frozen=True, kw_only=True):
    """A job that has ended well: the link to its audio, and what the provider says of it."""

    url: str
    document: Document


def _keys(options: PlayhtSettings) -> tuple[str, ...]:
    return reveal(options.callback_keys or ((options.api_key,) if options.api_key else ()))


class PlayhtProvider(PushProvider, PullProvider):
    """One PlayHT source: called back by the dashboard's settings, and polled for results.

    Whether and how PlayHT retries a callback is not documented, so nothing is left to it.
    """

    provider = "playht"
    Settings = PlayhtSettings
    small_documents = True
    secret_headers = frozenset(("authorization", "secret-key"))
    codes: ClassVar = {
        "E404": Code("A PlayHT source's setting is wrong", ""),
        "E401": Code("A PlayHT source has no proof", 'add api_key = "env:PLAYHT_API_KEY"'),
        "W401": Code("PlayHT cannot be asked", "set both api_key and user_id"),
        "W402": Code("A PlayHT key travels in clear", "use an https:// URL"),
        "W403": Code("PlayHT's callbacks may have anything downloaded", "name the hosts that hold results"),
    }

    def __init__(self, settings: SourceSettings, options: PlayhtSettings, tokens: CallbackTokens) -> None:
        self._keys, self._api_key = _keys(options), revealed(options.api_key)
        super().__init__(settings, options, tokens)
        self._key_setting = "callback_keys" if options.callback_keys else "api_key"
        self._follow_seconds = min(60.0, settings.attempt_seconds / 2)

    def _secrets(self) -> tuple[str, ...]:
        return (*self._keys, self._api_key)

    def _api_headers(self) -> Mapping[str, str]:
        """Return the headers that prove us to PlayHT (https://docs.play.ht/reference)."""
        user_id = self._options.user_id
        if not self._api_key or not user_id:
            return {}
        return {"AUTHORIZATION": f"Bearer {self._api_key}", "X-USER-ID": user_id}

    @classmethod
    def _judge(cls, where: str, options: PlayhtSettings) -> Iterator[Finding]:
        if not _keys(options) and not options.require_token:
            yield cls._missing("E401", where, "api_key")
            return
        if not options.api_key or not options.user_id:
            missing = "user_id" if options.api_key else "api_key"
            no_polls = "PlayHT cannot be asked about a job: only callbacks that carry a link bring a result"
            yield cls._finding("W401", where, missing, no_polls)
        elif in_clear(options.base_url):
            yield cls._finding("W402", where, "base_url", "the API key travels in clear to base_url")
        if "*" in options.result_hosts:
            any_host = "a callback may have anything downloaded, from any host"
            yield cls._finding("W403", where, "result_hosts", any_host)

    def submit_api(self) -> ProviderApi:
        """Return jobs of speech. Their result is asked for: which callbacks come is a setting of the dashboard's."""
        return self._submit_api(self._options.base_url, self._api_headers())

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return the account's key as version 2's callbacks carry it."""
        return {"authorization": f"Bearer {self._keys[-1]}"} if self._keys else {}

    # ------------------------------------------------------------ callbacks

    def admit(self, head: Head) -> Admission:
        """Check the token, if any, and the key in `Authorization: Bearer …` (or bare) or `secret-key`.

        Raises `CallbackRejected` or `WrongSource`. Where tokens are required, a token without any key is proof enough; a
        key that is there must fit all the same.
        """
        authorization, secret_key = head.one("authorization"), head.one("secret-key")
        claims = self._check_token(head, required=self._options.require_token)
        proofs: set[str] = {"token"} if claims else set()
        secret = 0
        keys = [key for key in (authorization and _bearer(authorization), secret_key) if key is not None]
        if self._keys and keys:
            wrong = "the key in the callback's header fits no value"
            secret = min(self._place_of(key, self._keys, self._key_setting, wrong) for key in keys)
            proofs.add("key")
        elif not (self._options.require_token and claims):
            raise self._rejection(
                self._key_setting,
                "neither Authorization nor secret-key came: PlayHT sends the account's API key in one of them",
                RejectionKind.MISSING,
            )
        return Admission(
            head=head, claims=claims, proofs=frozenset(proofs), body_limit=self._json_limit, secret=secret
        )

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of either payload: version 2's, or that of the standard voices.

        Raises `MalformedCallback` for an unknown status, or when the job or its audio cannot be told.
        """
        document, raw = self._load(callback.body)
        job_id, status = self._job_id(document), text(document, "status", len(raw)) or ""
        stage = _STAGES.get(status.lower())
        if stage is None:
            named = f": {shown(self._redactor, status, 60)}" if status else ""
            raise MalformedCallback(f"the status is not known{named}")
        url = self._result_url(document, job_id) if stage == "completed" else None
        remote = self._remote(final_key(job_id), url, callback) if stage == "completed" else None
        document, raw = self._without_signatures(*self._without_secrets(document, raw))
        return EventDraft(
            type=f"speech.{stage}",
            idempotency_key=remote.key if remote else _progress_key(document, job_id, status),
            second_key=remote.key if remote else None,
            job_id=job_id,
            ref=callback.ref,
            occurred_at=callback.head.received_at,
            stage=Stage.PROGRESS if stage == "processing" else Stage.FINAL,
            remote=remote,
            error=error_of(document) if stage == "failed" else None,
            provider_data=document,
            document=raw,
        )

    def _job_id(self, document: Document) -> str:
        """Return the job's id. Cut short or redacted, two jobs would be one: then it is refused."""
        value = document.get("id") or document.get("transcriptionId")
        job_id = opaque_id(value)
        if job_id is None:
            raise MalformedCallback("neither id nor transcriptionId is there, so the job cannot be told")
        if isinstance(value, str) and value != job_id:
            raise MalformedCallback("the job's id is too long, or cannot be printed")
        if self._redactor.clean(raw := job_id.encode("utf-8", "replace")) != raw:
            raise MalformedCallback("the job's id holds a secret of this source's")
        return job_id

    def _result_url(self, document: Document, job_id: str) -> str | None:
        """Return the link to the audio. A version 2 job without a link can be polled; nothing else can."""
        outputs = table(document, "metadata").get("output")
        url = link(document.get("url")) or link(
            outputs[0] if isinstance(outputs, list) and outputs else outputs
        )
        if url is None and not ("id" in document and self._can_poll(job_id)):
            raise MalformedCallback("the job is complete, and no link to its audio is there")
        return url

    # ------------------------------------------------------------ pickups

    def lookup(self, text: str, format: Mapping[str, Any]) -> Lookup:
        """Understand a job id, the job's URL below `base_url`, or the `Location` PlayHT gave. Raises `PickupRefused`."""
        if not self._api_headers():
            raise PickupRefused(f"PlayHT cannot be asked: set api_key and user_id in [{self._where}]")
        base, job_id = self._options.base_url, text.strip()
        if job_id.startswith("/"):  # the Location of a job is a path
            job_id = origin(base) + job_id
        if toolkit.is_url(job_id):
            job_id = (toolkit.id_below(_FORMAT_QUERY.sub("", job_id), f"{base}/tts") or "").rstrip("/")
        if not self.job_ids.fullmatch(job_id):
            raise PickupRefused(
                f"hand over the job's id, as PlayHT answered it, or its URL: {base}/tts/ and the id"
            )
        return Lookup(key=final_key(job_id), job_id=job_id)

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt. A callback's link is tried first; when it has run out, the job is asked for a new one."""
        expired: Failed | None = None
        if pickup.target:
            found = await self._download(pickup, fetch, FinishedJob(url=pickup.target, document={}), now)
            if not (isinstance(found, Failed) and found.status in _EXPIRED and self.can_ask(pickup)):
                return found
            expired = found
        if not self.can_ask(pickup):
            detail = f"nothing to ask by: set api_key and user_id in [{self._where}]"
            return Failed(kind=OutcomeKind.REFUSED, detail=detail)
        ask = self._follow if self._options.mode == "sse" else self._poll
        job = await ask(
            pickup, fetch, f"{self._options.base_url}/tts/{quote(pickup.job_id or '', safe='')}", now
        )
        if isinstance(job, FinishedJob):
            return await self._download(pickup, fetch, job, now)
        # A callback said that the job had ended: the link's trouble says more than "not yet".
        return expired if expired is not None and isinstance(job, NotYet) else job

    async def _poll(self, pickup: Pickup, fetch: Fetch, url: str, now: int) -> FinishedJob | Result:
        response = await fetch.ask(url, headers={**self._api_headers(), "Accept": _JSON})
        return response if isinstance(response, Failed) else self._job(pickup, response)

    def _job(self, pickup: Pickup, response: FetchResponse) -> FinishedJob | Result:
        """Return what a job's JSON says; `output` is null until the job has ended."""
        if response.status not in (200, 201):
            return self._no_job(response)
        try:
            document = decode_object(response.body)
        except MalformedCallback as error:
            return unusable(f"the job cannot be read: {error.message}", response.status)
        if isinstance(document.get("output"), dict):
            url = link(document["output"].get("url"))
            if url is None:
                return unusable("the job has ended, and names no audio", response.status)
            return FinishedJob(url=url, document=document)
        if "error_message" in document:
            return Gone(error=error_of(self._clean(document)))
        return NotYet(retry_in=growing(pickup.attempts, *_POLL_WAITS), detail="the job has no output yet")

    def _no_job(self, response: FetchResponse) -> Gone | Failed:
        """Return what a status that is no job means. `error_message` is PlayHT's, as its SDK reads it."""
        try:
            message = text(self._clean(decode_object(response.body)), "error_message", 300)
        except MalformedCallback:
            message = None
        reason = f": {printable(message, 300)}" if message else ""
        if response.status == 404:
            unknown = f"PlayHT does not know the job: it keeps them for 48 hours{reason}"
            return Gone(error=JobError(code="unknown_job", message=unknown))
        if response.status in (401, 403):
            reason = f"; compare api_key and user_id in [{self._where}]{reason}"
        elif 300 <= response.status < 400:
            reason = f", which leads elsewhere; correct base_url in [{self._where}]"
        return refused(response, f"{origin(self._options.base_url)} answered {response.status}{reason}")

    async def _follow(self, pickup: Pickup, fetch: Fetch, url: str, now: int) -> FinishedJob | Result:
        headers = {**self._api_headers(), "Accept": _EVENTS}
        async with fetch.stream(url, headers=headers, idle_seconds=self._options.silence_seconds) as stream:
            if isinstance(stream, Failed):
                return stream
            kind = stream.response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if stream.response.status not in (200, 201) or kind != _EVENTS:
                return self._job(pickup, stream.response)  # asked for a stream, and got the JSON all the same
            return await self._until_decided(pickup, stream, now)

    async def _until_decided(self, pickup: Pickup, stream: Stream, now: int) -> FinishedJob | Result:
        """Follow the stream to the job's end, to its own, or until there is progress worth an event.

        Progress becomes an event when an attempt ends. So another tenth of the way, or another stage, ends it
        `progress_seconds` later, and the next attempt follows on at once; without such progress one attempt lasts
        `follow_seconds` at most.
        """
        progress: Document | None = None
        clock = asyncio.get_running_loop().time
        retry_in, detail = growing(pickup.attempts, *_RESUME_WAITS), "the event stream ended before the job"
        try:
            async with asyncio.timeout(self._follow_seconds) as limit:
                async for event in stream.events():
                    if isinstance(event, Failed):
                        if progress is None:
                            return event
                        break  # cut off, and there was progress all the same
                    if (end := self._end_in(event, pickup.job_id)) is not None:
                        return end
                    document = _event_data(event) if event.event == "generating" else None
                    if document is None:
                        continue
                    document = self._clean(document)
                    if pickup.attempts == 0 if progress is None else _step(progress) != _step(document):
                        soon = clock() + self._options.progress_seconds
                        limit.reschedule(min(limit.when() or soon, soon))
                    progress = document
        except TimeoutError:
            retry_in, detail = 0.0, "the job is under way"
        return NotYet(retry_in=retry_in, detail=detail, progress=_progress_draft(pickup, progress, now))

    def _end_in(self, event: ServerSentEvent, job_id: str | None) -> FinishedJob | Gone | Failed | None:
        """Return how the job ended by one event of its stream; None when that says nothing of it, as `ping`."""
        document = _event_data(event)
        if event.event in ("error", "failed") and document is not None:
            return Gone(error=error_of(self._clean(document)))
        if event.event != "completed":
            return None
        if document is None:
            return unusable("the event completed is not JSON")
        if opaque_id(document.get("id")) not in (None, job_id):
            return unusable("the event completed is about another job")
        url = link(document.get("url"))
        return (
            FinishedJob(url=url, document=document) if url else unusable("the event completed names no audio")
        )

    async def _download(self, pickup: Pickup, fetch: Fetch, job: FinishedJob, now: int) -> Collected | Failed:
        """Download without any header of ours: the link is enough, and the key is the API's alone."""
        limit = self._settings.max_audio_bytes
        found = await fetch.download(job.url, hosts=self._options.result_hosts, limit=limit)
        if isinstance(found, Failed):
            return found
        if isinstance(found, FetchResponse):
            return refused(found, f"{origin(job.url)} answered {found.status} for the audio")
        given = table(job.document, "input")
        wanted = {name: given[name] for name in _FORMAT_FIELDS if name in given} | dict(pickup.format)
        content_type = found.headers.get("content-type", "")
        known = pickup.draft.provider_data if pickup.draft else {}
        data = {**known, **self._clean(job.document)}
        parts: dict[str, Any] = {"provider_data": data, "document": None}
        return collected(pickup, "speech", found.body, content_type, now, format=wanted, **parts)

    def _clean(self, document: Document) -> Document:
        """Return a document without our keys and without what signs its links."""
        return self._without_signatures(*self._without_secrets(document, encode(document)))[0]


def _bearer(header: str) -> str:
    """Return the key in an `Authorization` value, with `Bearer` before it or not (the documents' copies are cut off there)."""
    scheme, space, rest = header.partition(" ")
    return rest.strip() if space and scheme.lower() == "bearer" else header.strip()


def final_key(job_id: str) -> str:
    """Return the identity of a job's result, the same by callback and by polling."""
    return join_key("job", job_id, "complete")


def _progress_key(document: Document, job_id: str, status: str) -> str:
    """Return the identity of a callback that brings no audio: job, status and progress."""
    progress = number(document, "progress")
    if progress is None:
        progress = number(table(document, "metadata"), "progress")
    return join_key("job", job_id, status.lower(), *(() if progress is None else (f"{progress:g}",)))


def _progress_draft(pickup: Pickup, document: Document | None, now: int) -> EventDraft | None:
    if document is None:
        return None
    return EventDraft(
        type="speech.processing",
        idempotency_key=join_key("job", pickup.job_id, "generating", _step(document)),
        job_id=pickup.job_id,
        ref=pickup.ref,
        occurred_at=now,
        stage=Stage.PROGRESS,
        provider_data=document,
    )


def error_of(document: Document) -> JobError:
    """Return why a job failed, as far as PlayHT says it."""
    return JobError(message=first_text(document, *_ERROR_FIELDS) or NO_REASON)


def _event_data(event: ServerSentEvent) -> Document | None:
    try:
        return decode_object(event.data.encode("utf-8", "replace"))
    except MalformedCallback:
        return None


def _step(document: Document) -> str:
    """Return where a job stands, coarsely: its stage, and the tenths of the way."""
    share = number(document, "progress")
    tenths = min(int(share * 10 + 1e-9), 10) if share is not None else 0
    return f"{printable(text(document, 'stage', 40) or 'unknown', 40)}:{tenths}"
