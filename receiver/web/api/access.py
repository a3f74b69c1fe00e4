"""Who may use the API: bearer tokens, each with a name and scopes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from msgspec import Struct

from receiver.settings.model import ApiScope, ApiToken
from receiver.web.api.problems import Refused

_CHALLENGE = {"www-authenticate": 'Bearer realm="receiver"'}


class Holder(Struct, frozen=True):
    """Who holds the token of a request."""

    name: str
    scopes: frozenset[ApiScope]


class Access:
    """Finds the holder of a token."""

    def __init__(self, tokens: Sequence[ApiToken]) -> None:
        self._holders = [(token.digest, Holder(token.name, frozenset(token.scopes))) for token in tokens]

    def holder(self, secret: str) -> Holder | None:
        """Return who holds a token, None when nobody does.

        Every digest is compared, whole and in constant time.
        """
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, holder in self._holders:
            if hmac.compare_digest(known, digest):
                found = holder
        return found

    def admit(self, authorization: Sequence[str], scope: ApiScope) -> Holder:
        """Return who sent these `Authorization` headers. Raises `Refused` unless its token has the scope."""
        if not self._holders:
            raise Refused(403, "no token is configured: add one to the settings as [[api.tokens]]")
        scheme, _, secret = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
        found = self.holder(secret.strip()) if scheme.lower() == "bearer" and secret.strip() else None
        if found is None:
            wrong = "the token is none of api.tokens: " if scheme.lower() == "bearer" else ""
            raise Refused(401, f"{wrong}send one of api.tokens as `Authorization: Bearer …`", _CHALLENGE)
        if scope not in found.scopes:
            raise Refused(403, f'the token {found.name} lacks the scope: add "{scope}" to its scopes')
        return found
