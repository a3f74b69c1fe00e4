"""Deepdub: retroactive text to speech, whose audio is asked for until it is there. It never calls back.

Contract: https://docs.deepdub.ai/api-reference/tts/get-retroactive-tts-audio. `POST /tts/retroactive` answers with a URL; a
GET of it with the same `x-api-key` is 404 until the audio is ready. The same 404 stands for a failed, an unknown and an
expired one, so waiting ends at a deadline, and that is told as a time-out, never as a failure of Deepdub's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from receiver.core.errors import Code, Finding, MalformedCallback, PickupRefused
from receiver.core.event import JobError
from receiver.core.fetch import Downloaded, Failed, Fetch, FetchResponse
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import in_clear
from receiver.core.work import Pickup
from receiver.providers import PullProvider, results, toolkit
from receiver.providers.documents import decode_object, first_text, join_key, looks_like_json, printable
from receiver.providers.pickups import Collected, Gone, Lookup, NotYet, Result, collected_draft
from receiver.providers.toolkit import refused, revealed, shown, unusable
from receiver.settings.model import BaseUrl, Section, SourceSettings
from receiver.settings.submitting import ProviderApi

REGIONS = {
    "us": "https://restapi.deepdub.ai/api/v1",
    "eu": "https://restapi.eu.deepdub.ai/api/v1",
    "eu-alt": "https://eu-restapi.deepdub.ai/api/v1",
}
"""`eu` is what Deepdub's own package asks (deepdub 0.1.29), `eu-alt` what https://docs.deepdub.ai/authentication names."""
WAITS = (1, 2, 3, 5, 8, 13, 20, 30)
"""Seconds to the next question while the audio is not ready; it normally is within seconds. The last one stays."""
_REFUSALS = {
    401: "Deepdub does not accept the key: check {where}.api_key, and that the region fits",
    402: "Deepdub says that the credits are used up (402)",
    403: "Deepdub does not accept the key: check {where}.api_key, and that the region fits",
    429: "Deepdub says that these are too many requests at once (429)",
}
_ERROR_FIELDS = ("message", "detail", "error")
"""Where an error document says what is wrong: it is `{success, message}` or `{error, detail}`."""
_MAX_ERROR = 64 * 1024
"""Bytes; what is longer is no error document of Deepdub's."""
_INVALID_ID = "invalid generation id"


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


