"""deAPI: signed JSON callbacks about jobs of any kind; their results are fetched (deapi_results).

Contract: https://docs.deapi.ai/execution-modes-and-integrations/webhooks. HMAC-SHA256 over the timestamp header's text, a
full stop and the raw body; the secret's UTF-8 bytes as they are (also when it begins with `whsec_`); lower-case hex.
Ten failed callbacks in a row switch webhooks off for the whole account, so nothing but a failed proof is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import quote

from msgspec.structs import replace
from pydantic import Field, SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, HeldBody, MemoryBody, VerifiedCallback
from receiver.core.errors import CallbackRejected, MalformedCallback, PickupRefused
from receiver.core.event import AudioDraft, EventDraft, FileDraft, JobError, RemoteResult, Stage
from receiver.core.fetch import Answer, Downloaded, Failed, Fetch
from receiver.core.findings import Code, Finding
from receiver.core.proofs import hmac_sha256_hex, same_as_any
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import in_clear
from receiver.core.work import Found, Pickup
from receiver.providers import Adapter, Collected, Gone, NotYet, Order, Result, results, toolkit
from receiver.providers.documents import (
    Document,
    decode_object,
    epoch_ms,
    join_key,
    number,
    opaque_id,
    printable,
    table,
    text,
)
from receiver.providers.toolkit import SecretList, reveal, revealed, shown, unsigned
from receiver.settings.model import MIB, BaseUrl, Section, SourceSettings

MAX_BODY = MIB
"""Callbacks are under 1 kB; nothing of deAPI's needs more than this."""
STAMP_HEADER, SIGNATURE_HEADER = "x-deapi-timestamp", "x-deapi-signature"
_STAMP = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"sha256=[0-9a-f]{64}")
_STAGES = {"job.processing": "processing", "job.completed": "completed", "job.failed": "failed"}
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*|[0-9a-f:]+:[0-9a-f:.]*")
LINK_MS = 24 * 3600 * 1000
"""How long a result link lasts, about (https://docs.deapi.ai: result URLs are signed and expire)."""
FAILED = ("error", "failed")
"""`error` is documented; older pages of deAPI's say `failed`."""
_WAITING = ("pending", "processing", "in_progress", "queued")
_DONE = ("done", "completed")
_EXPIRED = (400, 401, 403, 404, 410)
"""What a storage answers for a link that it does not honour (any more): S3 has 400 and 403 for it."""
_FIRST_WAIT, _LONGEST_WAIT, _GROWTH = 5.0, 60.0, 1.5
_PATHS = ("api/v2/jobs/", "api/v1/client/request-status/")
"""Of a job, in both versions of the API; asked is the first."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,199}")
_TRANSCRIPTS = re.compile(r"(?:aud|vid|audiofile|videofile|audio|video)2txt|transcri(?:be|pt|ption)")
_LINK = re.compile(r"https?://[^\s\x00-\x1f\x7f]{1,8180}", re.IGNORECASE)
_WANTED: dict[str | None, results.Wanted] = {
    "speech": "audio",
    "transcript": "transcript",
    "media": "media",
    None: "any",
}


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
    api_url: BaseUrl = "https://api.deapi.ai"
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


class DeapiProvider(Adapter):
    """One deAPI source."""

    provider = "deapi"
    Settings = DeapiSettings
    https_only = True
    job_secrets = True
    secret_headers = frozenset((SIGNATURE_HEADER,))
    codes: ClassVar = {
        "E204": Code("A deAPI source's setting is wrong", ""),
        "E201": Code("A deAPI source has no proof", 'add secrets = ["env:DEAPI_WEBHOOK_SECRET"]'),
        "W201": Code("Only jobs with a secret of their own can be proved", "add secrets"),
        "W202": Code("A deAPI secret is very short", "copy the secret from deAPI's webhook settings again"),
        "W203": Code("A deAPI key travels in clear", "use an https:// URL"),
    }

    def __init__(self, settings: SourceSettings, options: DeapiSettings, tokens: CallbackTokens) -> None:
        self._account_secrets, self._key = reveal(options.secrets), revealed(options.api_key)
        super().__init__(settings, options, tokens)
        self.deadline_seconds, self._api_url = options.deadline_seconds, options.api_url
        self._body_limit = min(settings.max_json_bytes, MAX_BODY)
        self._secrets_setting, self._key_setting = (
            f"sources.{self.source}.{name}" for name in ("secrets", "api_key")
        )

    def _secrets(self) -> tuple[str, ...]:
        return (*self._account_secrets, self._key)

    @classmethod
    def _judge(cls, where: str, options: DeapiSettings) -> Iterator[Finding]:
        secrets, write = f"{where}.secrets", f"{cls.codes['E201'].fix} to [{where}]"
        if not options.secrets and not options.require_token:
            nobody = "no proof is configured, so anybody's callback would be believed"
            yield cls._finding("E201", secrets, nobody, write)
        elif not options.secrets:
            only = "only jobs whose webhook_secret was made with their callback URL can be proved; the account's cannot"
            yield cls._finding("W201", secrets, only, write)
        if any(len(secret) < 16 for secret in reveal(options.secrets)):
            yield cls._finding(
                "W202", secrets, "a secret has fewer than 16 characters: is it the whole of it?"
            )
        if options.api_key and in_clear(options.api_url):
            yield cls._finding("W203", f"{where}.api_url", "the API key travels in clear")

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return timestamp and signature, made with the newest of the account's secrets."""
        return signed(self._account_secrets[-1], body, now=now) if self._account_secrets else {}

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check the token, if any, and that timestamp and signature are there once, well formed and fresh.

        Raises `CallbackRejected` or `WrongSource`.
        """
        stamp, signature = head.one(STAMP_HEADER), head.one(SIGNATURE_HEADER)
        claims = self._claims(head, required=self._options.require_token)
        if stamp is None or signature is None:
            missing = "X-DeAPI-Timestamp" if stamp is None else "X-DeAPI-Signature"
            raise self._rejection(f"the header {missing} is missing: deAPI signs every callback")
        if not _STAMP.fullmatch(stamp):
            raise self._rejection("X-DeAPI-Timestamp is not a whole number of seconds")
        if not _SIGNATURE.fullmatch(signature):
            raise self._rejection("X-DeAPI-Signature is not sha256= and 64 lower-case hex digits")
        self._check_fresh(int(stamp), head.received_at)
        if not self._account_secrets and not (claims and claims.job_secret):
            raise self._rejection(
                f"no account secret is configured, and the URL names no job with one: set {self._secrets_setting}"
            )
        proofs = frozenset(("token",)) if claims else frozenset[str]()
        return Admission(head=head, claims=claims, proofs=proofs, body_limit=self._body_limit, held=False)

    def _check_fresh(self, stamp: int, now: int) -> None:
        away = abs(now - stamp * 1000)
        if away > self._options.tolerance_seconds * 1000:
            raise CallbackRejected(
                f"X-DeAPI-Timestamp is {away // 1000} s from this machine's clock, {self._options.tolerance_seconds} s are allowed: "
                "check the clock, or the callback was replayed",
                setting=f"sources.{self.source}.tolerance_seconds",
            )

    def _rejection(self, message: str) -> CallbackRejected:
        return CallbackRejected(message, setting=self._secrets_setting)

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Check the signature over the raw body: with the job's own secret where it has one, else the account's.

        Raises `CallbackRejected`.
        """
        head, claims = admission.head, admission.claims
        own = claims is not None and claims.job_secret and head.token
        secrets = tuple(self._tokens.job_secrets(head.token)) if own and head.token else self._account_secrets
        stamp, signature = head.one(STAMP_HEADER) or "", head.one(SIGNATURE_HEADER) or ""
        content = body.load()
        if not same_as_any(signature, [_signature(secret, stamp, content) for secret in secrets]):
            whose = "the secret made for this job's URL" if own else f"no secret in {self._secrets_setting}"
            raise self._rejection(f"X-DeAPI-Signature fits {'not ' if own else ''}{whose}")
        proofs = admission.proofs | {"job_secret" if own else "hmac"}
        return VerifiedCallback(head=head, claims=claims, proofs=proofs, body=body)

    # ------------------------------------------------------------ meaning

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of `job.processing`, `job.completed` or `job.failed`.

        Raises `MalformedCallback` for another event, or when the job cannot be told.
        """
        document, kept = self._without_secrets(*self._load(callback.body, self._body_limit))
        bare, kept = self._without_signatures(document, kept)
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

    # ------------------------------------------------------------ results

    def _remote(self, job_id: str, data: Document, callback: VerifiedCallback) -> RemoteResult | None:
        """Return where the result lies. A link is documented as always there, and not always so: then the job is asked."""
        url = http_link(data.get("result_url"))
        if url is None and not self._askable(job_id):
            return None
        # From its arrival, not from the time it tells: a clock of the sender's is no reason to try once and give up.
        return RemoteResult(
            key=completed_key(data["job_request_id"]),
            url=url,
            deadline_at=callback.head.received_at + round(self.deadline_seconds * 1000),
        )

    # ------------------------------------------------------------ polling

    def order(self, text: str, format: Mapping[str, Any]) -> Order:
        """Understand a job id, or the API's URL of a job. Raises `PickupRefused`."""
        if not self._key:
            raise PickupRefused(f"deAPI is asked with an API key: set {self._key_setting}")
        name = text.strip()
        if toolkit.is_url(name):
            name = self._id_in(name)
        if not _ID.fullmatch(name):
            raise PickupRefused(
                "that is no job of deAPI's: hand over the request_id that the job was submitted with"
            )
        return Order(key=completed_key(name), job_id=name)

    def _id_in(self, url: str) -> str:
        wanted = f"hand over the job's request_id, or {self._api_url}/{_PATHS[0]}…"
        if not toolkit.is_plain(url) or not toolkit.same_origin(self._api_url, url):
            raise PickupRefused(f"the URL is not one of this source's API: {wanted}")
        path = toolkit.path_below(self._api_url, url) or ""
        name = next((path.removeprefix(start) for start in _PATHS if path.startswith(start)), None)
        if name is None:
            raise PickupRefused(f"the URL is not one of a job: {wanted}")
        return name

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether deAPI can be asked about this one's job: there is a key, and the job is known."""
        return self._askable(pickup.job_id)

    def _askable(self, job_id: str | None) -> bool:
        return bool(self._key) and job_id is not None and _ID.fullmatch(job_id) is not None

    def family(self, pickup: Pickup) -> str:
        """Return `speech`, `transcript` or `media`, by the callback, else by the job type in the pickup's `product`."""
        return self._known_family(pickup) or "media"

    def _known_family(self, pickup: Pickup) -> str | None:
        if pickup.draft is not None:
            return pickup.draft.type.partition(".")[0]
        product = pickup.format.get("product")
        return family_of(product) if isinstance(product, str) and product else None

    # ------------------------------------------------------------ one attempt

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt: the link that is known, then a fresh one, where the job can be asked for it."""
        askable, refused = self.can_ask(pickup), None
        if pickup.target is not None and not (askable and _expired(pickup, now)):
            found = await self._download(fetch, pickup.target, self._known_family(pickup))
            if not (isinstance(found, Answer) and found.status in _EXPIRED):
                return self._fetched(pickup, found, {}, now)
            refused = found.status
        if not askable:
            return self._unasked(refused)
        headers = {"authorization": f"Bearer {self._key}", "accept": "application/json"}
        job = quote(pickup.job_id or "", safe="")
        answer = await fetch.ask(f"{self._api_url}/{_PATHS[0]}{job}", headers=headers)
        if isinstance(answer, Failed):
            return answer
        return await self._told(pickup, answer, fetch, now)

    def _unasked(self, status: int | None) -> Failed:
        gone = "the link has expired or is not there yet" if status else "there is no link to the result"
        detail = f"{gone}; set {self._key_setting} so that a fresh one can be asked for"
        return Failed(kind=Found.REFUSED, status=status, detail=detail)

    async def _download(self, fetch: Fetch, url: str, family: str | None) -> Downloaded | Answer | Failed:
        settings = self._settings
        limit = settings.max_json_bytes if family == "transcript" else settings.max_audio_bytes
        return await fetch.download(url, hosts=self._options.result_hosts, limit=limit)

    async def _told(self, pickup: Pickup, answer: Answer, fetch: Fetch, now: int) -> Result:
        """Read what the API says of the job."""
        if answer.status != 200:
            return self._not_told(pickup, answer)
        try:
            document = decode_object(self._redactor.clean(answer.body))
        except MalformedCallback:
            return _unusable("deAPI's answer about the job is no JSON object")
        data = table(document, "data") or document
        status = (text(data, "status", 40) or "").lower()
        link, inline = _result(data)
        if status in FAILED:
            return Collected(draft=self._failed_draft(pickup, data, now))
        if status in _DONE or (status not in _WAITING and (link or inline)):
            if link:
                found = await self._download(fetch, link, self._family_with(pickup, data))
                return self._fetched(pickup, found, data, now)
            if inline:
                return self._judged(pickup, MemoryBody(inline.encode()), "text/plain", data, now)
            return _unusable("deAPI says that the job is done, and tells no result")
        return _waiting(pickup, status, data)

    def _not_told(self, pickup: Pickup, answer: Answer) -> Result:
        status = answer.status
        if status == 404 and pickup.target is None and pickup.draft is None and pickup.attempts > 0:
            unknown = "deAPI does not know this job: another account's, or expired"
            return Gone(error=JobError(code="unknown_job", message=unknown))
        meanings = {
            401: f"the API key is not accepted: check {self._key_setting}",
            403: f"the API key is not accepted: check {self._key_setting}",
            404: "deAPI does not know this job",
            429: "deAPI says that these are too many requests (429)",
        }
        detail = meanings.get(status, f"deAPI answered {status} about the job")
        return Failed(kind=Found.REFUSED, status=status, detail=detail, retry_after=answer.retry_after)

    # ------------------------------------------------------------ what came

    def _fetched(
        self, pickup: Pickup, found: Downloaded | Answer | Failed, data: Document, now: int
    ) -> Result:
        if isinstance(found, Downloaded):
            content_type = found.headers.get("content-type", "")
            return self._judged(pickup, found.body, content_type, data, now)
        if isinstance(found, Answer):
            detail = f"the link to the result is answered {found.status}"
            return Failed(
                kind=Found.REFUSED, status=found.status, detail=detail, retry_after=found.retry_after
            )
        return found

    def _judged(
        self, pickup: Pickup, body: HeldBody, content_type: str, data: Document, now: int
    ) -> Collected | Failed:
        wanted = _WANTED[self._family_with(pickup, data)]
        judged = results.judge(body, content_type=content_type, format=pickup.format, wanted=wanted)
        if isinstance(judged, Failed):
            body.discard()
            return judged
        return Collected(draft=self._draft(pickup, body, judged, data, now), body=body)

    def _draft(
        self, pickup: Pickup, body: HeldBody, judged: AudioDraft | FileDraft, data: Document, now: int
    ) -> EventDraft:
        audio = judged if isinstance(judged, AudioDraft) else None
        file = judged if isinstance(judged, FileDraft) else None
        family = self._family_with(pickup, data)
        if family is None:
            family = "speech" if audio else "transcript" if file and file.part == "document" else "media"
        spoken = results.transcript_of(body, file) if file and family == "transcript" else None
        return replace(
            self._begun(pickup, data, now),
            type=f"{family}.completed",
            audio=audio,
            file=file,
            transcript=spoken,
        )

    def _failed_draft(self, pickup: Pickup, data: Document, now: int) -> EventDraft:
        key, bare = failed_key(pickup.job_id or ""), unsigned(data)
        return replace(
            self._begun(pickup, data, now),
            type=f"{self._family_with(pickup, data) or 'media'}.failed",
            idempotency_key=key,
            second_key=key,
            occurred_at=now,
            error=error_of(bare),
            provider_data=bare,
        )

    def _begun(self, pickup: Pickup, data: Document, now: int) -> EventDraft:
        """Return the draft as the callback left it, or a new one from the job's own document."""
        if pickup.draft is not None:
            return replace(
                pickup.draft,
                idempotency_key=pickup.key,
                second_key=pickup.key,
                ref=pickup.ref if pickup.ref is not None else pickup.draft.ref,
                remote=None,
                stage=Stage.FINAL,
            )
        return EventDraft(
            type="media.completed",
            idempotency_key=pickup.key,
            second_key=pickup.key,
            job_id=pickup.job_id,
            ref=pickup.ref,
            occurred_at=now,
            provider_data=unsigned({name: value for name, value in data.items() if name != "result"}),
        )

    def _family_with(self, pickup: Pickup, data: Document) -> str | None:
        known = self._known_family(pickup)
        job_type = text(data, "job_type", 100)
        return known or (family_of(job_type) if job_type else None)


