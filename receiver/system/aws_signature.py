"""AWS Signature Version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any, NamedTuple


class Credentials(NamedTuple):
    """A key of an account; named as botocore's frozen credentials are."""

    access_key: str
    secret_key: str
    token: str | None = None


class Signature:
    """Signs for one service in one region. The key of a day is made once."""

    def __init__(self, region: str, service: str) -> None:
        self._place = f"{region}/{service}/aws4_request"
        self._moment = (0, "", "")
        self._key_of: tuple[str, str] = ("", "")
        self._keyed = hmac.new(b"", digestmod="sha256")

    def now(self) -> tuple[str, str]:
        """Return the time of a signature that is made now, and the scope of its key."""
        second = int(time.time())
        if self._moment[0] != second:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._moment = second, stamp, f"{stamp[:8]}/{self._place}"
        return self._moment[1:]

    def of(self, request: str, stamp: str, scope: str, secret: str) -> str:
        """Return the signature of a canonical request by a secret key."""
        if self._key_of != (secret, scope):
            key = f"AWS4{secret}".encode()
            for part in scope.split("/"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key_of, self._keyed = (secret, scope), hmac.new(key, digestmod="sha256")
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        keyed = self._keyed.copy()
        keyed.update(text.encode())
        return keyed.hexdigest()

    def headers(
        self, method: str, path: str, headers: dict[str, str], sha256: str, credentials: Any
    ) -> dict[str, str]:
        """Return the headers of a request without a query, signed: all of `headers` (names in lower case), and those added here.

        `sha256` is the body's, `credentials` what botocore calls frozen ones.
        """
        stamp, scope = self.now()
        signed = headers | {"x-amz-date": stamp}
        if credentials.token:
            signed["x-amz-security-token"] = credentials.token
        names = sorted(signed)
        lines, listed = "".join([f"{name}:{signed[name]}\n" for name in names]), ";".join(names)
        signature = self.of(
            f"{method}\n{path}\n\n{lines}\n{listed}\n{sha256}", stamp, scope, credentials.secret_key
        )
        credential = f"Credential={credentials.access_key}/{scope}"
        return signed | {
            "authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={listed}, Signature={signature}"
        }
