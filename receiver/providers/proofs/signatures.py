"""The proofs `hmac` and `public-key`: a signature over a message that a template spells."""

from __future__ import annotations

import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from receiver.core.errors import CallbackRejected, ProofMissing, RejectionKind
from receiver.core.proofs import matching_place
from receiver.providers.documents import epoch_ms
from receiver.providers.proofs.base import Keyed, Proof, Trust, decoded, from_base64, from_hex
from receiver.providers.proofs.request import (
    OF_BODY,
    At,
    BodyNeeded,
    Elements,
    Message,
    Reference,
    Request,
    Template,
    Words,
    as_text,
    by_name,
)
from receiver.settings.model import Section

_KEYS: Mapping[str, Callable[[str], bytes]] = {
    "utf8": str.encode,
    "hex": lambda text: from_hex(text.lower()),
    "base64": from_base64,
}
"""The key that a secret spells, by `secret_encoding`."""
_SIZES = {"sha1": 20, "sha256": 32, "sha512": 64}
"""Bytes of an HMAC, by its hash function."""
_SIGNATURES = 20
"""Signatures in one list that are tried, at most."""


class TimestampSettings(Section):
    """`timestamp`: when the request was signed."""

    from_: At = Field(alias="from")
    """Where the time is: seconds or milliseconds since 1970, ISO 8601, or a date as in HTTP headers."""
    tolerance: float = Field(300, ge=1, le=86400)
    """Seconds that it may lie in the past."""
    ahead: float = Field(300, ge=0, le=86400)
    """Seconds that it may lie in the future."""

    def check(self, request: Request, elements: Elements, trust: Trust) -> None:
        """Refuse a request that says no time of signing, or one too far from its arrival. Raises `CallbackRejected`."""
        text = as_text(self.from_.value(request, elements))
        if text is None:
            raise ProofMissing(
                f"{self.from_} is missing: the provider says when it signed", setting=trust.shape
            )
        moment = epoch_ms(text)
        if moment is None:
            raise trust.refusal(f"{self.from_} is no time: {text[:40]!r}", RejectionKind.MALFORMED)
        age = (request.head.received_at - moment) / 1000
        if not -self.ahead <= age <= self.tolerance:
            side, allowed = ("old", self.tolerance) if age > 0 else ("ahead", self.ahead)
            raise CallbackRejected(
                f"{self.from_} is {abs(age):.0f} s {side}, {allowed:g} s are allowed: check this machine's clock, "
                "or the callback was replayed",
                setting=trust.clock,
                kind=RejectionKind.STALE,
            )


def _time_at(value: Any) -> Any:
    return {"from": value} if isinstance(value, str) else value


def _standard(prefix: str) -> Mapping[str, Any]:
    return {
        "header": f"{prefix}-signature",
        "split": " ",
        "assign": ",",
        "element": "v1",
        "message": f"{{header:{prefix}-id}}.{{timestamp}}.{{body}}",
        "timestamp": {"from": f"header:{prefix}-timestamp"},
        "secret_prefix": "whsec_",
        "secret_encoding": "base64",
    }


