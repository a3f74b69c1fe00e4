"""deAPI: signed JSON callbacks about jobs of any kind; their results are fetched (deapi_results).

Contract: https://docs.deapi.ai/execution-modes-and-integrations/webhooks. HMAC-SHA256 over the timestamp header's text, a
full stop and the raw body; the secret's UTF-8 bytes as they are (also when it begins with `whsec_`); lower-case hex.
Ten failed callbacks in a row switch webhooks off for the whole account, so nothing but a failed proof is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, VerifiedCallback
from receiver.core.errors import CallbackRejected, ConfigError, MalformedCallback
from receiver.core.event import EventDraft, RemoteResult, Stage
from receiver.core.fetch import Fetch
from receiver.core.pickup import Pickup
from receiver.core.redaction import Redactor
from receiver.core.signing import CallbackTokens, hmac_sha256_hex, same_as_any
from receiver.providers import bases
from receiver.providers.base import Order, Result
from receiver.providers.deapi_results import (
    FAILED,
    JobReader,
    Limits,
    completed_key,
    error_of,
    family_of,
    http_link,
)
from receiver.providers.jsonbody import (
    Document,
    decode_object,
    encode,
    epoch_ms,
    join_key,
    opaque_id,
    table,
)
from receiver.providers.options import SecretList, refuse, reveal
from receiver.providers.redaction import redacted, shown, unsigned
from receiver.providers.tokens import check_token, content_key
from receiver.settings.model import Finding, SourceSettings, provider_options
from receiver.settings.storage import MIB, Section

MAX_BODY = MIB
"""Callbacks are under 1 kB; nothing of deAPI's needs more than this."""
STAMP_HEADER, SIGNATURE_HEADER = "x-deapi-timestamp", "x-deapi-signature"
_STAMP = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"sha256=[0-9a-f]{64}")
_STAGES = {"job.processing": "processing", "job.completed": "completed", "job.failed": "failed"}
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*|[0-9a-f:]+:[0-9a-f:.]*")


