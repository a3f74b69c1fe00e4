"""Documents that are small to send and large to build."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.hostile.attack import MOST_GROWTH, Growth, client, only_200, send, send_good, target
from tests.support.senders import Sent

_ONLY_SECRETS = """
[sources.secretly]
provider = "deepgram"
callback_secrets = ["the-secret-in-the-document"]
"""
_SIZE = 33_000_000


async def test_documents_of_empty_lists_are_not_built_to_be_refused(tmp_path: Path) -> None:
    body = b'{"a":[' + b"[]," * (_SIZE // 3) + b"[]]}"
    bad = Sent("bad", "/callbacks/secretly", {"content-type": "application/json"}, body)
    with target(tmp_path, _ONLY_SECRETS) as process, Growth(process) as growth:
        async with client(process, seconds=30) as http:
            sending = [asyncio.create_task(send(http, bad)) for _ in range(4)]
            statuses = await send_good(process, 1)
            answers = await asyncio.gather(*sending)
    assert only_200(statuses), statuses
    assert set(answers) <= {401, 413, 503}, answers
    assert growth.bytes < MOST_GROWTH