_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "standard-webhooks": _standard("webhook"),
    "svix": _standard("svix"),
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
    """The header that holds the signature, in hex or base64."""
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
    message: Message = Field("{body}", validate_default=True)
    """What was signed; see Messages."""
    timestamp: Annotated[TimestampSettings | None, BeforeValidator(_time_at)] = None
    """Where the time of signing is, and how old it may be; its place alone where the rest is as usual."""
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
        if self.timestamp is None and not (
            self.no_clock and Reference("timestamp") not in self.message.places
        ):
            raise ValueError(
                "say where the time is: timestamp = {from = …}, or no_clock = true if none is sent"
            )
        return self

    @cached_property
    def template(self) -> Template:
        """The message, with the place of the time for `{timestamp}`."""
        return self.message if self.timestamp is None else self.message.timed(self.timestamp.from_)

    @cached_property
    def covers_body(self) -> bool:
        """True when the message holds the whole body, or all fields of a form."""
        return any(place.kind in OF_BODY for place in self.message.places)

    @cached_property
    def references(self) -> Sequence[Reference]:
        """Where the signature is."""
        names = (name.lower() for name in (self.header or "", *self.also))
        return (self.at,) if self.at is not None else tuple(Reference("header", name) for name in names)

    @property
    def wanted_headers(self) -> Iterator[tuple[str, ...]]:
        """Those of the signature, of its time, and of what else was signed."""
        yield from super().wanted_headers
        times = (self.timestamp.from_,) if self.timestamp else ()
        places = (*times, *self.template.places)
        yield from dict.fromkeys((place.name,) for place in places if place.kind == "header")

    def doubts(self, secrets: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        """Also yield that anybody could give the request a new time, and that a key spells none."""
        yield from super().doubts(secrets)
        if self.timestamp is not None and self.timestamp.from_ not in self.template.places:
            renewed = "message does not hold {timestamp}, so whoever has one callback can give it a new time"
            yield "W905", "", renewed
        try:
            self.keys_of(secrets)
        except ValueError as error:
            yield "E904", "secrets", str(error)

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the signature over the message."""
        signatures, elements = request.once(self, partial(self._read, request, trust))
        if self.covers_body and not request.has_body:
            raise BodyNeeded
        for url in _spellings(request.head.url) if self.url_ports == "any" else (request.head.url,):
            if self._fits(signatures, self.template.message(request, elements, url), request, trust):
                return
        raise trust.refusal(f"the signature in {self.references[0]} fits no secret in {trust.setting}")

    def signed(self, request: Request, trust: Trust) -> bytes | None:
        """Return the message of this request, whatever its signature and however old."""
        elements: Elements = {}
        with suppress(ProofMissing):
            _, elements = self._entries(request, trust)
        return self.template.message(request, elements, request.head.url)

    def _read(self, request: Request, trust: Trust) -> tuple[list[bytes], Elements]:
        """Return the decoded signatures, and all entries of their list by name, of a request that is not too old."""
        entries, elements = self._entries(request, trust)
        found = [raw for entry in entries[:_SIGNATURES] if self._is_signature(raw := decoded(entry))]
        if not found:
            raise trust.refusal(
                f"{self.references[0]} holds no signature in hex or base64", RejectionKind.MALFORMED
            )
        if self.timestamp is not None:
            self.timestamp.check(request, elements, trust)
        return found, elements

    def _entries(self, request: Request, trust: Trust) -> tuple[list[str], Elements]:
        """Return the signatures as they came, and all entries of their list by name."""
        text = trust.given(self.references, request, self.prefix, f"{self._form} is expected there")
        if self.split is None:
            return [text], {}
        entries = [entry.strip() for entry in text.split(self.split)]
        pairs = (entry.partition(self.assign) for entry in entries)
        elements = by_name((name, value) for name, _, value in pairs)
        return entries if self.element is None else elements.get(self.element, []), elements

    @cached_property
    def _form(self) -> str:
        """How a signature is written: `a signature like t=…,v1=…`."""
        names = [place.name for place in self.template.places if place.kind == "element"]
        names += [self.element] if self.element is not None else []
        written = self.prefix + (self.split or "").join(f"{name}{self.assign}…" for name in names)
        return f"a signature like {written if names else written + '…'}" if written else "a signature"

    def _is_signature(self, raw: bytes) -> bool:
        """Tell whether bytes have the size of a signature, as far as that is known."""
        return bool(raw)

    @abstractmethod
    def _fits(self, signatures: Sequence[bytes], message: bytes, request: Request, trust: Trust) -> bool:
        """Tell whether one of the signatures is one of the message."""

    @abstractmethod
    def keys_of(self, secrets: Sequence[str]) -> Sequence[bytes]:
        """Return the keys that the settings hold, for a source with these secrets. Raises `ValueError`."""


class HmacProof(SignedProof):
    """`hmac`: a signature by a secret that both sides know."""

    kind: Literal["hmac"]
    """The kind of the proof."""
    algorithm: Literal["sha256", "sha1", "sha512"] = "sha256"
    """The hash function."""
    secret_prefix: str = ""
    """What stands before the secret in the provider's console, like `whsec_`; it is no part of the key."""
    secret_encoding: Literal["utf8", "hex", "base64"] = "utf8"  # noqa: S105 - how a secret is spelled, not a secret
    """How a secret spells the key."""
    keys_at = ()

    def _is_signature(self, raw: bytes) -> bool:
        return len(raw) == _SIZES[self.algorithm]

    def _fits(self, signatures: Sequence[bytes], message: bytes, request: Request, trust: Trust) -> bool:
        expected = [hmac.digest(key, message, self.algorithm) for key in self.keys_of(trust.secrets)]
        request.secret = max(matching_place(signature, expected) for signature in signatures)
        return request.secret > 0

    def would_fit(self, request: Request, trust: Trust) -> str:
        """Return the `secret_encoding` by which a signature that fits no secret would fit one, "" when none does."""
        for spelling in _KEYS:
            other = self.model_copy(update={"secret_encoding": spelling})
            with suppress(CallbackRejected, ValueError):
                other.check(Request(request.head, request.body, request.kind), trust)
                return spelling
        return ""

    def keys_of(self, secrets: Sequence[str]) -> Sequence[bytes]:
        """Return the keys that the source's secrets spell. Raises `ValueError`."""
        spelled = _KEYS[self.secret_encoding]
        keys = [spelled(secret.removeprefix(self.secret_prefix)) for secret in secrets]
        if not all(keys):
            raise ValueError(f"a secret is not {self.secret_encoding}")
        return keys


class PublicKeyProof(SignedProof, Keyed):
    """`public-key`: a signature by a key of which the provider publishes the public half."""

    kind: Literal["public-key"]
    """The kind of the proof."""
    algorithm: Literal["ed25519", "rsa-sha256", "ecdsa-p256"] = "ed25519"
    """The kind of key and signature."""
    keys: Words = ()
    """Public keys, as PEM or, of ed25519, raw in hex or base64; without any and without `jwks`, the source's secrets."""
    keys_at = ("keys", "jwks")

    def _fits(self, signatures: Sequence[bytes], message: bytes, request: Request, trust: Trust) -> bool:
        from receiver.providers.public_keys.jwks import verify_signature  # loads a cryptography library

        if self.jwks is not None:
            keys: Sequence[bytes] = trust.keys[self.jwks].any(request.head.received_at)
        else:
            keys = self.keys_of(trust.secrets)
        return any(verify_signature(self.algorithm, key, s, message) for key in keys for s in signatures)

    def keys_of(self, secrets: Sequence[str]) -> Sequence[bytes]:
        """Return the keys that the settings hold: raw for ed25519, as PEM for others. Raises `ValueError`."""
        texts = self.keys or (secrets if self.needs_secrets else ())
        keys = [text.encode() if "-----BEGIN" in text else decoded(text) for text in texts]
        if not all(keys):
            raise ValueError("a key is neither PEM nor hex nor base64")
        return keys


def _spellings(url: str) -> list[str]:
    """Return a URL as it is, with its default port, and without it."""
    parts = urlsplit(url)
    own = ":443" if parts.scheme == "https" else ":80"
    bare = parts.netloc.removesuffix(own)
    with_port = bare if re.search(r":[0-9]+$", bare) else bare + own
    others = [urlunsplit(parts._replace(netloc=netloc)) for netloc in (bare, with_port)]
    return list(dict.fromkeys([url, *others]))
