"""Who uses the console: login by a token of the API or by a one-time link, signed session cookies, form tokens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from itsdangerous import BadSignature, URLSafeSerializer
from msgspec import Struct

from receiver.settings.load import made_token_secrets
from receiver.settings.model import ApiScope

if TYPE_CHECKING:
    from receiver.settings.model import ApiToken, Settings

SESSION_SECONDS = 12 * 3600
IDLE_SECONDS = 3600
RENEW_SECONDS = 300
"""A cookie is written anew when the session was last used so long ago."""
LINK_SECONDS = 600
LINK_NAME = "one-time link"
_SALT = "receiver.console-session"
_TRIES = 5
_WINDOW_SECONDS = 60.0
_PEERS = 1000


class Session(Struct, frozen=True):
    """One login."""

    id: str
    name: str
    """The token's name, as the audit has it."""
    scopes: frozenset[ApiScope]
    issued_at: int
    """Epoch seconds."""
    used_at: int
    proof: str
    """A keyed digest of the token: the session ends when its token leaves the settings."""


class Sessions:
    """Makes and reads sessions. A session lives in its cookie; the store holds only those that were ended."""

    def __init__(self, tokens: Sequence[ApiToken], secret_keys: Sequence[str], signing: int | None) -> None:
        """`secret_keys` sign cookies; `signing` is the place of the one that does, counted from 1, None is the last."""
        first = secret_keys[(signing or len(secret_keys)) - 1]
        self._key = hashlib.sha256(f"{_SALT}\0{first}".encode()).digest()
        others = [key for key in secret_keys if key != first]
        signer = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}
        self._signer = URLSafeSerializer([*others, first], salt=_SALT, signer_kwargs=signer)
        self._known = {self._proof(token.digest): (token.name, frozenset(token.scopes)) for token in tokens}
        """The name and the scopes of each token, by its proof, which nobody can guess without the key."""
        self._link: tuple[str, float] | None = None
        self._link_proof = secrets.token_hex(16)

    @property
    def on(self) -> bool:
        """True when somebody could log in: a token has the scope `admin`, or a link was offered."""
        return any(ApiScope.ADMIN in scopes for _, scopes in self._known.values())

    def offer_link(self) -> str:
        """Return a secret that logs in once, within `LINK_SECONDS`, with every scope; the one before it ends."""
        link = secrets.token_urlsafe(24)
        self._link = (link, time.monotonic() + LINK_SECONDS)
        self._known[self._link_proof] = (LINK_NAME, frozenset(ApiScope))
        return link

    def by_link(self, given: str) -> Session | None:
        """Return a session for the link's secret, which is used up by that; None when it is wrong, used or old."""
        if self._link is None or not hmac.compare_digest(given.encode(), self._link[0].encode()):
            return None
        in_time, self._link = time.monotonic() <= self._link[1], None
        return self._session(self._link_proof) if in_time else None

    def by_token(self, given: str) -> Session | None:
        """Return a session for a token, None when it is none of ours or may not read."""
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        session = self._session(self._proof(digest))
        return session if session and ApiScope.READ in session.scopes else None

    def cookie(self, session: Session) -> str:
        """Return the value of the session's cookie, as of now."""
        return str(self._signer.dumps([session.proof, session.id, session.issued_at, int(time.time())]))

    def read(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None when it is forged, old, unused for long, or its token is gone."""
        try:
            proof, session_id, issued_at, used_at = self._signer.loads(cookie)
        except (BadSignature, ValueError, TypeError):
            return None
        now = time.time()
        in_time = now <= issued_at + SESSION_SECONDS and now <= used_at + IDLE_SECONDS
        return self._session(proof, session_id, issued_at, used_at) if in_time else None

    def _session(self, proof: str, given: str = "", issued_at: int = 0, used_at: int = 0) -> Session | None:
        """Return the session of whoever has this proof, one that begins now where no id is `given`."""
        name, scopes = self._known.get(proof, ("", frozenset[ApiScope]()))
        now, id_ = int(time.time()), given or secrets.token_hex(12)
        return Session(id_, name, scopes, issued_at or now, used_at or now, proof) if name else None

    def _proof(self, digest: bytes) -> str:
        return hmac.digest(self._key, digest, "sha256").hex()[:32]

    def form_token(self, session: Session, action: str) -> str:
        """Return what a form of `action`, a path, carries: it proves that a page of this session made the form."""
        return hmac.digest(self._key, f"{session.id}\0{action}".encode(), "sha256").hex()[:40]

    def is_form_token(self, given: str, session: Session, action: str) -> bool:
        """Tell whether a form was made for this session and action."""
        ours = self.form_token(session, action)
        return hmac.compare_digest(given.encode("utf-8", "replace"), ours.encode())


def sessions_of(settings: Settings) -> Sessions:
    """Return what logs people in, as the settings have it."""
    return Sessions(settings.api.tokens, made_token_secrets(settings), settings.tokens.signing)


class LoginLimit:
    """Bounds wrong tokens: five a minute from one address. Nobody can use up what another address has."""

    def __init__(self) -> None:
        self._failed: dict[str, list[float]] = {}
        """When the last wrong tokens of each address came; the address that failed last is the last."""

    def refuses(self, peer: str) -> bool:
        """Tell whether an address has to wait."""
        times = self._failed.get(peer, [])
        return len(times) == _TRIES and times[0] > time.monotonic() - _WINDOW_SECONDS

    def failed(self, peer: str) -> None:
        """Count a wrong token."""
        self._failed[peer] = [*self._failed.pop(peer, []), time.monotonic()][-_TRIES:]
        if len(self._failed) > _PEERS:
            del self._failed[next(iter(self._failed))]
