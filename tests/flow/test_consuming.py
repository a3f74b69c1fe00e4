"""The samples of docs/consuming.md do what the page says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.core.webhook import sign, webhook_key
from receiver.core.work import DeliveryFilter, DeliveryState
from tests.contract.store_suite import settlement
from tests.docs.reading import ROOT, page
from tests.support.clients import local_client
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.running import APP_SECRET, api_token, running, settings_text
from tests.support.senders import transcript
from tests.support.toolchains import need, npm_packages, python_packages

TOKEN = "a-token-of-some-length"
SAMPLES = ROOT / "docs" / "samples"


def sample(language: str) -> str:
    """Return the page's only sample in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", page("docs/consuming.md").text, re.DOTALL)
    return str(found)


async def run(*command: str, env: Mapping[str, str], cwd: Path | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **env}, cwd=cwd, stdout=asyncio.subprocess.PIPE
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


async def refuses_and_takes_once(*command: str, **how: Any) -> None:
    """Run an application that prints type and ref of each event: it takes one once, and refuses what is not signed."""
    port, secret = free_port(), {"APP_WEBHOOK_SECRET": APP_SECRET}
    body = b'{"type": "speech.completed", "data": {"ref": "order-1"}}'
    headers = {"content-type": "application/json"} | sign(
        [webhook_key(APP_SECRET)], "evt_1", int(time.time()), body
    )
    process = await asyncio.create_subprocess_exec(
        *(word.replace("{port}", str(port)) for word in command),
        env={**os.environ, **secret, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        **how,
    )
    assert process.stdout is not None
    try:
        async with local_client(base_url=f"http://127.0.0.1:{port}") as client, asyncio.timeout(PATIENCE):
            answer = None
            while answer is None:
                assert process.returncode is None
                with contextlib.suppress(httpx2.TransportError):
                    answer = await client.post("/hooks", content=body, headers=headers)
            again = await client.post("/hooks", content=body, headers=headers)
            forged = await client.post("/hooks", content=body + b" ", headers=headers)
            assert (answer.status_code, again.status_code, forged.status_code) == (204, 204, 401)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
    told = [
        line for line in (await process.stdout.read()).decode().splitlines() if "speech.completed" in line
    ]
    assert told == ["speech.completed order-1"]
    await process.wait()


async def test_the_node_sample_takes_what_is_signed_once_and_refuses_the_rest(tmp_path: Path) -> None:
    need("node")
    script = tmp_path / "app.mjs"
    script.write_text(sample("js"))
    await refuses_and_takes_once("node", str(script))


def test_no_sample_imports_anything_of_receiver() -> None:
    texts = [
        place.read_text("utf-8")
        for end in ("py", "mjs", "go", "java", "rb")
        for place in SAMPLES.rglob(f"*.{end}")
    ]
    begins = re.compile(r"\s*(import|from|require)\b")
    imports = [line for text in texts for line in text.splitlines() if begins.match(line)]
    assert len(texts) == 6
    assert [line for line in imports if "receiver" in line] == []


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "fastapi_app.py",
            ["-m", "uvicorn", "--app-dir", str(SAMPLES), "--port", "{port}", "fastapi_app:app"],
        ),
        ("django_app.py", [str(SAMPLES / "django_app.py"), "runserver", "{port}", "--noreload"]),
    ],
)
async def test_the_python_samples(name: str, words: list[str]) -> None:
    python = python_packages(
        "fastapi==0.128.0", "uvicorn==0.40.0", "django==5.2.9", "standardwebhooks==1.1.0"
    )
    await refuses_and_takes_once(str(python), *words)


@pytest.mark.soak
async def test_the_express_sample(tmp_path: Path) -> None:
    modules = npm_packages("express@5.1.0", "standardwebhooks@1.1.1") / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    shutil.copy(SAMPLES / "express.mjs", tmp_path)
    await refuses_and_takes_once("node", str(tmp_path / "express.mjs"))


@pytest.mark.soak
async def test_the_go_sample(tmp_path: Path) -> None:
    need("go")
    built = str(tmp_path / "sample")
    await run("go", "build", "-o", built, ".", env={"GOFLAGS": "-mod=mod"}, cwd=SAMPLES / "go")
    await refuses_and_takes_once(built)


@pytest.mark.soak
async def test_the_java_sample(tmp_path: Path) -> None:
    need("mvn", "java")
    folder = shutil.copytree(SAMPLES / "java", tmp_path / "java")
    copied = ["dependency:copy-dependencies", "-DoutputDirectory=target/jars"]
    await run("mvn", "--quiet", "--batch-mode", "compile", *copied, env={}, cwd=folder)
    await refuses_and_takes_once("java", "-cp", "target/classes:target/jars/*", "Sample", cwd=folder)


@pytest.mark.soak
async def test_the_ruby_sample() -> None:
    need("ruby")
    await refuses_and_takes_once("ruby", str(SAMPLES / "app.rb"))
