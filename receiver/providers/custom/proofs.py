"""The proofs of a recipe, `[[proof]]`: each kind with its settings, and what it takes for the proof to hold.

A proof that the head alone decides is checked before a byte of the body is read. Of the others the head is looked at by then:
what is missing, malformed or stale is refused early.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from receiver.core.errors import CallbackRejected, ProofMissing, RejectionKind
from receiver.core.proofs import basic_credentials, same_as_any
from receiver.providers.custom.request import (
    At,
    MessageTemplate,
    Reference,
    Request,
    Words,
    as_text,
)
from receiver.providers.toolkit import SecretList, reveal
from receiver.settings.model import Networks, Section

Encoding = Literal["hex", "base64", "base64url"]
_SIGNATURES = 20
"""Signatures in one list that are tried, at most."""


if TYPE_CHECKING:
    from receiver.providers.custom.keys import KeySet


class Proof(Section, ABC):
    """`[[proof]]`: what every proof has."""

    alternative: str = ""
    """Of the proofs with the same name one must hold; those without a name must all hold."""

    name: ClassVar[str]
    """What the proof is called in logs and events."""

    @property
    def needs_body(self) -> bool:
        """True when the head alone cannot decide it."""
        return False

    @property
    def covers_body(self) -> bool:
        """True when a body that was changed on its way would be refused."""
        return False

    @property
    def references(self) -> Iterator[Reference]:
        """The places that hold what proves the caller: nothing may keep these values."""
        yield from ()

    @property
    def key_url(self) -> str | None:
        """Where the provider publishes its keys."""
        return None

    @property
    def needs_secrets(self) -> bool:
        """True when the proof is checked with the source's secrets."""
        return False

    @property
    def time_is_signed(self) -> bool:
        """False when the time could be changed by anybody."""
        return True

    def wrong_with(self, secrets: Sequence[str]) -> str:
        """Return what is wrong with the source's secrets, "" when nothing is."""
        return ""

    def look(self, request: Request, trust: Trust) -> None:
        """Refuse what the head alone shows to be wrong. Raises `CallbackRejected`."""
        if not self.needs_body:
            self.check(request, trust)

    @abstractmethod
    def check(self, request: Request, trust: Trust) -> None:
        """Raise `CallbackRejected` unless the proof holds."""

    def signed(self, request: Request, trust: Trust) -> bytes | None:
        """Return the message that was signed, None for a proof without one. Raises `CallbackRejected`."""
        return None


@dataclass(frozen=True, slots=True)
class Trust:
    """What the proofs of one source are checked against."""

    source: str
    secrets: tuple[str, ...]
    """The source's secrets, newest last."""
    keys: Mapping[str, KeySet]
    """The providers' published keys, by their URL."""

    @property
    def setting(self) -> str:
        """The setting that an operator looks at when a proof fails."""
        return f"sources.{self.source}.secrets"

    @property
    def shape(self) -> str:
        """The setting to look at when the request lacks what a proof needs."""
        return f"sources.{self.source}.proof"

    def refusal(self, message: str, kind: RejectionKind = RejectionKind.WRONG) -> CallbackRejected:
        """Return the error that refuses a callback."""
        return CallbackRejected(message, setting=self.setting, kind=kind)


class TokenProof(Proof):
    """`token`: the callback token in receiver's own URL."""

    kind: Literal["token"]
    """The kind of the proof."""
    name = "token"

    def check(self, request: Request, trust: Trust) -> None:
        """Refuse a URL without a token; what the token says is checked for every callback that has one."""
        if not request.head.token:
            raise trust.refusal(
                "the callback URL carries no token: make one with `receiver callback-url`",
                RejectionKind.MISSING,
            )


