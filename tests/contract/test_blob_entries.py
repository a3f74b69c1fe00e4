"""What the janitor needs of a blob store, over a folder and over a bucket: pages by key, removal, leftovers."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.local import LocalBlobs
from receiver.storage.blobs.s3 import S3Blobs
from tests.support import s3
from tests.support.s3 import Weed

weed, s3_credentials = s3.weed, s3.s3_credentials
KEYS = ["a-b/1", "a/1", "a/2/x", "a/2/y", "a/3", "b/1", "ä/1"]
"""In the order of their UTF-8 (`-` comes before `/`): a folder's and Amazon's. SeaweedFS has `a/` before `a-b/`."""


@pytest.fixture(params=["local", "s3"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blobs]:
    store: Blobs
    if request.param == "local":
        store = LocalBlobs(str(tmp_path / "blobs"))
    else:
        request.getfixturevalue("s3_credentials")
        weed: Weed = request.getfixturevalue("weed")
        store = S3Blobs(weed.options(f"{uuid.uuid4().hex}/"))
    await store.open()
    for key in reversed(KEYS):
        await store.put(key, MemoryBody(key.encode()), content_type="audio/mpeg")
    yield store
    await store.close()


async def _keys(blobs: Blobs, prefix: str = "", *, limit: int = 1000) -> list[str]:
    found: list[str] = []
    while page := await blobs.entries(prefix, after=found[-1] if found else "", limit=limit):
        assert len(page) <= limit
        found += [entry.key for entry in page]
    return found


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_each_object_comes_once_page_by_page(blobs: Blobs, limit: int) -> None:
    found = await _keys(blobs, limit=limit)
    assert sorted(found) == KEYS
    if isinstance(blobs, LocalBlobs):
        assert found == KEYS


@pytest.mark.parametrize(
    ("prefix", "count"), [("a", 5), ("a/", 4), ("a/2", 2), ("a/2/x", 1), ("a-", 1), ("c", 0), ("a/1/", 0)]
)
async def test_a_prefix_narrows_the_listing(blobs: Blobs, prefix: str, count: int) -> None:
    found = await _keys(blobs, prefix, limit=2)
    assert sorted(found) == [key for key in KEYS if key.startswith(prefix)]
    assert len(found) == count


async def test_a_page_begins_after_a_key_that_is_there_no_more(blobs: Blobs) -> None:
    await blobs.delete(["a/2/x"])
    assert [entry.key for entry in await blobs.entries("a/", after="a/2/x")] == ["a/2/y", "a/3"]


async def test_an_entry_tells_size_and_time(blobs: Blobs) -> None:
    entry = (await blobs.entries("b/"))[0]
    assert entry.size == 3
    assert abs(entry.modified_at - wall_clock()) < 60_000


async def test_what_is_deleted_is_gone_and_the_rest_stays(blobs: Blobs) -> None:
    await blobs.delete(["a/1", "a/2/x", "a/2/y", "nobody/here", "a/1/below"])
    await blobs.delete(["a/1"])
    assert sorted(await _keys(blobs)) == ["a-b/1", "a/3", "b/1", "ä/1"]
    with pytest.raises(NotFound):
        await blobs.get("a/1")
    assert await blobs.get("a/3") == b"a/3"


async def test_nothing_is_abandoned_while_all_is_well(blobs: Blobs) -> None:
    assert await blobs.abort_abandoned(before=wall_clock() + 60_000) == 0
    assert sorted(await _keys(blobs)) == KEYS


async def test_temporary_files_of_a_crash_are_removed_once_they_are_old(tmp_path: Path) -> None:
    blobs = LocalBlobs(str(tmp_path / "blobs"))
    await blobs.open()
    await blobs.put("a/1.mp3", MemoryBody(b"sound"), content_type="audio/mpeg")
    left = tmp_path / "blobs" / "a" / f".{'2' * 32}.mp3.0123abcd"
    left.write_bytes(b"hal")
    os.utime(left, (1_000_000, 1_000_000))
    assert [entry.key for entry in await blobs.entries()] == ["a/1.mp3"]
    assert await blobs.abort_abandoned(before=1_000_000_000) == 0
    assert await blobs.abort_abandoned(before=1_000_000_001) == 1
    assert os.listdir(tmp_path / "blobs" / "a") == ["1.mp3"]
    await blobs.close()
