"""The blob store's port: audio and long documents, by key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from receiver.core.callback import Body
from receiver.core.event import StoredBlob

_SHOWN = re.compile(r"(?:audio|video|image)/(?!.*(?:svg|xml))|text/(?:plain|vtt)\b|application/json\b")
"""Media types that a browser plays or shows without running code."""


def disposition(key: str, content_type: str) -> str:
    """Return the `Content-Disposition` of a link: the object's name, and whether a browser shows it or only saves it."""
    name = "".join(c for c in key.rpartition("/")[2] if c.isascii() and c.isprintable() and c not in '"\\')
    return f'{"inline" if _SHOWN.match(content_type.lower()) else "attachment"}; filename="{name}"'


class LocalObject(Struct, frozen=True, kw_only=True):
    """A stored object that this process can serve itself."""

    path: str
    size: int
    modified_at: int
    """Epoch milliseconds."""


class BlobEntry(Struct, frozen=True, kw_only=True):
    """One line of a listing."""

    key: str
    size: int
    modified_at: int
    """Epoch milliseconds, by the blob store's own clock."""


class Blobs(Protocol):
    """A blob store."""

    async def open(self) -> None:
        """Make ready. Raises `BlobsUnavailable`."""

    async def close(self) -> None:
        """Let go of connections and threads."""

    async def ping(self) -> None:
        """Prove that objects can be put now, as far as that is free of charge. Raises `BlobsUnavailable`."""

    async def put(self, key: str, body: Body, *, content_type: str) -> StoredBlob:
        """Store `body` under `key` and return after it is durable (fsync, or the store's acknowledgement).

        Putting the same key again is harmless: keys come from the callback's identity and content.
        Raises `BlobsUnavailable`.
        """

    async def get(self, key: str) -> bytes:
        """Return a stored object whole. Raises `NotFound`, `BlobsUnavailable`."""

    def presign(self, key: str, *, content_type: str, expires_at: int) -> str | None:
        """Return a link that the blob store serves itself, or None when receiver must serve it (`local`)."""

    def local(self, key: str) -> LocalObject | None:
        """Return the file behind `key` for serving, or None when there is none. Never leaves the blob folder."""

    async def entries(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[BlobEntry]:
        """Return a page of up to `limit` (at most 1000) objects whose key begins with `prefix`.

        `after` is the last key of the page before; an empty page is the end. The order is that of the keys' UTF-8, but for
        stores with an order of their own. Raises `BlobsUnavailable`.
        """

    def is_ours(self, key: str) -> bool:
        """Tell whether receiver, with its current settings, makes such keys. All other objects belong to somebody else and stay."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove these objects; one that is not there is no trouble. Raises `BlobsUnavailable`; harmless to repeat.

        One that may not be removed does not keep the others of the same thousand.
        """

    async def abort_abandoned(self, *, before: int) -> int:
        """Remove what uploads of ours left that were begun before `before` (epoch ms) and never ended; return how many.

        Raises `BlobsUnavailable`.
        """