class BasicProof(Proof):
    """`basic`: user and password in `Authorization`."""

    kind: Literal["basic"]
    """The kind of the proof."""
    users: SecretList = ()
    """Each `user:password`; without any, the source's secrets are such pairs."""
    name = "basic"

    @property
    def needs_secrets(self) -> bool:
        """True without users of its own."""
        return not self.users

    @property
    def references(self) -> Iterator[Reference]:
        """The header."""
        yield Reference("header", "authorization")

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the credentials."""
        given = basic_credentials(request.head.one("authorization") or "")
        if given is None or not same_as_any(given, reveal(self.users) or trust.secrets):
            raise trust.refusal("the Basic credentials are missing or are none of the configured ones")


class SameProof(Proof):
    """`same`: a value that is one of the source's secrets."""

    kind: Literal["same"]
    """The kind of the proof."""
    at: At
    """Where the secret is."""
    prefix: str = ""
    """What stands before the secret, like `Bearer `."""
    name = "same"

    @property
    def needs_secrets(self) -> bool:
        """True: they are what the value is compared with."""
        return True

    @property
    def needs_body(self) -> bool:
        """True when the value is in the body."""
        return self.at.in_body

    @property
    def references(self) -> Iterator[Reference]:
        """Where the secret is."""
        yield self.at

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the value with every secret."""
        value = as_text(self.at.value(request))
        if value is None:
            raise ProofMissing(f"{self.at} is missing: the secret is expected there", setting=trust.shape)
        if not value.startswith(self.prefix) or not same_as_any(value[len(self.prefix) :], trust.secrets):
            raise trust.refusal(f"{self.at} is none of the configured secrets")


class AddressProof(Proof):
    """`address`: the caller's address; never alone."""

    kind: Literal["address"]
    """The kind of the proof."""
    networks: Networks = Field(min_length=1)
    """Networks in CIDR notation, like `44.238.19.20/32`."""
    name = "address"

    def check(self, request: Request, trust: Trust) -> None:
        """Look the address up in the networks."""
        try:
            peer = ipaddress.ip_address(request.head.peer or "")
        except ValueError:
            raise trust.refusal("the caller's address is not known") from None
        if not any(peer in ipaddress.ip_network(network) for network in self.networks):
            raise CallbackRejected(
                f"the caller's address is in none of the networks that the provider calls from: {peer}",
                setting="server.trusted_proxies",
            )


class DigestProof(Proof):
    """`digest`: a hash of the body, for a signature that covers the hash alone."""

    kind: Literal["digest"]
    """The kind of the proof."""
    at: At
    """Where the SHA-256 of the body is."""
    encoding: Encoding = "hex"
    """How it is spelled."""
    required: bool = True
    """False: a request without it is accepted."""
    name = "digest"

    @property
    def needs_body(self) -> bool:
        """True: it is the body's."""
        return True

    @property
    def covers_body(self) -> bool:
        """True where the signature covers the hash."""
        return self.required

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the hash."""
        value = as_text(self.at.value(request))
        if value is None and not self.required:
            return
        digest = hashlib.sha256(request.body or b"").digest()
        if value is None or digest not in decoded(value, (self.encoding,), any_case=True):
            raise trust.refusal(f"{self.at} is not the SHA-256 of the body")


# ---------------------------------------------------------------- signatures


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
        except ValueError:
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
            _, elements = self._signatures(request, trust)
            if self.timestamp is None or not self.timestamp.from_.in_body:
                self._stamp(request, elements, trust)

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the signature over the message."""
        signatures, elements = self._signatures(request, trust)
        stamp = self._stamp(request, elements, trust)
        for url in _spellings(request.head.url) if self.url_ports == "any" else (None,):
            message = self.message.fill(request, timestamp=stamp, elements=elements, url=url)
            if self._fits(signatures, message, request, trust):
                return
        raise trust.refusal(f"the signature in {self._places[0]} fits no secret in {trust.setting}")

    def signed(self, request: Request, trust: Trust) -> bytes | None:
        """Return the message of this request."""
        _, elements = self._signatures(request, trust)
        stamp = self._stamp(request, elements, trust)
        return self.message.fill(request, timestamp=stamp, elements=elements)

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
        fits = False
        for secret in trust.secrets:
            expected = hmac.digest(self.key(secret), message, self.algorithm)
            fits |= same_as_any(expected, signatures)
        return fits

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
        from receiver.providers.custom.keys import verify_signature  # loads a cryptography library

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


# ---------------------------------------------------------------- JSON web tokens

Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"]


class BodyHash(Section):
    """`body_hash`: the claim that holds the SHA-256 of the body."""

    claim: str
    """The claim's name."""
    encoding: Encoding = "hex"
    """How the hash is spelled."""


