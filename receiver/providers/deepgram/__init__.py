"""Deepgram: callbacks of text to speech, speech to text (batch and streaming) and text intelligence.

Proofs, after the changelog of 2026-10-27 (https://developers.deepgram.com/changelog/2026/10/27): Basic credentials in the
callback URL for all products; a secret sent as `extra=callback_secret:…` for speech to text; our own token in the path;
and the retired `dg-token` header, compared where it is configured.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace
from pydantic import SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, TokenClaims, VerifiedCallback
from receiver.core.errors import Code, Finding, MalformedCallback, RejectionKind
from receiver.core.event import EventDraft, JobError
from receiver.core.proofs import basic_credentials
from receiver.core.redaction import Redactor
from receiver.core.tokens import CallbackTokens
from receiver.core.transcript import Word
from receiver.providers import NO_PROOF, NO_REASON, PushProvider, toolkit
from receiver.providers.deepgram.documents import Payload, heard_words, is_failure, requested_format
from receiver.providers.documents import (
    BOM,
    Document,
    encode,
    is_json_type,
    is_text,
    join_key,
    looks_like_json,
    opaque_id,
    printable,
    table,
)
from receiver.providers.toolkit import SecretList, content_key, reveal, revealed
from receiver.settings.model import BaseUrl, Section, SourceSettings
from receiver.settings.submitting import ProviderApi
from receiver.system.audio.formats import MEDIA_TYPES, beginning

KEPT_HEADERS = ("dg-model-name", "dg-model-uuid", "dg-char-count", "dg-request-id", "dg-error", "dg-warnings")
"""The headers that an audio event holds; `dg-project-id` and `dg-token` name the account and are left out."""
_DEFAULT_HERTZ = {"linear16": 24000, "mulaw": 8000, "alaw": 8000}
"""What Deepgram makes when an encoding was asked for without a rate."""
_ECHO = "callback_secret"
_SECRET_VALUE = re.compile(rb'("callback_secret"\s*:\s*)"(?:[^"\\]|\\.)*"', re.DOTALL)
_ADD_BASIC = 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'
_UNSET = "require_callback_secret is set, but no callback_secrets"
_RETIRED = "dg_token is the only proof; Deepgram retired it as a proof on 2026-10-27 and may stop sending it"
_PARTLY = "callback_secrets prove transcripts only: audio, text intelligence and errors will be refused"
_UNDERSCORE = "a pair holds an underscore; Deepgram is known to refuse callback URLs with one"
BodyKind = Literal["audio", "json", "text"]
T = TypeVar("T")


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
    api_key: SecretStr | None = None
    """For jobs that applications submit through receiver."""
    base_url: BaseUrl = "https://api.deepgram.com"
    """Where these jobs go; the key goes nowhere else."""

    @field_validator("basic")
    @classmethod
    def _pairs(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(":" not in pair.get_secret_value() for pair in value):
            raise ValueError('each entry is "user:password", where the password may be env:NAME or file:PATH')
        return value


class DeepgramProvider(PushProvider):
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
        self._api_key = revealed(options.api_key)
        super().__init__(settings, options, tokens)
        # The words of a transcript are its speaker's: of them, only what Deepgram echoes is taken out,
        # and credentials in the forms that only a URL or a header gives them.
        echoed = (*self._basic, *map(_base64, self._basic), *self._dg_tokens, *self._callback_secrets)
        self._echo_redactor = Redactor(echoed)

    def _secrets(self) -> tuple[str, ...]:
        passwords = (pair.partition(":")[2] for pair in self._basic)
        return (
            *self._basic, *passwords, *map(_base64, self._basic), *self._dg_tokens, *self._callback_secrets,
            self._api_key,
        )  # fmt: skip

    @classmethod
    def _judge(cls, where: str, options: DeepgramSettings) -> Iterator[Finding]:
        own = options.basic or options.require_token
        tokens, secrets = bool(options.dg_token), bool(options.callback_secrets)
        required = options.require_dg_token, options.require_callback_secret
        to_where = f"{_ADD_BASIC} to [{where}], and user:password@ to the callback URL"
        found = (
            (required[0] and not tokens, "E102", "dg_token", "require_dg_token is set, but no dg_token", ""),
            (required[1] and not secrets, "E103", "callback_secrets", _UNSET, ""),
            (not own and required[0] and tokens and not secrets, "W101", "dg_token", _RETIRED, to_where),
            (
                not own and secrets and not (required[0] and tokens),
                "W102",
                "callback_secrets",
                _PARTLY,
                to_where,
            ),
            (
                *(not (own or any(required) or secrets), "E101", "basic", NO_PROOF),
                f"{to_where}; or set require_token = true",
            ),
            (any("_" in pair for pair in reveal(options.basic)), "W103", "basic", _UNDERSCORE, ""),
        )
        for applies, code, setting, message, fix in found:
            if applies:
                yield cls._finding(code, where, setting, message, fix)

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return the newest Basic credentials, and the newest `dg-token`, as far as they are configured."""
        headers = {}
        if self._basic:
            headers["authorization"] = f"Basic {_base64(self._basic[-1])}"
        if self._dg_tokens:
            headers["dg-token"] = self._dg_tokens[-1]
        return headers

    # ------------------------------------------------------------ submissions

    def submit_api(self) -> ProviderApi:
        """Return what makes a job: speech, transcripts and analyses with a callback."""
        key = {"authorization": f"Token {self._api_key}"} if self._api_key else {}
        secret = self._callback_secrets[-1] if self._callback_secrets else ""
        return self._submit_api(self._options.base_url, key, secret=secret)

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check token, Basic credentials and `dg-token`, as far as each is configured or there.

        Raises `CallbackRejected` or `WrongSource`. A source that is proved by callback secrets alone is let through
        with the limit of a document, and proved by `verify`.
        """
        authorization, dg_token = head.one("authorization"), head.one("dg-token")
        claims = self._check_token(head, required=self._options.require_token)
        proofs: set[str] = {"token"} if claims else set()
        secret = 0
        if self._basic:
            secret = self._check_basic(authorization)
            proofs.add("basic")
        if self._dg_tokens and (place := self._check_dg_token(dg_token)):
            secret = secret or place
            proofs.add("dg-token")
        held, (media_type, _) = self._held(proofs), head.media_type
        is_document = is_json_type(media_type) or media_type.startswith("text/")
        return Admission(
            head=head,
            claims=claims,
            proofs=frozenset(proofs),
            body_limit=self._json_limit if is_document or not held else self._settings.max_audio_bytes,
            secret=secret,
            held=held,
        )

    def _check_basic(self, header: str | None) -> int:
        if header is None:
            raise self._rejection(
                "basic",
                "no Authorization header came: write user:password@ into the callback URL",
                RejectionKind.MISSING,
            )
        pair = basic_credentials(header)
        if pair is None:
            raise self._rejection(
                "basic", "the Authorization header is not Basic credentials", RejectionKind.MALFORMED
            )
        return self._place_of(pair, self._basic, "basic", "the Basic credentials fit no pair")

    def _check_dg_token(self, header: str | None) -> int:
        if header is None and self._options.require_dg_token:
            raise self._rejection(
                "dg_token", "no dg-token header came, and require_dg_token is set", RejectionKind.MISSING
            )
        if header is None:
            return 0
        return self._place_of(header, self._dg_tokens, "dg_token", "the dg-token header fits no value")

    def _held(self, proofs: Iterable[str]) -> bool:
        """Tell whether one of the proofs is enough by itself; a dg-token is so only where it is required."""
        enough = {"basic", "token", "callback_secret"}
        return not (enough | {"dg-token"} if self._options.require_dg_token else enough).isdisjoint(proofs)

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Compare the callback secret of a document, where one is configured. Raises `CallbackRejected`."""
        if self._callback_secrets and (place := self._check_secret(admission, body)):
            proofs = admission.proofs | {"callback_secret"}
            admission = replace(admission, proofs=proofs, secret=admission.secret or place)
        if not (admission.held or self._held(admission.proofs)):
            raise self._rejection(
                "callback_secrets",
                "nothing in this callback proves who sent it: only a transcript can carry a callback secret",
                RejectionKind.MISSING,
            )
        return self.believed(admission, body)

    def _check_secret(self, admission: Admission, body: Body) -> int:
        try:
            is_document = body_kind(admission.head, beginning(body), admission.claims) != "audio"
        except MalformedCallback:
            is_document = True
        secrets = echoed_secrets(body.load()) if is_document and body.size <= self._json_limit else []
        wrong = "the document's callback_secret fits no value"
        fits = [self._place_of(one, self._callback_secrets, "callback_secrets", wrong) for one in secrets]
        if is_document and not secrets and self._options.require_callback_secret:
            raise self._rejection(
                "callback_secrets",
                "the document has no metadata.extra.callback_secret, and require_callback_secret is set",
                RejectionKind.MISSING,
            )
        return max(fits, default=0)

    # ------------------------------------------------------------ meaning

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of audio, a transcript, a streaming message, an analysis or a failure.

        Raises `MalformedCallback` for an empty body, JSON of no known shape and JSON past `max_json_bytes`.
        """
        if callback.body.size == 0:
            raise MalformedCallback("the body is empty")
        prefix = beginning(callback.body)
        match body_kind(callback.head, prefix, callback.claims):
            case "audio":
                return self._audio(callback, prefix)
            case "text":
                return self._text_failure(callback)
            case "json":
                return self._json(callback).draft()

    def words(self, document: bytes) -> list[Word]:
        """Return the words of a kept transcript."""
        return heard_words(document)

    def _audio(self, callback: VerifiedCallback, prefix: bytes) -> EventDraft:
        head, (media_type, parameters) = callback.head, callback.head.media_type
        shown = {
            name: self._shown_header(name, values[0]) for name in KEPT_HEADERS if (values := head.all(name))
        }
        request_id = opaque_id(next(iter(head.all("dg-request-id")), None))
        return EventDraft(
            type="speech.completed",
            idempotency_key=join_key("speak", request_id, "audio") if request_id else content_key(callback),
            job_id=request_id,
            ref=callback.ref,
            occurred_at=head.received_at,
            audio=toolkit.audio_draft(
                media_type,
                parameters,
                prefix,
                requested_format(callback.claims),
                default_hertz=_DEFAULT_HERTZ,
            ),
            provider_data=shown,
        )

    def _shown_header(self, name: str, value: str) -> str:
        """Return a header's value as an event may show it. An id stays as it is: redacted, two jobs would be one."""
        if name != "dg-request-id":  # cleaned as the bytes it was, and before it is cut
            value = self._redactor.clean(value.encode("latin-1", "replace")).decode("latin-1")
        return printable(value, 500)

    def _text_failure(self, callback: VerifiedCallback) -> EventDraft:
        """Return the failure that a plain text says: the oldest of Deepgram's error forms."""
        if callback.body.size > self._json_limit or not is_text(callback.body.prefix):
            raise MalformedCallback("the body is said to be text, and is not")
        kept = self._redactor.clean(callback.body.load())
        message = kept[:8000].decode("utf-8", "replace").strip()[:2000]
        return Payload(callback, {}, kept).failure(JobError(message=message or NO_REASON))

    def _json(self, callback: VerifiedCallback) -> Payload:
        """Return a document and the bytes to keep, secrets removed; the bytes as they came where none were in it."""
        document, kept = self._load(callback.body)
        # A name that is not in the bytes can only be in them with an escape.
        if (_ECHO.encode() in kept or b"\\" in kept) and without_secrets(document):
            kept = encode(document)
        redactor = self._redactor if is_failure(document) else self._echo_redactor
        return Payload(callback, *self._without_secrets(document, kept, redactor))

    def redact(self, body: bytes) -> bytes:
        """Return `body` without configured secrets and without the value of any `callback_secret`."""
        clean = self._redactor.clean(body)
        return _SECRET_VALUE.sub(rb'\1"[redacted]"', clean) if _ECHO.encode() in clean else clean