class DeepdubProvider(PullProvider):
    """One Deepdub source."""

    provider = "deepdub"
    Settings = DeepdubSettings
    codes: ClassVar = {
        "E304": Code("A Deepdub source's setting is wrong", ""),
        "E301": Code("A Deepdub source has no key", 'add api_key = "env:DEEPDUB_API_KEY"'),
        "W301": Code("A Deepdub key travels in clear", "use an https:// URL"),
    }
    job_ids = re.compile(r"([A-Za-z0-9][A-Za-z0-9_~-]{0,199})(?:\.[A-Za-z0-9_-]{1,16})?")
    """An extension is ignored, as Deepdub does."""

    def __init__(self, settings: SourceSettings, options: DeepdubSettings, tokens: CallbackTokens) -> None:
        self._key, self._folder = revealed(options.api_key), f"{options.base}/tts/retroactive"
        super().__init__(settings, options, tokens)

    def _secrets(self) -> tuple[str, ...]:
        return (self._key,)

    def _api_headers(self) -> Mapping[str, str]:
        return {"x-api-key": self._key} if self._key else {}

    @classmethod
    def _judge(cls, where: str, options: DeepdubSettings) -> Iterator[Finding]:
        if not revealed(options.api_key):
            yield cls._missing("E301", where, "api_key", "without a key Deepdub gives out nothing")
        if in_clear(options.base):
            yield cls._finding("W301", where, "base_url", "the API key travels in clear")

    def submit_api(self) -> ProviderApi:
        """Return retroactive speech, whose answer is the URL at which its audio will be."""
        return self._submit_api(self._options.base, self._api_headers())

    def lookup(self, text: str, format: Mapping[str, Any]) -> Lookup:
        """Understand the URL that Deepdub answered with, or the id at its end.

        Raises `PickupRefused`: for a URL of another address than the configured one above all, since the key goes with it.
        """
        name = text.strip()
        if toolkit.is_url(name):
            name = self._id_in(name.rstrip("/"))
        match = self.job_ids.fullmatch(name)
        if match is None:
            raise PickupRefused(
                "that is no id of Deepdub's: hand over the URL that POST /tts/retroactive answered with, or the id at its end"
            )
        return Lookup(key=join_key("job", match[1], "retroactive"), job_id=match[1])

    def _id_in(self, url: str) -> str:
        name = toolkit.id_below(url, self._folder)
        if name is not None:
            return name
        if not toolkit.is_plain(url):
            raise PickupRefused(
                "the URL is no plain one (it has credentials, a query, a fragment, or no host): "
                f"Deepdub's are like {self._folder}/…"
            )
        if not toolkit.same_origin(self._folder, url):
            raise PickupRefused(
                f"the URL is at {printable(toolkit.origin(url), 200)}, and this source asks {toolkit.origin(self._folder)}: "
                f"set {self._where}.region (or base_url) to where the job was submitted"
            )
        raise PickupRefused(f"the URL is not one of retroactive audio: those are like {self._folder}/…")

    # ------------------------------------------------------------ one attempt

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Ask once for the audio."""
        if not self.can_ask(pickup):
            return Gone(error=JobError(code="invalid_id", message="the pickup has no id of Deepdub's"))
        found = await fetch.download(
            f"{self._folder}/{pickup.job_id}",
            hosts=[urlsplit(self._folder).hostname or ""],
            limit=self._settings.max_audio_bytes,
            headers=self._api_headers(),
        )
        match found:
            case Failed():
                return found
            case Downloaded():
                return self._audio(pickup, found, now)
            case FetchResponse():
                return self._no_audio(pickup, found)

    def _audio(self, pickup: Pickup, found: Downloaded, now: int) -> Result:
        """Read a 200: audio, or an error document in its place."""
        body, content_type = found.body, found.headers.get("content-type", "")
        audio = results.classify_audio(body, content_type=content_type, format=pickup.format)
        if isinstance(audio, Failed):
            message = self._message(body.load()) if body.size <= _MAX_ERROR else ""
            body.discard()
            return _invalid_id(message) or (unusable(f"{audio.detail}: {message}", 200) if message else audio)
        kind = shown(self._redactor, content_type, 200) or None
        draft = collected_draft(pickup, "speech", now, audio=audio, provider_data={"content_type": kind})
        return Collected(draft=draft, body=body)

    def _no_audio(self, pickup: Pickup, response: FetchResponse) -> Result:
        status, message = response.status, self._message(response.body)
        invalid = _invalid_id(message) if status in (400, 404) else None
        if invalid:
            return invalid
        if status == 404:
            wait = WAITS[min(pickup.attempts, len(WAITS) - 1)]
            return NotYet(retry_in=wait, detail="Deepdub answers 404: not ready, or unknown")
        detail = _REFUSALS.get(status, f"Deepdub answered {status}").format(where=self._where)
        return refused(response, f"{detail}: {message}" if message else detail)

    def _message(self, raw: bytes) -> str:
        """Return what an error document says, as it may be shown; "" for anything else."""
        if not looks_like_json(raw[:4096]):
            return ""
        try:
            document = decode_object(raw)
        except MalformedCallback:
            return ""
        return shown(self._redactor, first_text(document, *_ERROR_FIELDS, limit=len(raw)) or "", 200)


def _invalid_id(message: str) -> Gone | None:
    """Return the end of a pickup whose id Deepdub does not take, None when its message says something else."""
    if _INVALID_ID not in message.lower():
        return None
    return Gone(error=JobError(code="invalid_id", message=f"Deepdub knows no such id: {message}"))
