"""Links to objects, signed by hand: Signature Version 4 in the query, a tenth of the time boto3 takes on the event loop.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

_PROBE = "receiver-link"
_USUAL = {
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
}
_TOKEN = "X-Amz-Security-Token"  # noqa: S105 - the name of a parameter


class LinkSigner:
    """Signs GET links for one bucket. Host, path and scope are taken from a link that boto3 made, once."""

    def __init__(self, client: Any, credentials: Any, bucket: str) -> None:
        """Signs nothing by hand where boto3's own link looks unlike what is known here (`usual`)."""
        self._credentials = credentials
        made = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _PROBE})
        parts = urlsplit(made)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        scope = query.get("X-Amz-Credential", "////").split("/")
        self._region, service = scope[-3], scope[-2]
        usual_port = ":443" if parts.scheme == "https" else ":80"
        self._host = parts.netloc.removesuffix(usual_port)
        self._path = parts.path.removesuffix(_PROBE)
        self._base = f"{parts.scheme}://{parts.netloc}"
        algorithm, headers = query.get("X-Amz-Algorithm"), query.get("X-Amz-SignedHeaders")
        self.usual = (
            set(query) - {_TOKEN} == _USUAL
            and (algorithm, headers, service) == ("AWS4-HMAC-SHA256", "host", "s3")
            and parts.path.endswith(f"/{_PROBE}")
        )
        self._key_of: tuple[str, str] = ("", "")
        self._key = b""

    def sign(self, key: str, about: dict[str, str], seconds: int) -> str:
        """Return a link to `key` that ends in `seconds`; `about` are the `response-…` parameters."""
        credentials = self._credentials.get_frozen_credentials()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time()))
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        query = about | {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{credentials.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
        }
        if credentials.token:
            query[_TOKEN] = credentials.token
        asked = "&".join(
            f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query)
        )
        path = self._path + quote(key, safe="/~")
        request = f"GET\n{path}\n{asked}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = _mac(self._signing_key(credentials.secret_key, stamp[:8]), text).hex()
        return f"{self._base}{path}?{asked}&X-Amz-Signature={signature}"

    def _signing_key(self, secret: str, day: str) -> bytes:
        if self._key_of != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = _mac(key, part)
            self._key_of, self._key = (secret, day), key
        return self._key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
