"""schemathesis asks every route what the OpenAPI document allows and what it does not: no 5xx, no undocumented answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.running import api_token, running, settings_text
from tests.support.senders import deapi, speech, transcript

TOKEN = "a-token-of-some-length"
LONG = ["--phases", "coverage,fuzzing,stateful", "--mode", "all", "--max-examples", "50"]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["--phases", "fuzzing", "--mode", "positive", "--max-examples", "2"], id="quick"),
        pytest.param(LONG, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
async def test_schemathesis_finds_nothing(tmp_path: Path, how: list[str]) -> None:
    """What fits the document may still be refused: no schema says which sources there are, or that a filter is wanted."""
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks", extra=api_token("all", TOKEN))
    async with running(tmp_path, text, work=False) as up:
        for sent in (transcript("a"), speech("b"), deapi("c")):
            await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
        words = ["run", f"{up.base}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"]
        words += ["--exclude-path", "/api/v1/stream"]  # it does not end, and test_tail.py reads it
        words += ["--exclude-checks", "positive_data_acceptance", "--no-color", "--seed", "1", *how]
        program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *words),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await child.communicate()
    assert child.returncode == 0, said.decode()[-20_000:]
