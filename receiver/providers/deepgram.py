"""Deepgram: callbacks of text to speech, speech to text (batch and streaming) and text intelligence.

Proofs, after the changelog of 2026-10-27 (https://developers.deepgram.com/changelog/2026/10/27): Basic credentials in the
callback URL for all products; a secret sent as `extra=callback_secret:…` for speech to text; our own token in the path;
and the retired `dg-token` header, compared where it is configured.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, TokenClaims, VerifiedCallback
from receiver.core.errors import CallbackRejected, MalformedCallback
from receiver.core.event import AudioDraft, EventDraft, JobError, Stage, TranscriptDraft
from receiver.core.findings import Code, Finding
from receiver.core.proofs import basic_credentials, same_as_any
from receiver.core.redaction import Redactor
from receiver.core.tokens import CallbackTokens
from receiver.providers import Adapter, toolkit
from receiver.providers.documents import (
    BOM,
    Document,
    decode_object,
    encode,
    epoch_ms,
    is_json_type,
    is_text,
    join_key,
    looks_like_json,
    number,
    opaque_id,
    printable,
    table,
    text,
)
from receiver.providers.toolkit import SecretList, content_key, reveal
from receiver.settings.model import Section, SourceSettings
from receiver.system.audio import MEDIA_TYPES

KEPT_HEADERS = ("dg-model-name", "dg-model-uuid", "dg-char-count", "dg-request-id", "dg-error", "dg-warnings")
"""What an audio event tells of its headers; `dg-project-id` and `dg-token` name the account and are left out."""
_ADD_BASIC = 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'
T = TypeVar("T")
_SECRET_VALUE = re.compile(rb'("callback_secret"\s*:\s*)"(?:[^"\\]|\\.)*"', re.DOTALL)


class DeepgramSettings(Section):
    """[sources.NAME] of provider `deepgram`."""

    basic: SecretList = ()
    """`user:password` pairs, as written into the callback URL; newest last."""
    require_token: bool = False
    """Refuse a callback whose URL carries no token of ours."""
    callback_secrets: SecretList = ()
    """Values of `extra=callback_secret:…`; compared when a speech-to-text document carries one."""
    require_callback_secret: bool = False
    """Refuse every document (JSON or text, errors included) without a callback secret."""
    dg_token: SecretList = ()
    """API key identifiers; compared with the `dg-token` header when that is there."""
    require_dg_token: bool = False
    """Refuse a callback without a `dg-token` header."""

    @field_validator("basic")
    @classmethod
    def _pairs(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(":" not in pair.get_secret_value() for pair in value):
            raise ValueError('each entry is "user:password", where the password may be env:NAME or file:PATH')
        return value


class DeepgramProvider(Adapter):
    """One Deepgram source."""

    provider = "deepgram"
    Settings = DeepgramSettings
    keeps_retrying = True
    secret_headers = frozenset(("authorization", "dg-token", "dg-project-id"))
    codes: ClassVar = {
        "E104": Code("A Deepgram source's setting is wrong", ""),
        "E101": Code("A Deepgram source has no proof", _ADD_BASIC),
        "E102": Code("require_dg_token without dg_token", "add dg_token"),
        "E103": Code("require_callback_secret without callback_secrets", "add callback_secrets"),
        "W101": Code("dg_token is the only proof", _ADD_BASIC),
        "W102": Code("Only transcripts can be proved", _ADD_BASIC),
        "W103": Code("A Deepgram pair holds an underscore", "use letters and digits, or write it as %5F"),
    }

    def __init__(self, settings: SourceSettings, options: DeepgramSettings, tokens: CallbackTokens) -> None:
        self._basic, self._dg_tokens = reveal(options.basic), reveal(options.dg_token)
        self._callback_secrets = reveal(options.callback_secrets)
        super().__init__(settings, options, tokens)
        self._max_audio, self._max_json = settings.max_audio_bytes, settings.max_json_bytes
        # The words of a transcript are its speaker's: of them, only what Deepgram echoes is taken out.
        self._echoed = Redactor(self._callback_secrets)

    def _secrets(self) -> tuple[str, ...]:
        passwords = (pair.partition(":")[2] for pair in self._basic)
        sent = (base64.b64encode(pair.encode()).decode() for pair in self._basic)
        return (*self._basic, *passwords, *sent, *self._dg_tokens, *self._callback_secrets)

    @classmethod
    def _judge(cls, where: str, options: DeepgramSettings) -> Iterator[Finding]:
        needed_dg_token = options.dg_token and options.require_dg_token
        write = f"{_ADD_BASIC} to [{where}], and user:password@ to the callback URL"
        unmet = False
        if options.require_dg_token and not options.dg_token:
            unmet = True
            yield cls._finding("E102", f"{where}.dg_token", "require_dg_token is set, but no dg_token")
        if options.require_callback_secret and not options.callback_secrets:
            unmet = True
            missing = "require_callback_secret is set, but no callback_secrets"
            yield cls._finding("E103", f"{where}.callback_secrets", missing)
        proofs = options.basic or options.require_token
        if not (unmet or proofs or options.callback_secrets or needed_dg_token):
            nobody = "no proof is configured, so anybody's callback would be believed"
            yield cls._finding("E101", f"{where}.basic", nobody, f"{write}; or set require_token = true")
        if not proofs and needed_dg_token and not options.callback_secrets:
            retired = "dg_token is the only proof; Deepgram retired it as a proof on 2026-10-27 and may stop sending it"
            yield cls._finding("W101", f"{where}.dg_token", retired, write)
        if not proofs and options.callback_secrets and not needed_dg_token:
            partly = (
                "callback_secrets prove transcripts only: audio, text intelligence and errors will be refused"
            )
            yield cls._finding("W102", f"{where}.callback_secrets", partly, write)
        if any("_" in pair for pair in reveal(options.basic)):
            underscore = "a pair holds an underscore; Deepgram is known to refuse callback URLs with one"
            yield cls._finding("W103", f"{where}.basic", underscore)

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return the newest Basic credentials, and the newest `dg-token`, as far as they are configured."""
        headers = {}
        if self._basic:
            headers["authorization"] = "Basic " + base64.b64encode(self._basic[-1].encode()).decode()
        if self._dg_tokens:
            headers["dg-token"] = self._dg_tokens[-1]
        return headers

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check token, Basic credentials and `dg-token`, as far as each is configured or there.

        Raises `CallbackRejected` or `WrongSource`. A source that is proved by callback secrets alone is let through
        with the limit of a document, and proved by `verify`.
        """
        proofs = set()
        authorization, dg_token = head.one("authorization"), head.one("dg-token")
        claims = self._claims(head, required=self._options.require_token)
        if claims:
            proofs.add("token")
        if self._basic:
            self._check_basic(authorization)
            proofs.add("basic")
        if self._dg_tokens and self._check_dg_token(dg_token):
            proofs.add("dg-token")
        return Admission(
            head=head,
            claims=claims,
            proofs=frozenset(proofs),
            body_limit=self._body_limit(head, proofs),
            held=self._held(proofs),
        )

    def _check_basic(self, header: str | None) -> None:
        setting = f"sources.{self.source}.basic"
        if header is None:
            raise CallbackRejected(
                "no Authorization header came: write user:password@ into the callback URL", setting=setting
            )
        given = basic_credentials(header)
        if given is None:
            raise CallbackRejected("the Authorization header is not Basic credentials", setting=setting)
        if not same_as_any(given, self._basic):
            raise CallbackRejected(f"the Basic credentials fit no pair in {setting}", setting=setting)

    def _check_dg_token(self, header: str | None) -> bool:
        setting = f"sources.{self.source}.dg_token"
        if header is None:
            if self._options.require_dg_token:
                raise CallbackRejected(
                    "no dg-token header came, and require_dg_token is set", setting=setting
                )
            return False
        if not same_as_any(header, self._dg_tokens):
            raise CallbackRejected(f"the dg-token header fits no value in {setting}", setting=setting)
        return True

    def _held(self, proofs: frozenset[str] | set[str]) -> bool:
        """Tell whether one of the proofs is enough by itself; a dg-token is so only where it is required."""
        return bool(proofs & {"basic", "token", "callback_secret"}) or (
            self._options.require_dg_token and "dg-token" in proofs
        )

    def _body_limit(self, head: Head, proofs: set[str]) -> int:
        media_type, _ = head.media_type()
        is_document = is_json_type(media_type) or media_type.startswith("text/")
        return self._max_json if is_document or not self._held(proofs) else self._max_audio

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Compare the callback secret of a document, where one is configured. Raises `CallbackRejected`."""
        proofs = admission.proofs
        if self._callback_secrets and self._check_secret(admission, body):
            proofs |= {"callback_secret"}
        if not self._held(proofs):
            raise CallbackRejected(
                "nothing in this callback proves who sent it: only a transcript can carry a callback secret",
                setting=f"sources.{self.source}.callback_secrets",
            )
        return VerifiedCallback(head=admission.head, claims=admission.claims, proofs=proofs, body=body)

    def _check_secret(self, admission: Admission, body: Body) -> bool:
        setting = f"sources.{self.source}.callback_secrets"
        try:
            is_document = kind_of(admission.head, body.prefix, admission.claims) is not Kind.AUDIO
        except MalformedCallback:
            is_document = True
        found = echoed_secrets(body.load()) if is_document and body.size <= self._max_json else []
        good = [isinstance(value, str) and same_as_any(value, self._callback_secrets) for value in found]
        if not all(good):
            raise CallbackRejected(
                f"the document's callback_secret fits no value in {setting}", setting=setting
            )
        if is_document and not found and self._options.require_callback_secret:
            raise CallbackRejected(
                "the document has no metadata.extra.callback_secret, and require_callback_secret is set",
                setting=setting,
            )
        return bool(found)

    # ------------------------------------------------------------ meaning

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of audio, a transcript, a streaming message, an analysis or a failure.

        Raises `MalformedCallback` for an empty body, JSON of no known shape and JSON past `max_json_bytes`.
        """
        if callback.body.size == 0:
            raise MalformedCallback("the body is empty")
        kind = kind_of(callback.head, callback.body.prefix, callback.claims)
        if kind is Kind.AUDIO:
            return self._audio(callback)
        if kind is Kind.TEXT:
            return self._text_failure(callback)
        document, kept = self._document(callback)
        return draft_document(document, Origin(callback, kept))

    def _audio(self, callback: VerifiedCallback) -> EventDraft:
        head = callback.head
        told = {name: self._told(name, values[0]) for name in KEPT_HEADERS if (values := head.all(name))}
        request_id = opaque_id(told.get("dg-request-id"))
        return EventDraft(
            type="speech.completed",
            idempotency_key=join_key("speak", request_id, "audio") if request_id else content_key(callback),
            job_id=request_id,
            ref=callback.ref,
            occurred_at=head.received_at,
            audio=audio_draft(head, callback.body.prefix, callback.claims),
            provider_data=told,
        )

    def _told(self, name: str, value: str) -> str:
        """Return a header's value as an event may tell it. An id stays as it is: redacted, two jobs would be one."""
        if name != "dg-request-id":  # cleaned as the bytes it was, and before it is cut
            value = self._redactor.clean(value.encode("latin-1", "replace")).decode("latin-1")
        return printable(value, 500)

    def _text_failure(self, callback: VerifiedCallback) -> EventDraft:
        if callback.body.size > self._max_json or not is_text(callback.body.prefix):
            raise MalformedCallback("the body is said to be text, and is not")
        kept = self._redactor.clean(callback.body.load())
        return draft_text_failure(Origin(callback, kept))

    def _decoded(self, body: Body) -> Document:
        if body.size > self._max_json:
            raise MalformedCallback(f"the JSON has {body.size} bytes; max_json_bytes allows {self._max_json}")
        return decode_object(body.load())

    def _document(self, callback: VerifiedCallback) -> tuple[Document, bytes]:
        """Return the document and the bytes to keep, secrets removed; the bytes as they came where none were in it."""
        document, kept = self._decoded(callback.body), callback.body.load()
        if without_secrets(document):
            kept = encode(document)
        if is_failure(document):
            cleaned = self._redactor.clean_document(document, kept)
        else:
            cleaned = self._echoed.clean_document(document, kept)
        return (document, kept) if cleaned is kept else (decode_object(cleaned), cleaned)

    def redact(self, body: bytes) -> bytes:
        """Return `body` without configured secrets and without the value of any `callback_secret`."""
        return _SECRET_VALUE.sub(rb'\1"[redacted]"', self._redactor.clean(body))


