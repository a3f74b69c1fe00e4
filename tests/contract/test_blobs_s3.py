"""An S3 bucket keeps the blob contract, without TLS and with it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.blobs.base import Blobs
from receiver.blobs.s3 import S3Blobs
from receiver.callback import Body
from receiver.spool import MEMORY_LIMIT, FileBody, MemoryBody
from tests.contract.blob_suite import BlobSuite, MakeBody
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
