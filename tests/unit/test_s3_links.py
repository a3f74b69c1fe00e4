"""Links signed by hand are those that boto3 makes; credentials that expire are renewed off the event loop."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
import time_machine

from receiver.core.clock import wall_clock
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs import s3_client
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_options import S3Options, make_client
from receiver.storage.blobs.s3_signed import Signer
from tests.support import s3

s3_credentials = s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")


@pytest.fixture
def fixed() -> Iterator[None]:
    with time_machine.travel(1_795_222_923, tick=False):
        yield


@pytest.mark.parametrize(
    "options",
    [
        S3Options(bucket="bucket", region="eu-west-3"),
        S3Options(bucket="bucket"),
        S3Options(bucket="dotted.bucket", region="us-east-1"),
        S3Options(bucket="bucket", region="eu-west-3", addressing="path"),
        S3Options(bucket="bucket", region="cn-north-1"),
        S3Options(bucket="bucket", endpoint_url="http://127.0.0.1:9000", region="us-east-1"),
        S3Options(bucket="bucket", endpoint_url="https://s3.example.com/base/", region="garage"),
        S3Options(bucket="bucket", endpoint_url="https://s3.example.com:443", addressing="virtual"),
        S3Options(bucket="bucket", endpoint_url="https://S3.Example.COM/Base", region="us-east-1"),
    ],
)
@pytest.mark.parametrize("token", ["", "temporary+token/=="])
def test_a_link_is_the_one_that_boto3_makes(
    options: S3Options, token: str, fixed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    client, credentials = make_client(options)
    signer = Signer(client, credentials, options.bucket)
    assert signer.usual
    disposition = 'inline; filename="0123.mp3"'
    params = {"ResponseContentType": "audio/ogg; codecs=opus", "ResponseContentDisposition": disposition}
    about = {"response-content-type": "audio/ogg; codecs=opus", "response-content-disposition": disposition}
    for key in ("a/2026/11/21/0123.mp3", "a b+c&d=e%20'()*!~:@,;$.mp3", "prefix/ä/音.wav"):
        theirs = client.generate_presigned_url(
            "get_object", Params={"Bucket": options.bucket, "Key": key} | params, ExpiresIn=3600
        )
        ours = signer.link(key, about, 3600)
        assert ours.partition("?")[0] == theirs.partition("?")[0]
        assert sorted(parse_qsl(urlsplit(ours).query)) == sorted(parse_qsl(urlsplit(theirs).query))
    client.close()


def test_the_signing_key_is_made_afresh_each_day() -> None:
    options = S3Options(bucket="bucket", region="eu-west-3")
    client, credentials = make_client(options)
    signer = Signer(client, credentials, "bucket")
    for at in (1_795_222_923, 1_795_222_923 + 86_400):
        with time_machine.travel(at, tick=False):
            theirs = client.generate_presigned_url(
                "get_object", Params={"Bucket": "bucket", "Key": "k"}, ExpiresIn=60
            )
            assert parse_qs(urlsplit(signer.link("k", {}, 60)).query) == parse_qs(urlsplit(theirs).query)
    client.close()


async def test_a_bucket_that_signs_otherwise_is_left_to_boto3() -> None:
    """Directory buckets have sessions of their own; a link by hand would not be one."""

    class Otherwise:
        def generate_presigned_url(self, *_: Any, **__: Any) -> str:
            return (
                "https://b.s3express-use1-az4.us-east-1.amazonaws.com/receiver-link?X-Amz-S3session-Token=x"
            )

    assert not Signer(Otherwise(), None, "b").usual


PROGRAM = """
import datetime, json, pathlib, sys
count = pathlib.Path(sys.argv[1])
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=12 if number == 1 else 60)
print(json.dumps({"Version": 1, "AccessKeyId": f"key-{number}", "SecretAccessKey": "s", "SessionToken": "t",
                  "Expiration": end.isoformat()}))
"""


async def test_credentials_that_end_soon_are_renewed_before_a_link_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their program is run again in a thread 15 minutes before their end; `presign` never waits for it."""
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    command = f"{sys.executable} {tmp_path / 'program.py'} {tmp_path / 'count'}"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n", "utf-8")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    renewed = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = s3_client.Calls.run

    async def run(self: s3_client.Calls, *args: Any, **more: Any) -> Any:
        result = await real(self, *args, **more)
        if more["doing"].startswith("renewing"):
            loop.call_soon(renewed.set)
        return result

    monkeypatch.setattr(s3_client.Calls, "run", run)
    monkeypatch.setattr(s3_client, "_KEEP_SECONDS", 0.01)
    blobs = S3Blobs(S3Options(bucket="bucket", region="eu-west-3"))
    await blobs.open()
    async with asyncio.timeout(20):
        await renewed.wait()
    link = blobs.presign("a/one.mp3", content_type="audio/mpeg", expires_at=wall_clock() + 60_000)
    assert link is not None
    query = parse_qs(urlsplit(link).query)
    assert query["X-Amz-Credential"][0].startswith("key-2/")
    assert query["X-Amz-Security-Token"] == ["t"]
    await blobs.close()


async def test_credentials_that_cannot_be_renewed_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blobs = S3Blobs(S3Options(bucket="bucket", region="eu-west-3"))
    await blobs.open()

    ended = RuntimeError(json.dumps({"secret": "not shown"}))
    monkeypatch.setattr(blobs._calls.signers[-1], "credentials", ended)
    with pytest.raises(BlobsUnavailable, match="signing a link to s3://bucket failed") as failed:
        blobs.presign("a/one.mp3", content_type="audio/mpeg", expires_at=int(time.time() * 1000))
    assert "not shown" not in failed.value.message
    await blobs.close()
