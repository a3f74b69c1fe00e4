"""deAPI: signed JSON callbacks about jobs of any kind; their results are fetched (see `collect`).

Contract: https://docs.deapi.ai/execution-modes-and-integrations/webhooks. HMAC-SHA256 over the timestamp header's text, a
full stop and the raw body; the secret's UTF-8 bytes as they are (also when it begins with `whsec_`); lower-case hex.
Ten failed callbacks in a row switch webhooks off for the whole account, so nothing but a failed proof is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import quote

from msgspec.structs import replace
from pydantic import Field, SecretStr

from receiver.core.callback import Admission, Body, Head, HeldBody, MemoryBody, VerifiedCallback
from receiver.core.errors import Code, Finding, MalformedCallback, PickupRefused, RejectionKind
from receiver.core.event import EventDraft, JobError, RemoteResult, Stage
from receiver.core.fetch import Downloaded, Failed, Fetch, FetchResponse
from receiver.core.proofs import hmac_sha256_hex
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import in_clear
from receiver.core.work import OutcomeKind, Pickup
from receiver.providers import NO_REASON, PullProvider, PushProvider, toolkit
from receiver.providers.documents import (
    Document,
    decode_object,
    epoch_ms,
    join_key,
    link,
    number,
    opaque_id,
    printable,
    table,
    text,
)
from receiver.providers.pickups import Collected, Gone, Lookup, NotYet, Result, collected, collected_draft
from receiver.providers.proofs.base import Trust
from receiver.providers.proofs.request import BodyNeeded, Request
from receiver.providers.proofs.signatures import HmacProof
from receiver.providers.toolkit import (
    Hosts,
    SecretList,
    growing,
    refused,
    reveal,
    revealed,
    shown,
    unsigned,
    unusable,
)
from receiver.settings.model import BaseUrl, Section, SourceSettings
from receiver.settings.submitting import ProviderApi

STAMP_HEADER, SIGNATURE_HEADER = "x-deapi-timestamp", "x-deapi-signature"
_SIGNED = {"kind": "hmac", "header": SIGNATURE_HEADER, "prefix": "sha256=", "message": "{timestamp}.{body}"}
_STAGES = {"job.processing": "processing", "job.completed": "completed", "job.failed": "failed"}
"""By a callback's `event`."""
_STATES = (
    dict.fromkeys(("pending", "processing", "in_progress", "queued"), "waiting")
    | dict.fromkeys(("done", "completed"), "done")
    | dict.fromkeys(("error", "failed"), "failed")
)
"""By a job's `status`. `error` is documented; older pages of deAPI's say `failed`."""
_TRANSCRIPTS = re.compile(r"(?:aud|vid|audiofile|videofile|audio|video)2txt|transcri(?:be|pt|ption)")
"""The job types that make one."""
_REFUSALS = {
    401: "the API key is not accepted: check {where}.api_key",
    403: "the API key is not accepted: check {where}.api_key",
    404: "deAPI does not know this job",
    429: "deAPI says that these are too many requests (429)",
}
_ADD_SECRETS = 'add secrets = ["env:DEAPI_WEBHOOK_SECRET"]'
LINK_MS = 24 * 3600 * 1000
"""How long a result link lasts, about (https://docs.deapi.ai: result URLs are signed and expire)."""
_EXPIRED = (400, 401, 403, 404, 410)
"""What a storage answers for a link that it does not honour (any more): S3 has 400 and 403 for it."""
_WAITS = (5.0, 1.5, 60.0)
"""Seconds before the second question, how they grow, and where that ends."""
_PATHS = ("api/v2/jobs", "api/v1/client/request-status")
"""Of jobs, in both versions of the API; asked is the first."""


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
    result_hosts: Hosts = Field(("deapi.ai",), min_length=1)
    """Hosts that results may be fetched from, with all below them; `*` is any."""
    deadline_seconds: float = Field(86400, ge=1, le=30 * 86400)
    """How long a result is tried for before that is given up."""


