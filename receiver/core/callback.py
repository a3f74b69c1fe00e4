"""A callback on its way in: its head, its body, its proofs. Pure data, no I/O.

A refusal is an error of core/errors.py, whose class has the HTTP status. system/body_buffer.py reads bodies;
engine/intake.py takes a callback from its head to its answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote_plus

from msgspec import Struct, field
from msgspec.structs import replace

from receiver.core.errors import CallbackRejected, RejectionKind

PREFIX_BYTES = 4096
"""Bytes of a body's beginning that are at hand without loading it."""


class Body(Protocol):
    """A received body, whole, counted and hashed; small ones in memory, others in a temporary file."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def sha256(self) -> str:
        """Lower-case hex digest of the bytes."""

    @property
    def prefix(self) -> bytes:
        """The first `PREFIX_BYTES`, enough to tell a format by its magic."""

    @property
    def path(self) -> str | None:
        """The temporary file that holds the bytes, or None when they are in memory."""

    @property
    def wire(self) -> Body | None:
        """The body as it was sent, when its content coding was undone: signatures are made over that one."""

    def load(self) -> bytes:
        """Return all bytes. Meant for JSON, whose size is capped far below that of audio."""


class HeldBody(Body, Protocol):
    """A body in a temporary place."""

    def discard(self) -> None:
        """Remove the temporary file, if there is one; harmless to repeat."""


class MemoryBody:
    """A body held in memory."""

    path: str | None = None
    wire: HeldBody | None = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.prefix = data[:PREFIX_BYTES]

    def load(self) -> bytes:
        """Return all bytes."""
        return self._data

    def discard(self) -> None:
        """Remove the file of `wire`, if there is one; no other is behind it."""
        if self.wire is not None:
            self.wire.discard()


class Head(Struct, frozen=True, kw_only=True, dict=True):
    """What is known of a callback before a byte of its body is read."""

    source: str
    """Name of the configured source that the path named."""
    method: str
    headers: tuple[tuple[str, str], ...]
    """As they came, names in lower case, values decoded as latin-1; duplicates kept."""
    token: str | None = None
    """The callback token from the path, not yet checked."""
    received_at: int
    peer: str | None = None
    query: str = ""
    """What followed the `?` in the URL, as it came."""
    url: str = ""
    """The whole URL as the sender knows it: `public_url`, then path and query as they came; never the `Host` header."""
    claims: TokenClaims | None = None
    """The claims of a short token, which the store holds; the token itself holds none. None for other tokens."""

    _values: ClassVar[Mapping[str, list[str]]]
    """The instance's own: its headers by their names."""

    def __post_init__(self) -> None:
        values: dict[str, list[str]] = {}
        for name, value in self.headers:
            values.setdefault(name, []).append(value)
        self.__dict__["_values"] = values

    def all(self, name: str) -> Sequence[str]:
        """Return every value of the header `name` (lower case)."""
        return self._values.get(name, ())

    def one(self, name: str) -> str | None:
        """Return the header's value, None when absent; more than one is a `CallbackRejected`."""
        values = self._values.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise CallbackRejected(
                f"the header {name} came {len(values)} times; send it once", kind=RejectionKind.MALFORMED
            )
        return values[0]

    def without_secrets(self, names: Collection[str]) -> Head:
        """Return the head without these fields of its query, and without the URL that holds them: what may be kept."""
        if not self.query:
            return self
        fields = [
            field for field in self.query.split("&") if unquote_plus(field.partition("=")[0]) not in names
        ]
        return replace(self, url="", query="&".join(fields))

    def content_type(self) -> str:
        """Return the `Content-Type` as it came, "" when absent. Its parameters may be anything: see `kept_type`."""
        values = self._values.get("content-type")
        return values[0] if values else ""

    @property
    def media_type(self) -> tuple[str, Mapping[str, str]]:
        """The lower-case media type without parameters ("" when absent) and its parameters, leniently."""
        values = self._values.get("content-type")
        return split_media_type(values[0]) if values else ("", {})


@lru_cache(maxsize=64)
def split_media_type(content_type: str) -> tuple[str, Mapping[str, str]]:
    """Return the lower-case media type without parameters, and its parameters, leniently."""
    kind, *rest = content_type.split(";")
    pairs = [part.partition("=") for part in rest]
    return kind.strip().lower(), {
        key.strip().lower(): value.strip().strip('"') for key, _, value in pairs if key.strip()
    }


