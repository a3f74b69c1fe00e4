"""The blob store's port (floor 3): audio and long documents, by key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from receiver.callback import Body
from receiver.model import StoredBlob


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalObject:
    """A stored object that this process can serve itself."""

    path: str
    size: int


class Blobs(Protocol):
    """Where audio lies."""

    async def open(self) -> None:
        """Make ready. Raises `BlobsUnavailable`."""

    async def close(self) -> None:
        """Let go of connections and threads."""

    async def ping(self) -> None:
        """Prove that an object could be put now. Raises `BlobsUnavailable`."""

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
