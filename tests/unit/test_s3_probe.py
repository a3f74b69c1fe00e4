"""What `receiver check` tries at a bucket is what receiver does there: a store that refuses one of these is found out."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from receiver.storage.blobs import s3_probe
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.s3_options import S3Options
from receiver.storage.blobs.s3_probe import Trouble, probe
from tests.support import s3
from tests.support.s3 import BUCKET, Weed
from tests.support.sink import Answer, Sink

weed, s3_credentials = s3.weed, s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")
XML = {"content-type": "application/xml"}
OK = Answer(headers={"etag": '"e"'}, body=b"")
TAKEN = Answer(status=412, body=b"<Error><Code>PreconditionFailed</Code></Error>", headers=XML)
SHA256 = hashlib.sha256(b"receiver check\n").hexdigest()
SOUND = Answer(body=b"receiver check\n", headers={"etag": '"e"', "x-amz-meta-sha256": SHA256})
RANGE = Answer(status=206, body=b"receiver", headers={"content-type": "audio/mpeg"})


def refused(status: int, code: str = "InvalidArgument") -> Answer:
    return Answer(status=status, body=f"<Error><Code>{code}</Code></Error>".encode(), headers=XML)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        sink.default = OK
        yield sink


async def _fatal(sink: Sink, *answers: Answer) -> list[Trouble]:
    sink.script.extend(answers)
    options = S3Options(
        bucket="bucket", endpoint_url=f"http://127.0.0.1:{sink.port}", region="us-east-1", connections=2
    )
    return [trouble for trouble in await asyncio.to_thread(probe, options) if trouble.fatal]


@pytest.mark.parametrize("status", [400, 403, 405])
async def test_a_store_that_refuses_the_put_that_receiver_makes_is_found_out(sink: Sink, status: int) -> None:
    """It took one without the condition, metadata and checksum, which receiver never makes."""
    found = await _fatal(sink, OK, refused(status))
    assert [trouble.message.split(" failed:")[0] for trouble in found] == ["storing in s3://bucket"]
    headers = sink.received[1].headers
    assert headers["if-none-match"] == "*"
    assert headers["x-amz-meta-sha256"] == headers["x-amz-content-sha256"]
    assert headers["x-amz-checksum-sha256"]


async def test_a_second_conditional_put_that_is_refused_otherwise_is_an_error(sink: Sink) -> None:
    found = await _fatal(sink, OK, OK, SOUND, OK, RANGE, refused(400))
    assert [trouble.message.split(" failed:")[0] for trouble in found] == ["storing once more in s3://bucket"]


async def test_what_a_check_leaves_that_was_killed_is_ours_to_sweep(
    weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, template = f"{uuid.uuid4().hex}/", "audio/{source}-{name}"
    monkeypatch.setattr(s3_probe._Probe, "delete", lambda _: None)
    await asyncio.to_thread(probe, weed.options(prefix, key=template))
    found = weed.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert len(found) == 1
    assert all(KeyTemplate(template).is_ours(item["Key"].removeprefix(prefix)) for item in found)


async def test_a_link_to_an_address_that_the_system_trusts_is_fetched_beside_a_ca_file(
    sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`blobs.ca_file` is the store's; links may lead to another address."""
    usual, own = trustme.CA(), trustme.CA()
    usual.cert_pem.write_to_path(str(tmp_path / "usual.pem"))
    own.cert_pem.write_to_path(str(tmp_path / "own.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "usual.pem"))
    for authority in (usual, own):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        async with Sink(tls=context) as links:
            links.default = RANGE
            sink.script.extend([OK, OK, SOUND, OK, TAKEN])
            options = S3Options(
                bucket="bucket",
                endpoint_url=f"http://127.0.0.1:{sink.port}",
                link_endpoint_url=f"https://127.0.0.1:{links.port}",
                ca_file=str(tmp_path / "own.pem"),
                region="us-east-1",
                connections=2,
            )
            found = await asyncio.to_thread(probe, options)
            assert len(links.received) == 1, found
            assert not [trouble for trouble in found if "link" in trouble.message]
            sink.script.clear()