class JwtProof(Proof):
    """`jwt`: a signed JSON web token in a header."""

    kind: Literal["jwt"]
    """The kind of the proof."""
    header: str = "authorization"
    """The header that holds the token."""
    prefix: str = ""
    """What stands before it, like `Bearer `."""
    algorithms: tuple[Algorithm, ...] = Field(min_length=1)
    """Those accepted: shared-secret ones (HS…) or public-key ones, never both."""
    jwks: str | None = Field(None, pattern=r"^https://[^\s/]+/\S*$")
    """Where the provider publishes its keys; without it, the source's secrets are the keys."""
    audience: str | None = None
    """What the claim `aud` must hold."""
    claims: Mapping[str, Any] = Field(default_factory=dict)
    """Claims with the value they must have, or a list of values."""
    body_hash: BodyHash | None = None
    """The claim that covers the body."""
    leeway: float = Field(60, ge=0, le=3600)
    """Seconds by which the token's times may be off."""
    name = "jwt"

    @model_validator(mode="after")
    def _one_family(self) -> JwtProof:
        shared = {algorithm.startswith("HS") for algorithm in self.algorithms}
        if len(shared) > 1:
            raise ValueError("algorithms: HS… and public-key ones together would let a public key sign")
        if self.jwks is not None and True in shared:
            raise ValueError("algorithms: a JWKS holds public keys, HS… are for shared secrets")
        return self

    @property
    def needs_body(self) -> bool:
        """True when a claim holds a hash of the body."""
        return self.body_hash is not None

    @property
    def covers_body(self) -> bool:
        """True when a claim holds a hash of the body."""
        return self.body_hash is not None

    @property
    def references(self) -> Iterator[Reference]:
        """The header."""
        yield Reference("header", self.header.lower())

    @property
    def key_url(self) -> str | None:
        """The JWKS."""
        return self.jwks

    @property
    def needs_secrets(self) -> bool:
        """True without a JWKS."""
        return self.jwks is None

    def look(self, request: Request, trust: Trust) -> None:
        """Refuse a token that does not hold by itself, before its body is read."""
        self._claims(request, trust)

    def check(self, request: Request, trust: Trust) -> None:
        """Check the token, its times and its claims, and the hash of the body."""
        claims = self._claims(request, trust)
        if self.body_hash is not None:
            said = claims.get(self.body_hash.claim)
            digest = hashlib.sha256(request.body or b"").digest()
            if not isinstance(said, str) or digest not in decoded(
                said, (self.body_hash.encoding,), any_case=True
            ):
                raise trust.refusal(f"the token's {self.body_hash.claim} is not the hash of the body")

    def _claims(self, request: Request, trust: Trust) -> Mapping[str, Any]:
        from receiver.providers.custom.keys import token_claims  # loads a cryptography library

        value = request.head.one(self.header.lower())
        if value is None:
            raise ProofMissing(
                f"header:{self.header} is missing: a token is expected there", setting=trust.shape
            )
        if not value.startswith(self.prefix):
            raise trust.refusal(
                f"header:{self.header} does not begin with {self.prefix}", RejectionKind.MALFORMED
            )
        now = request.head.received_at
        keys = trust.keys[self.jwks] if self.jwks is not None else trust.secrets
        claims = token_claims(value[len(self.prefix) :], keys, self.algorithms, now=now, leeway=self.leeway)
        if isinstance(claims, str):
            raise trust.refusal(f"the token in header:{self.header} is refused: {claims}")
        wanted = {**self.claims, **({"aud": self.audience} if self.audience is not None else {})}
        for name, allowed in wanted.items():
            said = claims.get(name)
            values = said if isinstance(said, list) else [said]
            accepted = allowed if isinstance(allowed, list | tuple) else [allowed]
            if not any(type(v) is type(a) and v == a for v in values for a in accepted):
                raise trust.refusal(f"the token's claim {name} has another value than the one expected")
        return claims


AnyProof = Annotated[
    TokenProof | BasicProof | SameProof | HmacProof | PublicKeyProof | JwtProof | DigestProof | AddressProof,
    Field(discriminator="kind"),
]
"""One `[[proof]]`."""


# ---------------------------------------------------------------- encodings


def decoded(text: str, encodings: Sequence[Encoding], *, any_case: bool) -> Iterator[bytes]:
    """Yield what a text spells in each of these encodings, strictly: nothing for one that it does not fit."""
    for encoding in encodings:
        if encoding == "hex":
            digits = r"(?:[0-9a-fA-F]{2})+" if any_case else r"(?:[0-9a-f]{2})+"
            if re.fullmatch(digits, text):
                yield bytes.fromhex(text)
            continue
        plain = text.replace("-", "+").replace("_", "/") if encoding == "base64url" else text
        padded = plain + "=" * (-len(plain) % 4) if encoding == "base64url" else plain
        if text and not (encoding == "base64url" and re.search(r"[+/]", text)):
            try:
                yield base64.b64decode(padded, validate=True)
            except (binascii.Error, ValueError):
                continue


def _spellings(url: str) -> list[str | None]:
    """Return a URL as it is, with its default port, and without it."""
    parts = urlsplit(url)
    own = ":443" if parts.scheme == "https" else ":80"
    bare = parts.netloc.removesuffix(own)
    with_port = bare if re.search(r":[0-9]+$", bare) else bare + own
    others = [urlunsplit(parts._replace(netloc=netloc)) for netloc in (bare, with_port)]
    return list(dict.fromkeys([url, *others]))
