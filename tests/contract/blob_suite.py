"""What a blob store is: every sentence of the port as a test. A backend joins by giving the fixtures `blobs` and `body`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from receiver.core.callback import Body
from receiver.core.errors import BlobsUnavailable, NotFound
from receiver.storage.blobs import Blobs

MakeBody = Callable[[bytes], Body]


class BlobSuite:
    """The shared behaviour."""

    async def test_what_was_put_is_got_back(self, blobs: Blobs, body: MakeBody) -> None:
        stored = await blobs.put("a/2026/11/21/one.mp3", body(b"sound"), content_type="audio/mpeg")
        assert await blobs.get("a/2026/11/21/one.mp3") == b"sound"
        assert (stored.size, stored.content_type) == (5, "audio/mpeg")
        assert stored.sha256 == hashlib.sha256(b"sound").hexdigest()
        assert stored.uri.endswith("a/2026/11/21/one.mp3")

    async def test_a_large_body_goes_through_a_file(self, blobs: Blobs, body: MakeBody) -> None:
        data = bytes(range(256)) * 20_000
        await blobs.put("a/large.wav", body(data), content_type="audio/wav")
        assert await blobs.get("a/large.wav") == data

    async def test_an_empty_body_is_an_object_too(self, blobs: Blobs, body: MakeBody) -> None:
        await blobs.put("a/empty", body(b""), content_type="audio/mpeg")
        assert await blobs.get("a/empty") == b""

    async def test_putting_the_same_key_again_changes_nothing(self, blobs: Blobs, body: MakeBody) -> None:
        first = await blobs.put("a/same.mp3", body(b"sound"), content_type="audio/mpeg")
        assert await blobs.put("a/same.mp3", body(b"sound"), content_type="audio/mpeg") == first
        assert await blobs.get("a/same.mp3") == b"sound"

    async def test_an_unknown_key_is_not_found(self, blobs: Blobs) -> None:
        with pytest.raises(NotFound):
            await blobs.get("a/nobody.mp3")

    async def test_ping_leaves_nothing_behind(self, blobs: Blobs) -> None:
        await blobs.ping()

    async def test_a_key_never_leaves_its_place(self, blobs: Blobs, body: MakeBody) -> None:
        for key in ("../up", "a/../../up", "/etc/passwd", "a//b", "", "a/./b", "a/\0"):
            with pytest.raises(BlobsUnavailable):
                await blobs.put(key, body(b"x"), content_type="audio/mpeg")
            assert blobs.local(key) is None
