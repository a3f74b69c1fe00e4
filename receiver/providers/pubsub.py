"""Google Cloud Pub/Sub push: any message, and above all Cloud Storage's word that a result was written.

https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions: `Authorization: Bearer` with a JSON web token that Google
signs (RS256), for the audience and the service account of the subscription. The token does not cover the body. Anything but
102, 200, 201, 202 and 204 is sent again (https://cloud.google.com/pubsub/docs/push). What Cloud Storage says of an object:
https://cloud.google.com/storage/docs/pubsub-notifications.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from receiver.core.callback import Admission, Head, VerifiedCallback
from receiver.core.errors import Code, Finding, IgnoredCallback, MalformedCallback
from receiver.core.event import EventDraft, Stage
from receiver.core.tokens import CallbackTokens
from receiver.providers import NO_PROOF, PushProvider
from receiver.providers.documents import (
    Document,
    decode_object,
    encode,
    epoch_ms,
    join_key,
    opaque_id,
    table,
    text,
)
from receiver.providers.proofs.base import Trust
from receiver.providers.proofs.request import Request
from receiver.providers.proofs.web_tokens import JwtProof
from receiver.settings.model import Section, SourceSettings

KEYS_URL = "https://www.googleapis.com/oauth2/v3/certs"
"""Google's keys for its identity tokens (https://accounts.google.com/.well-known/openid-configuration)."""
ISSUERS = ("https://accounts.google.com", "accounts.google.com")
_SIGNED = {"kind": "jwt", "prefix": "Bearer ", "algorithms": ["RS256"]}
_PLAIN = 200
"""Characters of an attribute that goes to the event."""
_ATTRIBUTES = 50
_WRITTEN = "OBJECT_FINALIZE"
"""Cloud Storage's event type of a new object; it has others for what was deleted, archived or described anew."""


class PubsubSettings(Section):
    """[sources.NAME] of provider `pubsub`."""

    audience: str = ""
    """What the subscription's push token is for: its audience, or the callback URL where none was named there."""
    service_account: str = ""
    """The account whose identity the subscription's push token is, `pusher@project.iam.gserviceaccount.com`."""
    subscriptions: tuple[str, ...] = ()
    """Only these, by their full names; any if empty."""
    family: Literal["speech", "transcript", "analysis", "media"] = "transcript"
    """What a message means is there: the first part of the event's type."""
    job_attribute: str = "objectId"
    """The attribute of a message that tells the job; Cloud Storage's is the object's name."""
    require_token: bool = False
    """Refuse a callback whose URL carries no token of receiver's."""
    keys_url: str = Field(KEYS_URL, pattern=r"^https://[^\s/]+/\S*$")
    """Where Google publishes its keys."""
    keys: str = ""
    """Google's keys themselves, a JWKS document: for a machine without a way out. They change every few days."""

    @field_validator("keys")
    @classmethod
    def _are_keys(cls, value: str) -> str:
        from receiver.providers.public_keys.jwks import KeySet  # loads a cryptography library

        if value:
            KeySet("", value)
        return value


class PubsubProvider(PushProvider):
    """One source that push subscriptions call."""

    provider = "pubsub"
    Settings = PubsubSettings
    codes: ClassVar = {
        "E604": Code("A Pub/Sub source's setting is wrong", ""),
        "E601": Code("A Pub/Sub source has no proof", "add audience and service_account"),
    }
    keeps_retrying = True
    fetches_keys = True
    secret_headers = frozenset(("authorization",))

    def __init__(self, settings: SourceSettings, options: PubsubSettings, tokens: CallbackTokens) -> None:
        from receiver.providers.public_keys.jwks import KeySet  # loads a cryptography library

        super().__init__(settings, options, tokens)
        where, keys = f"{self._where}.audience", KeySet(options.keys_url, options.keys)
        self._trust = Trust(where, where, where, keys={keys.url: keys})
        wanted = {"jwks": keys.url, "audience": options.audience, "claims": {"iss": ISSUERS}}
        self._proof = JwtProof.model_validate(_SIGNED | wanted)

    @classmethod
    def _judge(cls, where: str, options: PubsubSettings) -> Iterator[Finding]:
        for name in ("audience", "service_account"):
            if not getattr(options, name):
                yield cls._missing("E601", where, name, f"{NO_PROOF}: any Google token would do")
                return

    def admit(self, head: Head) -> Admission:
        """Check the token of the URL and Google's own. Raises `CallbackRejected`, `WrongSource`, `KeysNeeded`."""
        claims = self._check_token(head, required=self._options.require_token)
        said = self._proof.claimed(Request(head, None, "json"), self._trust)
        if said.get("email") != self._options.service_account or said.get("email_verified") is not True:
            raise self._rejection("service_account", "Google's token is another account's")
        return Admission(
            head=head,
            claims=claims,
            proofs=frozenset(("jwt", "token") if claims else ("jwt",)),
            body_limit=self._json_limit,
        )

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of a message. Raises `MalformedCallback`, `IgnoredCallback`."""
        document, _ = self._load(callback.body)
        message, of = table(document, "message"), text(document, "subscription")
        wanted = self._options.subscriptions
        if wanted and of not in wanted:
            raise MalformedCallback(
                f"the message is of a subscription that {self._where}.subscriptions does not name"
            )
        message_id = opaque_id(message.get("messageId"))
        if message_id is None:
            raise MalformedCallback("the message has no messageId")
        attributes = {k: v for k, v in table(message, "attributes").items() if isinstance(v, str)}
        if attributes.get("eventType", _WRITTEN) != _WRITTEN:
            raise IgnoredCallback
        job, type_ = (
            opaque_id(attributes.get(self._options.job_attribute)),
            f"{self._options.family}.completed",
        )
        data = self._data(message)
        kept, raw = self._without_secrets(data, encode(data))
        bare, raw = self._without_signatures(kept, raw)
        return EventDraft(
            type=type_,
            idempotency_key=join_key("id", message_id),
            second_key=self._second_key(attributes, job, type_),
            job_id=job,
            ref=callback.ref if callback.ref is not None else attributes.get("ref"),
            occurred_at=epoch_ms(message.get("publishTime")) or callback.head.received_at,
            stage=Stage.FINAL,
            provider_data={
                "subscription": of,
                "attributes": {
                    name: value[:_PLAIN] for name, value in list(attributes.items())[:_ATTRIBUTES]
                },
            },
            document=raw if bare else None,
        )

    @staticmethod
    def _second_key(attributes: Mapping[str, str], job: str | None, type_: str) -> str | None:
        """Return the job's identity; that of an object in Cloud Storage is one of its generation."""
        if "objectGeneration" in attributes:
            return join_key(
                "object", attributes.get("bucketId", ""), job, attributes["objectGeneration"], type_
            )
        return None if job is None else join_key("job", job, type_)

    @staticmethod
    def _data(message: Document) -> Document:
        """Return a message's data; what is no JSON object stands under `text`. Raises `MalformedCallback`."""
        encoded = message.get("data") or ""
        try:
            raw = base64.b64decode(encoded, validate=True)
            words = raw.decode()
        except (binascii.Error, ValueError, TypeError):
            raise MalformedCallback("the message's data is no base64 of text") from None
        if not words.strip():
            return {}
        try:
            return decode_object(raw)
        except MalformedCallback:
            return {"text": words.replace("\0", "")}
