"""Large objects in a real S3 store: flat memory, and all of an object or nothing, whoever dies in the middle."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_options import S3Options
from receiver.system.body_buffer import FileBody
from tests.support import s3
from tests.support.s3 import BUCKET, Weed, credentials, environment
from tests.support.s3_wire import Wire

weed, own_weed, s3_credentials = s3.weed, s3.own_weed, s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")
MIB = 1024 * 1024
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}/"


@pytest.fixture
def large(tmp_path: Path) -> FileBody:
    """17 MiB, of which no two pieces are alike."""
    path = tmp_path / "large"
    path.write_bytes(b"".join(hashlib.sha256(b"%d" % n).digest() * 32 for n in range(17 * 1024)))
    return FileBody.read(str(path))


class Opened:
    """A blob store that a test opens and closes itself."""

    def __init__(self, options: S3Options) -> None:
        self.blobs = S3Blobs(options)

    async def __aenter__(self) -> S3Blobs:
        await self.blobs.open()
        return self.blobs

    async def __aexit__(self, *_: object) -> None:
        await self.blobs.close()


@pytest.fixture
async def wire(weed: Weed) -> AsyncIterator[Wire]:
    async with Wire(weed.http_port) as wire:
        yield wire


def _stored(weed: Weed, prefix: str) -> list[str]:
    found = weed.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for item in found.get("Contents", [])]


@pytest.mark.parametrize(("tls", "checksums"), [(False, "when_supported"), (True, "when_required")])
async def test_a_large_body_comes_back_whole(
    weed: Weed, prefix: str, large: FileBody, tls: bool, checksums: str
) -> None:
    async with Opened(weed.options(prefix, tls=tls, checksums=checksums)) as blobs:
        stored = await blobs.put("a/large.wav", large, content_type="audio/wav")
        assert await blobs.get("a/large.wav") == large.load()
    assert stored.uri == f"s3://{BUCKET}/{prefix}a/large.wav"
    head = weed.client().head_object(Bucket=BUCKET, Key=f"{prefix}a/large.wav")
    assert (head["ContentType"], head["Metadata"]["sha256"]) == ("audio/wav", large.sha256)


async def test_a_large_document_in_memory_comes_back_whole_too(
    weed: Weed, prefix: str, large: FileBody
) -> None:
    async with Opened(weed.options(prefix)) as blobs:
        await blobs.put("a/large.json", MemoryBody(large.load()), content_type="application/json")
        assert await blobs.get("a/large.json") == large.load()


async def test_what_is_there_is_not_sent_again(weed: Weed, wire: Wire, prefix: str, large: FileBody) -> None:
    async with Opened(weed.options(prefix, endpoint_url=wire.url)) as blobs:
        first = await blobs.put("a/large.wav", large, content_type="audio/wav")
        before = wire.sent
        assert before > large.size
        assert await blobs.put("a/large.wav", large, content_type="audio/wav") == first
        assert wire.sent - before < 100_000


async def test_memory_stays_flat_whatever_the_size(weed: Weed, prefix: str, tmp_path: Path) -> None:
    """A process of its own puts 64 MiB; its greatest memory grows by a small part of that."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        for number in range(64):
            file.write(bytes([number]) * MIB)
    code = (
        "import asyncio, resource, sys\n"
        "from receiver.storage.blobs.s3 import S3Blobs\n"
        "from receiver.storage.blobs.s3_options import S3Options\n"
        "from receiver.core.callback import MemoryBody\n"
        "from receiver.system.body_buffer import FileBody\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "async def main():\n"
        "    blobs = S3Blobs(S3Options(bucket=sys.argv[1], prefix=sys.argv[2], endpoint_url=sys.argv[3], region='us-east-1'))\n"
        "    await blobs.open()\n"
        "    body = FileBody.read(sys.argv[4])\n"
        "    await blobs.put('small', MemoryBody(bytes(1000)), content_type='audio/wav')\n"
        "    before = peak()\n"
        "    await blobs.put('huge', body, content_type='audio/wav')\n"
        "    await blobs.close()\n"
        "    print(peak() - before)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, BUCKET, prefix, weed.http, str(path)]
    env = environment(**credentials())
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=env, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 40 * 1024  # KiB


async def test_connections_cut_in_the_middle_leave_nothing(
    weed: Weed, wire: Wire, prefix: str, large: FileBody
) -> None:
    async with Opened(weed.options(prefix, endpoint_url=wire.url)) as blobs:
        wire.cut_after = 3 * MIB
        with pytest.raises(
            BlobsUnavailable, match=r"broke the connection off|did not answer|cannot be reached"
        ):
            await blobs.put("a/large.wav", large, content_type="audio/wav")
    assert _stored(weed, prefix) == []


async def test_a_connection_cut_once_is_made_good_by_another_try(
    weed: Weed, wire: Wire, prefix: str, large: FileBody
) -> None:
    async with Opened(weed.options(prefix, endpoint_url=wire.url)) as blobs:
        wire.cut_after = 3 * MIB
        putting = asyncio.create_task(blobs.put("a/large.wav", large, content_type="audio/wav"))
        await wire.until(3 * MIB)
        wire.cut_after = None
        await putting
        assert await blobs.get("a/large.wav") == large.load()


async def test_a_cancelled_upload_leaves_nothing_and_its_body_may_be_discarded(
    weed: Weed, wire: Wire, prefix: str, large: FileBody
) -> None:
    """As when the callback's time budget is spent: the journal has it then, and the temporary file goes."""
    async with Opened(weed.options(prefix, endpoint_url=wire.url)) as blobs:
        putting = asyncio.create_task(blobs.put("a/large.wav", large, content_type="audio/wav"))
        await wire.until(2 * MIB)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        large.discard()
    assert _stored(weed, prefix) == []


async def test_replicas_that_store_one_large_body_at_once_leave_one_object(
    weed: Weed, prefix: str, large: FileBody
) -> None:
    """The slower one hears at the end that the object is there, and finds it the same."""
    options = weed.options(prefix, timeout_seconds=60.0)  # a busy machine answers late
    async with Opened(options) as one, Opened(options) as other:
        puts = (blobs.put("a/large.wav", large, content_type="audio/wav") for blobs in (one, other))
        first, second = await asyncio.gather(*puts)
        assert first == second
        assert await other.get("a/large.wav") == large.load()


async def test_a_store_killed_in_the_middle_takes_the_body_when_it_is_back(
    own_weed: Weed, prefix: str, large: FileBody
) -> None:
    async with (
        Wire(own_weed.http_port) as wire,
        Opened(own_weed.options(prefix, endpoint_url=wire.url, timeout_seconds=30.0)) as blobs,
    ):  # it takes some seconds until it has started again
        putting = asyncio.create_task(blobs.put("a/large.wav", large, content_type="audio/wav"))
        await wire.until(2 * MIB)
        own_weed.kill()
        with pytest.raises(BlobsUnavailable):
            await putting
        with pytest.raises(BlobsUnavailable, match=r"broke the connection off|cannot be reached"):
            await blobs.ping()
        await asyncio.to_thread(own_weed.start)
        await blobs.put("a/large.wav", large, content_type="audio/wav")
        assert await blobs.get("a/large.wav") == large.load()
        await blobs.ping()
