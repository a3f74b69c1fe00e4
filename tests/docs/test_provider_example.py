"""The provider that docs/adding-a-provider.md shows whole: it is found to work as it stands there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from msgspec.structs import replace

from receiver.core.callback import Head, MemoryBody
from receiver.core.errors import CallbackRejected
from receiver.providers import PushProvider, adapters
from tests.support.golden import source_settings, tokens

PAGE = Path(__file__).parent.parent.parent / "docs" / "adding-a-provider.md"
BODY = MemoryBody(b'{"id": "j1", "status": "completed", "text": "Hello."}')


def test_the_example_proves_and_reads_a_callback(tmp_path: Path) -> None:
    # The providers that there are are found first: the example is to be none of them.
    assert "acme" not in adapters()
    example = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "acme.py").write_text(example[1], "utf-8")
    kind = runpy.run_path(str(tmp_path / "acme.py"))["AcmeProvider"]
    settings = source_settings("acme", {"provider": "acme", "secrets": ["acme-secret-0123456789"]})
    provider = kind.create(settings, tokens())
    headers = tuple(provider.sign(BODY.load(), now=0).items())
    assert isinstance(provider, PushProvider)
    head = Head(source="acme", method="POST", headers=headers, token=None, received_at=5)
    draft = provider.normalize(provider.verify(provider.admit(head), BODY))
    assert (draft.type, draft.idempotency_key) == ("transcript.completed", "job:j1:completed")
    assert draft.transcript is not None
    assert draft.transcript.text == "Hello."
    with pytest.raises(CallbackRejected):
        provider.admit(replace(head, headers=()))
