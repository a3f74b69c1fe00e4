"""Deepgram's documents as event drafts: transcripts, streaming messages, text intelligence and errors.

Shapes: https://developers.deepgram.com/reference (listen, read) and /docs/errors. An error callback's shape is not
documented; the three forms of error documents are taken wherever they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from receiver.core.callback import VerifiedCallback
from receiver.core.errors import MalformedCallback
from receiver.core.event import EventDraft, JobError, Stage, TranscriptDraft
from receiver.providers.jsonbody import (
    Document,
    encode,
    epoch_ms,
    join_key,
    number,
    opaque_id,
    table,
    text,
)
from receiver.providers.tokens import content_key

STREAMING = ("Results", "Metadata", "UtteranceEnd", "SpeechStarted")
ANALYSES = ("summary", "topics", "intents", "sentiments")
_ERROR_FIELDS = ("err_code", "err_msg", "category", "error")
_FAMILIES = {"listen": "transcript", "read": "analysis", "speak": "speech"}
_PRODUCTS = {family: product for product, family in _FAMILIES.items()}
_LISTEN_METADATA = ("sha256", "duration", "channels", "models", "model_info")
_ECHO = "callback_secret"


@dataclass(frozen=True, slots=True)
class Origin:
    """What surrounds a document: the proved callback it came in, and the kept bytes."""

    callback: VerifiedCallback
    raw: bytes
    """The document as it is kept, secrets removed."""

    @property
    def header_id(self) -> str | None:
        """The value of `dg-request-id`, which Deepgram documents for direct replies only."""
        return next(iter(self.callback.head.all("dg-request-id")), None) or None

    @property
    def product(self) -> str | None:
        """The product that the callback token was made for: `speak`, `listen`, `read`."""
        claims = self.callback.claims
        product = claims.format.get("product") if claims else None
        return product if isinstance(product, str) and product in _FAMILIES else None


def callback_secrets(document: Document) -> list[Any]:
    """Return every value of `extra.callback_secret` in a document's metadata (nested once or twice, or flat)."""
    return [extra[_ECHO] for extra in _extras(document) if _ECHO in extra]


def without_secrets(document: Document) -> bool:
    """Remove every `extra.callback_secret` from `document`, in place; tell whether there was one."""
    extras = [extra for extra in _extras(document) if _ECHO in extra]
    for extra in extras:
        del extra[_ECHO]
    return bool(extras)


def _extras(document: Document) -> Iterator[Document]:
    metadata = table(document, "metadata")
    for place in (metadata, table(metadata, "metadata"), document):
        extra = table(place, "extra")
        if extra:
            yield extra


def is_failure(document: Document) -> bool:
    """Tell whether a document is one of Deepgram's error forms: no `results`, and a field that only errors have."""
    return (
        "results" not in document
        and document.get("type") not in STREAMING
        and any(document.get(name) is not None for name in _ERROR_FIELDS)
    )


def draft_document(document: Document, origin: Origin) -> EventDraft:
    """Return the event draft of a JSON document. Raises `MalformedCallback` for a shape that is not known."""
    if document.get("type") in STREAMING:
        return _partial(document, origin)
    if is_failure(document):
        return _failed(document, _job_error(document), origin)
    results = document.get("results")
    if isinstance(results, str):
        raise MalformedCallback(
            "results is a string: the form that only Deepgram's API description of 2025 shows"
        )
    if isinstance(results, dict):
        if isinstance(results.get("channels"), list):
            return _transcript(document, results["channels"], origin)
        if any(name in results for name in ANALYSES):
            return _result("analysis", document, origin)
    raise MalformedCallback("a JSON object of a shape that no Deepgram product is known to send")


def draft_text_failure(origin: Origin) -> EventDraft:
    """Return the failure that a plain text says: the oldest of Deepgram's error forms."""
    message = origin.raw[:8000].decode("utf-8", "replace").strip()[:2000]
    return _failed({}, JobError(message=message or "the provider gave no reason"), origin)


# ---------------------------------------------------------------- results


def _metadata(document: Document) -> Document:
    """Return the metadata; text intelligence nests it twice in the API description, once in the docs."""
    outer = table(document, "metadata")
    inner = table(outer, "metadata")
    return inner or outer


def _request_id(document: Document, origin: Origin) -> Any:
    return _metadata(document).get("request_id") or origin.header_id or document.get("request_id")


def _result(
    family: str, document: Document, origin: Origin, transcript: TranscriptDraft | None = None
) -> EventDraft:
    metadata = _metadata(document)
    request_id = _request_id(document, origin)
    return EventDraft(
        type=f"{family}.completed",
        idempotency_key=_key(family, request_id, "result", origin),
        job_id=opaque_id(request_id),
        ref=origin.callback.ref,
        occurred_at=epoch_ms(metadata.get("created")) or origin.callback.head.received_at,
        transcript=transcript,
        provider_data=document,
        document=origin.raw,
    )


_SENT_AGAIN_MS = 10 * 60 * 1000
"""Deepgram sends a callback again for five minutes: the same words in another ten are another job's, or another session's."""


