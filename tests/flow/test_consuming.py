"""The samples of docs/consuming.md do what the page says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest

from receiver.core.webhook import sign, webhook_key
from receiver.core.work import DeliveryFilter, DeliveryState
from tests.contract.store_suite import settlement
from tests.docs.reading import page
from tests.support.running import APP_SECRET, api_token, free_port, running, settings_text
from tests.support.senders import transcript

TOKEN = "a-token-of-some-length"


def sample(language: str) -> str:
    """Return the page's only sample in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", page("docs/consuming.md").text, re.DOTALL)
    return str(found)


async def run(*command: str, env: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **env}, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    return told.decode()


async def test_the_reconciliation_replays_what_the_application_lacks_and_goes_on_where_it_ended(
    tmp_path: Path,
) -> None:
    tokens = api_token("nightly", TOKEN, '["read", "operate"]')
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks", extra=tokens)
    script, known = tmp_path / "nightly.py", tmp_path / "known"
    script.write_text(sample("python"))
    async with running(tmp_path, text, work=False) as up:
        ids = []
        for name in ("first", "second"):
            sent = transcript(name)
            answer = await up.client.post(sent.path, headers=sent.headers, content=sent.body)
            ids.append(answer.json()["event_id"])
        now, store = up.receiver.clock(), up.receiver.store
        for claim in await store.claim("app", worker="w", limit=9, now=now, lease_until=now + 9000) or ():
            await store.settle(settlement(claim, state=DeliveryState.DELIVERED, due_at=None))
        known.write_text(ids[0])
        env = {
            "RECEIVER_API": f"{up.base}/api/v1",
            "RECEIVER_API_TOKEN": TOKEN,
            "RECONCILED": str(tmp_path / "cursor"),
            "KNOWN": str(known),
        }
        assert (await run(sys.executable, str(script), env=env)).startswith("1 missing:")
        found = await store.deliveries(DeliveryFilter(limit=9))
        assert {one.event_id: one.state.value for one in found} == {ids[0]: "delivered", ids[1]: "pending"}
        assert await run(sys.executable, str(script), env=env) == ""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
async def test_the_node_sample_takes_what_is_signed_once_and_refuses_the_rest(tmp_path: Path) -> None:
    script, port = tmp_path / "app.mjs", free_port()
    script.write_text(sample("js"))
    body = b'{"type": "speech.completed", "data": {"ref": "order-1"}}'
    headers = sign([webhook_key(APP_SECRET)], "evt_1", int(time.time()), body)
    process = await asyncio.create_subprocess_exec(
        "node",
        str(script),
        env={**os.environ, "APP_WEBHOOK_SECRET": APP_SECRET, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client, asyncio.timeout(30):
            answer = None
            while answer is None:
                with contextlib.suppress(httpx2.ConnectError):
                    answer = await client.post("/", content=body, headers=headers)
            again = await client.post("/", content=body, headers=headers)
            forged = await client.post("/", content=body + b" ", headers=headers)
            assert (answer.status_code, again.status_code, forged.status_code) == (204, 204, 401)
    finally:
        process.terminate()
    assert await process.stdout.read() == b"speech.completed order-1\n"
    await process.wait()
