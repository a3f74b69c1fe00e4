"""JSON of providers: what is not built in memory."""

from __future__ import annotations

import pytest

from receiver.core.errors import MalformedCallback
from receiver.providers.documents import decode_object


@pytest.mark.parametrize("part", [b"[],", b'{"a":{}},', b"1,"])
def test_a_document_of_very_many_values_is_refused_before_it_is_built(part: bytes) -> None:
    with pytest.raises(MalformedCallback, match="more values than are built"):
        decode_object(b'{"a":[' + part * (30_000_000 // len(part)) + b"0]}")