class TokenClaims(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a callback token says: receiver issued this URL, for this source and job."""

    source: str
    token_id: str
    """Random, unique to each URL issued."""
    ref: str | None = None
    format: Mapping[str, Any] = field(default_factory=dict)
    """The format requested of the provider (`encoding`, `container`, `sample_rate`, …): decides raw formats."""
    issued_at: int | None = None
    """When the URL was made, to the second; None for tokens from before that was noted."""
    expires_at: int | None = None
    job_secret: bool = False
    """True when the job has a webhook secret of its own, derived from this token."""
    expect_by: int | None = None
    """The callback is overdue after this time, and late when it comes then."""
    secret: int = 0
    """The position in `tokens.secrets`, counted from 1, of the secret that signed the token; 0 if unknown."""
    unread: bool = False
    """The token is a short one, and the store that holds its claims could not be read. Claims that the token itself does
    not hold are missing.
    """

    @property
    def expectation(self) -> str:
        """The `key` of the pickup that watches for this callback."""
        return expectation_of(self.token_id)


def expectation_of(token_id: str) -> str:
    """Return the `key` of the pickup that watches for the callback of a token."""
    return f"token:{token_id}"


class Reply(Struct, frozen=True, kw_only=True):
    """The answer to a handshake: a question of a provider's that is no callback."""

    body: bytes
    content_type: str
    headers: Mapping[str, str] = {}
    confirm: str = ""
    """A URL of the provider's that is fetched before this is answered; only ever for a request that was proved."""


class Admission(Struct, frozen=True, kw_only=True):
    """The head was accepted: the body may be read, up to `body_limit` bytes."""

    head: Head
    claims: TokenClaims | None
    proofs: frozenset[str]
    """Names of the proofs that held so far, for example `basic`, `token`."""
    body_limit: int
    secret: int = 0
    """The position, counted from 1, of the secret in its setting that proved the head; 0 if none did so far."""
    held: bool = True
    """The head alone proves the callback. False: it may be anybody's until its body is verified."""
    read: Any = None
    """What the adapter parsed from the head, for `verify` to use again."""


class Arrival(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a callback came, as it is kept beside its event: without secrets."""

    peer: str | None = None
    headers: tuple[tuple[str, str | None], ...] = ()
    """As they came; the value of one that is long, or may be a secret, is None."""
    query: str = ""
    secret: int = 0
    """As of `VerifiedCallback`."""
    claims: TokenClaims | None = None
    body_ms: int | None = None
    """Milliseconds from the head to the end of the body; None if the journal kept the callback meanwhile."""
    proved_ms: int | None = None
    """Milliseconds from the head to the proof."""
    stored_ms: int | None = None
    """Milliseconds from the head until the audio, or a long document, was stored."""


HEADERS = 64
"""The most headers kept of one request, and the most characters of a header's name."""
_HEADER = re.compile(r"(?=.{1,64}\Z)[a-z0-9]{1,24}(?:[-_.][a-z0-9]{1,24})*")
"""A name that may be kept: words of at most 24 characters. One with a longer word, or another character, may be a token."""
_VALUE_CHARS = 200
"""A longer value is not kept. Cutting it could leave half a secret, which redaction would not recognize."""
ALWAYS_SECRET = frozenset(("authorization", "proxy-authorization", "cookie", "x-api-key"))
"""Headers that no provider has to name."""


@lru_cache(maxsize=256)
def is_plain(name: str) -> bool:
    """Tell whether a header's name may be kept. A name that may itself be a token may not."""
    return _HEADER.fullmatch(name) is not None


def is_secret_header(head: Head, name: str, value: str, secret: Collection[str]) -> bool:
    """Tell whether a header's value may not be kept: it proves something, or repeats the URL's token, as a proxy's `x-forwarded-uri`."""
    return name in secret or name in ALWAYS_SECRET or (head.token is not None and head.token in value)


def kept_headers(head: Head, secret: frozenset[str]) -> tuple[tuple[str, str | None], ...]:
    """Return the headers of a request that may be kept, without the values of those that hold a secret."""
    hidden, token = secret | ALWAYS_SECRET, head.token
    return tuple(
        [
            (
                name,
                None if len(value) > _VALUE_CHARS or name in hidden or (token and token in value) else value,
            )
            for name, value in head.headers
            if is_plain(name)
        ][:HEADERS]
    )


class VerifiedCallback(Struct, frozen=True, kw_only=True):
    """A callback that was proved, or that an operator accepted. Only a provider makes one; its `normalize` takes nothing else.

    The journal restores the callbacks that it kept, with the proofs that held when they came.
    """

    head: Head
    claims: TokenClaims | None
    proofs: frozenset[str]
    secret: int = 0
    """The position, counted from 1, of the secret in its setting that proved the callback; 0 if the proof needs no secret."""
    body: Body

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.head.source

    @property
    def ref(self) -> str | None:
        """The caller's own correlation string."""
        return self.claims.ref if self.claims else None
