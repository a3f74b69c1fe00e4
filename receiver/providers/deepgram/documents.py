"""What Deepgram's JSON documents mean: transcripts (whole and streaming), analyses, failures; and the words of a transcript."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct

from receiver.core.callback import TokenClaims, VerifiedCallback
from receiver.core.errors import MalformedCallback
from receiver.core.event import EventDraft, JobError, Stage, TranscriptDraft
from receiver.core.transcript import Word
from receiver.providers import NO_REASON
from receiver.providers.documents import (
    Document,
    decode_object,
    encode,
    epoch_ms,
    join_key,
    number,
    opaque_id,
    table,
    text,
)
from receiver.providers.toolkit import content_key, ten_minutes

_FAMILIES = {"listen": "transcript", "read": "analysis", "speak": "speech"}
"""The first part of an event's type, by Deepgram's product."""
_PRODUCTS = {family: product for product, family in _FAMILIES.items()}
_MESSAGE_IDENTITY = {
    "Results": (("start", "duration"), ("channel_index", "is_final", "speech_final", "from_finalize")),
    "UtteranceEnd": (("last_word_end",), ("channel",)),
    "SpeechStarted": (("timestamp",), ("channel",)),
    "Metadata": (("created", "duration"), ()),
}
"""For each streaming message: the fields that must be there to tell it from others, and those that also take part."""
_ANALYSES = frozenset(("summary", "topics", "intents", "sentiments"))
"""What `results` of text intelligence have."""
_LISTEN_METADATA = frozenset(("sha256", "duration", "channels", "models", "model_info"))
"""What only a transcript's metadata have."""
_FAILURE_FIELDS = ("err_code", "err_msg", "category", "error")
"""What only failures have."""
_ERROR_MESSAGE = ("err_msg", "message", "error", "description")
_ERROR_CODE = ("err_code", "category", "code")


def requested_format(claims: TokenClaims | None) -> Mapping[str, Any]:
    """Return what a token says of the job's format."""
    return claims.format if claims else {}


def is_failure(document: Document) -> bool:
    """Tell whether a document is one of Deepgram's error forms: no `results`, and a field that only errors have."""
    return (
        "results" not in document
        and text(document, "type") not in _MESSAGE_IDENTITY
        and any(document.get(name) is not None for name in _FAILURE_FIELDS)
    )