_DEFAULT_HERTZ = {"linear16": 24000, "mulaw": 8000, "alaw": 8000}
"""What Deepgram makes when an encoding was asked for without a rate."""


class Kind(Enum):
    """What a body is."""

    AUDIO = "audio"
    JSON = "json"
    TEXT = "text"


def kind_of(head: Head, prefix: bytes, claims: TokenClaims | None) -> Kind:
    """Return what a body is, by its first bytes, then its type, then its token.

    Audio under any type is audio; JSON under any type is JSON, since Deepgram's errors may come on the audio path.
    Raises `MalformedCallback` for a type that is neither audio nor text, unless bytes or token speak for audio.
    """
    media_type, _ = head.media_type()
    if toolkit.magic(media_type, prefix, _asked(claims)):
        return Kind.AUDIO
    if is_json_type(media_type) or looks_like_json(prefix):
        return Kind.JSON
    if media_type.startswith("text/"):
        return Kind.TEXT
    if (
        media_type in toolkit.UNTYPED
        or media_type.startswith(("audio/", "video/"))
        or media_type in MEDIA_TYPES
    ):
        return Kind.AUDIO
    if toolkit.asked_encoding(_asked(claims)):
        return Kind.AUDIO
    raise MalformedCallback(
        "the body's content type is neither audio nor JSON, and its bytes are of no known format"
    )


