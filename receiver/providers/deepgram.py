"""Deepgram: callbacks of text to speech, speech to text (batch and streaming) and text intelligence.

Proofs, after the changelog of 2026-10-27 (https://developers.deepgram.com/changelog/2026/10/27): Basic credentials in the
callback URL for all products; a secret sent as `extra=callback_secret:…` for speech to text; our own token in the path;
and the retired `dg-token` header, compared where it is configured.
"""

from __future__ import annotations

import base64
import re
from typing import ClassVar

from pydantic import SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, VerifiedCallback
from receiver.core.errors import CallbackRejected, ConfigError, MalformedCallback
from receiver.core.event import EventDraft
from receiver.core.redaction import Redactor
from receiver.core.signing import CallbackTokens, basic_credentials, same_as_any
from receiver.providers.deepgram_audio import Kind, audio_draft, kind_of
from receiver.providers.deepgram_json import (
    Origin,
    callback_secrets,
    draft_document,
    draft_text_failure,
    is_failure,
    without_secrets,
)
from receiver.providers.jsonbody import (
    Document,
    decode_object,
    encode,
    is_json_type,
    is_text,
    join_key,
    opaque_id,
    printable,
)
from receiver.providers.options import SecretList, refuse, reveal
from receiver.providers.tokens import check_token, content_key
from receiver.settings.model import Finding, SourceSettings, provider_options
from receiver.settings.storage import Section

KEPT_HEADERS = ("dg-model-name", "dg-model-uuid", "dg-char-count", "dg-request-id", "dg-error", "dg-warnings")
"""What an audio event tells of its headers; `dg-project-id` and `dg-token` name the account and are left out."""
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


def create(settings: SourceSettings, tokens: CallbackTokens) -> DeepgramProvider:
    """Return the adapter of one source. Raises `ConfigError` when it could prove nobody, or a setting is wrong."""
    options = provider_options(DeepgramSettings, settings)
    refuse(_judge(settings.name, options))
    return DeepgramProvider(settings, options, tokens)


def findings(settings: SourceSettings) -> list[Finding]:
    """Return what `receiver check` says of one source: E101 to E104, W101 to W103."""
    try:
        options = provider_options(DeepgramSettings, settings)
    except ConfigError as error:
        where = f"sources.{settings.name}"
        return [Finding("E104", where, error.message, "correct the setting; see docs/configuration.md")]
    return _judge(settings.name, options)


def _judge(name: str, options: DeepgramSettings) -> list[Finding]:
    where, found = f"sources.{name}", []
    needed_dg_token = options.dg_token and options.require_dg_token
    write = f'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"] to [{where}], and user:password@ to the callback URL'
    if options.require_dg_token and not options.dg_token:
        found.append(
            Finding("E102", f"{where}.dg_token", "require_dg_token is set, but no dg_token", "add dg_token")
        )
    if options.require_callback_secret and not options.callback_secrets:
        missing = "require_callback_secret is set, but no callback_secrets"
        found.append(Finding("E103", f"{where}.callback_secrets", missing, "add callback_secrets"))
    if not found and not (
        options.basic or options.require_token or options.callback_secrets or needed_dg_token
    ):
        nobody = "no proof is configured, so anybody's callback would be believed"
        found.append(Finding("E101", f"{where}.basic", nobody, f"{write}; or set require_token = true"))
    if not (options.basic or options.require_token):
        if needed_dg_token and not options.callback_secrets:
            retired = "dg_token is the only proof; Deepgram retired it as a proof on 2026-10-27 and may stop sending it"
            found.append(Finding("W101", f"{where}.dg_token", retired, write))
        elif options.callback_secrets and not needed_dg_token:
            partly = (
                "callback_secrets prove transcripts only: audio, text intelligence and errors will be refused"
            )
            found.append(Finding("W102", f"{where}.callback_secrets", partly, write))
    if any("_" in pair for pair in reveal(options.basic)):
        underscore = "a pair holds an underscore; Deepgram is known to refuse callback URLs with one"
        found.append(
            Finding("W103", f"{where}.basic", underscore, "use letters and digits, or write it as %5F")
        )
    return found


class DeepgramProvider:
    """One Deepgram source."""

    provider: ClassVar[str] = "deepgram"
    keeps_retrying: ClassVar[bool] = True

    def __init__(self, settings: SourceSettings, options: DeepgramSettings, tokens: CallbackTokens) -> None:
        self._source, self._tokens, self._options = settings.name, tokens, options
        self._max_audio, self._max_json = settings.max_audio_bytes, settings.max_json_bytes
        self._basic = reveal(options.basic)
        self._dg_tokens = reveal(options.dg_token)
        self._secrets = reveal(options.callback_secrets)
        self._echoed = Redactor(self._secrets)
        passwords = (pair.partition(":")[2] for pair in self._basic)
        sent = (base64.b64encode(pair.encode()).decode() for pair in self._basic)
        self._redactor = Redactor((*self._basic, *passwords, *sent, *self._dg_tokens, *self._secrets))

    @property
    def source(self) -> str:
        """Name of the source."""
        return self._source

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check token, Basic credentials and `dg-token`, as far as each is configured or there.

        Raises `CallbackRejected` or `WrongSource`. A source that is proved by callback secrets alone is let through
        with the limit of a document, and proved by `verify`.
        """
        proofs = set()
        authorization, dg_token = head.one("authorization"), head.one("dg-token")
        claims = check_token(self._tokens, self._source, head, required=self._options.require_token)
        if claims:
            proofs.add("token")
        if self._basic:
            self._check_basic(authorization)
            proofs.add("basic")
        if self._dg_tokens and self._check_dg_token(dg_token):
            proofs.add("dg-token")
        return Admission(
            head=head, claims=claims, proofs=frozenset(proofs), body_limit=self._body_limit(head, proofs)
        )

    def _check_basic(self, header: str | None) -> None:
        setting = f"sources.{self._source}.basic"
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
        setting = f"sources.{self._source}.dg_token"
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
        if self._secrets and self._check_secret(admission, body):
            proofs |= {"callback_secret"}
        if not self._held(proofs):
            raise CallbackRejected(
                "nothing in this callback proves who sent it: only a transcript can carry a callback secret",
                setting=f"sources.{self._source}.callback_secrets",
            )
        return VerifiedCallback(head=admission.head, claims=admission.claims, proofs=proofs, body=body)

    def _check_secret(self, admission: Admission, body: Body) -> bool:
        setting = f"sources.{self._source}.callback_secrets"
        try:
            is_document = kind_of(admission.head, body.prefix, admission.claims) is not Kind.AUDIO
            document = self._load(body) if is_document else {}
        except MalformedCallback:
            is_document, document = True, {}
        found = callback_secrets(document)
        good = [isinstance(value, str) and same_as_any(value, self._secrets) for value in found]
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

    def _load(self, body: Body) -> Document:
        if body.size > self._max_json:
            raise MalformedCallback(f"the JSON has {body.size} bytes; max_json_bytes allows {self._max_json}")
        return decode_object(body.load())

    def _document(self, callback: VerifiedCallback) -> tuple[Document, bytes]:
        """Return the document and the bytes to keep, secrets removed; the bytes as they came where none were in it."""
        document, kept = self._load(callback.body), callback.body.load()
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

    def fallback_key(self, callback: VerifiedCallback) -> str:
        """Return the identity of a callback that could not be normalized: token and content hash."""
        return content_key(callback)
