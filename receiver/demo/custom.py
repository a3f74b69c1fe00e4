"""A provider without code, played offline: a request as its recipe takes it, of a new job, proved with the source's own secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec.structs import replace

from receiver.cli.sources import RequestText
from receiver.core.callback import Head
from receiver.core.errors import CallbackRejected, UsageError
from receiver.providers.custom.language import CustomSettings
from receiver.providers.proofs.plain import AnyProof, BasicProof, DigestProof, SameProof
from receiver.providers.proofs.request import BodyKind, Reference, Request, replaced
from receiver.providers.proofs.signatures import HmacProof
from receiver.providers.proofs.web_tokens import JwtProof
from receiver.providers.toolkit import reveal

_JWT_SECONDS = 300
_OF_THE_CLIENT = ("host", "content-length", "transfer-encoding")
"""Headers that the client makes itself."""


def request_of(raw: bytes, source: str, url: str, kind: BodyKind, now: int) -> Request:
    """Return the request that a file spells, as it goes to `url` at `now` (epoch milliseconds). Raises `UsageError`."""
    text = RequestText.of(raw, source)
    query = text.target.partition("?")[2]
    head = Head(
        source=source,
        method=text.method,
        headers=tuple(pair for pair in text.headers if pair[0] not in _OF_THE_CLIENT),
        received_at=now,
        query=query,
        url=f"{url}{'?' if query else ''}{query}",
    )
    return Request(head, text.body, kind)


class Player:
    """Plays the provider of one source."""

    def __init__(self, options: CustomSettings) -> None:
        self._options = options
        self._secret = (reveal(options.secrets) or ("",))[-1]

    def play(self, request: Request) -> Request:
        """Return the request, of a new job, with the proofs that the source wants. Raises `UsageError` for one that cannot be made."""
        event = self._options.event
        for place in (*event.id[:1], *event.job[:1]) if event else ():
            request = _anew(request, place)
        chosen = (group[0] for group in self._options.groups)
        # A digest is signed, and a signature covers what other proofs put into the request.
        for proof in sorted(chosen, key=lambda proof: proof.kind in ("hmac", "jwt")):
            request = self._proved(request, proof)
        return request

    def _proved(self, request: Request, proof: AnyProof) -> Request:
        if isinstance(proof, BasicProof):
            pair = (reveal(proof.users) or (self._secret,))[-1]
            basic = "Basic " + base64.b64encode(pair.encode()).decode()
            return _with(request, Reference("header", "authorization"), basic)
        if isinstance(proof, SameProof):
            return _with(request, proof.at, proof.prefix + self._secret)
        if isinstance(proof, DigestProof):
            return _with(request, proof.at, hashlib.sha256(request.body).hexdigest())
        if isinstance(proof, HmacProof):
            return self._signed(request, proof)
        if isinstance(proof, JwtProof) and proof.jwks is None:
            return self._with_token(request, proof)
        if proof.kind in ("token", "address"):
            return request
        raise UsageError(
            f"the proof {proof.kind} is made with a key that only the provider has: have the provider call"
        )

    def _signed(self, request: Request, proof: HmacProof) -> Request:
        elements: dict[str, list[str]] = {}
        if proof.timestamp is not None:
            stamp, where = str(request.head.received_at // 1000), proof.timestamp.from_
            if where.kind == "element":
                elements[where.name] = [stamp]
            else:
                request = _with(request, where, stamp)
        try:
            message = proof.template.message(request, elements, request.head.url)
        except CallbackRejected as error:
            raise UsageError(f"the signature cannot be made: {error.message}") from None
        digest = hmac.digest(proof.keys_of((self._secret,))[0], message, proof.algorithm)
        entries = [f"{name}{proof.assign}{values[0]}" for name, values in elements.items()]
        named = f"{proof.element}{proof.assign}" if proof.element is not None else ""
        entries.append(named + digest.hex())
        return _with(request, proof.references[0], proof.prefix + (proof.split or "").join(entries))

    def _with_token(self, request: Request, proof: JwtProof) -> Request:
        from joserfc import jwt
        from joserfc.jwk import OctKey

        seconds = request.head.received_at // 1000
        claims: dict[str, Any] = {"iat": seconds, "exp": seconds + _JWT_SECONDS}
        for name, allowed in proof.claims.items():
            claims[name] = allowed[0] if isinstance(allowed, list | tuple) else allowed
        if proof.audience is not None:
            claims["aud"] = proof.audience
        if proof.body_hash is not None:
            claims[proof.body_hash] = hashlib.sha256(request.body).hexdigest()
        token = jwt.encode({"alg": proof.algorithms[0]}, claims, OctKey.import_key(self._secret))
        return _with(request, proof.references[0], proof.prefix + token)


def _anew(request: Request, place: Reference) -> Request:
    """Return the request with another value where an id is; one that is not found, or no text, stays."""
    try:
        value = place.value(request)
    except CallbackRejected:
        return request
    return _with(request, place, f"{value}-{secrets.token_hex(4)}") if isinstance(value, str) else request


def _with(request: Request, place: Reference, value: str) -> Request:
    """Return the request with a value at a place; one of a body that is no document of fields stays as it is."""
    head, body = request.head, request.body
    if place.kind == "header":
        others = (pair for pair in head.headers if pair[0] != place.name)
        head = replace(head, headers=(*others, (place.name, value)))
    elif place.kind == "query":
        query = _with_field(head.query, place.name, value)
        head = replace(head, query=query, url=f"{head.url.partition('?')[0]}?{query}")
    elif request.kind == "form":
        body = _with_field(body.decode("latin-1"), place.name, value).encode()
    elif request.kind == "json" and place.steps:
        document = replaced(request.document, place.steps, value)
        body = json.dumps(document, separators=(",", ":")).encode()
    return Request(head, body, request.kind)


def _with_field(encoded: str, name: str, value: str) -> str:
    pairs = [pair for pair in parse_qsl(encoded, keep_blank_values=True) if pair[0] != name]
    return urlencode([*pairs, (name, value)])
