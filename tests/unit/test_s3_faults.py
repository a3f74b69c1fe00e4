"""An S3 store that fails, hangs, slows down or refuses: the right error in time, no thread that works for nobody."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import BlobsUnavailable, ConfigError, NotFound
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_options import S3Options
from tests.support import s3
from tests.support.s3 import SECRET_KEY
from tests.support.sink import Answer, Sink

s3_credentials = s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")
BODY = MemoryBody(b"sound")
STORED = Answer(headers={"etag": '"5d41402abc4b2a76b9719d911017c592"'}, body=b"")
SAME = Answer(headers={"x-amz-meta-sha256": BODY.sha256}, body=b"sound")
HANG = Answer(manner="hang", headers=STORED.headers, body=b"")


def refused(status: int, code: str, **headers: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{SECRET_KEY} and more</Message></Error>"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, body=text.encode(), headers={"content-type": "application/xml"} | named)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        sink.default = STORED
        yield sink


def at(sink: Sink, timeout_seconds: float = 5.0, connections: int = 4) -> S3Options:
    return S3Options(
        bucket="bucket",
        prefix="p/",
        endpoint_url=f"http://127.0.0.1:{sink.port}",
        region="us-east-1",
        timeout_seconds=timeout_seconds,
        connections=connections,
    )


@pytest.fixture
async def blobs(sink: Sink) -> AsyncIterator[S3Blobs]:
    blobs = S3Blobs(at(sink))
    await blobs.open()
    yield blobs
    sink.released.set()
    await blobs.close()


async def put(blobs: S3Blobs) -> None:
    await blobs.put("a/one.mp3", BODY, content_type="audio/mpeg")


@pytest.mark.parametrize(
    "troubles",
    [
        [refused(503, "SlowDown")],
        [refused(500, "InternalError")] * 2,
        [refused(503, "ServiceUnavailable")] * 2,
        [Answer(manner="drop")] * 2,
    ],
    ids=["slow down", "internal error", "unavailable", "cut"],
)
async def test_passing_trouble_is_tried_again(blobs: S3Blobs, sink: Sink, troubles: list[Answer]) -> None:
    sink.script.extend(troubles)
    await put(blobs)
    assert len(sink.received) == len(troubles) + 1
    assert {request.body for request in sink.received} == {b"sound"}


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (refused(500, "InternalError"), "the store failed (500)"),
        (refused(403, "AccessDenied"), "access denied: the credentials need s3:PutObject"),
        (refused(403, "SignatureDoesNotMatch"), "the secret access key is wrong"),
        (refused(403, "InvalidAccessKeyId"), "does not know the access key id"),
        (refused(403, "RequestTimeTooSkewed"), "this machine's clock"),
        (refused(400, "ExpiredToken"), "temporary credentials have expired"),
        (refused(404, "NoSuchBucket"), "there is no bucket bucket"),
        (refused(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="eu-west-3"), 'set blobs.region = "eu-west-3"'),
        (refused(400, "InvalidStorageClass"), "correct blobs.storage_class"),
        (refused(400, "KMS.DisabledException"), "compare blobs.sse_kms_key_id"),
        (refused(400, "BadDigest"), "changed on the way"),
        (refused(507, "InsufficientStorage"), "the store failed (507)"),
        (refused(403, "InvalidObjectState"), "lies in an archive"),
        (refused(307, "TemporaryRedirect", x_amz_bucket_region="eu-west-3"), "sends to another address for now"),
        (refused(418, "Teapot"), "the store refused it (418 Teapot)"),
        (Answer(status=502, body=b"<html>bad gateway</html>"), "the store failed (502)"),
        (Answer(manner="drop"), "broke the connection off"),
        (Answer(manner="garbage"), "broke the connection off"),
    ],
)  # fmt: skip
async def test_each_refusal_is_one_sentence_without_secrets(
    blobs: S3Blobs, sink: Sink, trouble: Answer, said: str
) -> None:
    sink.default = trouble
    with pytest.raises(BlobsUnavailable) as failed:
        await put(blobs)
    assert said in failed.value.message
    assert "s3://bucket/p" in failed.value.message
    assert SECRET_KEY not in failed.value.message


async def test_nobody_there_is_told_at_once(sink: Sink) -> None:
    await sink.stop()
    blobs = S3Blobs(at(sink))
    await blobs.open()  # no request is made: receiver starts, and journals, while the store is out
    began = time.monotonic()
    for attempt in (put(blobs), blobs.ping(), blobs.get("a/b"), blobs.delete(["a/b"]), blobs.entries()):
        with pytest.raises(BlobsUnavailable, match="cannot be reached"):
            await attempt
    assert time.monotonic() - began < 5
    await blobs.close()


async def test_an_address_from_the_environment_is_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    blobs = S3Blobs(S3Options(bucket="bucket", region="us-east-1", addressing="path"))
    await blobs.open()
    with pytest.raises(
        BlobsUnavailable, match=r"127\.0\.0\.1:1 \(.*AWS_ENDPOINT_URL_S3.*\) cannot be reached"
    ):
        await put(blobs)
    await blobs.close()


async def test_nothing_at_the_address_names_bucket_and_address(blobs: S3Blobs, sink: Sink) -> None:
    sink.default = Answer(status=404, body=b"")
    with pytest.raises(BlobsUnavailable, match="there is no bucket bucket at 127"):
        await blobs.ping()


async def test_a_hung_store_costs_one_silence_and_no_second_try(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the proportions of the real limits: after a silence there is no time left for another try."""
    monkeypatch.setattr(S3Options, "again_seconds", 0.3)
    sink.default = HANG
    blobs = S3Blobs(at(sink, timeout_seconds=0.5))
    await blobs.open()
    began = time.monotonic()
    with pytest.raises(BlobsUnavailable, match="did not answer in time"):
        await put(blobs)
    assert 0.4 < time.monotonic() - began < 3
    assert len(sink.received) == 1
    sink.released.set()
    await blobs.close()


