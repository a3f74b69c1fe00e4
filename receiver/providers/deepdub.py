"""Deepdub: retroactive text to speech, whose audio is asked for until it is there. It never calls back.

Contract: https://docs.deepdub.ai/api-reference/tts/get-retroactive-tts-audio. `POST /tts/retroactive` answers with a URL; a
GET of it with the same `x-api-key` is 404 until the audio is ready. The same 404 stands for a failed, an unknown and an
expired one, so waiting ends at a deadline, and that is told as a time-out, never as a failure of Deepdub's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr

from receiver.core.callback import Body
from receiver.core.errors import MalformedCallback, PickupRefused
from receiver.core.event import EventDraft, JobError
from receiver.core.fetch import Answer, Downloaded, Failed, Fetch
from receiver.core.findings import Code, Finding
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import in_clear
from receiver.core.work import Found, Pickup
from receiver.providers import Adapter, Collected, Gone, NotYet, Order, Result, results, toolkit
from receiver.providers.documents import decode_object, join_key, looks_like_json, printable, text
from receiver.providers.toolkit import revealed, shown
from receiver.settings.model import BaseUrl, Section, SourceSettings

REGIONS = {
    "us": "https://restapi.deepdub.ai/api/v1",
    "eu": "https://restapi.eu.deepdub.ai/api/v1",
    "eu-alt": "https://eu-restapi.deepdub.ai/api/v1",
}
"""`eu` is what Deepdub's own package asks (deepdub 0.1.29), `eu-alt` what https://docs.deepdub.ai/authentication names."""
WAITS = (1, 2, 3, 5, 8, 13, 20, 30)
"""Seconds to the next question while the audio is not ready; it normally is within seconds. The last one stays."""
_PATH = "tts/retroactive"
_ID = re.compile(r"([A-Za-z0-9][A-Za-z0-9_~-]{0,199})(?:\.[A-Za-z0-9_-]{1,16})?")
_INVALID = "invalid generation id"
_ENVELOPE = 64 * 1024
"""Bytes; what is longer is no error document of Deepdub's."""


class DeepdubSettings(Section):
    """[sources.NAME] of provider `deepdub`."""

    api_key: SecretStr | None = None
    """Deepdub's key (`dd-…`): audio is given out only to the key that asked for it."""
    region: Literal["us", "eu", "eu-alt"] = "us"
    """Which of Deepdub's hosts: the one that the jobs were submitted to."""
    base_url: BaseUrl | None = None
    """The API's address in place of a region's."""
    deadline_seconds: float = Field(3600, ge=1, le=30 * 86400)
    """How long audio is asked for before that is given up."""

    @property
    def base(self) -> str:
        """The API's address, without a slash at its end."""
        return self.base_url or REGIONS[self.region]


