"""The first try of a put is sent by the event loop; what it does not know, and each second try, is boto3's."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import time_machine
import trustme

from receiver.core.callback import Body, MemoryBody
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs import s3_signed
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_options import S3Options, make_client
from receiver.storage.blobs.s3_signed import Signer
from receiver.system.body_buffer import FileBody
from tests.support import s3
from tests.support.sink import Answer, Received, Sink

s3_credentials = s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")
BODY = MemoryBody(b"sound")
STORED = Answer(headers={"etag": '"5d41402abc4b2a76b9719d911017c592"'}, body=b"")


def refused(status: int, code: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = f"<Error><Code>{code}</Code><Region>eu-west-3</Region></Error>".encode()
    return Answer(status=status, body=body, headers={"content-type": "application/xml"} | named)


def by_boto3(received: Received) -> bool:
    return "amz-sdk-invocation-id" in received.headers


def at(sink: Sink, **more: Any) -> S3Options:
    place = {"bucket": "bucket", "endpoint_url": f"http://127.0.0.1:{sink.port}", "region": "us-east-1"}
    return S3Options(**(place | {"connections": 4} | more))


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        sink.default = STORED
        yield sink


async def _put(options: S3Options, *bodies: Body) -> None:
    blobs = S3Blobs(options)
    await blobs.open()
    try:
        for number, body in enumerate(bodies or (BODY,)):
            await blobs.put(f"a/{number}.mp3", body, content_type="audio/mpeg")
    finally:
        await blobs.close()


async def test_bodies_in_memory_are_put_without_boto3_and_others_by_it(
    sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_signed, "FIRST_LIMIT", 100_000)
    (tmp_path / "body").write_bytes(b"sound")
    long, longer = MemoryBody(bytes(100_000)), MemoryBody(bytes(100_001))
    await _put(at(sink), BODY, long, longer, FileBody.read(str(tmp_path / "body")))
    assert [by_boto3(one) for one in sink.received] == [False, False, True, True]
    assert [len(one.body) for one in sink.received] == [5, 100_000, 100_001, 5]


async def test_both_say_the_same_of_a_body(sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"sound")
    options = at(sink, sse="aws:kms", sse_kms_key_id="alias/audio", storage_class="STANDARD_IA")
    await _put(options, BODY, FileBody.read(str(tmp_path / "body")))
    ours, theirs = (dict(one.headers) for one in sink.received)
    signed = {name.lower(): value for name, value in theirs.items() if not name.startswith("amz-sdk-")}
    same = signed.keys() - {"authorization", "x-amz-date", "accept-encoding", "user-agent"}
    told = {name.lower(): value for name, value in ours.items()}
    assert {name: told[name] for name in same} == {name: signed[name] for name in same}
    assert told.keys() == same | {"authorization", "x-amz-date", "user-agent"}


@pytest.mark.parametrize(
    "options",
    [
        S3Options(bucket="bucket", region="eu-west-3"),
        S3Options(bucket="dotted.bucket", region="us-east-1"),
        S3Options(bucket="bucket", endpoint_url="http://127.0.0.1:9000", region="us-east-1"),
        S3Options(bucket="bucket", endpoint_url="https://s3.example.com:443", addressing="virtual"),
        S3Options(bucket="bucket", endpoint_url="https://S3.Example.COM/Base", region="us-east-1"),
    ],
)
@pytest.mark.parametrize("token", ["", "temporary+token/=="])
def test_a_put_is_signed_as_botocore_signs_it(
    options: S3Options, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    client, credentials = make_client(options)
    with time_machine.travel(1_795_222_923, tick=False):
        headers = {
            "content-type": "audio/ogg; codecs=opus",
            "if-none-match": "*",
            "x-amz-meta-sha256": BODY.sha256,
        }
        signer = Signer(client, credentials, options.bucket)
        path, ours = signer.put("a b/ä.mp3", dict(headers), BODY.sha256)
        url = signer.base + path
        request = AWSRequest(
            "PUT", url, headers | {"host": urlsplit(url).netloc.removesuffix(":443")}, b"sound"
        )
        request.context["payload_signing_enabled"] = True
        S3SigV4Auth(credentials, "s3", client.meta.region_name).add_auth(request)
    assert ours["authorization"] == request.headers["authorization"]
    client.close()


async def test_a_proxy_of_the_environment_is_boto3s_to_use(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{sink.port}")
    await _put(at(sink, endpoint_url="http://s3.example.com"))
    (only,) = sink.received
    assert by_boto3(only)
    assert only.headers["host"] == "s3.example.com"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    await _put(at(sink))
    assert not by_boto3(sink.received[1])


@pytest.mark.parametrize("named", ["ca_file", "AWS_CA_BUNDLE"])
async def test_it_trusts_what_boto3_trusts(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with Sink(tls=context) as sink:
        sink.default = STORED
        for file in ("ca.pem", "other.pem"):
            more = {"ca_file": str(tmp_path / file)} if named == "ca_file" else {}
            monkeypatch.setenv("AWS_CA_BUNDLE", "" if more else str(tmp_path / file))
            options = at(sink, endpoint_url=f"https://127.0.0.1:{sink.port}", **more)
            if file == "ca.pem":
                await _put(options)
            else:
                with pytest.raises(BlobsUnavailable, match="was not trusted"):
                    await _put(options)
    (only,) = sink.received
    assert not by_boto3(only)


async def test_a_certificate_file_that_is_none_is_told_by_boto3(sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    options = at(sink, endpoint_url=f"https://127.0.0.1:{sink.port}", ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(BlobsUnavailable, match=r"compare blobs\.ca_file"):
        await _put(options)


async def test_the_bucket_in_the_host_name_is_looked_up_in_s3s_threads(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the event loop would hold the process's end while a name server does not answer."""
    asked, real = [], socket.getaddrinfo

    def look_up(host: str, *more: Any) -> Any:
        asked.append((host, threading.current_thread().name))
        return real("127.0.0.1", *more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    await _put(at(sink, endpoint_url=f"http://s3.example.com:{sink.port}", addressing="virtual"))
    (only,) = sink.received
    assert not by_boto3(only)
    assert (only.headers["host"], only.path) == (f"bucket.s3.example.com:{sink.port}", "/a/0.mp3")
    assert [(host, thread[:3]) for host, thread in asked] == [("bucket.s3.example.com", "s3_")]


async def test_a_name_that_is_not_known_is_told_by_boto3(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(BlobsUnavailable, match="cannot be reached"):
        await _put(at(sink, endpoint_url="http://s3.example.com"))


@pytest.mark.parametrize(
    "elsewhere",
    [
        refused(301, "PermanentRedirect", x_amz_bucket_region="eu-west-3"),
        refused(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="eu-west-3"),
    ],
)
async def test_a_bucket_in_another_region_is_boto3s_for_a_while(
    sink: Sink, elsewhere: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows to the other region; each first try here would be in vain, so that none is made for a minute."""
    sink.script.extend([elsewhere, elsewhere])
    blobs = S3Blobs(at(sink))
    await blobs.open()
    for _ in range(2):
        await blobs.put("a/one.mp3", BODY, content_type="audio/mpeg")
    assert "/us-east-1/s3/" in sink.received[0].headers["authorization"]
    stored = [
        one
        for one in sink.received
        if one.method == "PUT" and "/eu-west-3/s3/" in one.headers["authorization"]
    ]
    assert len(stored) == 2
    assert [by_boto3(one) for one in sink.received] == [False] + [True] * (len(sink.received) - 1)
    assert blobs._calls.first_tries is not None
    monkeypatch.setattr(blobs._calls.first_tries, "_paused_until", 0.0)
    await blobs.put("a/one.mp3", BODY, content_type="audio/mpeg")
    assert not by_boto3(sink.received[-1])
    await blobs.close()


@pytest.mark.parametrize(
    "trouble", [refused(503, "SlowDown"), Answer(status=500, body=b"<html>"), Answer(manner="garbage")]
)
async def test_trouble_that_passes_takes_no_first_try_from_those_that_follow(
    sink: Sink, trouble: Answer
) -> None:
    sink.script.append(trouble)
    await _put(at(sink), BODY, BODY)
    assert [by_boto3(one) for one in sink.received] == [False, True, False]


async def test_credentials_that_could_not_be_renewed_are_asked_for_once_more_by_boto3(sink: Sink) -> None:
    blobs = S3Blobs(at(sink))
    await blobs.open()
    blobs._calls.signers[0].credentials = BlobsUnavailable("renewing failed")
    await blobs.put("a/one.mp3", BODY, content_type="audio/mpeg")
    assert [by_boto3(one) for one in sink.received] == [True]
    await blobs.close()


async def test_no_more_are_under_way_than_there_are_connections_and_waiting_is_no_silence(sink: Sink) -> None:
    """A put that waits for its turn longer than a store may be silent was not refused by the store."""
    blobs = S3Blobs(at(sink, connections=2, timeout_seconds=0.5))
    await blobs.open()
    sink.default = Answer(manner="hang", headers=STORED.headers, body=b"")
    puts = [asyncio.create_task(blobs.put(f"{n}.mp3", BODY, content_type="audio/mpeg")) for n in range(6)]
    await sink.until(2)
    sink.released.set()
    sink.default = STORED
    await asyncio.gather(*puts)
    assert sink.most_at_once == 2
    assert not any(by_boto3(one) for one in sink.received)
    await blobs.close()


async def test_an_answer_without_end_is_no_answer(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Options, "again_seconds", 0.1)
    sink.default = Answer(status=500, body=b"<Error>", manner="hang_body")
    with pytest.raises(BlobsUnavailable, match="did not answer in time"):
        await _put(at(sink, timeout_seconds=0.3))
    assert len(sink.received) == 1
