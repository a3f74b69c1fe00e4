"""The base of all proofs of a recipe: common settings, the source's secrets and keys, and the spellings of values.

Each proof is checked with the head alone, and again with the body if it needs the body. So a proof that the head shows to
be wrong, missing or stale is refused before a byte of the body is read.
"""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Literal

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


Encoding = Literal["hex", "hex-any-case", "base64", "base64url"]
_SPELLED: Mapping[Encoding, tuple[re.Pattern[str], Callable[[str], bytes]]] = {
    "hex": (re.compile(r"(?:[0-9a-f]{2})+"), bytes.fromhex),
    "hex-any-case": (re.compile(r"(?:[0-9a-fA-F]{2})+"), bytes.fromhex),
    "base64": (re.compile(r"[0-9a-zA-Z+/]+={0,2}"), lambda text: base64.b64decode(_padded(text))),
    "base64url": (re.compile(r"[0-9a-zA-Z_-]+={0,2}"), lambda text: base64.urlsafe_b64decode(_padded(text))),
}


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 4)


def decoded(text: str, encodings: Iterable[Encoding]) -> Iterator[bytes]:
    """Yield what a text spells in each of these encodings: nothing for one that it does not fit."""
    for encoding in encodings:
        shape, decode = _SPELLED[encoding]
        if shape.fullmatch(text):
            with suppress(ValueError):
                yield decode(text)


def key_in(text: str, encoding: Encoding, what: str) -> bytes:
    """Return the key that a text spells. Raises `ValueError`, which says `what` does not."""
    for raw in decoded(text, (encoding,)):
        return raw
    raise ValueError(f"{what} is not {encoding}")
