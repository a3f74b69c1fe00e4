"""Each provider's own package, unchanged, submits a job through receiver, and the application has its event with its ref."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from receiver.core.submission import SubmissionFilter
from tests.support.house import receiver
from tests.support.ports import free_port
from tests.support.provider_apis import FAL_KEY, KEY, PROVIDERS, SECRET, Stage, provider_apis
from tests.support.running import BASIC, Running, running
from tests.support.senders import SPEECH
from tests.support.sink import Sink
from tests.support.submitting import PUBLIC, TOKEN

ROOT = Path(__file__).resolve().parents[2]
SDKS, PAGE = ROOT / "tests" / "sdks", ROOT / "docs" / "submitting.md"
WANTED = {
    "deepgram-sdk": "7.17.0",
    "assemblyai": "1.8.2",
    "elevenlabs": "2.78.0",
    "deepdub": "0.1.29",
    "openai": "3.57.0",
    "replicate": "1.0.7",
    "fal-client": "1.0.3",
    "rev_ai": "2.21.0",
    "speechmatics-batch": "1.1.0",
    "gladiaio-sdk": "2.2.1",
    "soniox": "2.10.0",
    "sarvamai": "0.1.39",
}
FETCHED = {
    "assemblyai": "/v2/transcript/{job}",
    "soniox": "/v1/transcriptions/{job}/transcript",
    "sarvam": "/speech-to-text/job/v1/{job}/status",
    "revai": "/speechtotext/v1/jobs/{job}/transcript",
    "openai": "/v1/responses/{job}",
}
"""Where receiver asks for a result that the callback does not bring, at the stand-in in place of the recipe's own address."""


def settings(folder: Path, stage: Stage, url: str, sink: str) -> str:
    """Return settings with every provider of the stage to be submitted to."""
    text = f'public_url = "{PUBLIC}"\ndata = "{folder}/data"\n'
    text += f'[destinations.app]\nurl = "{sink}"\nallow = ["127.0.0.0/8"]\n'
    for name, base in stage.bases.items():
        text += f'[sources.{name}]\nsubmit = true\napi_key = "{KEY}"\nallow = ["127.0.0.0/8"]\n'
        if name == "deepgram":
            text += f'provider = "deepgram"\nbasic = ["{BASIC}"]\nbase_url = "{base}"\n'
        elif name == "deepdub":
            text += f'provider = "deepdub"\nbase_url = "{base}/api/v1"\n'
        else:
            text += f'recipe = "{name}"\nsecrets = ["{SECRET}"]\nsubmission.base = "{base}"\n'
        if name in FETCHED:
            text += f'result.url = "{base}{FETCHED[name]}"\n'
        if name in FETCHED or name in ("replicate", "fal"):
            text += 'result.hosts = ["127.0.0.1"]\n'
        if name == "elevenlabs":
            text += f'watch.url = "{base}/v1/workspace/webhooks"\nwatch.hosts = ["127.0.0.1"]\n'
        if name == "fal":
            key = base64.b64encode(FAL_KEY.public_key().public_bytes_raw()).decode()
            message = r"{header:X-Fal-Webhook-Request-Id}\n{header:X-Fal-Webhook-User-Id}\n{timestamp}\n{body.sha256}"
            text += (
                'proof = [{kind = "public-key", algorithm = "ed25519", header = "X-Fal-Webhook-Signature", '
                f'message = "{message}", keys = ["{key}"], '
                'timestamp = {from = "header:X-Fal-Webhook-Timestamp"}}]\n'
            )
    hosts = '"localhost" = "gladia"\n"127.0.0.2" = "speechmatics"\n'
    return (
        f'{text}[submit]\nurl = "{url}"\n[submit.hosts]\n{hosts}'
        f'[[submit.tokens]]\nname = "crm"\nsecrets = ["{TOKEN}"]\nsources = {json.dumps([*PROVIDERS])}\n'
        "per_minute = 1000\nreads_per_second = 1000\n"
    )


@dataclass
class Way:
    """How programs reach receiver."""

    up: Running
    stage: Stage
    sink: Sink
    https: str
    """Host and port that speak TLS."""
    second: str
    """Another host name of receiver's, without TLS."""
    environ: dict[str, str]

    def snippets(self, language: str) -> dict[str, str]:
        """Return the page's snippets by provider, with this receiver's addresses, its token, and a ref for each."""
        port = self.up.base.rpartition(":")[2]
        text = (
            PAGE.read_text("utf-8")
            .replace("http://receiver.internal:8090", self.up.base)
            .replace("http://gladia.internal:8090", f"http://localhost:{port}")
            .replace("http://speechmatics.internal:8090", self.second)
            .replace("receiver.internal/", f"{self.https}/")
            .replace("rcvsub…", TOKEN)
            .replace('speech.mp3"', f'{SPEECH}"')
        )
        sections = re.findall(r"^### (.+?)\n(.*?)(?=^#)", text, re.MULTILINE | re.DOTALL)
        found = {}
        for title, section in sections:
            name = title.lower().removesuffix(".ai").replace(" ", "")
            for code in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL):
                found[name] = code.replace("order-7", f"ref-{name}")
        return found

    async def run(self, *command: str, given: bytes = b"", folder: Path | None = None) -> str:
        """Run a program that submits; return what it printed, its errors last."""
        process = await asyncio.create_subprocess_exec(
            *command, env=os.environ | self.environ, cwd=folder, stdin=-1, stdout=-1, stderr=-2
        )
        try:
            async with asyncio.timeout(120):
                return (await process.communicate(given))[0].decode()
        except TimeoutError:
            process.kill()
            await process.wait()
            return "it did not end"


