"""PlayHT: the dashboard's JSON callbacks, and results that are asked for (playht_jobs).

PlayHT's own service closed at the end of 2025; what is served by its contract elsewhere (self-hosted, compatible) and the
callbacks of either payload are understood as before. Contract: https://docs.play.ht/reference/api-tts-webhooks and
https://docs.play.ht/reference/api-get-tts-data. Callbacks are not signed: PlayHT echoes the account's own key in a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, VerifiedCallback
from receiver.core.errors import CallbackRejected, ConfigError, MalformedCallback, PickupRefused
from receiver.core.event import EventDraft, RemoteResult, Stage
from receiver.core.fetch import Fetch
from receiver.core.pickup import Pickup
from receiver.core.redaction import Redactor
from receiver.core.signing import CallbackTokens, same_as_any
from receiver.providers import bases
from receiver.providers.base import Order, Result
from receiver.providers.jsonbody import (
    Document,
    decode_object,
    encode,
    join_key,
    number,
    opaque_id,
    table,
)
from receiver.providers.options import SecretList, refuse, reveal
from receiver.providers.playht_jobs import JobReader, error_of, final_key, http_link
from receiver.providers.redaction import redacted, shown, unsigned
from receiver.providers.tokens import check_token, content_key
from receiver.settings.model import Finding, SourceSettings, provider_options
from receiver.settings.storage import MIB, Section

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


class PlayhtSettings(Section):
    """[sources.NAME] of provider `playht`."""

    api_key: SecretStr | None = None
    """For asking PlayHT about a job; also what its callbacks carry, unless `callback_keys` says otherwise."""
    user_id: str | None = Field(default=None, coerce_numbers_to_str=True)
    """The account's user id, sent as `X-USER-ID`."""
    base_url: bases.BaseUrl = "https://api.play.ht/api/v2"
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


def create(settings: SourceSettings, tokens: CallbackTokens) -> PlayhtProvider:
    """Return the adapter of one source. Raises `ConfigError` when it could prove nobody, or a setting is wrong."""
    options = provider_options(PlayhtSettings, settings)
    refuse(_judge(settings.name, options))
    return PlayhtProvider(settings, options, tokens)


def findings(settings: SourceSettings) -> list[Finding]:
    """Return what `receiver check` says of one source: E401, E404, W401, W402, W403."""
    try:
        options = provider_options(PlayhtSettings, settings)
    except ConfigError as error:
        where = f"sources.{settings.name}"
        return [Finding("E404", where, error.message, "correct the setting; see docs/configuration.md")]
    return _judge(settings.name, options)


def _judge(name: str, options: PlayhtSettings) -> list[Finding]:
    where, found = f"sources.{name}", []
    if not _keys(options) and not options.require_token:
        nobody = "no proof is configured, so anybody's callback would be believed"
        write = f'add api_key = "env:PLAYHT_API_KEY" to [{where}]'
        return [Finding("E401", f"{where}.api_key", nobody, write)]
    if not options.api_key or not options.user_id:
        missing = "user_id" if options.api_key else "api_key"
        mute = "PlayHT cannot be asked about a job: only callbacks that carry a link bring a result"
        found.append(Finding("W401", f"{where}.{missing}", mute, "set both api_key and user_id"))
    elif bases.in_clear(options.base_url):
        clear = "the API key travels in clear to base_url"
        found.append(Finding("W402", f"{where}.base_url", clear, "use an https:// URL"))
    if "*" in options.result_hosts:
        any_host = "a callback may have anything downloaded, from any host"
        found.append(Finding("W403", f"{where}.result_hosts", any_host, "name the hosts that hold results"))
    return found


def _keys(options: PlayhtSettings) -> tuple[str, ...]:
    return reveal(options.callback_keys or ((options.api_key,) if options.api_key else ()))