def _base64(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


def body_kind(head: Head, prefix: bytes, claims: TokenClaims | None) -> BodyKind:
    """Return what a body is, by its first bytes, then its type, then its token.

    Audio under any type is audio; JSON under any type is JSON, since Deepgram's errors may come on the audio path.
    Raises `MalformedCallback` for a type that is neither audio nor text, unless bytes or token speak for audio.
    """
    (media_type, _), requested = head.media_type, requested_format(claims)
    if toolkit.magic(media_type, prefix, requested):
        return "audio"
    if is_json_type(media_type) or looks_like_json(prefix):
        return "json"
    if media_type.startswith("text/"):
        return "text"
    if (
        media_type in (*toolkit.UNTYPED, *MEDIA_TYPES)
        or media_type.startswith(("audio/", "video/"))
        or toolkit.asked_encoding(requested)
    ):
        return "audio"
    raise MalformedCallback(
        "the body's content type is neither audio nor JSON, and its bytes are of no known format"
    )


# ---------------------------------------------------------------- callback secrets


class _Place(Struct):
    """An object in which `extra` may stand; the rest is passed over, and nothing is built of it."""

    metadata: Raw | UnsetType = UNSET
    extra: Raw | UnsetType = UNSET


class _Extra(Struct):
    """`extra`, as far as it proves something."""

    callback_secret: Raw | UnsetType = UNSET


def echoed_secrets(raw: bytes) -> list[str]:
    """Return every value of `extra.callback_secret` in a JSON document's metadata (nested once or twice, or flat).

    "" stands for a value that is no text. A document is decoded as a whole only after it is proved: what a stranger sends
    may become a hundred times as large.
    """
    places = [_part(raw.removeprefix(BOM), _Place)]
    for _ in range(2):
        places.append(_part(places[-1].metadata, _Place))
    secrets = (_part(place.extra, _Extra).callback_secret for place in places)
    return [_part(secret, str) for secret in secrets if secret is not UNSET]


def _part(raw: bytes | Raw | UnsetType, kind: type[T]) -> T:
    """Return a part of a document, an empty one where it is not there or of another type."""
    try:
        return msgspec.json.decode(raw, type=kind) if raw is not UNSET else kind()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return kind()


def without_secrets(document: Document) -> bool:
    """Remove every `extra.callback_secret` from `document`, in place; tell whether there was one."""
    metadata = table(document, "metadata")
    places = (metadata, table(metadata, "metadata"), document)
    extras = [extra for place in places if _ECHO in (extra := table(place, "extra"))]
    for extra in extras:
        del extra[_ECHO]
    return bool(extras)