@contextlib.asynccontextmanager
async def forwarded(host: str, port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Listen at another address, with TLS if need be, and pass everything on to receiver."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    server = await asyncio.start_server(serve, host, 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def way(folder: Path) -> AsyncIterator[Way]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    async with Sink() as sink, provider_apis() as stage:
        port = free_port()
        text = settings(folder, stage, f"http://127.0.0.1:{port}", sink.url)
        async with running(folder, text, port=port) as up:
            stage.receiver = up.base
            async with forwarded("127.0.0.1", port, context) as https, forwarded("127.0.0.2", port) as second:
                environ = {"SSL_CERT_FILE": str(folder / "ca.pem")}
                yield Way(up, stage, sink, f"127.0.0.1:{https}", f"http://127.0.0.2:{second}", environ)


async def judged(road: Way, told: dict[str, str], without_ref: str = "") -> None:
    """Look whether the application has the event of each job, with its ref, and the provider had each once."""
    await road.sink.until(len(told))
    jobs = {None if name == without_ref else f"ref-{name}": job for name, job in told.items()}
    events = [json.loads(request.body) for request in road.sink.received]
    assert {event["data"]["ref"]: event["data"]["job_id"] for event in events} == jobs
    assert {event["type"].rpartition(".")[2] for event in events} == {"completed"}
    rows = await road.up.receiver.store.submissions(SubmissionFilter(limit=100))
    assert {row.ref: row.job_id for row in rows} == jobs
    assert {status for _, status in road.stage.statuses} == {200}
    assert TOKEN not in repr(road.stage.asked)
    assert {name: len(made) for name, made in road.stage.jobs.items() if made} == dict.fromkeys(told, 1)


def test_the_snippets_set_the_urls_that_submit_urls_prints(tmp_path: Path) -> None:
    """So what is printed is known to work, from the snippets that run."""
    config, base = tmp_path / "receiver.toml", "http://receiver.internal:8090"
    stage = Stage(dict.fromkeys(PROVIDERS, "https://api.example.com"))
    config.write_text(settings(tmp_path, stage, base, "https://app.example.com"))
    page = PAGE.read_text("utf-8").replace("/ref:order-7", "")
    rows = receiver("--config", config, "submit-urls", "--json").items
    assert {row["source"] for row in rows} == set(PROVIDERS)
    printed = {
        url for row in rows for text in row["packages"].values() for url in re.findall(r'"(http[^"]*)"', text)
    }
    assert len(printed) >= len(rows)
    assert {url for url in printed if f'"{url}"' not in page} == set()


QUICK = ("assemblyai", "fal", "revai")
"""One for each place of the callback: JSON after an upload, a query over TLS, a part of a form. Deepgram's has tests of its own."""


@pytest.mark.parametrize("names", [QUICK, pytest.param((*PROVIDERS,), marks=pytest.mark.soak)])
async def test_python_packages(tmp_path: Path, names: Sequence[str]) -> None:
    have = {name: version(name) for name in WANTED}
    if have != WANTED:
        pytest.skip(f"`make test` installs what is pinned; here is {have}")
    async with way(tmp_path) as road:
        snippets = road.snippets("python")
        given = json.dumps({name: snippets[name] for name in names}).encode()
        printed = await road.run(sys.executable, str(SDKS / "snippets.py"), given=given)
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"name"')]
        told = {line["name"]: line.get("job") for line in lines}
        assert all(told.get(name) for name in names), printed
        await judged(road, told)


@pytest.mark.soak
async def test_node_packages(tmp_path: Path) -> None:
    node, folder = shutil.which("node"), SDKS / "node"
    if node is None or not (folder / "node_modules").is_dir():
        pytest.skip("`make sdks` installs the packages for Node.js, where that is here")
    async with way(tmp_path) as road:
        told = {}
        for name, code in road.snippets("js").items():
            printed = await road.run(node, "--input-type=module", "-e", code, folder=folder)
            told[name] = printed.split()[-1]
            assert told[name] == f"{name}-1", printed
        assert set(told) == set(PROVIDERS) - {"deepdub"}
        await judged(road, told, without_ref="speechmatics")


def version(name: str) -> str | None:
    """Return the version of a package that is installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