def audio_draft(head: Head, prefix: bytes, claims: TokenClaims | None) -> AudioDraft:
    """Return what is known of an audio body. Bytes of no known format are `application/octet-stream`: never lost."""
    media_type, parameters = head.media_type()
    return toolkit.audio_draft(media_type, parameters, prefix, _asked(claims), default_hertz=_DEFAULT_HERTZ)


def _asked(claims: TokenClaims | None) -> Mapping[str, Any]:
    return claims.format if claims else {}


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


class _Place(Struct):
    """An object in which `extra` may stand; the rest is passed over, and nothing is built of it."""

    metadata: Raw | UnsetType = UNSET
    extra: Raw | UnsetType = UNSET


class _Extra(Struct):
    """`extra`, as far as it proves something."""

    callback_secret: Raw | UnsetType = UNSET


def echoed_secrets(raw: bytes) -> list[Any]:
    """Return every value of `extra.callback_secret` in a JSON document's metadata (nested once or twice, or flat).

    A document is decoded as a whole only after it is proved: what a stranger sends may become a hundred times as large.
    """
    found = []
    places = [_part(raw.removeprefix(BOM), _Place)]
    for _ in range(2):
        places.append(_part(places[-1].metadata, _Place))
    for place in places:
        extra = _part(place.extra, _Extra)
        if extra.callback_secret is not UNSET:
            found.append(_part(extra.callback_secret, str, None))
    return found


def _part(raw: bytes | Raw | UnsetType, kind: type[T], default: Any = UNSET) -> Any:
    """Return a part of a document, an empty one where it is not there or of another type."""
    try:
        return msgspec.json.decode(raw, type=kind) if raw is not UNSET else kind()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return kind() if default is UNSET else default


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
