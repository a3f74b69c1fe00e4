"""Certificates that a message names by their URL: fetched from one host alone, kept, and what they sign."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from receiver.core.fetch import Fetch, KeysNeeded
from receiver.providers.public_keys import published

KEPT_SECONDS = 24 * 3600
"""How long a fetched certificate is used."""
_KEPT = 8
_OF_A_PEER, _IN_ALL = 5, 60
"""Fetches in a minute, whatever URLs messages name. Who makes up URLs uses up his own; a known certificate has its own as well."""
_HASHES = {"sha1": hashes.SHA1, "sha256": hashes.SHA256}


class Certificate:
    """One certificate with an RSA key."""

    def __init__(self, pem: bytes) -> None:
        """Raises `ValueError` when `pem` is no certificate with an RSA key."""
        self._certificate = x509.load_pem_x509_certificate(pem)
        key = self._certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise ValueError("the certificate's key is not RSA")  # noqa: TRY004  # a wrong value, as the other errors
        self._key = key

    def is_valid(self, now: int) -> bool:
        """Tell whether the certificate is valid at `now` (epoch milliseconds)."""
        first, last = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        return first.timestamp() <= now / 1000 <= last.timestamp()

    def verifies(self, signature: bytes, message: bytes, algorithm: str) -> bool:
        """Tell whether a PKCS #1 v1.5 signature is one of the message; `algorithm` is `sha1` or `sha256`."""
        try:
            self._key.verify(signature, message, padding.PKCS1v15(), _HASHES[algorithm]())
        except InvalidSignature:
            return False
        return True


class Certificates:
    """The certificates of one source. It fetches nothing by itself: it raises `KeysNeeded`."""

    def __init__(self, pinned: str = "") -> None:
        """With `pinned` (PEM) no other is used, and nothing is fetched. Raises `ValueError` when it is none."""
        self._pinned = Certificate(pinned.encode()) if pinned else None
        self._kept: dict[str, tuple[Certificate, int]] = {}
        """By URL, with the time of the fetch."""
        self._minute = 0
        self._fetches = Counter[str]()
        """Of this minute: by the URLs of known certificates, and by the peers that named others."""

    def at(self, url: str, host: str, now: int, peer: str | None) -> Certificate | None:
        """Return the certificate at a URL, None for a URL that is not https at `host` or whose certificate is not valid.

        Raises `KeysNeeded` when it has to be fetched; `peer`, who named it, may cause few fetches.
        """
        if not _is_at(url, host):
            return None
        if self._pinned is None and not self._has(url, now):
            raise KeysNeeded(partial(self._fetch, url, peer or ""))
        found = self._pinned or self._kept[url][0]
        return found if found.is_valid(now) else None

    async def _fetch(self, url: str, peer: str, fetch: Fetch, now: int) -> bool:
        """Fetch a certificate; return whether it is there now."""
        if not self._has(url, now) and self._may_fetch(url if url in self._kept else peer, now):
            answer = await published(url, fetch)
            with suppress(ValueError, UnsupportedAlgorithm):
                certificate = Certificate(answer or b"")
                self._kept.pop(url, None)
                while len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[url] = (certificate, now)
        return self._has(url, now)

    def _may_fetch(self, who: str, now: int) -> bool:
        """Tell whether one more fetch may be made, and count it."""
        if now // 60_000 != self._minute:
            self._minute, self._fetches = now // 60_000, Counter()
        if self._fetches[who] >= _OF_A_PEER or self._fetches.total() >= _IN_ALL:
            return False
        self._fetches[who] += 1
        return True

    def _has(self, url: str, now: int) -> bool:
        return url in self._kept and now - self._kept[url][1] <= KEPT_SECONDS * 1000


def _is_at(url: str, host: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return (parts.scheme, parts.netloc) == ("https", host) and parts.path.endswith(".pem") and not parts.query
