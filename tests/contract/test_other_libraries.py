"""What a destination is sent is read by libraries that others wrote: Standard Webhooks in Python, Node.js and Go, CloudEvents' SDK."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook

from receiver.core.webhook import new_webhook_secret
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.model import DestinationSettings
from tests.contract.destination_suite import event
from tests.support.s3 import environment
from tests.support.sink import Received, Sink

BODY = event(1, job_id="job 1/ä", ref='"Straße" 100% ☃')
FIRST, SECOND, PAIR = new_webhook_secret(), new_webhook_secret(), new_webhook_secret(pair=True)
FORMS = ([FIRST], [SECOND, FIRST], [PAIR, FIRST], [FIRST, SECOND, PAIR])
"""Secrets of a destination, each with the one that an application checks with, `FIRST`."""

NODE = """
const { Webhook } = require("standardwebhooks");
for (const { secret, headers, body } of JSON.parse(require("fs").readFileSync(0))) {
  const bytes = Buffer.from(body, "base64");
  new Webhook(secret).verify(bytes.toString(), headers);
  try { new Webhook(secret).verify(bytes.toString() + " ", headers); process.exit(1); } catch {}
}
"""
GO = """package main

import (
	"encoding/json"
	"net/http"
	"os"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func main() {
	var cases []struct {
		Secret  string
		Headers map[string]string
		Body    []byte
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	for _, one := range cases {
		headers := http.Header{}
		for name, value := range one.Headers {
			headers.Set(name, value)
		}
		wh, err := webhooks.NewWebhook(one.Secret)
		if err != nil {
			panic(err)
		}
		if err := wh.Verify(one.Body, headers); err != nil {
			panic(err)
		}
		if wh.Verify(append(one.Body, ' '), headers) == nil {
			panic("a changed body was accepted")
		}
	}
}
"""


async def sent(**fields: object) -> Received:
    """Return what a destination is sent."""
    async with Sink() as sink:
        about = {"name": "app", "url": sink.url, "allow": ["127.0.0.0/8"]} | fields
        destination = HttpDestination(DestinationSettings.model_validate(about))
        await destination.open()
        await destination.send("evt_1", BODY, timestamp=time.time_ns() // 1_000_000)
        await destination.close()
    (came,) = sink.received
    return came


@pytest.mark.parametrize("secrets", FORMS)
async def test_standard_webhooks_for_python_accepts_every_form(secrets: list[str]) -> None:
    came = await sent(secrets=secrets)
    assert Webhook(FIRST).verify(came.body.decode(), dict(came.headers)) == json.loads(BODY)


async def _cases() -> str:
    cases = []
    for secrets in FORMS:
        came = await sent(secrets=secrets)
        headers = {name.lower(): value for name, value in came.headers.items()}
        cases.append({"secret": FIRST, "headers": headers, "body": base64.b64encode(came.body).decode()})
    return json.dumps(cases)


def _run(command: list[str], folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        input=text,
        text=True,
        capture_output=True,
        timeout=300,
        env=environment(),
        check=False,
    )


@pytest.mark.soak
@pytest.mark.parametrize(
    ("tool", "get", "file", "program", "run"),
    [
        ("npm", ["npm", "install", "standardwebhooks@1.1.0"], "check.js", NODE, ["node", "check.js"]),
        (
            "go",
            ["go", "get", "github.com/standard-webhooks/standard-webhooks/libraries@v0.0.1"],
            "main.go",
            GO,
            ["go", "run", "."],
        ),
    ],
    ids=["node", "go"],
)
async def test_standard_webhooks_for_other_languages_accepts_every_form(
    tmp_path: Path, tool: str, get: list[str], file: str, program: str, run: list[str]
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "go.mod").write_text("module check\n\ngo 1.21\n")
    (tmp_path / file).write_text(program)
    if (got := _run(get, tmp_path)).returncode:
        pytest.skip(f"{tool} cannot fetch the library: {got.stderr[-200:]}")
    done = _run(run, tmp_path, await _cases())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["cloudevents", "cloudevents-binary"])
async def test_the_sdk_of_cloudevents_reads_both_modes(mode: str) -> None:
    came = await sent(format=mode)
    read = from_http_event(
        HTTPMessage(headers={k.lower(): v for k, v in came.headers.items()}, body=came.body)
    )
    assert (read.get_id(), read.get_type(), read.get_source()) == (
        "evt_1",
        "speech.completed",
        "/sources/deepgram",
    )
    whole = json.loads(BODY)
    assert read.get_data() == whole["data"]
    assert read.get_subject() == "job 1/ä"
    time_ = read.get_time()
    assert time_ is not None
    assert time_.isoformat(timespec="milliseconds").replace("+00:00", "Z") == whole["timestamp"]