class Payload(Struct, frozen=True, dict=True):
    """A document of Deepgram's, and the proved callback that brought it."""

    callback: VerifiedCallback
    document: Document
    raw: bytes
    """The document as it is kept, secrets removed."""

    def draft(self) -> EventDraft:
        """Return the event draft of a JSON document. Raises `MalformedCallback` for a shape that is not known."""
        if text(self.document, "type") in _MESSAGE_IDENTITY:
            return self._message()
        if is_failure(self.document):
            return self.failure(self._error())
        results = self.document.get("results")
        if isinstance(results, str):
            raise MalformedCallback(
                "results is a string: the form that only Deepgram's API description of 2025 shows"
            )
        if isinstance(results, dict):
            if isinstance(results.get("channels"), list):
                return self._result("transcript", self._transcript(results["channels"]))
            if not _ANALYSES.isdisjoint(results):
                return self._result("analysis")
        raise MalformedCallback("a JSON object of a shape that no Deepgram product is known to send")

    def _draft(self, type: str, key: str, request_id: Any, created: Any = None, **parts: Any) -> EventDraft:
        return EventDraft(
            type=type,
            idempotency_key=key,
            job_id=opaque_id(request_id),
            ref=self.callback.ref,
            occurred_at=epoch_ms(self._metadata.get("created") or created) or self.callback.head.received_at,
            provider_data=self.document,
            document=self.raw,
            **parts,
        )

    @cached_property
    def _metadata(self) -> Document:
        """The metadata; text intelligence nests it twice in the API description, once in the docs."""
        outer = table(self.document, "metadata")
        return table(outer, "metadata") or outer

    @property
    def _request_id(self) -> Any:
        """The job; `dg-request-id` is documented for direct replies only."""
        in_header = next(iter(self.callback.head.all("dg-request-id")), "")
        return self._metadata.get("request_id") or in_header or self.document.get("request_id")

    # ------------------------------------------------------------ results

    def _result(self, family: str, transcript: TranscriptDraft | None = None) -> EventDraft:
        request_id = self._request_id
        if opaque_id(request_id) is None:
            key = content_key(self.callback)
        else:
            key = join_key(_PRODUCTS[family], request_id, "result")
        return self._draft(f"{family}.completed", key, request_id, transcript=transcript)

    def _transcript(self, channels: list[Any]) -> TranscriptDraft:
        said, shares, language = [], [], None
        for channel in channels:
            if isinstance(channel, dict):
                best = _first_alternative(channel)
                if words := _words(best):
                    said.append(words)
                if (share := number(best, "confidence")) is not None:
                    shares.append(share)
                language = language or text(channel, "detected_language", 50)
        count = number(self._metadata, "channels")
        return TranscriptDraft(
            text="\n".join(said),
            confidence=sum(shares) / len(shares) if shares else None,
            language=language,
            duration_seconds=number(self._metadata, "duration"),
            channels=int(count) if count else len(channels) or None,
        )

    # ------------------------------------------------------------ streaming messages

    def _message(self) -> EventDraft:
        transcript = None
        if self.document["type"] == "Results":
            best = _first_alternative(table(self.document, "channel"))
            transcript = TranscriptDraft(
                text=_words(best),
                confidence=number(best, "confidence"),
                duration_seconds=number(self.document, "duration"),
            )
        key, created = self._message_key(), self.document.get("created")
        return self._draft(
            "transcript.partial", key, self._request_id, created, stage=Stage.OPEN, transcript=transcript
        )

    def _message_key(self) -> str:
        """Return a streaming message's identity: the session, then what the message is about, or else its bytes.

        The session is the token and the request id, as far as they are known: a token may have been handed out for more
        than one session, and two kinds of message carry no request id at all. Without either, the time tells sessions apart.
        """
        claims, document = self.callback.claims, self.document
        session = (claims.token_id if claims else "", opaque_id(self._request_id) or "")
        if not any(session):
            session = ("", ten_minutes(self.callback))
        needed, others = _MESSAGE_IDENTITY[document["type"]]
        if any(document.get(name) is None for name in needed):
            return join_key("stream", *session, document["type"], self.callback.body.sha256)
        values = (document.get(name) for name in (*needed, *others))
        spelled = ("" if value is None else encode(value).decode() for value in values)
        return join_key("stream", *session, document["type"], *spelled)

    # ------------------------------------------------------------ failures

    def failure(self, error: JobError) -> EventDraft:
        """Return the draft of a failure.

        Two jobs that fail alike say so in the same words, where two results differ: without an id or a token, the time
        tells them apart.
        """
        family, callback = self._failed_family(), self.callback
        request_id = self._request_id or table(self.document, "error").get("request_id")
        if opaque_id(request_id) is not None:
            key = join_key(_PRODUCTS[family], request_id, "error")
        else:
            key = content_key(callback, lasting=False)
        return self._draft(f"{family}.failed", key, request_id, error=error)

    def _failed_family(self) -> str:
        """Return which family failed: the token knows; else metadata that only transcripts have.

        Otherwise it is speech. An error document does not say which product it is about, and only a speech job has no
        other way to tell: a transcript's error usually names its request, which the application can look up.
        """
        product = requested_format(self.callback.claims).get("product")
        if isinstance(product, str) and product in _FAMILIES:
            return _FAMILIES[product]
        return "speech" if _LISTEN_METADATA.isdisjoint(self._metadata) else "transcript"

    def _error(self) -> JobError:
        inner = table(self.document, "error")
        code = _first(_ERROR_CODE, self.document, inner)
        details = self.document.get("details")
        details = inner.get("details") if details is None else details
        return JobError(
            message=_first(_ERROR_MESSAGE, self.document, inner) or code or NO_REASON,
            code=code[:200] if code else None,
            details=None if details is None else _spelled(details),
        )


def _first_alternative(channel: Any) -> Document:
    alternatives = channel.get("alternatives") if isinstance(channel, dict) else None
    if isinstance(alternatives, list) and alternatives and isinstance(alternatives[0], dict):
        return alternatives[0]
    return {}


def _words(alternative: Document) -> str | None:
    words = alternative.get("transcript")
    return words if isinstance(words, str) else None


def _first(names: Iterable[str], *places: Document) -> str | None:
    """Return the first text or number under one of `names`."""
    for value in (place.get(name) for name in names for place in places):
        if (isinstance(value, str) and value) or (isinstance(value, int) and not isinstance(value, bool)):
            return _spelled(value)
    return None


def _spelled(value: Any) -> str:
    return (value if isinstance(value, str) else encode(value).decode())[:2000]


class _Word(Struct, frozen=True):
    """A word as Deepgram has it."""

    word: str
    start: float
    end: float
    punctuated_word: str | None = None
    confidence: float | None = None
    speaker: int | None = None


def heard_words(document: bytes) -> list[Word]:
    """Return the words of a transcript, each with the speaker or, where there are several, the channel that it is of."""
    try:
        channels = table(decode_object(document), "results").get("channels")
        best = [_first_alternative(channel) for channel in channels] if isinstance(channels, list) else []
        said = [msgspec.convert(one.get("words", ()), tuple[_Word, ...]) for one in best]
    except (MalformedCallback, msgspec.ValidationError):
        return []
    words = []
    for place, channel in enumerate(said, 1):
        label = f"channel {place}" if len(said) > 1 else None
        for one in channel:
            speaker = label if one.speaker is None else f"speaker {one.speaker + 1}"
            words.append(Word(one.punctuated_word or one.word, one.start, one.end, one.confidence, speaker))
    return words
