"""The proofs of a recipe, `[[proof]]`, by kind; those of a signature stand in signatures.py and web_tokens.py."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from receiver.core.errors import CallbackRejected, RejectionKind
from receiver.core.proofs import basic_credentials, matching_place
from receiver.providers.proofs.base import Proof, Trust, decoded
from receiver.providers.proofs.request import At, Reference, Request, as_text
from receiver.providers.proofs.signatures import HmacProof, PublicKeyProof
from receiver.providers.proofs.web_tokens import JwtProof
from receiver.providers.toolkit import SecretList, reveal
from receiver.settings.model import Networks


class TokenProof(Proof):
    """`token`: the callback token in receiver's own URL."""

    kind: Literal["token"]
    """The kind of the proof."""

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
    keys_at = ("users",)

    @property
    def references(self) -> Sequence[Reference]:
        """The header."""
        return (Reference("header", "authorization"),)

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the credentials."""
        given = basic_credentials(request.head.one("authorization") or "")
        request.secret = matching_place(given or "", reveal(self.users) or trust.secrets)
        if given is None or not request.secret:
            raise trust.refusal("the Basic credentials are missing or are none of the configured ones")


class SameProof(Proof):
    """`same`: a value that is one of the source's secrets."""

    kind: Literal["same"]
    """The kind of the proof."""
    at: At
    """Where the secret is."""
    prefix: str = ""
    """What stands before the secret, like `Bearer `."""
    keys_at = ()

    @property
    def references(self) -> Sequence[Reference]:
        """Where the secret is."""
        return (self.at,)

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the value with every secret."""
        value = trust.given(self.references, request, self.prefix, "the secret is expected there")
        request.secret = matching_place(value, trust.secrets)
        if not request.secret:
            raise trust.refusal(f"{self.at} is none of the configured secrets")


class AddressProof(Proof):
    """`address`: the caller's address; never alone."""

    kind: Literal["address"]
    """The kind of the proof."""
    networks: Networks = Field(min_length=1)
    """Networks in CIDR notation, like `44.238.19.20/32`."""

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
    """Where the SHA-256 of the body is, in hex or base64."""
    required: bool = True
    """False: a request without it is accepted."""

    @property
    def wanted_headers(self) -> Iterator[tuple[str, ...]]:
        """The header with the hash."""
        if self.required and self.at.kind == "header":
            yield (self.at.name,)

    @property
    def covers_body(self) -> bool:
        """True where the signature covers the hash."""
        return self.required

    def check(self, request: Request, trust: Trust) -> None:
        """Compare the hash."""
        value = as_text(self.at.value(request))
        if value is None and not self.required:
            return
        digest = hashlib.sha256(request.signed).digest()
        if value is None or digest != decoded(value):
            raise trust.refusal(f"{self.at} is not the SHA-256 of the body")


AnyProof = Annotated[
    TokenProof | BasicProof | SameProof | HmacProof | PublicKeyProof | JwtProof | DigestProof | AddressProof,
    Field(discriminator="kind"),
]
"""One `[[proof]]`."""