class DeepdubProvider(Adapter):
    """One Deepdub source: a `PullProvider`, and no `PushProvider`."""

    provider = "deepdub"
    Settings = DeepdubSettings
    calls_back = False
    codes: ClassVar = {
        "E304": Code("A Deepdub source's setting is wrong", ""),
        "E301": Code("A Deepdub source has no key", 'add api_key = "env:DEEPDUB_API_KEY"'),
        "W301": Code("A Deepdub key travels in clear", "use an https:// URL"),
    }

    def __init__(self, settings: SourceSettings, options: DeepdubSettings, tokens: CallbackTokens) -> None:
        self._base, self._key = options.base, revealed(options.api_key)
        super().__init__(settings, options, tokens)
        self.deadline_seconds, self._limit = options.deadline_seconds, settings.max_audio_bytes

    def _secrets(self) -> tuple[str, ...]:
        return (self._key,)

    @classmethod
    def _judge(cls, where: str, options: DeepdubSettings) -> Iterator[Finding]:
        if not revealed(options.api_key):
            nothing = "without a key Deepdub gives out nothing"
            yield cls._finding("E301", f"{where}.api_key", nothing, f"{cls.codes['E301'].fix} to [{where}]")
        if in_clear(options.base):
            yield cls._finding("W301", f"{where}.base_url", "the API key travels in clear")

    def order(self, text: str, format: Mapping[str, Any]) -> Order:
        """Understand the URL that Deepdub answered with, or the id at its end; an extension is ignored, as Deepdub does.

        Raises `PickupRefused`: for a URL of another address than the configured one above all, since the key goes with it.
        """
        name = text.strip()
        if toolkit.is_url(name):
            name = self._id_in(name.rstrip("/"))
        match = _ID.fullmatch(name)
        if match is None:
            raise PickupRefused(
                "that is no id of Deepdub's: hand over the URL that POST /tts/retroactive answered with, or the id at its end"
            )
        return Order(key=join_key("job", match[1], "retroactive"), job_id=match[1])

    def _id_in(self, url: str) -> str:
        wanted = f"{self._base}/{_PATH}/…"
        if not toolkit.is_plain(url):
            raise PickupRefused(
                f"the URL is no plain one (it has credentials, a query, a fragment, or no host): Deepdub's are like {wanted}"
            )
        if not toolkit.same_origin(self._base, url):
            raise PickupRefused(
                f"the URL is at {printable(toolkit.origin(url), 200)}, and this source asks {toolkit.origin(self._base)}: "
                f"set sources.{self.source}.region (or base_url) to where the job was submitted"
            )
        name = toolkit.path_below(f"{self._base}/{_PATH}", url)
        if name is None:
            raise PickupRefused(f"the URL is not one of retroactive audio: those are like {wanted}")
        return name

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether Deepdub can be asked for this one."""
        return bool(self._key) and pickup.job_id is not None and _ID.fullmatch(pickup.job_id) is not None

    def family(self, pickup: Pickup) -> str:
        """Return `speech`: Deepdub makes nothing else this way."""
        return "speech"

    def redact(self, body: bytes) -> bytes:
        """Return `body` without the key."""
        return self._redactor.clean(body)

    # ------------------------------------------------------------ one attempt

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Ask once for the audio."""
        if not self.can_ask(pickup):
            return Gone(error=JobError(code="invalid_id", message="the pickup has no id of Deepdub's"))
        url = f"{self._base}/{_PATH}/{pickup.job_id}"
        hosts, headers = [toolkit.host_of(self._base)], {"x-api-key": self._key}
        found = await fetch.download(url, hosts=hosts, limit=self._limit, headers=headers)
        if isinstance(found, Downloaded):
            return self._downloaded(pickup, found, now)
        if isinstance(found, Answer):
            return self._answered(pickup, found)
        return found

    def _downloaded(self, pickup: Pickup, found: Downloaded, now: int) -> Result:
        """Read a 200: audio, or an error document in its place."""
        body, content_type = found.body, found.headers.get("content-type", "")
        judged = results.sound(body, content_type=content_type, format=pickup.format)
        if isinstance(judged, Failed):
            said = self._said(_small(body))
            body.discard()
            if _is_invalid(said):
                return _gone(said)
            return self._failed(f"{judged.detail}: {said}", Found.UNUSABLE, 200) if said else judged
        draft = EventDraft(
            type="speech.completed",
            idempotency_key=pickup.key,
            second_key=pickup.key,
            job_id=pickup.job_id,
            ref=pickup.ref,
            occurred_at=now,
            audio=judged,
            provider_data={"content_type": shown(self._redactor, content_type, 200) or None},
        )
        return Collected(draft=draft, body=body)

    def _answered(self, pickup: Pickup, answer: Answer) -> Result:
        said = self._said(answer.body)
        if answer.status in (400, 404) and _is_invalid(said):
            return _gone(said)
        if answer.status == 404:
            wait = WAITS[min(pickup.attempts, len(WAITS) - 1)]
            return NotYet(retry_in=wait, detail="Deepdub answers 404: not ready, or unknown")
        meanings = {
            401: f"Deepdub does not accept the key: check sources.{self.source}.api_key, and that the region fits",
            402: "Deepdub says that the credits are used up (402)",
            429: "Deepdub says that these are too many requests at once (429)",
        }
        status = 401 if answer.status == 403 else answer.status
        meaning = meanings.get(status, f"Deepdub answered {answer.status}")
        detail = f"{meaning}: {said}" if said else meaning
        return self._failed(detail, Found.REFUSED, answer.status, answer.retry_after)

    def _said(self, raw: bytes) -> str:
        return shown(self._redactor, _message(raw), 200)

    @staticmethod
    def _failed(detail: str, kind: Found, status: int, retry_after: float | None = None) -> Failed:
        return Failed(kind=kind, detail=detail, status=status, retry_after=retry_after)


def _small(body: Body) -> bytes:
    return body.load() if body.size <= _ENVELOPE else b""


def _message(raw: bytes) -> str:
    """Return what an error document says, whole: `{success, message}`, `{error, detail}`; "" for anything else."""
    if not looks_like_json(raw[:4096]):
        return ""
    try:
        document = decode_object(raw)
    except MalformedCallback:
        return ""
    found = (text(document, name, len(raw)) for name in ("message", "detail", "error"))
    return next((words for words in found if words), "")


def _is_invalid(said: str) -> bool:
    return _INVALID in said.lower()


def _gone(said: str) -> Gone:
    return Gone(error=JobError(code="invalid_id", message=f"Deepdub knows no such id: {said}"))