def signed(secret: str, body: bytes, *, now: int) -> dict[str, str]:
    """Return the headers that prove `body`: HMAC-SHA256 over the timestamp, a full stop and the raw body, in hex."""
    stamp = str(now // 1000)
    return {STAMP_HEADER: stamp, SIGNATURE_HEADER: _signature(secret, stamp, body)}


def _signature(secret: str, stamp: str, body: bytes) -> str:
    return "sha256=" + hmac_sha256_hex(secret, b"%b.%b" % (stamp.encode("latin-1"), body))


def family_of(job_type: Any) -> str:
    """Return `speech`, `transcript` or `media`; job types are an open set, so anything unknown is media."""
    if isinstance(job_type, str):
        if job_type.endswith("2audio") or job_type == "speech":
            return "speech"
        if _TRANSCRIPTS.fullmatch(job_type):
            return "transcript"
    return "media"


def error_of(data: Document) -> JobError:
    """Return what deAPI says went wrong with a job."""
    code = text(data, "error_code", 200)
    return JobError(message=text(data, "error_message") or code or "the provider gave no reason", code=code)


def http_link(value: Any) -> str | None:
    """Return an http(s) URL, None for anything else."""
    return value if isinstance(value, str) and _LINK.fullmatch(value) else None


def completed_key(job_id: object) -> str:
    """Return the identity of a job's result, whichever road it comes by."""
    return join_key("job", job_id, "job.completed")


def failed_key(job_id: str) -> str:
    """Return the identity of a job's failure: that of the callback, which may come as well."""
    return join_key("job", job_id, "job.failed")


def _result(data: Document) -> tuple[str | None, str | None]:
    """Return the link to the result, or its text: `result` is documented as either."""
    link = http_link(data.get("result_url"))
    result = data.get("result")
    if link or not isinstance(result, str) or not result.strip():
        return link, None
    return (result, None) if http_link(result) else (None, result)


def _expired(pickup: Pickup, now: int) -> bool:
    began = pickup.draft.occurred_at if pickup.draft else pickup.created_at
    return now >= began + LINK_MS


def _waiting(pickup: Pickup, status: str, data: Document) -> NotYet:
    wait = min(_FIRST_WAIT * _GROWTH ** min(pickup.attempts, 20), _LONGEST_WAIT)
    share = number(data, "progress")
    said = f"deAPI says {printable(status, 40) or 'nothing'} of the job"
    return NotYet(retry_in=wait, detail=said + (f", {share:g} %" if share is not None else ""))


def _unusable(detail: str) -> Failed:
    return Failed(kind=Found.UNUSABLE, detail=detail)
