"""The proofs `hmac` and `public-key`: a signature over a message that a template spells."""

from __future__ import annotations

import base64
import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from receiver.core.errors import CallbackRejected, ProofMissing, RejectionKind
from receiver.core.proofs import matching_place
from receiver.providers.custom.proof import Encoding, Proof, Trust, decoded
from receiver.providers.custom.request import (
    At,
    MessageTemplate,
    Reference,
    Request,
    Words,
    as_text,
)
from receiver.settings.model import Section

_SIGNATURES = 20
"""Signatures in one list that are tried, at most."""


class TimestampSettings(Section):
    """`timestamp`: when the request was signed."""

    from_: At = Field(alias="from")
    """Where the time is."""
    unit: Literal["s", "ms", "iso", "http"] = "s"
    """Seconds or milliseconds since 1970, ISO 8601, or a date as in HTTP headers."""
    tolerance: float = Field(300, ge=1, le=86400)
    """Seconds that it may lie in the past."""
    ahead: float = Field(300, ge=0, le=86400)
    """Seconds that it may lie in the future."""

    def read(self, text: str) -> float | None:
        """Return seconds since the epoch, None when the text is no time."""
        if self.unit in ("s", "ms"):
            whole = re.fullmatch(r"[0-9]{1,16}", text)
            return int(text) / (1000 if self.unit == "ms" else 1) if whole else None
        try:
            moment = datetime.fromisoformat(text) if self.unit == "iso" else parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "standard-webhooks": {
        "header": "webhook-signature",
        "split": " ",
        "assign": ",",
        "element": "v1",
        "encoding": "base64",
        "message": "{header:webhook-id}.{timestamp}.{body}",
        "timestamp": {"from": "header:webhook-timestamp"},
        "secret_prefix": "whsec_",
        "secret_encoding": "base64",
    },
    "svix": {
        "header": "svix-signature",
        "split": " ",
        "assign": ",",
        "element": "v1",
        "encoding": "base64",
        "message": "{header:svix-id}.{timestamp}.{body}",
        "timestamp": {"from": "header:svix-timestamp"},
        "secret_prefix": "whsec_",
        "secret_encoding": "base64",
    },
    "stripe-like": {
        "split": ",",
        "element": "v1",
        "message": "{timestamp}.{body}",
        "timestamp": {"from": "element:t"},
    },
    "github-like": {"header": "x-hub-signature-256", "prefix": "sha256=", "no_clock": True},
}
"""Schemes that several providers share: https://www.standardwebhooks.com, https://docs.svix.com/receiving/verifying-payloads/how-manual,
https://docs.stripe.com/webhooks/signature, https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries."""


