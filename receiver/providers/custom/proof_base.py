"""The base of all proofs of a recipe: common settings, the source's secrets and keys, and the spellings of values.

Each proof is checked with the head alone, and again with the body if it needs the body. So a proof that the head shows to
be wrong, missing or stale is refused before a byte of the body is read.
"""

from __future__ import annotations

import base64
import binascii
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from receiver.core.errors import CallbackRejected, ProofMissing, RejectionKind
from receiver.providers.custom.request import Reference, Request, as_text
from receiver.settings.model import Section

Encoding = Literal["hex", "base64", "base64url"]


if TYPE_CHECKING:
    from receiver.providers.public_keys.jwks import KeySet


class Proof(Section, ABC):
    """`[[proof]]`: what every proof has."""

    alternative: str = ""
    """Of the proofs with the same name one must hold; those without a name must all hold."""

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
    def key_url(self) -> str | None:
        """Where the provider publishes its keys."""
        return None

    @property
    def needs_secrets(self) -> bool:
        """True when the proof is checked with the source's secrets."""
        return False

    @property
    def time_is_signed(self) -> bool:
        """False when the time could be changed by anybody."""
        return True

    def wrong_with(self, secrets: Sequence[str]) -> str:
        """Return what is wrong with the source's secrets, "" when nothing is."""
        return ""

    @abstractmethod
    def check(self, request: Request, trust: Trust) -> None:
        """Raise `CallbackRejected` unless the proof holds, `BodyNeeded` when the head alone cannot decide it."""

    def signed(self, request: Request, trust: Trust) -> bytes | None:
        """Return the message that was signed, None for a proof without one. Raises `CallbackRejected`."""
        return None


class Trust(Struct, frozen=True):
    """What the proofs of one source are checked against."""

    source: str
    secrets: tuple[str, ...]
    """The source's secrets, newest last."""
    keys: Mapping[str, KeySet]
    """The providers' published keys, by their URL."""

    @property
    def setting(self) -> str:
        """The setting that an operator looks at when a proof fails."""
        return f"sources.{self.source}.secrets"

    @property
    def shape(self) -> str:
        """The setting to look at when the request lacks what a proof needs."""
        return f"sources.{self.source}.proof"

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


def decoded(text: str, encodings: Sequence[Encoding], *, any_case: bool) -> Iterator[bytes]:
    """Yield what a text spells in each of these encodings, strictly: nothing for one that it does not fit."""
    for encoding in encodings:
        if encoding == "hex":
            digits = r"(?:[0-9a-fA-F]{2})+" if any_case else r"(?:[0-9a-f]{2})+"
            if re.fullmatch(digits, text):
                yield bytes.fromhex(text)
            continue
        url = encoding == "base64url"
        if not text or (url and re.search(r"[+/]", text)):
            continue
        try:
            padded = text + "=" * (-len(text) % 4) if url else text
            yield base64.b64decode(padded, b"-_" if url else None, validate=True)
        except (binascii.Error, ValueError):
            continue
