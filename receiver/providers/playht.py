"""PlayHT: the dashboard's JSON callbacks, and results that are asked for (playht_jobs).

PlayHT's own service closed at the end of 2025; what is served by its contract elsewhere (self-hosted, compatible) and the
callbacks of either payload are understood as before. Contract: https://docs.play.ht/reference/api-tts-webhooks and
https://docs.play.ht/reference/api-get-tts-data. Callbacks are not signed: PlayHT echoes the account's own key in a header.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace
from pydantic import Field, SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, VerifiedCallback
from receiver.core.errors import CallbackRejected, MalformedCallback, PickupRefused
from receiver.core.event import AudioDraft, EventDraft, JobError, RemoteResult, Stage
from receiver.core.fetch import Answer, Downloaded, Failed, Fetch, ServerSentEvent, Stream
from receiver.core.findings import Code, Finding
from receiver.core.proofs import same_as_any
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import in_clear
from receiver.core.work import Found, Pickup
from receiver.providers import Adapter, Collected, Gone, NotYet, Order, Result, toolkit
from receiver.providers.documents import (
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
from receiver.providers.results import discard, judge
from receiver.providers.toolkit import SecretList, origin, reveal, revealed, shown
from receiver.settings.model import MIB, BaseUrl, Section, SourceSettings

MAX_BODY = MIB
"""Callbacks are under 1 kB; nothing of PlayHT's needs more than this."""
JOB_SECONDS = 48 * 3600
"""PlayHT deletes a job after 48 hours (https://docs.play.ht/reference/api-generate-tts-audio-stream)."""
RESULT_HOSTS = ("peregrine-results.s3.amazonaws.com", "play.ht", "play.ai")
"""Where PlayHT's samples place results; never all of amazonaws.com, where anybody may have a bucket."""
_COMPLETED = frozenset(("complete", "success"))
_FAILED = frozenset(("error", "failed"))
_PROCESSING = frozenset(
    ("queued", "created", "inprogress", "generating", "active", "preload", "generate", "postprocessing")
)
"""Both payloads' words, and the stages of the event stream: they are seen as a status as well."""
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,199}")
_FORMAT = re.compile(r"\?format=[a-z-]+$")
"""What PlayHT's own Content-Location adds to a job's URL."""
_PLAIN = re.compile(r"[\x21-\x7e]{1,500}")
MAX_LINK = 8192
_JSON, _EVENTS = "application/json", "text/event-stream"
_PACE = (2.0, 1.5, 30.0)
"""Seconds before the second question, how they grow, and where that ends."""
_RESUME = (1.0, 2.0, 30.0)
"""The same for a stream that ended early."""
_AGAIN = frozenset((403, 404, 410))
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
    result_hosts: tuple[str, ...] = Field(default=RESULT_HOSTS, min_length=1)
    """Host names that a result may be downloaded from, with all below them."""
    callback_keys: SecretList = ()
    """The keys that callbacks carry; newest last. Without them, `api_key`."""
    require_token: bool = False
    """Refuse a callback whose URL carries no token of ours; one that carries it needs no key."""
    deadline_seconds: float = Field(default=JOB_SECONDS, gt=0, le=30 * 86400)
    """How long a result is waited for."""
    progress_seconds: float = Field(default=5.0, gt=0, le=60)
    """A job's progress is told at most once in this time."""
    silence_seconds: float = Field(default=20.0, gt=0, le=60)
    """An event stream that says nothing for so long has failed."""

    @field_validator("api_key", "user_id")
    @classmethod
    def _header_value(cls, value: SecretStr | str | None) -> SecretStr | str | None:
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        if plain is not None and not _PLAIN.fullmatch(plain):
            raise ValueError("it travels in a header: 1 to 500 printable ASCII characters without spaces")
        return value


class Completed(Struct, frozen=True, kw_only=True):
    """A job that has ended well, as the provider told it."""

    url: str
    document: Document


