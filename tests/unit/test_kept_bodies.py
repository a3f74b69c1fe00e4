"""What is kept of a body beside its event."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from receiver.storage.store.events import difference, whole

_SPOKEN = {"results": {"text": "The order that was placed this morning is ready. " * 40, "at": [1.5, 2.25]}}
_DATA = msgspec.json.encode({"event_id": "evt_1", "provider_data": _SPOKEN})


def test_a_body_in_other_spelling_than_its_event_takes_a_tenth_of_its_bytes() -> None:
    body = json.dumps(_SPOKEN, indent=1).encode()
    kept, differs = difference(body, _DATA)
    assert differs == 1
    assert kept is not None
    assert len(kept) < len(body) / 10
    assert whole(kept, differs, _DATA) == body


@pytest.mark.parametrize(
    "body", [None, b"", b"no such words", random.Random(1).randbytes(2000), b"x" * 64_000]
)
def test_a_body_that_its_event_does_not_hold_stays_as_it_is(body: bytes | None) -> None:
    assert difference(body, _DATA) == (body, 0)
    assert whole(body, 0, _DATA) == body
    assert difference(body, b"") == (body, 0)