def _while(origin: Origin) -> str:
    """Return the ten minutes in which a callback came; a repeat that falls into the next is taken for another one."""
    return str(origin.callback.head.received_at // _SENT_AGAIN_MS)


def _key(family: str, request_id: Any, what: str, origin: Origin) -> str:
    if opaque_id(request_id) is None:
        told = content_key(origin.callback)
        # Two jobs that fail alike say so in the same words, where two results differ.
        return join_key(told, _while(origin)) if what == "error" and origin.callback.claims is None else told
    return join_key(_PRODUCTS[family], request_id, what)


def _transcript(document: Document, channels: list[Any], origin: Origin) -> EventDraft:
    metadata = _metadata(document)
    heard = [channel for channel in channels if isinstance(channel, dict)]
    best = [_first_alternative(channel) for channel in heard]
    texts = [
        said for said in (alternative.get("transcript") for alternative in best) if isinstance(said, str)
    ]
    sure = [
        share for share in (number(alternative, "confidence") for alternative in best) if share is not None
    ]
    count = number(metadata, "channels")
    transcript = TranscriptDraft(
        text="\n".join(said for said in texts if said),
        confidence=sum(sure) / len(sure) if sure else None,
        language=next(
            (found for channel in heard if (found := text(channel, "detected_language", 50))), None
        ),
        duration_seconds=number(metadata, "duration"),
        channels=int(count) if count else len(channels) or None,
    )
    return _result("transcript", document, origin, transcript)


def _first_alternative(channel: Document) -> Document:
    alternatives = channel.get("alternatives")
    if isinstance(alternatives, list) and alternatives and isinstance(alternatives[0], dict):
        return alternatives[0]
    return {}


# ---------------------------------------------------------------- streaming messages


def _partial(document: Document, origin: Origin) -> EventDraft:
    request_id = _request_id(document, origin)
    created = _metadata(document).get("created") or document.get("created")
    transcript = None
    if document["type"] == "Results":
        best = _first_alternative(table(document, "channel"))
        said = best.get("transcript")
        transcript = TranscriptDraft(
            text=said if isinstance(said, str) else None,
            confidence=number(best, "confidence"),
            duration_seconds=number(document, "duration"),
        )
    return EventDraft(
        type="transcript.partial",
        idempotency_key=_message_key(document, request_id, origin),
        job_id=opaque_id(request_id),
        ref=origin.callback.ref,
        occurred_at=epoch_ms(created) or origin.callback.head.received_at,
        stage=Stage.OPEN,
        transcript=transcript,
        provider_data=document,
        document=origin.raw,
    )


_MESSAGE_IDENTITY = {
    "Results": (("start", "duration"), ("channel_index", "is_final", "speech_final", "from_finalize")),
    "UtteranceEnd": (("last_word_end",), ("channel",)),
    "SpeechStarted": (("timestamp",), ("channel",)),
    "Metadata": (("created", "duration"), ()),
}
"""For each message: the fields that must be there to tell it from others, and those that also take part."""


def _message_key(document: Document, request_id: Any, origin: Origin) -> str:
    """Return a streaming message's identity: the session, then what the message is about, or else its bytes.

    The session is the token and the request id, as far as they are known: a token may have been handed out for more
    than one session, and two kinds of message carry no request id at all. Without either, the time tells sessions apart.
    """
    claims = origin.callback.claims
    session = (claims.token_id if claims else "", opaque_id(request_id) or "")
    if not any(session):
        session = ("", _while(origin))
    needed, others = _MESSAGE_IDENTITY[document["type"]]
    if all(document.get(name) is not None for name in needed):
        fields = (_plain(document.get(name)) for name in (*needed, *others))
        return join_key("stream", *session, document["type"], *fields)
    return join_key("stream", *session, document["type"], origin.callback.body.sha256)


def _plain(value: Any) -> str:
    return "" if value is None else encode(value).decode()


# ---------------------------------------------------------------- failures


def _failed(document: Document, error: JobError, origin: Origin) -> EventDraft:
    family = _failed_family(document, origin)
    request_id = _request_id(document, origin) or table(document, "error").get("request_id")
    return EventDraft(
        type=f"{family}.failed",
        idempotency_key=_key(family, request_id, "error", origin),
        job_id=opaque_id(request_id),
        ref=origin.callback.ref,
        occurred_at=epoch_ms(_metadata(document).get("created")) or origin.callback.head.received_at,
        error=error,
        provider_data=document,
        document=origin.raw,
    )


def _failed_family(document: Document, origin: Origin) -> str:
    """Return which family failed: the token knows; else metadata that only transcripts have.

    Otherwise it is speech. An error document does not say which product it is about, and only a speech job has no
    other way to tell: a transcript's error usually names its request, which the application can look up.
    """
    if origin.product:
        return _FAMILIES[origin.product]
    metadata = _metadata(document)
    return "transcript" if any(name in metadata for name in _LISTEN_METADATA) else "speech"


def _job_error(document: Document) -> JobError:
    inner = table(document, "error")
    places = (document, inner)
    message = _first(places, "err_msg", "message", "error", "description")
    code = _first(places, "err_code", "category", "code")
    details = document.get("details") if document.get("details") is not None else inner.get("details")
    return JobError(
        message=message or code or "the provider gave no reason",
        code=code[:200] if code else None,
        details=None
        if details is None
        else details[:2000]
        if isinstance(details, str)
        else _spelled(details),
    )


def _first(places: tuple[Document, ...], *names: str) -> str | None:
    for name in names:
        for place in places:
            value = place.get(name)
            if isinstance(value, str) and value:
                return value[:2000]
            if isinstance(value, int) and not isinstance(value, bool):
                return _spelled(value)
    return None


def _spelled(value: Any) -> str:
    return encode(value).decode()[:2000]
