"""Turns S3 errors into one sentence for a person, without secrets."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from receiver.core.errors import BlobsUnavailable, ReceiverError
from receiver.storage.blobs.s3_options import S3Options

_CREDENTIALS = (
    "give boto3 credentials, by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"
)
_CHANGED = "the bytes were changed on the way: their checksum does not fit"
_SILENT = "{host} did not answer in time"
_UNREACHED = "{host} cannot be reached (name, port or network)"
_BROKEN = "{host} broke the connection off"
_BY_CODE = {
    "InvalidAccessKeyId": "the store does not know the access key id: compare AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "the secret access key is wrong (or something on the way changes the Host header)",
    "ExpiredToken": "the temporary credentials have expired: renew them",
    "InvalidToken": "the session token is not valid: compare AWS_SESSION_TOKEN with the access key",
    "RequestTimeTooSkewed": "this machine's clock is too far from the store's: set it (NTP)",
    "SlowDown": "the store asks to slow down (503 SlowDown)",
    "EntityTooLarge": "the object is larger than the store takes",
    "InvalidStorageClass": "the store does not know the storage class: correct blobs.storage_class",
    "InvalidBucketName": "that is no name a bucket may have: correct blobs.url",
    "InvalidObjectState": "the object lies in an archive, and must be restored before it can be read",
    "TemporaryRedirect": "the store sends to another address for now: a new bucket takes some minutes, or set blobs.region",
    "QuotaExceeded": "the store's quota is used up",
    "BadDigest": _CHANGED,
    "XAmzContentSHA256Mismatch": _CHANGED,
    "XAmzContentChecksumMismatch": _CHANGED,
    "MissingContentLength": 'the store does not take a checksum behind the body: set blobs.checksums = "when_required"',
}
_BY_TYPE = {
    "NoCredentialsError": f"no credentials were found: {_CREDENTIALS}",
    "PartialCredentialsError": "the credentials are not whole: both access key id and secret access key are needed",
    "CredentialRetrievalError": "the credentials could not be fetched from their provider",
    "MetadataRetrievalError": "the instance role's credentials could not be fetched",
    "InvalidRegionError": "the region is no valid name: correct blobs.region",
    "FlexibleChecksumError": _CHANGED,
    "ConfigParseError": "the AWS configuration file cannot be read: correct AWS_CONFIG_FILE, or ~/.aws/config",
    "RecursionError": "the store sends to another address without end: correct blobs.endpoint_url and blobs.region",
    "NoThread": "this process can start no thread: it has too many, or too little memory",
    "NoRegionError": "no region is known: set blobs.region or AWS_REGION",
    "ProfileNotFound": "AWS_PROFILE names a profile that is not there",
    "ParamValidationError": "the bucket's name or the key is not one that S3 takes",
    "FileNotFoundError": "the body's temporary file is gone",
    "GaveUp": _SILENT,
    "TimeoutError": _SILENT,
    "ReadTimeoutError": _SILENT,
    "ConnectTimeoutError": _SILENT,
    "EndpointConnectionError": _UNREACHED,
    "ProxyConnectionError": _UNREACHED,
    "ConnectionClosedError": _BROKEN,
    "ConnectionError": _BROKEN,
    "ResponseStreamingError": _BROKEN,
    "IncompleteReadError": _BROKEN,
}
"""Sentences by the name of an error's class."""


_PASSING = (
    *("ReadTimeoutError", "ConnectTimeoutError", "EndpointConnectionError", "ConnectionClosedError"),
    # An instance role's credentials, of a service that is slow just after a boot, or asked by too many.
    *("ProxyConnectionError", "CredentialRetrievalError", "MetadataRetrievalError"),
)
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


class GaveUp(Exception):
    """The request's time is over, or nobody waits for it any more."""


