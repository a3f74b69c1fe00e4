"""deAPI's results: fetched from their links, which expire after about 24 h, or asked for by the job's id.

Contract: https://docs.deapi.ai/api/v2/utilities/jobs. Links are presigned and take no key; the key goes to the API alone. A
link that has expired is 403 (or 404, 410), and the job's document then has a fresh one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import HeldBody
from receiver.core.errors import MalformedCallback, PickupRefused
from receiver.core.event import AudioDraft, EventDraft, FileDraft, JobError, Stage
from receiver.core.fetch import Answer, Downloaded, Failed, Fetch
from receiver.core.pickup import Found, Pickup
from receiver.core.redaction import Redactor
from receiver.providers import bases, results
from receiver.providers.base import Collected, Gone, NotYet, Order, Result
from receiver.providers.jsonbody import Document, decode_object, join_key, number, printable, table, text
from receiver.providers.redaction import unsigned
from receiver.system.bodies import MemoryBody

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


class Limits(Struct, frozen=True, kw_only=True):
    """The most bytes that a result may have."""

    audio: int
    """Audio and other media."""
    text: int
    """Transcripts."""


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


class JobReader:
    """Brings the results of one source's jobs home."""

    def __init__(
        self,
        *,
        source: str,
        api_url: str,
        api_key: str,
        result_hosts: Sequence[str],
        limits: Limits,
        redactor: Redactor,
    ) -> None:
        """`api_key` is "" where there is none: then nothing but a link that is known can be fetched."""
        self._api_url, self._key = api_url, api_key
        self._hosts, self._limits, self._redactor = tuple(result_hosts), limits, redactor
        self._setting = f"sources.{source}.api_key"

    # ------------------------------------------------------------ what can be asked

    def order(self, handed: str) -> Order:
        """Understand a job id, or the API's URL of a job. Raises `PickupRefused`."""
        if not self._key:
            raise PickupRefused(f"deAPI is asked with an API key: set {self._setting}")
        name = handed.strip()
        if bases.is_url(name):
            name = self._id_in(name)
        if not _ID.fullmatch(name):
            raise PickupRefused(
                "that is no job of deAPI's: hand over the request_id that the job was submitted with"
            )
        return Order(key=completed_key(name), job_id=name)

    def _id_in(self, url: str) -> str:
        wanted = f"hand over the job's request_id, or {self._api_url}/{_PATHS[0]}…"
        if not bases.is_plain(url) or not bases.same_origin(self._api_url, url):
            raise PickupRefused(f"the URL is not one of this source's API: {wanted}")
        path = bases.path_below(self._api_url, url) or ""
        name = next((path.removeprefix(start) for start in _PATHS if path.startswith(start)), None)
        if name is None:
            raise PickupRefused(f"the URL is not one of a job: {wanted}")
        return name

    def can_ask(self, job_id: str | None) -> bool:
        """Tell whether the API can be asked about this job."""
        return bool(self._key) and job_id is not None and _ID.fullmatch(job_id) is not None

    def family(self, pickup: Pickup) -> str | None:
        """Return `speech`, `transcript` or `media`, None when nothing tells."""
        if pickup.draft is not None:
            return pickup.draft.type.partition(".")[0]
        product = pickup.format.get("product")
        return family_of(product) if isinstance(product, str) and product else None

    # ------------------------------------------------------------ one attempt

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt: the link that is known, then a fresh one, where the job can be asked for it."""
        askable, refused = self.can_ask(pickup.job_id), None
        if pickup.target is not None and not (askable and _expired(pickup, now)):
            found = await self._download(fetch, pickup.target, self.family(pickup))
            if not (isinstance(found, Answer) and found.status in _EXPIRED):
                return self._fetched(pickup, found, {}, now)
            refused = found.status
        if not askable:
            return self._unasked(refused)
        answer = await fetch.ask(self._job_url(pickup), headers=self._headers())
        if isinstance(answer, Failed):
            return answer
        return await self._told(pickup, answer, fetch, now)

    def _unasked(self, status: int | None) -> Failed:
        gone = "the link has expired or is not there yet" if status else "there is no link to the result"
        detail = f"{gone}; set {self._setting} so that a fresh one can be asked for"
        return Failed(kind=Found.REFUSED, status=status, detail=detail)

    def _job_url(self, pickup: Pickup) -> str:
        return f"{self._api_url}/{_PATHS[0]}{quote(pickup.job_id or '', safe='')}"

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}", "accept": "application/json"}

    async def _download(self, fetch: Fetch, url: str, family: str | None) -> Downloaded | Answer | Failed:
        limit = self._limits.text if family == "transcript" else self._limits.audio
        return await fetch.download(url, hosts=self._hosts, limit=limit)

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
            401: f"the API key is not accepted: check {self._setting}",
            403: f"the API key is not accepted: check {self._setting}",
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
        known = self.family(pickup)
        job_type = text(data, "job_type", 100)
        return known or (family_of(job_type) if job_type else None)


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