class DeapiProvider(PushProvider, PullProvider):
    """One deAPI source."""

    provider = "deapi"
    Settings = DeapiSettings
    https_only = True
    job_secrets = True
    small_documents = True
    secret_headers = frozenset((SIGNATURE_HEADER,))
    codes: ClassVar = {
        "E204": Code("A deAPI source's setting is wrong", ""),
        "E201": Code("A deAPI source has no proof", _ADD_SECRETS),
        "W201": Code("Only jobs with a secret of their own can be proved", _ADD_SECRETS),
        "W202": Code("A deAPI secret is very short", "copy the secret from deAPI's webhook settings again"),
        "W203": Code("A deAPI key travels in clear", "use an https:// URL"),
    }

    def __init__(self, settings: SourceSettings, options: DeapiSettings, tokens: CallbackTokens) -> None:
        self._account_secrets, self._key = reveal(options.secrets), revealed(options.api_key)
        super().__init__(settings, options, tokens)
        self._folders = [f"{options.api_url}/{path}" for path in _PATHS]
        tolerance, where = options.tolerance_seconds, f"{self._where}.secrets"
        clock = {"from": f"header:{STAMP_HEADER}", "tolerance": tolerance, "ahead": tolerance}
        self._proof = HmacProof.model_validate({**_SIGNED, "timestamp": clock})
        self._trust = Trust(where, where, f"{self._where}.tolerance_seconds", self._account_secrets)

    def _secrets(self) -> tuple[str, ...]:
        return (*self._account_secrets, self._key)

    def _api_headers(self) -> Mapping[str, str]:
        if not self._key:
            return {}
        return {"authorization": f"Bearer {self._key}", "accept": "application/json"}

    @classmethod
    def _judge(cls, where: str, options: DeapiSettings) -> Iterator[Finding]:
        if not options.secrets and not options.require_token:
            yield cls._missing("E201", where, "secrets")
        elif not options.secrets:
            only = "only jobs whose webhook_secret was made with their callback URL can be proved; the account's cannot"
            yield cls._missing("W201", where, "secrets", only)
        if any(len(secret) < 16 for secret in reveal(options.secrets)):
            short = "a secret has fewer than 16 characters: is it the whole of it?"
            yield cls._finding("W202", where, "secrets", short)
        if options.api_key and in_clear(options.api_url):
            yield cls._finding("W203", where, "api_url", "the API key travels in clear")

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return timestamp and signature, made with the newest of the account's secrets."""
        return signed(self._account_secrets[-1], body, now=now) if self._account_secrets else {}

    # ------------------------------------------------------------ submissions

    def submit_api(self) -> ProviderApi:
        """Return jobs of both versions of the API, and the questions about them."""
        return self._submit_api(self._options.api_url, self._api_headers())

    # ------------------------------------------------------------ callbacks

    def admit(self, head: Head) -> Admission:
        """Check the token, if any, and that timestamp and signature are there once, well formed and fresh.

        Raises `CallbackRejected` or `WrongSource`.
        """
        claims = self._check_token(head, required=self._options.require_token)
        request = Request(head, None, "json")
        with suppress(BodyNeeded):
            self._proof.check(request, self._trust)
        if not (head.one(SIGNATURE_HEADER) or "").islower():
            raise self._rejection(
                "secrets", "the signature is not in lower-case hex", RejectionKind.MALFORMED
            )
        if not self._account_secrets and not (claims and claims.job_secret):
            raise self._rejection(
                "secrets",
                f"no account secret is configured, and the URL names no job with one: set {self._where}.secrets",
                RejectionKind.MISSING,
            )
        return Admission(
            head=head,
            claims=claims,
            proofs=frozenset(("token",) if claims else ()),
            body_limit=self._json_limit,
            held=False,
            read=request,
        )

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Check the signature over the raw body: with the job's own secret where it has one, else the account's.

        Raises `CallbackRejected`.
        """
        head, claims, request = admission.head, admission.claims, admission.read
        request.arrived(body.load(), body.wire and body.wire.load())
        proof, trust = "hmac", self._trust
        if claims and claims.job_secret and head.token:
            proof, trust = "job_secret", replace(trust, secrets=tuple(self._tokens.job_secrets(head.token)))
        self._proof.check(request, trust)
        secret = request.secret if trust is self._trust else 0
        return super().verify(replace(admission, proofs=admission.proofs | {proof}, secret=secret), body)

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of `job.processing`, `job.completed` or `job.failed`.

        Raises `MalformedCallback` for another event, or when the job or its result cannot be told.
        """
        document, kept = self._without_secrets(*self._load(callback.body))
        event, data = text(document, "event", len(kept)) or "", table(document, "data")
        stage, job_id = _STAGES.get(event), opaque_id(data.get("job_request_id"))
        if stage is None:
            named = f": {shown(self._redactor, event, 60)}" if event else ""
            raise MalformedCallback(
                f"the event is none of job.processing, job.completed and job.failed{named}"
            )
        if job_id is None:
            raise MalformedCallback("data.job_request_id is missing, so the job cannot be told")
        # A completed job that says it failed must not stand for the job's completion.
        if stage == "completed" and data.get("status") in ("error", "failed"):
            stage = "failed"
        bare, kept = self._without_signatures(document, kept)
        job_key, delivery = _key(data["job_request_id"], stage), document.get("delivery_id")
        identified = opaque_id(delivery) is not None
        return EventDraft(
            type=f"{family_of(data.get('job_type'))}.{stage}",
            idempotency_key=join_key("delivery", delivery) if identified else job_key,
            second_key=job_key if identified else None,
            job_id=job_id,
            ref=callback.ref,
            occurred_at=epoch_ms(document.get("timestamp")) or callback.head.received_at,
            stage=Stage.PROGRESS if stage == "processing" else Stage.FINAL,
            remote=self._result_at(job_id, data, callback) if stage == "completed" else None,
            error=error_of(table(bare, "data")) if stage == "failed" else None,
            provider_data=table(bare, "data"),
            document=kept,
        )

    def _result_at(self, job_id: str, data: Document, callback: VerifiedCallback) -> RemoteResult:
        """Return where the result lies. A link is documented as always there, and not always so: then the job is polled.

        Raises `MalformedCallback` when it cannot be: a completed job without its result would be no event of use.
        """
        url = link(data.get("result_url"))
        if url is None and not self._can_poll(job_id):
            raise MalformedCallback(
                "the job is complete, and no link to its result is there: "
                f"set {self._where}.api_key, and hand the job over with `receiver pickup`"
            )
        return self._remote(_key(data["job_request_id"], "completed"), url, callback)

    # ------------------------------------------------------------ pickups

    def lookup(self, text: str, format: Mapping[str, Any]) -> Lookup:
        """Understand a job id, or the API's URL of a job. Raises `PickupRefused`."""
        if not self._key:
            raise PickupRefused(f"deAPI is asked with an API key: set {self._where}.api_key")
        job_id = text.strip()
        if toolkit.is_url(job_id):
            job_id = toolkit.id_below(job_id, *self._folders) or ""
            if not job_id:
                wanted = f"hand over the job's request_id, or {self._folders[0]}/…"
                raise PickupRefused(f"the URL is not one of a job at this source's API: {wanted}")
        if not self.job_ids.fullmatch(job_id):
            raise PickupRefused(
                "that is no job of deAPI's: hand over the request_id that the job was submitted with"
            )
        return Lookup(key=_key(job_id, "completed"), job_id=job_id)

    def family(self, pickup: Pickup) -> str:
        """Return `speech`, `transcript` or `media`, by the callback, else by the job type in the pickup's `product`."""
        return self._family(pickup, {}) or "media"

    def _family(self, pickup: Pickup, data: Document) -> str | None:
        if pickup.draft is not None:
            return pickup.draft.type.partition(".")[0]
        job_type = text(pickup.format, "product") or text(data, "job_type")
        return family_of(job_type) if job_type else None

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt: the link that is known, then a fresh one, where the job can be polled for it."""
        began = pickup.draft.occurred_at if pickup.draft else pickup.created_at
        status = None
        if pickup.target is not None and not (self.can_ask(pickup) and now >= began + LINK_MS):
            found = await self._download(pickup, fetch, pickup.target, {})
            if not (isinstance(found, FetchResponse) and found.status in _EXPIRED):
                return self._downloaded(pickup, found, {}, now)
            status = found.status
        if not self.can_ask(pickup):
            reason = (
                "the link has expired or is not there yet" if status else "there is no link to the result"
            )
            detail = f"{reason}; set {self._where}.api_key so that a fresh one can be asked for"
            return Failed(kind=OutcomeKind.REFUSED, status=status, detail=detail)
        url = f"{self._folders[0]}/{quote(pickup.job_id or '', safe='')}"
        response = await fetch.ask(url, headers=self._api_headers())
        return response if isinstance(response, Failed) else await self._polled(pickup, response, fetch, now)

    async def _download(
        self, pickup: Pickup, fetch: Fetch, url: str, data: Document
    ) -> Downloaded | FetchResponse | Failed:
        settings, is_transcript = self._settings, self._family(pickup, data) == "transcript"
        limit = settings.max_json_bytes if is_transcript else settings.max_audio_bytes
        return await fetch.download(url, hosts=self._options.result_hosts, limit=limit)

    async def _polled(self, pickup: Pickup, response: FetchResponse, fetch: Fetch, now: int) -> Result:
        """Read what the API says of the job."""
        if response.status != 200:
            return self._no_job(pickup, response)
        try:
            document = decode_object(self._redactor.clean(response.body))
        except MalformedCallback:
            return unusable("deAPI's answer about the job is no JSON object")
        data = table(document, "data") or document
        status = (text(data, "status", 40) or "").lower()
        state, (url, words) = _STATES.get(status), _result(data)
        if state == "failed":
            return Collected(draft=self._failed(pickup, data, now))
        if state == "waiting" or (state is None and not (url or words)):
            share, said = number(data, "progress"), printable(status, 40) or "nothing"
            detail = f"deAPI says {said} of the job" + (f", {share:g} %" if share is not None else "")
            return NotYet(retry_in=growing(pickup.attempts, *_WAITS), detail=detail)
        if url:
            return self._downloaded(pickup, await self._download(pickup, fetch, url, data), data, now)
        if words:
            return self._completed(pickup, MemoryBody(words.encode()), "text/plain", data, now)
        return unusable("deAPI says that the job is done, and tells no result")

    def _no_job(self, pickup: Pickup, response: FetchResponse) -> Result:
        status = response.status
        if status == 404 and pickup.target is None and pickup.draft is None and pickup.attempts > 0:
            unknown = "deAPI does not know this job: another account's, or expired"
            return Gone(error=JobError(code="unknown_job", message=unknown))
        detail = _REFUSALS.get(status, f"deAPI answered {status} about the job")
        return refused(response, detail.format(where=self._where))

    def _downloaded(
        self, pickup: Pickup, found: Downloaded | FetchResponse | Failed, data: Document, now: int
    ) -> Result:
        match found:
            case Failed():
                return found
            case FetchResponse():
                return refused(found, f"the link to the result is answered {found.status}")
            case Downloaded():
                content_type = found.headers.get("content-type", "")
                return self._completed(pickup, found.body, content_type, data, now)

    def _completed(
        self, pickup: Pickup, body: HeldBody, content_type: str, data: Document, now: int
    ) -> Collected | Failed:
        family = self._family(pickup, data)
        return collected(pickup, family, body, content_type, now, **self._job_data(pickup, data))

    @staticmethod
    def _job_data(pickup: Pickup, data: Document) -> dict[str, Any]:
        """Return the job's own document as a draft's, unless a callback told of the job; the result goes elsewhere."""
        if pickup.draft is not None:
            return {}
        return {"provider_data": unsigned({name: value for name, value in data.items() if name != "result"})}

    def _failed(self, pickup: Pickup, data: Document, now: int) -> EventDraft:
        """Return the draft of a failure, with the identity of the callback, which may come as well."""
        key, data = _key(pickup.job_id, "failed"), unsigned(data)
        family = self._family(pickup, data) or "media"
        return collected_draft(
            pickup,
            family,
            now,
            type=f"{family}.failed",
            idempotency_key=key,
            second_key=key,
            occurred_at=now,
            error=error_of(data),
            provider_data=data,
        )


def signed(secret: str, body: bytes, *, now: int) -> dict[str, str]:
    """Return the headers that prove `body`: HMAC-SHA256 over the timestamp, a full stop and the raw body, in hex."""
    stamp = str(now // 1000)
    digest = hmac_sha256_hex(secret, f"{stamp}.".encode() + body)
    return {STAMP_HEADER: stamp, SIGNATURE_HEADER: f"sha256={digest}"}


def _key(job_id: object, stage: str) -> str:
    """Return the identity of a job's stage, whichever road it comes by."""
    return join_key("job", job_id, f"job.{stage}")


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
    return JobError(message=text(data, "error_message") or code or NO_REASON, code=code)


def _result(data: Document) -> tuple[str | None, str | None]:
    """Return the link to the result, or its text: `result` is documented as either."""
    url, result = link(data.get("result_url")), data.get("result")
    if url or not isinstance(result, str) or not result.strip():
        return url, None
    return (result, None) if link(result) and len(result.split()) == 1 else (None, result)
