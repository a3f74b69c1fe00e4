"""What a proved request means: `[[unwrap]]`, `[event]` and the results that lie in the request itself."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import Body, MemoryBody, VerifiedCallback
from receiver.core.errors import IgnoredCallback, MalformedCallback
from receiver.core.event import EventDraft, JobError, RemoteResult, Stage, TranscriptDraft
from receiver.core.fetch import Failed
from receiver.core.urls import http_url
from receiver.core.work import Pickup
from receiver.providers import NO_REASON, results
from receiver.providers.custom.language import CustomSettings, Meaning, ResultSettings
from receiver.providers.documents import Document, decode_object, encode, epoch_ms, join_key, opaque_id
from receiver.providers.proofs.request import Reference, Request, as_text, first, replaced, spelled
from receiver.providers.toolkit import content_key
from receiver.settings.model import SourceSettings

_PLAIN = 200
"""Characters of a plain field that goes to `provider_data` by itself."""
_PLAIN_FIELDS = 50


class Understood(Struct, frozen=True):
    """A request whose document was read."""

    callback: VerifiedCallback
    request: Request
    """Its document has no secrets; its links are whole."""
    shown: Request
    """The same without what signs its links: what may go into the event."""
    kept: bytes
    """The bytes of that document: as they came where nothing had to go."""


class Reading:
    """Reads the requests of one source."""

    def __init__(self, settings: SourceSettings, options: CustomSettings) -> None:
        self._settings, self._options = settings, options
        secret = [place for proof in options.proof for place in proof.references]
        dropped = options.event.drop if options.event else ()
        self._dropped = [p.path for p in (*dropped, *secret) if p.kind in ("field", "form")]
        self.secret_fields = frozenset(place.name for place in secret if place.kind == "query")

    def document(self, callback: VerifiedCallback) -> tuple[Request, bytes]:
        """Return a request with its document after `unwrap` and `drop`, and the bytes of that. Raises `MalformedCallback`."""
        kind, body, allowed = self._options.body, callback.body, self._settings.max_json_bytes
        bodiless = kind == "raw"
        if body.size > allowed and kind != "multipart" and not bodiless:
            raise MalformedCallback(f"the document has {body.size} bytes; {allowed} are allowed")
        raw = b"" if bodiless else body.load()
        # What was a query is a document since it was proved.
        request = Request(callback.head, raw, "json" if kind == "query" else kind)
        sent = request.document
        document = self._unwrapped(request)
        for path in self._dropped:
            document = replaced(document, path)
        as_sent = request.kind == "json" and document is sent
        return request.reading(document), raw if as_sent else encode(document)

    def query(self, request: Request) -> bytes:
        """Return the query of a request as a document, without what proves the caller."""
        fields = request.document.items()
        return encode({name: value for name, value in fields if name not in self.secret_fields})

    def _unwrapped(self, request: Request) -> Document:
        for unwrap in self._options.unwrap:
            value = unwrap.at.value(request)
            if isinstance(value, str):
                value = _decoded(value, base64_too=unwrap.as_ == "base64-json", at=unwrap.at)
            elif unwrap.in_place:
                continue  # it is an object already
            if not isinstance(value, dict):
                continue
            whole = replaced(request.document, unwrap.at.path, value) if unwrap.in_place else value
            request = request.reading(whole)
        return request.document

    def draft(self, found: Understood) -> EventDraft:
        """Return the draft of a callback. Raises `MalformedCallback`, `IgnoredCallback`."""
        event = self._options.event
        if event is None:
            raise MalformedCallback("the source has no [event], so no callback of it is understood")
        stage, family = self._stage(event, found), self._family(event, found)
        named = first(event.job, found.request)
        job = opaque_id(named)
        if event.job and job is None:
            raise MalformedCallback(f"the job cannot be told: {event.job[0]} {_why_no_id(named)}")
        callback, type_ = found.callback, f"{family}.{stage}"
        said = first(event.id, found.request)
        said = join_key("id", said) if opaque_id(said) else None
        key = job_key(job, type_) if job is not None and stage != "processing" else None
        draft = EventDraft(
            type=type_,
            idempotency_key=said or key or content_key(callback),
            second_key=key if said else None,
            job_id=job,
            ref=callback.ref if callback.ref is not None else _short(first(event.ref, found.shown)),
            occurred_at=epoch_ms(first(event.time, found.request)) or callback.head.received_at,
            stage=Stage.PROGRESS if stage == "processing" else Stage.FINAL,
            error=self._error(event, found) if stage == "failed" else None,
            provider_data=self._provider_data(event, found),
            document=found.kept,
        )
        return self._with_result(draft, found, family) if stage == "completed" else draft

    # ------------------------------------------------------------ the words

    def _stage(self, event: Meaning, found: Understood) -> str:
        if not event.state:
            return "completed"
        word = as_text(first(event.state, found.request))
        for stage in ("completed", "failed", "processing"):
            if word in getattr(event, stage):
                return stage
        if word in event.ignored or (word is not None and event.otherwise == "ignored"):
            raise IgnoredCallback
        if word is None:
            raise MalformedCallback(f"the state is missing: {event.state[0]}")
        lists = "completed, failed, processing and ignored"
        raise MalformedCallback(f"the state {word[:60]!r} at {event.state[0]} is in none of {lists}")

    def _family(self, event: Meaning, found: Understood) -> str:
        word = as_text(first(event.family_at, found.request)) or ""
        family = event.families.get(word, event.family)
        if family is None:
            raise MalformedCallback(f"the family cannot be told by {event.family_at[0]}")
        return family

    def _error(self, event: Meaning, found: Understood) -> JobError:
        code = _short(first(event.error_code, found.shown))
        return JobError(
            message=spelled(first(event.error, found.shown))[:2000] or code or NO_REASON, code=code
        )

    def _provider_data(self, event: Meaning, found: Understood) -> dict[str, Any]:
        if event.keep:
            values = {place.name: place.value(found.shown) for place in event.keep}
            return {name: value for name, value in values.items() if value is not None}
        return {
            name: value
            for name, value in list(found.shown.document.items())[:_PLAIN_FIELDS]
            if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _PLAIN)
        }

    def family_of(self, pickup: Pickup) -> str:
        """Return the family of a pickup's result: its callback's, or the one that the settings name."""
        return self.own_family if pickup.draft is None else pickup.draft.type.partition(".")[0]

    @property
    def own_family(self) -> str:
        """The family of a job of which nothing but the id is known."""
        named = [family for family in self._options.result if family != "*"]
        event = self._options.event
        return (event.family if event else None) or (named[0] if named else "media")

    # ------------------------------------------------------------ the result

    def _with_result(self, draft: EventDraft, found: Understood, family: str) -> EventDraft:
        result, callback = self._options.result_of(family), found.callback
        match result.from_:
            case "none":
                return draft
            case "link" | "get":
                return replace(draft, remote=self._remote(result, draft, found))
            case "body":
                return self._of_bytes(draft, callback.body, callback.head.content_type(), family)
            case "part":
                return self._of_part(draft, result, found.request, family)
            case _:
                return self.within(draft, result, found.request, family)

    def within(self, draft: EventDraft, result: ResultSettings, request: Request, family: str) -> EventDraft:
        """Return a draft with the result that lies in a document: all of it, a text, or base64. Raises `MalformedCallback`."""
        language = _short(first(result.language, request))
        if result.from_ == "text":
            words = first(result.at, request)
            if not isinstance(words, str):
                raise MalformedCallback(f"the text is missing: {result.at[0]}")
            return replace(draft, transcript=TranscriptDraft(text=words.replace("\0", ""), language=language))
        if result.from_ == "base64":
            return self._of_base64(draft, result, request, family)
        spoken = TranscriptDraft(text=None, language=language) if family == "transcript" else None
        return replace(draft, transcript=spoken)

    def _of_base64(
        self, draft: EventDraft, result: ResultSettings, request: Request, family: str
    ) -> EventDraft:
        said = first(result.at, request)
        if not isinstance(said, str):
            raise MalformedCallback(f"the base64 is missing: {result.at[0]}")
        if len(said) * 3 // 4 > self._settings.max_audio_bytes:
            raise MalformedCallback(f"the base64 at {result.at[0]} is larger than max_audio_bytes")
        _, comma, data = said.partition(";base64,")  # as a data: URL
        try:
            raw = base64.b64decode(data if comma else said, validate=True)
        except (binascii.Error, ValueError):
            raise MalformedCallback(f"{result.at[0]} is no base64") from None
        stated = as_text(first(result.content_type_at, request)) or result.content_type
        return self._of_bytes(draft, MemoryBody(raw), stated, family, inside=True)

    def _of_part(
        self, draft: EventDraft, result: ResultSettings, request: Request, family: str
    ) -> EventDraft:
        for part in request.parts:
            if part.name == result.name or (not result.name and not part.is_field):
                return self._of_bytes(draft, MemoryBody(part.data), part.content_type, family, inside=True)
        raise MalformedCallback(
            f"the multipart body has no part named {result.name}" if result.name else "it has no file"
        )

    @staticmethod
    def _of_bytes(
        draft: EventDraft, body: Body, content_type: str, family: str, *, inside: bool = False
    ) -> EventDraft:
        """Return a draft whose result is a body, which is `inside` the callback's own or is that."""
        found = results.parts_of(body, content_type=content_type, format={}, family=family)
        if isinstance(found, Failed):
            raise MalformedCallback(found.detail)
        content = body.load() if inside else None
        return replace(draft, **found, content=content, document=None)

    def _remote(self, result: ResultSettings, draft: EventDraft, found: Understood) -> RemoteResult:
        event = self._options.event
        job = as_text(first(event.job, found.request)) if event else draft.job_id  # as the provider spells it
        url = result.link(found.request, job)
        place = result.at[0] if result.at and result.url is None else "a value of result.url"
        if url is None:
            raise MalformedCallback(f"there is no link to the result: {place} is missing")
        try:
            http_url(url, bare=False)
        except ValueError as error:
            raise MalformedCallback(f"{place} is no link to the result: {error}") from None
        until = found.callback.head.received_at + round(result.deadline * 1000)
        return RemoteResult(key=draft.second_key or draft.idempotency_key, url=url, deadline_at=until)


def job_key(job_id: str, type_: str) -> str:
    """Return the identity of what became of a job, whichever road it comes by."""
    return join_key("job", job_id, type_)


def _why_no_id(value: Any) -> str:
    if isinstance(value, list) and len(value) > 1:
        return f"came {len(value)} times; it may come once"
    return "is missing" if value is None else "is no plain value"


def _decoded(text: str, *, base64_too: bool, at: Reference) -> Any:
    raw = text.encode("utf-8", "replace")
    try:
        return decode_object(base64.b64decode(text, validate=True) if base64_too else raw)
    except (binascii.Error, ValueError):
        raise MalformedCallback(f"{at} is no base64 (unwrap)") from None
    except MalformedCallback as error:
        raise MalformedCallback(f"{at} (unwrap): {error.message}") from None


def _short(value: Any) -> str | None:
    text = as_text(value)
    return text[:_PLAIN] if text else None
