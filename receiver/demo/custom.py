"""A provider without code, played offline: a request as its recipe takes it, of a new job, proved with the source's own secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec import Struct
from msgspec.structs import replace

from receiver.cli.recipes import RequestText
from receiver.core.callback import Head
from receiver.core.errors import CallbackRejected, MalformedCallback, UsageError
from receiver.providers.custom.language import CustomSettings
from receiver.providers.proofs.plain import AnyProof, BasicProof, DigestProof, SameProof
from receiver.providers.proofs.request import Reference, Request, replaced
from receiver.providers.proofs.signatures import HmacProof, TimestampSettings
from receiver.providers.proofs.web_tokens import JwtProof
from receiver.providers.toolkit import reveal

_JWT_SECONDS = 300
_OF_THE_CLIENT = ("host", "content-length", "transfer-encoding")
"""Headers that the client makes itself."""


class Sent(Struct, frozen=True):
    """A request on its way to a source."""

    method: str
    query: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @classmethod
    def of(cls, raw: bytes, source: str) -> Sent:
        """Return the request that a file spells; what makes its path is left out. Raises `UsageError`."""
        text = RequestText.of(raw, source)
        headers = {name: value for name, value in text.headers if name not in _OF_THE_CLIENT}
        return cls(text.method, text.target.partition("?")[2], headers, text.body)


class Player:
    """Plays the provider of one source."""

    def __init__(self, source: str, options: CustomSettings, url: str, now: int) -> None:
        """`url` is the callback URL as the provider knows it; `now` in epoch milliseconds."""
        self._source, self._options, self._url, self._now = source, options, url, now
        self._secret = (reveal(options.secrets) or ("",))[-1]

    def play(self, sent: Sent) -> Sent:
        """Return the request, of a new job, with the proofs that the source wants. Raises `UsageError` for one that cannot be made."""
        event = self._options.event
        for place in (*event.id[:1], *event.job[:1]) if event else ():
            sent = self._anew(sent, place)
        for proof in _one_of_each(self._options.proof):
            sent = self._proved(sent, proof)
        return sent

    def _request(self, sent: Sent) -> Request:
        url = f"{self._url}{'?' if sent.query else ''}{sent.query}"
        head = Head(
            source=self._source,
            method=sent.method,
            headers=tuple(sent.headers.items()),
            received_at=self._now,
            query=sent.query,
            url=url,
        )
        return Request(head, sent.body, self._options.body)

    def _anew(self, sent: Sent, place: Reference) -> Sent:
        """Return the request with another value where an id is; one that is not found, or no text, stays."""
        try:
            value = place.value(self._request(sent))
        except (CallbackRejected, MalformedCallback):
            return sent
        return self._with(sent, place, f"{value}-{secrets.token_hex(4)}") if isinstance(value, str) else sent

    def _with(self, sent: Sent, place: Reference, value: str) -> Sent:
        """Return the request with a value at a place; one of a body that is no document of fields stays as it is."""
        if place.kind == "header":
            return replace(sent, headers=sent.headers | {place.name: value})
        if place.kind == "query":
            return replace(sent, query=_with_field(sent.query, place.name, value))
        if self._options.body == "form":
            body = _with_field(sent.body.decode("latin-1"), place.name, value).encode()
            return replace(sent, body=body)
        if self._options.body == "json" and place.steps:
            document = replaced(self._request(sent).document, place.steps, value)
            return replace(sent, body=json.dumps(document, separators=(",", ":")).encode())
        return sent

    # ------------------------------------------------------------ proofs

    def _proved(self, sent: Sent, proof: AnyProof) -> Sent:
        if isinstance(proof, BasicProof):
            pair = (reveal(proof.users) or (self._secret,))[-1]
            basic = "Basic " + base64.b64encode(pair.encode()).decode()
            return self._with(sent, Reference("header", "authorization"), basic)
        if isinstance(proof, SameProof):
            return self._with(sent, proof.at, proof.prefix + self._secret)
        if isinstance(proof, DigestProof):
            digest = hashlib.sha256(sent.body).digest()
            return self._with(sent, proof.at, _spelled(digest, proof.encoding))
        if isinstance(proof, HmacProof):
            return self._signed(sent, proof)
        if isinstance(proof, JwtProof) and proof.jwks is None:
            return self._with_token(sent, proof)
        if proof.kind in ("token", "address"):
            return sent
        raise UsageError(
            f"the proof {proof.kind} is made with a key that only the provider has: have the provider call"
        )

    def _signed(self, sent: Sent, proof: HmacProof) -> Sent:
        place = proof.at or Reference("header", proof.header or "")
        elements: dict[str, list[str]] = {}
        stamp = None
        if proof.timestamp is not None:
            stamp, where = _time(proof.timestamp, self._now), proof.timestamp.from_
            if where.kind == "element":
                elements[where.name] = [stamp]
            else:
                sent = self._with(sent, where, stamp)
        try:
            request = self._request(sent)
            message = proof.template.message(request, elements, request.head.url)
        except CallbackRejected as error:
            raise UsageError(f"the signature cannot be made: {error.message}") from None
        digest = hmac.digest(proof.key(self._secret), message, proof.algorithm)
        entries = [f"{name}{proof.assign}{values[0]}" for name, values in elements.items()]
        named = f"{proof.element}{proof.assign}" if proof.element is not None else ""
        entries.append(named + _spelled(digest, proof.encoding[0]))
        return self._with(sent, place, proof.prefix + (proof.split or "").join(entries))

    def _with_token(self, sent: Sent, proof: JwtProof) -> Sent:
        from joserfc import jwt
        from joserfc.jwk import OctKey

        seconds = self._now // 1000
        claims: dict[str, Any] = {"iat": seconds, "exp": seconds + _JWT_SECONDS}
        for name, allowed in proof.claims.items():
            claims[name] = allowed[0] if isinstance(allowed, list | tuple) else allowed
        if proof.audience is not None:
            claims["aud"] = proof.audience
        if proof.body_hash is not None:
            digest = hashlib.sha256(sent.body).digest()
            claims[proof.body_hash.claim] = _spelled(digest, proof.body_hash.encoding)
        token = jwt.encode({"alg": proof.algorithms[0]}, claims, OctKey.import_key(self._secret))
        return self._with(sent, Reference("header", proof.header.lower()), proof.prefix + token)


def _one_of_each(proofs: Iterable[AnyProof]) -> list[AnyProof]:
    """Return the proofs that must hold; of those with the same `alternative` the first."""
    groups: dict[str, AnyProof] = {}
    for number, proof in enumerate(proofs):
        groups.setdefault(proof.alternative or f"\0{number}", proof)
    # A digest is signed, and a signature covers what other proofs put into the request.
    return sorted(groups.values(), key=lambda proof: proof.kind in ("hmac", "jwt"))


def _with_field(encoded: str, name: str, value: str) -> str:
    pairs = [pair for pair in parse_qsl(encoded, keep_blank_values=True) if pair[0] != name]
    return urlencode([*pairs, (name, value)])


def _spelled(digest: bytes, encoding: str) -> str:
    if encoding.startswith("hex"):
        return digest.hex()
    if encoding == "base64url":
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return base64.b64encode(digest).decode()


def _time(wanted: TimestampSettings, now: int) -> str:
    moment = datetime.fromtimestamp(now // 1000, UTC)
    return {
        "s": str(now // 1000),
        "ms": str(now),
        "iso": moment.isoformat(),
        "http": format_datetime(moment, usegmt=True),
    }[wanted.unit]