async def test_trouble_that_goes_on_past_the_time_says_what_it_was(
    blobs: S3Blobs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Options, "again_seconds", -1.0)
    sink.default = refused(503, "SlowDown")
    with pytest.raises(BlobsUnavailable, match="asks to slow down"):
        await put(blobs)
    assert len(sink.received) == 1


async def test_a_cancelled_put_ends_its_thread_and_tries_no_more(blobs: S3Blobs, sink: Sink) -> None:
    sink.default = HANG
    putting = asyncio.create_task(put(blobs))
    await sink.until(1)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    sink.default = refused(500, "InternalError")
    sink.script.append(refused(500, "InternalError"))
    sink.released.set()  # the hung try ends with an answer that would be tried again
    await blobs.close()
    assert len(sink.received) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("s3")]


async def test_those_who_wait_for_a_thread_and_are_cancelled_send_nothing(sink: Sink) -> None:
    blobs = S3Blobs(at(sink, connections=1))
    await blobs.open()
    sink.script.append(HANG)
    first = asyncio.create_task(put(blobs))
    await sink.until(1)
    waiting = [asyncio.create_task(put(blobs)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    sink.released.set()
    await first
    await blobs.close()
    assert len(sink.received) == 1


async def test_a_lost_answer_is_made_good(blobs: S3Blobs, sink: Sink) -> None:
    """The first try stored it, its answer was cut; the second hears 412, finds the same object, and is content."""
    sink.script.extend([Answer(manner="drop"), refused(412, "PreconditionFailed"), SAME])
    await put(blobs)
    assert [request.method for request in sink.received] == ["PUT", "PUT", "HEAD"]
    assert sink.received[0].headers["if-none-match"] == "*"


async def test_without_a_digest_the_object_itself_is_read(blobs: S3Blobs, sink: Sink) -> None:
    sink.script.extend(
        [refused(409, "ConditionalRequestConflict"), Answer(body=b"sound"), Answer(body=b"sound")]
    )
    await put(blobs)
    assert [request.method for request in sink.received] == ["PUT", "HEAD", "GET"]


@pytest.mark.parametrize(
    "there",
    [
        Answer(headers={"x-amz-meta-sha256": "0" * 64}, body=b"sound"),
        Answer(headers={"x-amz-meta-sha256": BODY.sha256}, body=b"sound and more"),
        Answer(body=b"other"),
    ],
    ids=["other digest", "other size", "no digest, other bytes"],
)
async def test_another_object_under_the_key_is_left_as_it_is(
    blobs: S3Blobs, sink: Sink, there: Answer
) -> None:
    sink.script.extend([refused(412, "PreconditionFailed"), there, there])
    with pytest.raises(BlobsUnavailable, match="another object than this one lies"):
        await put(blobs)


async def test_a_store_without_conditional_puts_is_asked_without(blobs: S3Blobs, sink: Sink) -> None:
    sink.script.append(refused(501, "NotImplemented"))
    await put(blobs)
    await put(blobs)
    assert ["if-none-match" in request.headers for request in sink.received] == [True, False, False]


async def test_only_a_missing_object_is_not_found(blobs: S3Blobs, sink: Sink) -> None:
    sink.default = refused(404, "NoSuchKey")
    with pytest.raises(NotFound):
        await blobs.get("a/one.mp3")
    sink.default = refused(404, "NoSuchBucket")
    with pytest.raises(BlobsUnavailable, match="there is no bucket"):
        await blobs.get("a/one.mp3")


async def test_a_body_cut_off_while_it_is_read_is_unavailable(blobs: S3Blobs, sink: Sink) -> None:
    sink.default = Answer(headers={"content-length": "100"}, body=b"short", manner="hang_body")
    reading = asyncio.create_task(blobs.get("a/one.mp3"))
    await sink.until(1)
    await sink.stop()
    with pytest.raises(BlobsUnavailable, match="broke the connection off"):
        await reading


async def test_readiness_asks_the_bucket_only_now_and_then(blobs: S3Blobs, sink: Sink) -> None:
    """A put or a ping that worked stands for 10 s; a put that failed makes the next ping ask again."""
    await asyncio.gather(*(blobs.ping() for _ in range(5)))
    assert len(sink.received) == 1
    sink.default = refused(403, "AccessDenied")
    await blobs.ping()
    with pytest.raises(BlobsUnavailable):
        await put(blobs)
    with pytest.raises(BlobsUnavailable, match="s3:ListBucket"):
        await blobs.ping()
    sink.default = STORED
    await put(blobs)
    sink.default = refused(500, "InternalError")
    await blobs.ping()


async def test_settings_of_encryption_and_storage_class_are_sent(sink: Sink) -> None:
    options = S3Options(
        bucket="bucket",
        endpoint_url=f"http://127.0.0.1:{sink.port}",
        region="us-east-1",
        sse="aws:kms",
        sse_kms_key_id="alias/audio",
        storage_class="STANDARD_IA",
    )
    blobs = S3Blobs(options)
    await blobs.open()
    await put(blobs)
    await blobs.close()
    headers = sink.received[0].headers
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/audio"
    assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert headers["x-amz-meta-sha256"] == headers["x-amz-content-sha256"] == BODY.sha256


@pytest.mark.parametrize(("checksums", "sent"), [("when_supported", True), ("when_required", False)])
async def test_checksum_headers_are_left_out_for_older_stores(sink: Sink, checksums: str, sent: bool) -> None:
    options = at(sink).__class__(
        bucket="bucket",
        endpoint_url=f"http://127.0.0.1:{sink.port}",
        region="us-east-1",
        checksums=checksums,  # type: ignore[arg-type]
    )
    blobs = S3Blobs(options)
    await blobs.open()
    await put(blobs)
    await blobs.close()
    headers = sink.received[0].headers
    assert ("x-amz-checksum-sha256" in headers) is sent
    assert any("checksum" in name.lower() for name in headers) is sent


@pytest.mark.parametrize("batches", [True, False], ids=["one request", "one by one"])
async def test_many_objects_are_deleted(blobs: S3Blobs, sink: Sink, batches: bool) -> None:
    whole = Answer(body=b"<DeleteResult></DeleteResult>", headers={"content-type": "application/xml"})
    sink.script.append(whole if batches else refused(400, "MissingContentMD5"))
    await blobs.delete(["a/1", "a/2"])
    methods = [request.method for request in sink.received]
    assert methods == (["POST"] if batches else ["POST", "DELETE", "DELETE"])


async def test_an_object_that_may_not_be_deleted_is_told(blobs: S3Blobs, sink: Sink) -> None:
    body = b"<DeleteResult><Error><Key>p/a/1</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    sink.script.append(Answer(body=body, headers={"content-type": "application/xml"}))
    with pytest.raises(BlobsUnavailable, match="the credentials need s3:DeleteObject"):
        await blobs.delete(["a/1"])


async def test_one_that_may_not_be_deleted_does_not_keep_those_after_it(blobs: S3Blobs, sink: Sink) -> None:
    sink.script.extend([refused(501, "NotImplemented"), refused(403, "AccessDenied")])
    with pytest.raises(BlobsUnavailable, match="the credentials need s3:DeleteObject"):
        await blobs.delete(["a/1", "a/2"])
    assert [request.method for request in sink.received] == ["POST", "DELETE", "DELETE"]


def _without_boto3(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "boto3", None)


def _without_credentials(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("AWS_ACCESS_KEY_ID")
    patch.delenv("AWS_SECRET_ACCESS_KEY")


def _half_credentials(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("AWS_SECRET_ACCESS_KEY")


def _no_profile(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_PROFILE", "nobody")


def _broken_config(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_CONFIG_FILE", __file__)


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (_without_boto3, ConfigError, "pip install '/path/to/receiver[s3]'"),
        (_without_credentials, BlobsUnavailable, "no credentials were found: give boto3 credentials"),
        (_half_credentials, BlobsUnavailable, "the credentials are not whole"),
        (_no_profile, BlobsUnavailable, "AWS_PROFILE names a profile that is not there"),
        (_broken_config, BlobsUnavailable, "the AWS configuration file cannot be read"),
    ],
)
async def test_what_is_missing_at_the_start_is_named(
    sink: Sink,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    kind: type[Exception],
    said: str,
) -> None:
    spoil(monkeypatch)
    blobs = S3Blobs(at(sink))
    with pytest.raises(kind) as failed:
        await blobs.open()
    assert said in str(failed.value)
    await blobs.close()


def test_the_embedded_default_does_not_load_boto3() -> None:
    import subprocess

    code = "import sys, receiver.app.wiring, receiver.storage.blobs.s3, receiver.storage.blobs.s3_probe; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
