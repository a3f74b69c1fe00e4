"""An S3 bucket keeps the blob contract, without TLS and with it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.core.callback import Body, MemoryBody
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_probe import probe
from receiver.system.body_buffer import MEMORY_LIMIT, FileBody
from tests.contract.blob_suite import BlobSuite, MakeBody
from tests.support.clients import local_client
from tests.support.s3 import Weed, s3_credentials, weed

__all__ = ["s3_credentials", "weed"]


@pytest.fixture(params=["http", "https", "https, old store"])
async def blobs(request: pytest.FixtureRequest, weed: Weed, s3_credentials: None) -> AsyncIterator[Blobs]:
    way = str(request.param)
    options = weed.options(
        f"{uuid.uuid4().hex}/",
        tls=way.startswith("https"),
        checksums="when_required" if "old" in way else "when_supported",
    )
    store = S3Blobs(options)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def body(tmp_path: Path) -> MakeBody:
    def make(data: bytes) -> Body:
        if len(data) <= MEMORY_LIMIT:
            return MemoryBody(data)
        path = tmp_path / "spooled"
        path.write_bytes(data)
        return FileBody.read(str(path))

    return make


class TestS3Blobs(BlobSuite):
    """The shared behaviour over a bucket."""


@pytest.mark.parametrize("by_hand", [True, False])
async def test_links_lead_where_applications_reach_the_store(
    by_hand: bool, weed: Weed, s3_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stores by one address, and applications fetch by another: the signature covers the host that they ask."""
    outside = f"http://localhost:{weed.http_port}"
    store = S3Blobs(weed.options(f"{uuid.uuid4().hex}/", link_endpoint_url=outside))
    await store.open()
    try:
        monkeypatch.setattr(store._calls.signers[-1], "usual", by_hand)
        await store.put("a.mp3", MemoryBody(b"sound"), content_type="audio/mpeg")
        url = store.presign("a.mp3", content_type="audio/mpeg", expires_at=int(time.time() * 1000) + 60_000)
        assert url is not None
        assert url.startswith(f"{outside}/")
        async with local_client() as client:
            answer = await client.get(url)
        assert (answer.status_code, answer.content) == (200, b"sound")
    finally:
        await store.close()
    assert await asyncio.to_thread(probe, weed.options("checked/", link_endpoint_url=outside)) == []
    (only,) = await asyncio.to_thread(probe, weed.options("checked/", link_endpoint_url="http://localhost:9"))
    assert not only.fatal
    assert "see that applications reach it" in only.message


async def test_links_answer_what_docs_audio_md_says(weed: Weed, s3_credentials: None) -> None:
    """Conditions and ranges as a folder's links do; `HEAD` not at all, for which a range of one byte stands in."""
    store = S3Blobs(weed.options(f"{uuid.uuid4().hex}/"))
    await store.open()
    await store.put("a.mp3", MemoryBody(b"sound"), content_type="audio/mpeg")
    ends = int(time.time() * 1000) + 60_000
    url = store.presign("a.mp3", content_type="audio/mpeg", expires_at=ends) or ""
    page = store.presign("a.mp3", content_type="text/html", expires_at=ends) or ""
    await store.close()
    async with local_client() as client:
        whole = await client.get(url)
        assert whole.headers["content-disposition"] == 'inline; filename="a.mp3"'
        assert (await client.get(page)).headers["content-disposition"] == 'attachment; filename="a.mp3"'
        for headers, status in (
            ({"range": "bytes=0-0"}, 206),
            ({"range": "bytes=9-"}, 416),
            ({"range": "seconds=0-1"}, 200),
            ({"if-none-match": whole.headers["etag"]}, 304),
            ({"if-modified-since": whole.headers["last-modified"]}, 304),
            ({"if-match": '"other"'}, 412),
        ):
            assert (await client.get(url, headers=headers)).status_code == status, headers
        assert (await client.get(url, headers={"range": "bytes=0-0"})).headers[
            "content-range"
        ] == "bytes 0-0/5"
        assert (await client.head(url)).status_code == 403