class SignedProof(Proof, ABC):
    """`hmac` and `public-key`: a signature over a message that a template spells."""

    preset: Literal["standard-webhooks", "svix", "stripe-like", "github-like"] | None = None
    """A scheme by its name; what stands beside it counts more."""
    header: str | None = None
    """The header that holds the signature."""
    also: Words = ()
    """Further names of the header: the first that is there counts."""
    at: At | None = None
    """Where the signature is, when that is no header."""
    prefix: str = ""
    """What stands before the signature, like `sha256=`."""
    split: str | None = Field(None, min_length=1, max_length=3)
    """What separates the entries, when the header is a list: `,` in `t=1705,v1=abc`."""
    element: str | None = None
    """The name of the entries that are signatures: `v1` in `t=1705,v1=abc`. Without it each entry is a signature."""
    assign: str = Field("=", min_length=1, max_length=1)
    """What separates an entry's name from its value."""
    encoding: Annotated[tuple[Encoding, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = (
        "hex",
    )
    """How the signature is spelled; of several, each is tried."""
    any_case: bool = False
    """Hex may have upper-case letters."""
    message: MessageTemplate = Field("{body}", validate_default=True)
    """What was signed; see Messages."""
    timestamp: TimestampSettings | None = None
    """Where the time of signing is, and how old it may be."""
    no_clock: bool = False
    """True: the provider signs no time, and you accept that a captured request can be sent again for ever."""
    url_ports: Literal["as-it-is", "any"] = "as-it-is"
    """`any`: the URL in the message may name its default port or not."""

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("preset"), str):
            return {**_PRESETS.get(value["preset"], {}), **value}
        return value

    @field_validator("header", mode="after")
    @classmethod
    def _lower(cls, value: str | None) -> str | None:
        return value and value.lower()

    @model_validator(mode="after")
    def _placed(self) -> SignedProof:
        if (self.header is None) == (self.at is None):
            raise ValueError('say where the signature is: header = "X-Name", or at')
        if self.timestamp is None and not self.no_clock:
            raise ValueError(
                "say where the time is: timestamp = {from = …}, or no_clock = true if none is sent"
            )
        return self

    @cached_property
    def needs_body(self) -> bool:  # asked for at each callback
        """True when the message holds something of the body, or the signature is in it."""
        return self.message.needs_body or self._in_body

    @cached_property
    def _in_body(self) -> bool:
        return any(place.in_body for place in self._places)

    @property
    def covers_body(self) -> bool:
        """True when the message holds the body."""
        return self.message.covers_body

    @property
    def time_is_signed(self) -> bool:
        """True without a time, and where the message holds it: by `{timestamp}`, or by its own place."""
        wanted = self.timestamp
        return wanted is None or None in self.message.parts or wanted.from_ in self.message.parts

    @property
    def references(self) -> Iterator[Reference]:
        """Where the signature is."""
        yield from self._places

    @property
    def wanted_headers(self) -> Iterator[tuple[str, ...]]:
        """Those of the signature, of its time, and of what else was signed."""
        yield from super().wanted_headers
        signed = (part for part in self.message.parts if isinstance(part, Reference))
        times = (self.timestamp.from_,) if self.timestamp else ()
        yield from dict.fromkeys((place.name,) for place in (*times, *signed) if place.kind == "header")

    @cached_property
    def _places(self) -> list[Reference]:
        if self.at is not None:
            return [self.at]
        return [Reference("header", name.lower()) for name in (self.header or "", *self.also)]

    def look(self, request: Request, trust: Trust) -> None:
        """Refuse a signature that is missing or malformed, and a time that is too far away."""
        if not self.needs_body:
            self.check(request, trust)
        elif not self._in_body:
            if self.timestamp is None or not self.timestamp.from_.in_body:
                self._read(request, trust)
            else:
                self._signatures(request, trust)

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the signature over the message."""
        signatures, elements, stamp = self._read(request, trust)
        for url in _spellings(request.head.url) if self.url_ports == "any" else (None,):
            message = self.message.fill(request, timestamp=stamp, elements=elements, url=url)
            if self._fits(signatures, message, request, trust):
                return
        raise trust.refusal(f"the signature in {self._places[0]} fits no secret in {trust.setting}")

    def signed(self, request: Request, trust: Trust) -> bytes | None:
        """Return the message of this request."""
        _, elements, stamp = self._read(request, trust)
        return self.message.fill(request, timestamp=stamp, elements=elements)

    def _read(
        self, request: Request, trust: Trust
    ) -> tuple[list[bytes], Mapping[str, list[str]], str | None]:
        """Return the decoded signatures, all entries of their list by name, and the time as it came."""
        read = request.signatures.get(id(self))
        if read is None:
            signatures, elements = self._signatures(request, trust)
            read = (signatures, elements, self._stamp(request, elements, trust))
            request.signatures[id(self)] = read
        return read

    def _signatures(self, request: Request, trust: Trust) -> tuple[list[bytes], Mapping[str, list[str]]]:
        """Return the decoded signatures, and all entries of their list by name."""
        places = self._places
        given = next((v for v in (as_text(place.value(request)) for place in places) if v is not None), None)
        if given is None:
            raise ProofMissing(
                f"{places[0]} is missing: the provider signs every callback", setting=trust.shape
            )
        if not given.startswith(self.prefix):
            raise trust.refusal(f"{places[0]} does not begin with {self.prefix}", RejectionKind.MALFORMED)
        entries, elements = [given[len(self.prefix) :]], dict[str, list[str]]()
        if self.split is not None:
            entries = [entry.strip() for entry in entries[0].split(self.split)]
            for name, _, value in (entry.partition(self.assign) for entry in entries):
                elements.setdefault(name, []).append(value)
            if self.element is not None:
                entries = elements.get(self.element, [])
        found = [
            raw
            for entry in entries[:_SIGNATURES]
            for raw in decoded(entry, self.encoding, any_case=self.any_case)
        ]
        if not found:
            raise trust.refusal(
                f"{places[0]} holds no signature in {' or '.join(self.encoding)}", RejectionKind.MALFORMED
            )
        return found, elements

    def _stamp(self, request: Request, elements: Mapping[str, list[str]], trust: Trust) -> str | None:
        """Return the time as it came. Raises `CallbackRejected` when it is missing, no time, or too far away."""
        wanted = self.timestamp
        if wanted is None:
            return None
        text = as_text(wanted.from_.value(request, None, elements))
        if text is None:
            raise ProofMissing(
                f"{wanted.from_} is missing: the provider says when it signed", setting=trust.shape
            )
        moment = wanted.read(text)
        if moment is None:
            raise trust.refusal(f"{wanted.from_} is no time in {wanted.unit}", RejectionKind.MALFORMED)
        age = request.head.received_at / 1000 - moment
        if not -wanted.ahead <= age <= wanted.tolerance:
            side, allowed = ("old", wanted.tolerance) if age > 0 else ("ahead", wanted.ahead)
            raise CallbackRejected(
                f"{wanted.from_} is {abs(age):.0f} s {side}, {allowed:g} s are allowed: check this machine's clock, "
                "or the callback was replayed",
                setting=trust.shape,
                kind=RejectionKind.STALE,
            )
        return text

    @abstractmethod
    def _fits(self, signatures: Sequence[bytes], message: bytes, request: Request, trust: Trust) -> bool:
        """Tell whether one of the signatures is one of the message."""


class SecretEncoding(StrEnum):
    """How a secret spells the key."""

    TEXT = "utf8"
    HEX = "hex"
    BASE64 = "base64"


class HmacProof(SignedProof):
    """`hmac`: a signature by a secret that both sides know."""

    kind: Literal["hmac"]
    """The kind of the proof."""
    algorithm: Literal["sha256", "sha1", "sha512"] = "sha256"
    """The hash function."""
    secret_prefix: str = ""
    """What stands before the secret in the provider's console, like `whsec_`; it is no part of the key."""
    secret_encoding: SecretEncoding = SecretEncoding.TEXT
    """How a secret spells the key."""
    name = "hmac"

    @property
    def needs_secrets(self) -> bool:
        """True: they are the keys."""
        return True

    def wrong_with(self, secrets: Sequence[str]) -> str:
        """Return that a secret spells no key."""
        try:
            for secret in secrets:
                self.key(secret)
        except ValueError:
            return f"a secret is not {self.secret_encoding}"
        return ""

    def _fits(self, signatures: Sequence[bytes], message: bytes, request: Request, trust: Trust) -> bool:
        place = 0
        for number, secret in enumerate(trust.secrets, 1):
            expected = hmac.digest(self.key(secret), message, self.algorithm)
            place = number if matching_place(expected, signatures) else place
        request.secret = place
        return place > 0

    def key(self, secret: str) -> bytes:
        """Return the key that a secret spells. Raises `ValueError`."""
        text = secret.removeprefix(self.secret_prefix)
        if self.secret_encoding is SecretEncoding.TEXT:
            return text.encode()
        if self.secret_encoding is SecretEncoding.HEX:
            return bytes.fromhex(text)
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


class PublicKeyProof(SignedProof):
    """`public-key`: a signature by a key of which the provider publishes the public half."""

    kind: Literal["public-key"]
    """The kind of the proof."""
    algorithm: Literal["ed25519", "rsa-sha256", "ecdsa-p256"] = "ed25519"
    """The kind of key and signature."""
    keys: Words = ()
    """Public keys, in `key_encoding` (ed25519) or as PEM; without any and without `jwks`, the source's secrets."""
    key_encoding: Encoding = "base64"
    """How a raw key is spelled."""
    jwks: str | None = Field(None, pattern=r"^https://[^\s/]+/\S*$")
    """Where the provider publishes its keys as a JWKS."""
    name = "public-key"

    @property
    def key_url(self) -> str | None:
        """The JWKS."""
        return self.jwks

    @property
    def needs_secrets(self) -> bool:
        """True when the keys stand nowhere else."""
        return not self.keys and self.jwks is None

    def wrong_with(self, secrets: Sequence[str]) -> str:
        """Return that a key is none."""
        try:
            for key in self.keys or (secrets if self.needs_secrets else ()):
                self.public_key(key)
        except StopIteration:
            return f"a key is neither {self.key_encoding} nor PEM"
        return ""

    def _fits(self, signatures: Sequence[bytes], message: bytes, request: Request, trust: Trust) -> bool:
        from receiver.providers.public_keys.jwks import verify_signature  # loads a cryptography library

        if self.jwks is not None:
            keys = trust.keys[self.jwks].any(request.head.received_at)
        else:
            keys = [self.public_key(key) for key in self.keys or trust.secrets]
        return any(verify_signature(self.algorithm, key, s, message) for key in keys for s in signatures)

    def public_key(self, text: str) -> bytes:
        """Return a key as bytes: raw for ed25519, PEM for the others. Raises `ValueError`."""
        if text.lstrip().startswith("-----BEGIN"):
            return text.encode()
        return next(iter(decoded(text, (self.key_encoding,), any_case=True)))


def _spellings(url: str) -> list[str | None]:
    """Return a URL as it is, with its default port, and without it."""
    parts = urlsplit(url)
    own = ":443" if parts.scheme == "https" else ":80"
    bare = parts.netloc.removesuffix(own)
    with_port = bare if re.search(r":[0-9]+$", bare) else bare + own
    others = [urlunsplit(parts._replace(netloc=netloc)) for netloc in (bare, with_port)]
    return list(dict.fromkeys([url, *others]))