class _Seen(Struct, kw_only=True):
    """How far an event stream told of the job, while it is followed."""

    latest: Document | None = None
    step: str | None = None


def _keys(options: PlayhtSettings) -> tuple[str, ...]:
    return reveal(options.callback_keys or ((options.api_key,) if options.api_key else ()))


class PlayhtProvider(Adapter):
    """One PlayHT source: called back by the dashboard's settings, and asked for results."""

    provider = "playht"
    Settings = PlayhtSettings
    keeps_retrying = False
    """Whether and how PlayHT retries is not documented, so nothing is left to it."""
    secret_headers = frozenset(("authorization", "secret-key"))
    codes: ClassVar = {
        "E404": Code("A PlayHT source's setting is wrong", ""),
        "E401": Code("A PlayHT source has no proof", 'add api_key = "env:PLAYHT_API_KEY"'),
        "W401": Code("PlayHT cannot be asked", "set both api_key and user_id"),
        "W402": Code("A PlayHT key travels in clear", "use an https:// URL"),
        "W403": Code("PlayHT's callbacks may have anything downloaded", "name the hosts that hold results"),
    }

    def __init__(self, settings: SourceSettings, options: PlayhtSettings, tokens: CallbackTokens) -> None:
        self._keys = _keys(options)
        self._api_key = revealed(options.api_key)
        super().__init__(settings, options, tokens)
        self.deadline_seconds = options.deadline_seconds
        self._key_setting = f"sources.{self.source}.{'callback_keys' if options.callback_keys else 'api_key'}"
        self._body_limit = min(settings.max_json_bytes, MAX_BODY)
        self._headers = _headers(options)
        self._follow_seconds = min(60.0, settings.attempt_seconds / 2)

    def _secrets(self) -> tuple[str, ...]:
        return (*self._keys, *((self._api_key,) if self._api_key else ()))

    @classmethod
    def _judge(cls, where: str, options: PlayhtSettings) -> Iterator[Finding]:
        if not _keys(options) and not options.require_token:
            nobody = "no proof is configured, so anybody's callback would be believed"
            yield cls._finding("E401", f"{where}.api_key", nobody, f"{cls.codes['E401'].fix} to [{where}]")
            return
        if not options.api_key or not options.user_id:
            missing = "user_id" if options.api_key else "api_key"
            mute = "PlayHT cannot be asked about a job: only callbacks that carry a link bring a result"
            yield cls._finding("W401", f"{where}.{missing}", mute)
        elif in_clear(options.base_url):
            yield cls._finding("W402", f"{where}.base_url", "the API key travels in clear to base_url")
        if "*" in options.result_hosts:
            any_host = "a callback may have anything downloaded, from any host"
            yield cls._finding("W403", f"{where}.result_hosts", any_host)

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return the account's key as version 2's callbacks carry it."""
        return {"authorization": f"Bearer {self._keys[-1]}"} if self._keys else {}

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check the token, if any, and the key in `Authorization: Bearer …` (or bare) or `secret-key`.

        Raises `CallbackRejected` or `WrongSource`. Where tokens are required, a token without any key is proof enough; a
        key that is there must fit all the same.
        """
        authorization, secret_key = head.one("authorization"), head.one("secret-key")
        claims = self._claims(head, required=self._options.require_token)
        proofs = {"token"} if claims else set[str]()
        given = [
            value for value in (authorization and _bearer(authorization), secret_key) if value is not None
        ]
        if self._keys and given:
            if not all(same_as_any(value, self._keys) for value in given):
                raise CallbackRejected(
                    f"the key in the callback's header fits no value of {self._key_setting}",
                    setting=self._key_setting,
                )
            proofs.add("key")
        elif not (self._options.require_token and claims):
            raise CallbackRejected(
                "neither Authorization nor secret-key came: PlayHT sends the account's API key in one of them",
                setting=self._key_setting,
            )
        return Admission(head=head, claims=claims, proofs=frozenset(proofs), body_limit=self._body_limit)

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Return the proved callback: nothing in the body proves more than the headers did."""
        return VerifiedCallback(
            head=admission.head, claims=admission.claims, proofs=admission.proofs, body=body
        )

    # ------------------------------------------------------------ meaning

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of either payload: version 2's, or that of the standard voices.

        Raises `MalformedCallback` for an unknown status, or when the job or its audio cannot be told.
        """
        document, raw = self._load(callback.body, self._body_limit)
        named = document.get("id") or document.get("transcriptionId")
        job_id = opaque_id(named)
        if job_id is None:
            raise MalformedCallback("neither id nor transcriptionId is there, so the job cannot be told")
        if isinstance(named, str) and named != job_id:  # cut short, two jobs would be one
            raise MalformedCallback("the job's id is too long, or cannot be printed")
        named_bytes = job_id.encode("utf-8", "replace")
        if self._redactor.clean(named_bytes) != named_bytes:  # redacted, two jobs would be one
            raise MalformedCallback("the job's id holds a secret of this source's")
        stage = _stage(document.get("status"))
        if stage is None:
            word = document.get("status")
            named = f": {shown(self._redactor, word, 60)}" if isinstance(word, str) and word else ""
            raise MalformedCallback(f"the status is not known{named}")
        remote = self._remote(callback, document, job_id) if stage == "completed" else None
        cleaned, kept = self._without_signatures(*self._without_secrets(document, raw))
        return EventDraft(
            type=f"speech.{stage}",
            idempotency_key=remote.key if remote else _key(document, job_id),
            second_key=remote.key if remote else None,
            job_id=job_id,
            ref=callback.ref,
            occurred_at=callback.head.received_at,
            stage=Stage.PROGRESS if stage == "processing" else Stage.FINAL,
            remote=remote,
            error=error_of(cleaned) if stage == "failed" else None,
            provider_data=cleaned,
            document=kept,
        )

    def _remote(self, callback: VerifiedCallback, document: Document, job_id: str) -> RemoteResult:
        """Return where the audio lies. A version 2 job without a link can be asked for; nothing else can."""
        outputs = table(document, "metadata").get("output")
        first = outputs[0] if isinstance(outputs, list) and outputs else outputs
        url = http_link(document.get("url")) or http_link(first)
        if url is None and not ("id" in document and self._askable(job_id)):
            raise MalformedCallback("the job is complete, and no link to its audio is there")
        return RemoteResult(
            key=final_key(job_id),
            url=url,
            deadline_at=callback.head.received_at + round(self.deadline_seconds * 1000),
        )

    # ------------------------------------------------------------ pull

    def order(self, text: str, format: Mapping[str, Any]) -> Order:
        """Understand a job id, the job's URL below `base_url`, or the `Location` PlayHT gave. Raises `PickupRefused`."""
        if self._headers is None:
            raise PickupRefused(f"PlayHT cannot be asked: set api_key and user_id in [sources.{self.source}]")
        job_id = self._id_in(text.strip())
        if job_id is None:
            raise PickupRefused(
                "hand over the job's id, as PlayHT answered it, "
                f"or its URL: {self._options.base_url}/tts/ and the id"
            )
        return Order(key=final_key(job_id), job_id=job_id)

    def _id_in(self, given: str) -> str | None:
        base = self._options.base_url
        if given.startswith("/"):  # the Location of a job is a path
            given = toolkit.origin(base) + given
        if toolkit.is_url(given):
            given = _FORMAT.sub("", given)
            if not toolkit.is_plain(given) or not toolkit.same_origin(base, given):
                return None
            given = (toolkit.path_below(f"{base}/tts", given) or "").rstrip("/")
        return given if _JOB_ID.fullmatch(given) else None

    def _askable(self, job_id: str | None) -> bool:
        return self._headers is not None and job_id is not None and bool(_JOB_ID.fullmatch(job_id))

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether PlayHT can be asked: key and user id are set, and the job is known."""
        return self._askable(pickup.job_id)

    def family(self, pickup: Pickup) -> str:
        """Return `speech`: PlayHT makes nothing else."""
        return "speech"

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt. A link that a callback told is tried first; when it has run out, the job is asked for a new one."""
        askable = self.can_ask(pickup)
        told: Failed | None = None
        if pickup.target:
            found = await self._download(pickup, fetch, Completed(url=pickup.target, document={}), now)
            if not (isinstance(found, Failed) and found.status in _AGAIN and askable):
                return found
            told = found
        if self._headers is None or pickup.job_id is None or not askable:
            setting = f"[sources.{self.source}]"
            return Failed(
                kind=Found.REFUSED, detail=f"nothing to ask by: set api_key and user_id in {setting}"
            )
        read = self._follow if self._options.mode == "sse" else self._ask
        answer = await read(pickup, pickup.job_id, fetch, self._headers, now)
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
        return f"{self._options.base_url}/tts/{quote(job_id, safe='')}"

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
            why = f"; compare api_key and user_id in [sources.{self.source}]{why}"
        elif 300 <= answer.status < 400:
            why = f", which leads elsewhere; correct base_url in [sources.{self.source}]"
        return Failed(
            kind=Found.REFUSED,
            status=answer.status,
            detail=f"{origin(self._options.base_url)} answered {answer.status}{why}",
            retry_after=answer.retry_after,
        )

    # ------------------------------------------------------------ following the stream

    async def _follow(
        self, pickup: Pickup, job_id: str, fetch: Fetch, headers: Mapping[str, str], now: int
    ) -> Completed | Result:
        accept = {**headers, "Accept": _EVENTS}
        async with fetch.stream(
            self._url(job_id), headers=accept, idle_seconds=self._options.silence_seconds
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
                decided = await self._read_events(
                    job_id, stream.events(), seen, limit, first=pickup.attempts == 0
                )
        except TimeoutError:
            return self._under_way(pickup, job_id, seen, now, retry_in=0.0)
        if decided is not None:
            return decided
        wait = _growing(_RESUME, pickup.attempts)
        return self._under_way(pickup, job_id, seen, now, retry_in=wait, cut=True)

    async def _read_events(
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
        soon = asyncio.get_running_loop().time() + self._options.progress_seconds
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
        got = await fetch.download(
            done.url, hosts=self._options.result_hosts, limit=self._settings.max_audio_bytes
        )
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
        return self._without_signatures(*self._without_secrets(document, encode(document)))[0]


def _headers(options: PlayhtSettings) -> dict[str, str] | None:
    """Return the headers that prove us to PlayHT, None when they cannot be made (https://docs.play.ht/reference)."""
    if not options.api_key or not options.user_id:
        return None
    return {"AUTHORIZATION": f"Bearer {options.api_key.get_secret_value()}", "X-USER-ID": options.user_id}


def _bearer(header: str) -> str:
    """Return the key in an `Authorization` value, with `Bearer` before it or not (the documents' copies are cut off there)."""
    scheme, space, rest = header.partition(" ")
    return rest.strip() if space and scheme.lower() == "bearer" else header.strip()


def _stage(status: Any) -> str | None:
    word = status.lower() if isinstance(status, str) else ""
    if word in _COMPLETED:
        return "completed"
    if word in _FAILED:
        return "failed"
    return "processing" if word in _PROCESSING else None


def _key(document: Document, job_id: str) -> str:
    """Return the identity of a callback that brings no audio: job, status and progress."""
    progress = number(document, "progress")
    if progress is None:
        progress = number(table(document, "metadata"), "progress")
    parts = (job_id, str(document["status"]).lower(), *(() if progress is None else (f"{progress:g}",)))
    return join_key("job", *parts)


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
