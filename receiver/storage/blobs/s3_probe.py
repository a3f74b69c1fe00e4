"""The bucket's part of `receiver check`: tries each operation that receiver needs, once, with a small object of its own."""

from __future__ import annotations

import re
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any

from msgspec import Struct

from receiver.core.callback import MemoryBody
from receiver.core.clock import wall_clock
from receiver.core.errors import ReceiverError
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.s3_errors import code_of, explain, is_outage, status_of
from receiver.storage.blobs.s3_objects import Objects
from receiver.storage.blobs.s3_options import S3Options, make_client, make_link_client

_BODY = MemoryBody(b"receiver check\n")
_SECONDS = 10.0
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""Names that a bucket may have; of others no store says well in its answer to HEAD what is wrong."""


class Trouble(Struct, frozen=True):
    """One problem of the bucket."""

    message: str
    permission: str = ""
    """The permission that is missing, `s3:PutObject` for example; "" when it is something else."""
    fatal: bool = True
    """False: receiver works all the same."""
    outage: bool = False
    """The store did not answer, or was too busy: nothing about the settings need be wrong."""


class _Probe:
    def __init__(self, options: S3Options, client: Any) -> None:
        self.options = options
        self.client = client
        # Keys as receiver makes them, so that the sweep of orphans finds what a check that was killed has left.
        name = f"{secrets.token_hex(16)}.txt"
        key = KeyTemplate(options.key).key(source="receiver-check", received_at=wall_clock(), name=name)
        self.place = {"Bucket": options.bucket, "Key": options.prefix + key}
        self.objects = Objects(options)
        self.about = self.objects.about(_BODY, "text/plain")
        self.troubles: list[Trouble] = []
        self.hidden = False
        """True when the store does not tell these credentials whether the bucket is there."""

    def step(self, doing: str, permission: str, work: Callable[[], None], *, fatal: bool = True) -> bool:
        """Run one step of the check; return whether it worked."""
        try:
            work()
        except Exception as error:  # whatever goes wrong is what was asked for
            missing = (
                permission if status_of(error) == 403 and code_of(error) in ("AccessDenied", "403") else ""
            )
            message = explain(error, self.options, doing, permission)
            if missing and self.hidden:
                message += (
                    f"; or there is no bucket {self.options.bucket}, which is not told to these credentials"
                )
            self.troubles.append(Trouble(message, missing, fatal, is_outage(error)))
            return False
        return True

    def put(self) -> None:
        self.objects.put(self.client, self.place["Key"], _BODY, self.about)

    def get(self) -> None:
        with closing(self.client.get_object(**self.place)["Body"]) as body:
            if body.read() != _BODY.load():
                raise ReceiverError("other bytes came back than were stored")

    def there(self) -> bool:
        """Ask for the bucket before anything is put: some stores make one at the first put, whatever name it is given.

        What else goes wrong here says little, since the answer has no body: the put that follows tells it better.
        """
        try:
            self.client.head_bucket(Bucket=self.options.bucket)
        except Exception as error:  # explained below, or by the put
            self.hidden = status_of(error) == 403
            if status_of(error) == 404 and _BUCKET.fullmatch(self.options.bucket):
                message = f"there is no bucket {self.options.bucket}: create it, or correct blobs.url"
                self.troubles.append(Trouble(message))
                return False
            if is_outage(error):
                message = explain(error, self.options, "asking", "s3:ListBucket")
                self.troubles.append(Trouble(message, outage=True))
                return False
        return True

    def region(self) -> None:
        headers = self.client.head_bucket(Bucket=self.options.bucket)["ResponseMetadata"]["HTTPHeaders"]
        region = headers.get("x-amz-bucket-region", "")
        if region and region != self.client.meta.region_name and not self.options.endpoint_url:
            raise ReceiverError(f'the bucket lies in another region: set blobs.region = "{region}"')

    def link(self) -> None:
        about = {
            "ResponseContentType": "audio/mpeg",
            "ResponseContentDisposition": 'inline; filename="check"',
        }
        signer = make_link_client(self.options, self.client)
        url = signer.generate_presigned_url("get_object", Params=self.place | about, ExpiresIn=60)
        request = urllib.request.Request(url, headers={"Range": "bytes=0-7"})  # noqa: S310 - made by boto3
        context = ssl.create_default_context()
        if self.options.ca_file is not None:  # beside the usual ones: links may lead to another address
            context.load_verify_locations(self.options.ca_file)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS, context=context) as answer:  # noqa: S310 - made by boto3
                data, status, kind = answer.read(), answer.status, answer.headers.get("content-type")
        except urllib.error.HTTPError as error:
            with error:
                raise ReceiverError(
                    f"a signed link was answered {error.code}: applications could not fetch audio"
                ) from None
        except OSError as error:
            message = f"a signed link could not be fetched ({type(error).__name__})"
            if self.options.link_endpoint_url is None:
                raise ReceiverError(message) from None
            # Made for others to reach: from here it may well be out of reach.
            message += ", which leads to blobs.link_endpoint_url: see that applications reach it"
            self.troubles.append(Trouble(message, fatal=False))
            return
        whole = _BODY.load()
        if data not in (whole, whole[:8]):
            raise ReceiverError("a signed link gave other bytes than were stored")
        if status != 206 or data != whole[:8]:
            self.troubles.append(
                Trouble("signed links serve no byte ranges: players cannot seek in the audio", fatal=False)
            )
        if kind != "audio/mpeg":
            self.troubles.append(
                Trouble(f"signed links ignore the content type asked for, and say {kind!r}", fatal=False)
            )

    def condition(self) -> None:
        from botocore.exceptions import ClientError

        try:
            self.client.put_object(**self.place, Body=_BODY.load(), IfNoneMatch="*", **self.about)
        except ClientError as error:
            if status_of(error) == 412:
                return
            if status_of(error) != 501:
                raise
        message = (
            "it accepted a second If-None-Match: *, so an object can be written over; receiver's keys are made from "
            "content, which keeps that harmless"
        )
        self.troubles.append(Trouble(f"{self.options.place}: {message}", fatal=False))

    def listing(self) -> None:
        found = self.client.list_objects_v2(Bucket=self.options.bucket, Prefix=self.place["Key"])
        if [item["Key"] for item in found.get("Contents", [])] != [self.place["Key"]]:
            raise ReceiverError("the object that was just stored is not listed")

    def delete(self) -> None:
        self.client.delete_object(**self.place)


def probe(options: S3Options) -> list[Trouble]:
    """Try each operation on the bucket; return the problems, without secrets. Blocks; raises nothing."""
    try:
        client, _ = make_client(options, tries=3)
    except Exception as error:  # a profile or URL that is none, boto3 missing
        return [Trouble(explain(error, options, "opening", ""))]
    asked = _Probe(options, client)
    try:
        if asked.there() and asked.step("storing in", "s3:PutObject", asked.put):
            _go_on(asked)
    finally:
        client.close()
    return asked.troubles


def _go_on(asked: _Probe) -> None:
    readable = asked.step("reading from", "s3:GetObject", asked.get)
    asked.step("asking", "s3:ListBucket", asked.region)
    if readable:
        asked.step("linking to", "s3:GetObject", asked.link)
    asked.step("storing once more in", "s3:PutObject", asked.condition)
    asked.step("listing", "s3:ListBucket", asked.listing, fatal=False)
    asked.step("deleting in", "s3:DeleteObject", asked.delete, fatal=False)
