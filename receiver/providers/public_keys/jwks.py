"""Public keys of providers: a JWKS that is fetched and kept, tokens that it proves, and plain signatures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from joserfc import jwt
from joserfc.errors import JoseError, MissingClaimError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jwk import KeySet as JoseKeys
from joserfc.jws import extract_compact

from receiver.core.errors import ReceiverError
from receiver.core.fetch import Fetch, KeysNeeded
from receiver.providers.documents import decode_object
from receiver.providers.public_keys import published

KEPT_SECONDS = 24 * 3600
"""How long fetched keys are used."""
PAUSE_SECONDS = 60
"""The shortest time between two fetches, whatever keys requests name."""
_MAX_KEYS = 50
_MAX_TOKEN = 16 * 1024


Key = RSAKey | ECKey | OKPKey


class KeySet:
    """The keys that a provider publishes at one URL. It fetches nothing by itself: it raises `KeysNeeded`."""

    def __init__(self, url: str, pinned: str = "") -> None:
        """With `pinned` (a JWKS document) these keys alone are used, and nothing is fetched. Raises `ValueError` when it has none."""
        self.url = url
        self._keys: list[Key] = _public(pinned.encode()) if pinned else []
        if pinned and not self._keys:
            raise ValueError("that is no JWKS with public keys")
        self._pinned = bool(pinned)
        self._fetched_at = self._tried_at = -(10**15)
        self._lock = asyncio.Lock()

    def any(self, now: int) -> list[bytes]:
        """Return all keys, raw for ed25519 and as PEM for others. Raises `KeysNeeded` when they have to be fetched."""
        return [_plain(key) for key in self._fitting(None, now)]

    def named(self, kid: str | None, now: int) -> JoseKeys:
        """Return the keys of a name (all when it is None). Raises `KeysNeeded` when they have to be fetched."""
        return JoseKeys([*self._fitting(kid, now)])

    def _fitting(self, kid: str | None, now: int) -> list[Key]:
        fits = [key for key in self._keys if kid is None or key.kid == kid]
        if self._pinned:
            return fits
        outdated = not fits or now - self._fetched_at > KEPT_SECONDS * 1000
        if not self._keys or (outdated and now - self._tried_at > PAUSE_SECONDS * 1000):
            raise KeysNeeded(self.fetch)
        return fits

    async def fetch(self, fetch: Fetch, now: int) -> bool:
        """Fetch the keys, unless that was just tried; return whether there are any. Old ones stay when it fails."""
        async with self._lock:
            if now - self._tried_at > PAUSE_SECONDS * 1000:
                answer = await published(self.url, fetch)
                self._tried_at = now
                keys = [] if answer is None else _public(answer)
                if keys:
                    self._keys, self._fetched_at = keys, now
        return bool(self._keys)


def _public(body: bytes) -> list[Key]:
    """Return the public keys in a JWKS document; those of a kind that is not known are left out."""
    kinds: Mapping[str, type[Key]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
    found: list[Key] = []
    try:
        listed = decode_object(body).get("keys")
    except ReceiverError:
        return []
    for entry in listed[:_MAX_KEYS] if isinstance(listed, list) else []:
        kind = kinds.get(entry.get("kty", "")) if isinstance(entry, dict) else None
        if kind is not None:
            try:
                found.append(kind.import_key(entry))
            except (JoseError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
                continue
    return found


def _plain(key: Key) -> bytes:
    public = key.public_key
    return (
        public.public_bytes_raw()
        if isinstance(public, Ed25519PublicKey)
        else bytes(key.as_pem(private=False))
    )


def token_claims(
    token: str, keys: KeySet | Sequence[str], algorithms: Sequence[str], *, now: int, leeway: float
) -> Mapping[str, Any] | str:
    """Return the claims of a token whose signature and times hold, else why they do not; one by a published key has to expire.

    `keys` is a provider's key set, or shared secrets of which each is tried. `now` in epoch milliseconds.
    """
    if len(token) > _MAX_TOKEN:
        return "it is too long"
    tried: list[Any] = (
        [keys.named(_kid(token), now)] if isinstance(keys, KeySet) else [*map(OctKey.import_key, keys)]
    )
    times = jwt.JWTClaimsRegistry(
        now=now // 1000, leeway=int(leeway), exp={"essential": isinstance(keys, KeySet)}
    )
    for key in tried:
        try:
            claims = jwt.decode(token, key, algorithms=list(algorithms)).claims
            times.validate(claims)
        except MissingClaimError:
            return "it says no time at which it expires"
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            if "expired" in str(error) or "nbf" in str(error):
                return "it has expired, or is not valid yet"
        else:
            return claims
    return "its signature fits no key, or its algorithm is not one of the accepted"


def _kid(token: str) -> str | None:
    try:
        kid = extract_compact(token.encode("ascii")).headers().get("kid")
    except (JoseError, ValueError, TypeError, UnicodeEncodeError):
        return None
    return kid if isinstance(kid, str) else None


def verify_signature(algorithm: str, key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether a signature is one of the message. `key` is raw for ed25519, else PEM. Any key that does not fit is False."""
    try:
        if algorithm == "ed25519" and len(key) == 32:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
            return True
        public = serialization.load_pem_public_key(key)
        if algorithm == "ed25519" and isinstance(public, Ed25519PublicKey):
            public.verify(signature, message)
        elif algorithm == "rsa-sha256" and isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        elif algorithm == "ecdsa-p256" and isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True