class DeapiSettings(Section):
    """[sources.NAME] of provider `deapi`."""

    secrets: SecretList = ()
    """The account's webhook secrets; newest last."""
    tolerance_seconds: int = Field(300, ge=1, le=3600)
    """How far the timestamp header may be from this machine's clock, either way."""
    require_token: bool = False
    """Refuse a callback whose URL carries no token of ours."""
    api_key: SecretStr | None = None
    """For asking deAPI about a job: a fresh link when one has expired, and jobs that were handed over."""
    api_url: bases.BaseUrl = "https://api.deapi.ai"
    """Where the API is (https://docs.deapi.ai/api/v2/utilities/jobs); the key goes nowhere else."""
    result_hosts: tuple[str, ...] = ("deapi.ai",)
    """Hosts that results may be fetched from, with all below them; `*` is any."""
    deadline_seconds: float = Field(86400, ge=1, le=30 * 86400)
    """How long a result is tried for before that is given up."""

    @field_validator("result_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any(host != "*" and not _HOST.fullmatch(host) for host in value):
            raise ValueError('each entry is a host name in lower case, for example "deapi.ai", or "*"')
        return value


def create(settings: SourceSettings, tokens: CallbackTokens) -> DeapiProvider:
    """Return the adapter of one source. Raises `ConfigError` when it could prove nobody, or a setting is wrong."""
    options = provider_options(DeapiSettings, settings)
    refuse(_judge(settings.name, options))
    return DeapiProvider(settings, options, tokens)


def findings(settings: SourceSettings) -> list[Finding]:
    """Return what `receiver check` says of one source: E201, E204, W201 to W203."""
    try:
        options = provider_options(DeapiSettings, settings)
    except ConfigError as error:
        where = f"sources.{settings.name}"
        return [Finding("E204", where, error.message, "correct the setting; see docs/configuration.md")]
    return _judge(settings.name, options)


def _judge(name: str, options: DeapiSettings) -> list[Finding]:
    where, found = f"sources.{name}.secrets", []
    write = f'add secrets = ["env:DEAPI_WEBHOOK_SECRET"] to [sources.{name}]'
    if not options.secrets and not options.require_token:
        nobody = "no proof is configured, so anybody's callback would be believed"
        found.append(Finding("E201", where, nobody, write))
    elif not options.secrets:
        only = "only jobs whose webhook_secret was made with their callback URL can be proved; the account's cannot"
        found.append(Finding("W201", where, only, write))
    if any(len(secret) < 16 for secret in reveal(options.secrets)):
        short = "a secret has fewer than 16 characters: is it the whole of it?"
        found.append(Finding("W202", where, short, "copy the secret from deAPI's webhook settings again"))
    if options.api_key and bases.in_clear(options.api_url):
        clear = "the API key travels in clear"
        found.append(Finding("W203", f"sources.{name}.api_url", clear, "use an https:// URL"))
    return found


class DeapiProvider:
    """One deAPI source."""

    provider: ClassVar[str] = "deapi"
    keeps_retrying: ClassVar[bool] = False

    def __init__(self, settings: SourceSettings, options: DeapiSettings, tokens: CallbackTokens) -> None:
        self._source, self._tokens = settings.name, tokens
        self._secrets = reveal(options.secrets)
        self._tolerance = options.tolerance_seconds
        self._require_token = options.require_token
        self._body_limit = min(settings.max_json_bytes, MAX_BODY)
        key = options.api_key.get_secret_value() if options.api_key else ""
        self._redactor = Redactor((*self._secrets, key))
        self._setting = f"sources.{self._source}.secrets"
        self._deadline = options.deadline_seconds
        limits = Limits(audio=settings.max_audio_bytes, text=settings.max_json_bytes)
        self._jobs = JobReader(
            source=self._source,
            api_url=options.api_url,
            api_key=key,
            result_hosts=options.result_hosts,
            limits=limits,
            redactor=self._redactor,
        )

    @property
    def source(self) -> str:
        """Name of the source."""
        return self._source

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check the token, if any, and that timestamp and signature are there once, well formed and fresh.

        Raises `CallbackRejected` or `WrongSource`.
        """
        stamp, signature = head.one(STAMP_HEADER), head.one(SIGNATURE_HEADER)
        claims = check_token(self._tokens, self._source, head, required=self._require_token)
        if stamp is None or signature is None:
            missing = "X-DeAPI-Timestamp" if stamp is None else "X-DeAPI-Signature"
            raise self._rejection(f"the header {missing} is missing: deAPI signs every callback")
        if not _STAMP.fullmatch(stamp):
            raise self._rejection("X-DeAPI-Timestamp is not a whole number of seconds")
        if not _SIGNATURE.fullmatch(signature):
            raise self._rejection("X-DeAPI-Signature is not sha256= and 64 lower-case hex digits")
        self._check_fresh(int(stamp), head.received_at)
        if not self._secrets and not (claims and claims.job_secret):
            raise self._rejection(
                f"no account secret is configured, and the URL names no job with one: set {self._setting}"
            )
        proofs = frozenset(("token",)) if claims else frozenset[str]()
        return Admission(head=head, claims=claims, proofs=proofs, body_limit=self._body_limit)

    def _check_fresh(self, stamp: int, now: int) -> None:
        away = abs(now - stamp * 1000)
        if away > self._tolerance * 1000:
            raise CallbackRejected(
                f"X-DeAPI-Timestamp is {away // 1000} s from this machine's clock, {self._tolerance} s are allowed: "
                "check the clock, or the callback was replayed",
                setting=f"sources.{self._source}.tolerance_seconds",
            )

    def _rejection(self, message: str) -> CallbackRejected:
        return CallbackRejected(message, setting=self._setting)

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Check the signature over the raw body: with the job's own secret where it has one, else the account's.

        Raises `CallbackRejected`.
        """
        head, claims = admission.head, admission.claims
        own = claims is not None and claims.job_secret and head.token
        secrets = tuple(self._tokens.job_secrets(head.token)) if own and head.token else self._secrets
        stamp, signature = head.one(STAMP_HEADER) or "", head.one(SIGNATURE_HEADER) or ""
        message = b"%b.%b" % (stamp.encode("latin-1"), body.load())
        if not same_as_any(signature, ["sha256=" + hmac_sha256_hex(secret, message) for secret in secrets]):
            whose = "the secret made for this job's URL" if own else f"no secret in {self._setting}"
            raise self._rejection(f"X-DeAPI-Signature fits {'not ' if own else ''}{whose}")
        return VerifiedCallback(head=head, claims=claims, proofs=admission.proofs | {"hmac"}, body=body)

    # ------------------------------------------------------------ meaning

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of `job.processing`, `job.completed` or `job.failed`.

        Raises `MalformedCallback` for another event, or when the job cannot be told.
        """
        document, bare, kept = self._document(callback)
        event, data = document.get("event"), table(document, "data")
        stage = _STAGES.get(event) if isinstance(event, str) else None
        if stage is None:
            named = f": {shown(self._redactor, event, 60)}" if isinstance(event, str) else ""
            raise MalformedCallback(
                f"the event is none of job.processing, job.completed and job.failed{named}"
            )
        job_id = opaque_id(data.get("job_request_id"))
        if job_id is None:
            raise MalformedCallback("data.job_request_id is missing, so the job cannot be told")
        if stage == "completed" and data.get("status") in FAILED:
            stage = "failed"
        family = family_of(data.get("job_type"))
        occurred_at = epoch_ms(document.get("timestamp")) or callback.head.received_at
        # A completed job that says it failed must not stand for the job's completion.
        job_key = join_key("job", data["job_request_id"], f"job.{stage}")
        delivery = document.get("delivery_id")
        return EventDraft(
            type=f"{family}.{stage}",
            idempotency_key=join_key("delivery", delivery) if opaque_id(delivery) else job_key,
            second_key=job_key if opaque_id(delivery) else None,
            job_id=job_id,
            ref=callback.ref,
            occurred_at=occurred_at,
            stage=Stage.PROGRESS if stage == "processing" else Stage.FINAL,
            remote=self._remote(job_id, data, callback) if stage == "completed" else None,
            error=error_of(table(bare, "data")) if stage == "failed" else None,
            provider_data=table(bare, "data"),
            document=kept,
        )

    def _document(self, callback: VerifiedCallback) -> tuple[Document, Document, bytes]:
        """Return the document without our secrets; then without what signs its links as well, decoded and as bytes."""
        if callback.body.size > self._body_limit:
            raise MalformedCallback(
                f"the JSON has {callback.body.size} bytes; {self._body_limit} are allowed"
            )
        raw = callback.body.load()
        document = decode_object(raw)
        kept = self._redactor.clean_document(document, raw)
        if kept is not raw:
            document = decode_object(kept)
        bare = unsigned(document)
        return document, bare, kept if bare is document else encode(bare)

    def redact(self, body: bytes) -> bytes:
        """Return `body` without the configured secrets, callback tokens and what signs its links."""
        return redacted(self._redactor, body)

    def fallback_key(self, callback: VerifiedCallback) -> str:
        """Return the identity of a callback that could not be normalized: token and content hash."""
        return content_key(callback)

    # ------------------------------------------------------------ results

    def _remote(self, job_id: str, data: Document, callback: VerifiedCallback) -> RemoteResult | None:
        """Return where the result lies. A link is documented as always there, and not always so: then the job is asked."""
        url = http_link(data.get("result_url"))
        if url is None and not self._jobs.can_ask(job_id):
            return None
        # From its arrival, not from the time it tells: a clock of the sender's is no reason to try once and give up.
        return RemoteResult(
            key=completed_key(data["job_request_id"]),
            url=url,
            deadline_at=callback.head.received_at + round(self._deadline * 1000),
        )

    @property
    def deadline_seconds(self) -> float:
        """How long a result is tried for, in seconds."""
        return self._deadline

    def order(self, text: str, format: Mapping[str, Any]) -> Order:
        """Understand a job id, or the API's URL of a job. Raises `PickupRefused`."""
        return self._jobs.order(text)

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether deAPI can be asked about this one's job: there is a key, and the job is known."""
        return self._jobs.can_ask(pickup.job_id)

    def family(self, pickup: Pickup) -> str:
        """Return `speech`, `transcript` or `media`, by the callback, else by the job type in the pickup's `product`."""
        return self._jobs.family(pickup) or "media"

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Fetch the result from its link, or from a fresh one that the job is asked for."""
        return await self._jobs.collect(pickup, fetch, now=now)
