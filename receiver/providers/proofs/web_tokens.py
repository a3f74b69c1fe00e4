"""The proof `jwt`: a signed JSON web token in a header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from receiver.providers.proofs.base import Keyed, Trust, decoded
from receiver.providers.proofs.request import Reference, Request

Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"]


class JwtProof(Keyed):
    """`jwt`: a signed JSON web token in a header."""

    kind: Literal["jwt"]
    """The kind of the proof."""
    header: str = "authorization"
    """The header that holds the token."""
    prefix: str = ""
    """What stands before it, like `Bearer `."""
    algorithms: tuple[Algorithm, ...] = Field(min_length=1)
    """Those accepted: shared-secret ones (HS…) or public-key ones, never both."""
    audience: str | None = None
    """What the claim `aud` must hold."""
    claims: Mapping[str, Any] = Field(default_factory=dict)
    """Claims with the value they must have, or a list of values."""
    body_hash: str | None = None
    """The claim that holds the SHA-256 of the body, in hex or base64."""
    leeway: float = Field(60, ge=0, le=3600)
    """Seconds by which the token's times may be off."""
    keys_at = ("jwks",)

    @model_validator(mode="after")
    def _one_family(self) -> JwtProof:
        shared = {algorithm.startswith("HS") for algorithm in self.algorithms}
        if len(shared) > 1:
            raise ValueError("algorithms: HS… and public-key ones together would let a public key sign")
        if self.jwks is not None and True in shared:
            raise ValueError("algorithms: a JWKS holds public keys, HS… are for shared secrets")
        return self

    @property
    def covers_body(self) -> bool:
        """True when a claim holds a hash of the body."""
        return self.body_hash is not None

    @property
    def references(self) -> Sequence[Reference]:
        """The header."""
        return (Reference("header", self.header.lower()),)

    def check(self, request: Request, trust: Trust) -> None:
        """Check the token, its times and its claims, and the hash of the body."""
        claims = request.once(self, partial(self.claimed, request, trust))
        if self.body_hash is not None:
            said = claims.get(self.body_hash)
            digest = hashlib.sha256(request.signed).digest()
            if not isinstance(said, str) or digest != decoded(said):
                raise trust.refusal(f"the token's {self.body_hash} is not the hash of the body")

    def claimed(self, request: Request, trust: Trust) -> Mapping[str, Any]:
        """Return the claims of the token in the head. Raises `CallbackRejected`, `KeysNeeded`."""
        from receiver.providers.public_keys.jwks import token_claims  # loads a cryptography library

        token = trust.given(self.references, request, self.prefix, "a token is expected there")
        now = request.head.received_at
        keys = trust.keys[self.jwks] if self.jwks is not None else trust.secrets
        claims = token_claims(token, keys, self.algorithms, now=now, leeway=self.leeway)
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