class PlayhtProvider:
    """One PlayHT source: called back by the dashboard's settings, and asked for results."""

    provider: ClassVar[str] = "playht"
    keeps_retrying: ClassVar[bool] = False
    """Whether and how PlayHT retries is not documented, so nothing is left to it."""

    def __init__(self, settings: SourceSettings, options: PlayhtSettings, tokens: CallbackTokens) -> None:
        self._source, self._tokens, self._options = settings.name, tokens, options
        self._keys = _keys(options)
        self._key_setting = (
            f"sources.{self._source}.{'callback_keys' if options.callback_keys else 'api_key'}"
        )
        self._body_limit = min(settings.max_json_bytes, MAX_BODY)
        self._secrets = (*self._keys, *reveal((options.api_key,) if options.api_key else ()))
        self._redactor = Redactor(self._secrets)
        self._jobs = JobReader(
            source=self._source,
            base_url=options.base_url,
            headers=_headers(options),
            mode=options.mode,
            hosts=options.result_hosts,
            limit=settings.max_audio_bytes,
            follow_seconds=min(60.0, settings.attempt_seconds / 2),
            progress_seconds=options.progress_seconds,
            silence_seconds=options.silence_seconds,
            secrets=self._secrets,
        )

    @property
    def source(self) -> str:
        """Name of the source."""
        return self._source

    @property
    def deadline_seconds(self) -> float:
        """How long after it was asked for a result is given up."""
        return self._options.deadline_seconds

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check the token, if any, and the key in `Authorization: Bearer …` (or bare) or `secret-key`.

        Raises `CallbackRejected` or `WrongSource`. Where tokens are required, a token without any key is proof enough; a
        key that is there must fit all the same.
        """
        authorization, secret_key = head.one("authorization"), head.one("secret-key")
        claims = check_token(self._tokens, self._source, head, required=self._options.require_token)
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
        if callback.body.size > self._body_limit:
            raise MalformedCallback(
                f"the JSON has {callback.body.size} bytes; {self._body_limit} are allowed"
            )
        raw = callback.body.load()
        document = decode_object(raw)
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
        kept = self._kept(document, raw)
        cleaned = document if kept is raw else decode_object(kept)
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
            deadline_at=callback.head.received_at + round(self._options.deadline_seconds * 1000),
        )

    def _kept(self, document: Document, raw: bytes) -> bytes:
        """Return the body without our secrets, callback tokens, and what signs its links."""
        kept = self._redactor.clean_document(document, raw)
        clean = document if kept is raw else decode_object(kept)
        bare = unsigned(clean)
        return kept if bare is clean else encode(bare)

    def redact(self, body: bytes) -> bytes:
        """Return `body` without the configured keys, callback tokens and what signs its links."""
        return redacted(self._redactor, body)

    def fallback_key(self, callback: VerifiedCallback) -> str:
        """Return the identity of a callback that could not be normalized: token and content hash."""
        return content_key(callback)

    # ------------------------------------------------------------ pull

    def order(self, text: str, format: Mapping[str, Any]) -> Order:
        """Understand a job id, the job's URL below `base_url`, or the `Location` PlayHT gave. Raises `PickupRefused`."""
        if self._jobs.headers is None:
            raise PickupRefused(
                f"PlayHT cannot be asked: set api_key and user_id in [sources.{self._source}]"
            )
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
            given = bases.origin(base) + given
        if bases.is_url(given):
            given = _FORMAT.sub("", given)
            if not bases.is_plain(given) or not bases.same_origin(base, given):
                return None
            given = (bases.path_below(f"{base}/tts", given) or "").rstrip("/")
        return given if _JOB_ID.fullmatch(given) else None

    def _askable(self, job_id: str | None) -> bool:
        return self._jobs.headers is not None and job_id is not None and bool(_JOB_ID.fullmatch(job_id))

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether PlayHT can be asked: key and user id are set, and the job is known."""
        return self._askable(pickup.job_id)

    def family(self, pickup: Pickup) -> str:
        """Return `speech`: PlayHT makes nothing else."""
        return "speech"

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt: download the audio where a callback named it, or else ask for the job and download then."""
        return await self._jobs.collect(pickup, fetch, now=now, askable=self.can_ask(pickup))


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
