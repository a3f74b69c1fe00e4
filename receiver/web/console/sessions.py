"""Who uses the console: login by a token of the API or by a one-time link, signed session cookies, form tokens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from itsdangerous import BadSignature, URLSafeSerializer
from msgspec import Struct

from receiver.settings.load import made_token_secrets
from receiver.settings.model import ApiScope

if TYPE_CHECKING:
    from receiver.settings.model import ApiToken, Settings

SESSION_SECONDS = 12 * 3600
IDLE_SECONDS = 3600
_RENEW_SECONDS = 300
"""A cookie is written anew when the session was last used so long ago."""
LINK_SECONDS = 600
LINK_NAME = "one-time link"
_SALT = "receiver.console-session"
_TRIES = 5
_WINDOW_SECONDS = 60.0
_PEERS = 1000
_NOBODY = ("", frozenset[ApiScope]())


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

    def may(self, scope: str) -> bool:
        """Tell whether the token has a scope."""
        return scope in self.scopes

    @property
    def stale(self) -> bool:
        """True when the cookie should be written anew, or the session would end while it is used."""
        return time.time() - self.used_at > _RENEW_SECONDS


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
        expired = time.monotonic() > self._link[1]
        self._link = None
        return None if expired else self._begun(self._link_proof)

    def by_token(self, given: str) -> Session | None:
        """Return a session for a token, None when it is none of ours or may not read."""
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        session = self._begun(self._proof(digest))
        return session if session and session.may(ApiScope.READ) else None

    def _begun(self, proof: str) -> Session | None:
        now = int(time.time())
        name, scopes = self._known.get(proof, _NOBODY)
        return Session(secrets.token_hex(12), name, scopes, now, now, proof) if name else None

    def _proof(self, digest: bytes) -> str:
        return hmac.digest(self._key, digest, "sha256").hex()[:32]

    # ------------------------------------------------------------ cookies

    def cookie(self, session: Session) -> str:
        """Return the value of the session's cookie, as of now."""
        fields = [session.id, session.name, session.proof, session.issued_at, int(time.time())]
        return str(self._signer.dumps(fields))

    def read(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None when it is forged, old, unused for long, or its token is gone."""
        try:
            session_id, name, proof, issued_at, used_at = self._signer.loads(cookie)
        except (BadSignature, ValueError, TypeError):
            return None
        now = time.time()
        if now > issued_at + SESSION_SECONDS or now > used_at + IDLE_SECONDS:
            return None
        known, scopes = self._known.get(proof, _NOBODY)
        return Session(session_id, name, scopes, issued_at, used_at, proof) if known == name else None

    def form_token(self, session: Session, action: str) -> str:
        """Return what a form of `action`, a path, carries: it proves that a page of this session made the form."""
        return hmac.digest(self._key, f"{session.id}\0{action}".encode(), "sha256").hex()[:40]

    def is_form_token(self, given: str, session: Session, action: str) -> bool:
        """Tell whether a form was made for this session and action."""
        return hmac.compare_digest(
            given.encode("utf-8", "replace"), self.form_token(session, action).encode()
        )


def sessions_of(settings: Settings) -> Sessions:
    """Return what logs people in, as the settings have it."""
    return Sessions(settings.api.tokens, made_token_secrets(settings), settings.tokens.signing)


class LoginLimit:
    """Bounds wrong tokens: five a minute from one address. Nobody can use up what another address has."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def refuses(self, peer: str) -> bool:
        """Tell whether an address has to wait."""
        times = self._failed.get(peer, deque[float]())
        return len(times) == _TRIES and times[0] > self._clock() - _WINDOW_SECONDS

    def failed(self, peer: str) -> None:
        """Count a wrong token."""
        self._failed.setdefault(peer, deque(maxlen=_TRIES)).append(self._clock())
        self._failed.move_to_end(peer)
        if len(self._failed) > _PEERS:
            self._failed.popitem(last=False)