def code_of(error: BaseException) -> str:
    """Return the store's error code (`AccessDenied`, or the status as text), "" when it did not answer."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the store's answer, 0 when it did not answer."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def is_outage(error: BaseException) -> bool:
    """Tell whether the store is down or overloaded, which only waiting mends."""
    status = status_of(error)
    if code_of(error) or status:
        return status in (429, 503) or (status >= 500 and status != 501)
    if (
        type(error).__name__ == "SSLError"
    ):  # broken off in the middle, as by a load balancer that has nobody behind it
        return not any(words in str(error) for words in (_UNTRUSTED, *_NO_TLS))
    return isinstance(error, GaveUp | TimeoutError) or type(error).__name__ in _PASSING


def explain(error: BaseException, options: S3Options, doing: str, permission: str) -> str:
    """Return one sentence: the action, the reason for its failure, and what to do. `permission` is what the action needs
    (`s3:PutObject`).
    """
    return f"{doing} {options.place} failed: {_reason(error, options, permission)}"


def unavailable(error: BaseException, options: S3Options, doing: str, permission: str) -> BlobsUnavailable:
    """Return the error that the port promises."""
    if isinstance(error, BlobsUnavailable):
        return error
    return BlobsUnavailable(explain(error, options, doing, permission))


def _reason(error: BaseException, options: S3Options, permission: str) -> str:
    if isinstance(error, ReceiverError):
        return error.message
    kind = type(error).__name__
    code, status = code_of(error), status_of(error)
    if code or status:
        return _answered(error, code, status, options, permission)
    if kind in _BY_TYPE:
        return _BY_TYPE[kind].format(host=_host(error, options))
    if kind == "SSLError":
        return _unsecured(error, options)
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return "blobs.endpoint_url must begin with https:// (or http://) and a host"
    if "Token" in kind or "SSO" in kind:
        return "the sign-in behind the credentials has ended: sign in again"
    return f"an unexpected {kind}"


def _host(error: BaseException, options: S3Options) -> str:
    """Return the host of the request. Without `endpoint_url`, the environment or profile may have named another than Amazon's."""
    told: Any = getattr(error, "kwargs", {})
    asked = urlsplit(str(told.get("endpoint_url", ""))).netloc if isinstance(told, dict) else ""
    if options.endpoint_url or not asked or asked.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return options.host
    return f"{asked.rpartition('@')[2]} (blobs.endpoint_url is not set, AWS_ENDPOINT_URL_S3 or the profile names it)"


def _unsecured(error: BaseException, options: S3Options) -> str:
    if _UNTRUSTED in str(error):
        return f"the TLS certificate of {options.host} was not trusted: name its authority in blobs.ca_file"
    if any(words in str(error) for words in _NO_TLS):
        return f"{options.host} speaks no TLS: correct its port, or write http:// in blobs.endpoint_url"
    return f"no TLS could be agreed on with {options.host}: compare blobs.ca_file"


def _answered(error: BaseException, code: str, status: int, options: S3Options, permission: str) -> str:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code.startswith("KMS.") or code == "KMSDisabledException":
        return "the encryption key cannot be used: compare blobs.sse_kms_key_id and its key policy"
    if code == "NoSuchBucket":
        return f"there is no bucket {options.bucket}: create it, or correct blobs.url"
    if status == 404 and code in ("", "404"):  # to a HEAD, whose answer has no body to say more
        return (
            f"there is no bucket {options.bucket} at {options.host}: create it, or correct blobs.url and "
            "blobs.endpoint_url (which does not name the bucket)"
        )
    if status == 307:
        return _BY_CODE["TemporaryRedirect"]
    if status == 301 or code in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ):
        region = _region(error)
        told = f'set blobs.region = "{region}"' if region else "set blobs.region to the bucket's"
        return f"the bucket {options.bucket} lies in another region: {told}"
    if status == 403:
        return f"access denied: the credentials need {permission} (and the key's use, where it is encrypted)"
    if status in (429, 503):
        return f"the store is overloaded ({status})"
    if status >= 500:
        return f"the store failed ({status})"
    shown = f"{status} {code}" if code and code != str(status) else str(status)
    return f"the store refused it ({shown})"


def _region(error: BaseException) -> str:
    response: Any = getattr(error, "response", {})
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or response.get("Error", {}).get("Region") or ""
    return region if region.replace("-", "").isalnum() else ""
