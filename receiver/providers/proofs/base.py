"""The base of all proofs of a recipe: common settings, the source's secrets and keys, and the spellings of values.

Each proof is checked with the head alone, and again with the body if it needs the body. So a proof that the head shows to
be wrong, missing or stale is refused before a byte of the body is read.
"""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct
from pydantic import Field

from receiver.core.errors import CallbackRejected, ProofMissing, RejectionKind
from receiver.providers.proofs.request import Reference, Request, as_text
from receiver.settings.model import Section

if TYPE_CHECKING:
    from receiver.providers.public_keys.jwks import KeySet


class Proof(Section, ABC):
    """`[[proof]]`: what every proof has."""

    alternative: str = ""
    """Of the proofs with the same name one must hold; those without a name must all hold."""
    kind: str
    """What is proved, and how; each kind has more settings."""
    keys_at: ClassVar[tuple[str, ...] | None] = None
    """Settings that may hold the keys, in place of the source's secrets; None for a proof without a key."""

    @property
    def covers_body(self) -> bool:
        """True when a body that was changed on its way would be refused."""
        return False

    @property
    def references(self) -> Sequence[Reference]:
        """The places that hold what proves the caller: nothing may keep these values."""
        return ()

    @property
    def wanted_headers(self) -> Iterator[tuple[str, ...]]:
        """Names of the headers that the proof needs; of several in one tuple, one is enough."""
        places = tuple(place.name for place in self.references if place.kind == "header")
        if places:
            yield places

    @property
    def needs_secrets(self) -> bool:
        """True when the source's secrets are its keys."""
        return self.keys_at is not None and not any(getattr(self, name) for name in self.keys_at)

    def doubts(self, secrets: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        """Yield what is wrong or doubtful about the proof of a source with these secrets: a code, the setting, a sentence."""
        for place in self.references:
            if place.kind == "header" and "_" in place.name:
                yield "W902", "", f"nginx drops the header {place.name} unless underscores_in_headers is on"
        if self.needs_secrets and not secrets:
            yield "E902", "secrets", f"the proof {self.kind} has no secret to compare with"

    @abstractmethod
    def check(self, request: Request, trust: Trust) -> None:
        """Raise `CallbackRejected` unless the proof holds, `BodyNeeded` when the head alone cannot decide it."""

    def signed(self, request: Request, trust: Trust) -> bytes | None:
        """Return the message that was signed, None for a proof without one. Raises `CallbackRejected`."""
        return None


class Keyed(Proof, ABC):
    """`jwt` and `public-key`: keys that the provider may publish."""

    jwks: str | None = Field(None, pattern=r"^https://[^\s/]+/\S*$")
    """Where the provider publishes its keys as a JWKS; without it, the source's secrets are the keys."""


class Trust(Struct, frozen=True):
    """What the proofs of one source are checked against."""

    setting: str
    """The setting that an operator looks at when a proof fails."""
    shape: str
    """The setting to look at when the request lacks what a proof needs."""
    clock: str
    """The setting to look at when the request is too old."""
    secrets: tuple[str, ...] = ()
    """The source's secrets, newest last."""
    keys: Mapping[str, KeySet] = {}
    """The providers' published keys, by their URL."""

    def refusal(self, message: str, kind: RejectionKind = RejectionKind.WRONG) -> CallbackRejected:
        """Return the error that refuses a callback."""
        return CallbackRejected(message, setting=self.setting, kind=kind)

    def given(self, places: Sequence[Reference], request: Request, prefix: str, expected: str) -> str:
        """Return the text at the first place that has one, without its prefix. Raises `CallbackRejected`."""
        for place in places:
            text = as_text(place.value(request))
            if text is not None:
                break
        else:
            raise ProofMissing(f"{places[0]} is missing: {expected}", setting=self.shape)
        if not text.startswith(prefix):
            raise self.refusal(f"{places[0]} does not begin with {prefix}", RejectionKind.MALFORMED)
        return text[len(prefix) :]


_URL_SAFE = str.maketrans("+/", "-_")
_HEX = re.compile(r"(?:[0-9a-f]{2})+|(?:[0-9A-F]{2})+")
_BASE64 = re.compile(r"[0-9a-zA-Z+/_-]+={0,2}")


def decoded(text: str) -> bytes:
    """Return what a text spells: hex, or else base64 of either alphabet, padded or not; nothing for any other text.

    No signature or hash in base64 is taken for hex: its padding or its odd length is not hex, or else 86 characters would
    all have to be hex digits by chance.
    """
    return from_hex(text) or from_base64(text)


def from_hex(text: str) -> bytes:
    """Return what hex in one case spells; nothing for any other text."""
    return bytes.fromhex(text) if _HEX.fullmatch(text) else b""


def from_base64(text: str) -> bytes:
    """Return what base64 of either alphabet spells, padded or not; nothing for any other text."""
    if not _BASE64.fullmatch(text):
        return b""
    with suppress(ValueError):
        return base64.urlsafe_b64decode(text.translate(_URL_SAFE) + "=" * (-len(text) % 4))
    return b""
