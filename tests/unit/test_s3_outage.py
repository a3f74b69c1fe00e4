"""Which troubles of S3 pass by themselves."""

from __future__ import annotations

import pytest
from botocore.exceptions import (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    ProxyConnectionError,
    SSLError,
)

from receiver.storage.blobs.s3_errors import is_outage


def _unsecured(words: str) -> BaseException:
    made: BaseException = SSLError(endpoint_url="https://127.0.0.1:1", error=words)
    return made


@pytest.mark.parametrize(
    ("trouble", "passes"),
    [
        (_unsecured("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol"), True),
        (_unsecured("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), False),
        (_unsecured("[SSL: WRONG_VERSION_NUMBER] wrong version number"), False),
        (CredentialRetrievalError(provider="container-role", error_msg="slow"), True),
        (MetadataRetrievalError(error_msg="slow"), True),
        (ProxyConnectionError(proxy_url="http://127.0.0.1:1"), True),
        (NoCredentialsError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_passes_by_itself_keeps_no_receiver_from_starting(trouble: BaseException, passes: bool) -> None:
    """The start goes on with a warning and a journal; what only a person mends ends it."""
    assert is_outage(trouble) is passes
