"""A folder with settings, the command line run on it, and the processes that it starts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import typer.main

from receiver import __main__ as cli
from receiver.demo.stage import Child, clean_environment
from tests.support.forking import ForkedPopen
from tests.support.patience import PATIENCE
from tests.support.ports import free_port

# Typer builds the commands anew for each call, which is most of what a short one takes; a process makes one call.
typer.main.get_command = cache(typer.main.get_command)

DEAPI_SECRET = "deapi-account-secret-0123456789"
API_KEY = "the-key-of-every-provider-0123456789"
PUBLIC = "https://hooks.example.com"
MAIN = [sys.executable, "-m", "receiver"]


@dataclass
class Said:
    """What one command printed, and its status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def items(self) -> Any:
        """The things of a list."""
        return self.json["items"]


def receiver(*words: object) -> Said:
    """Run a command in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["receiver", *map(str, words)]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
    return Said(status, out.getvalue(), err.getvalue())


class ForkedChild(Child):
    """A `Child` that starts without its imports."""

    def _spawn(
        self, module: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        return cast("subprocess.Popen[bytes]", ForkedPopen(module, arguments, env))


@dataclass
class House:
    """A folder with settings, and the processes that run on them."""

    folder: Path
    app_port: int
    secrets: list[str]
    children: list[Child] = field(default_factory=list)
    base: str = ""

    @property
    def config(self) -> str:
        return str(self.folder / "receiver.toml")

    def run(self, *words: object) -> Said:
        return receiver("--config", self.config, *words)

    def start(self, *words: str) -> Child:
        """Start receiver and wait until it is ready; audio links point to this machine."""
        own = {"RECEIVER__PUBLIC_URL": "", "RECEIVER__DESTINATIONS__APP__RETRY": "{schedule = []}"}
        child = ForkedChild(
            "receiver",
            ["--config", self.config, *words],
            log=str(self.folder / "receiver.log"),
            env=clean_environment(os.environ) | own,
        )
        self.children.append(child)
        ready = child.wait_for(lambda line: line.get("event") == "receiver.ready", seconds=PATIENCE)
        assert ready, (self.folder / "receiver.log").read_text()
        if "url" in ready:
            self.base = ready["url"]
        return child

    def start_app(self) -> Child:
        """Start the sample application."""
        child = ForkedChild(
            "receiver.demo.application",
            ["--port", str(self.app_port)],
            log=str(self.folder / "app.log"),
            env=clean_environment(os.environ) | {"SAMPLE_APP_SECRET": self.secrets[1]},
        )
        self.children.append(child)
        assert child.wait_for(lambda line: line["got"] == "ready", seconds=PATIENCE)
        return child

    def simulate(self, *words: object) -> dict[str, Any]:
        """Play a provider; return the answer to the last try."""
        said = self.run("simulate", *words, "--url", self.base, "--json", "--time-scale", "0")
        assert said.status == 0, said.out + said.err
        answer: dict[str, Any] = json.loads(said.json[-1]["answer"])
        return answer

    def close(self) -> None:
        for child in self.children:
            child.stop()


def _sources() -> str:
    """Return the sources that are asked, each at a free port of this machine."""
    deapi, deepdub, playht = free_port(), free_port(), free_port()
    local = 'allow = ["127.0.0.0/8"]'
    return f"""
[sources.deapi]
provider = "deapi"
secrets = ["{DEAPI_SECRET}"]
api_key = "{API_KEY}"
api_url = "http://127.0.0.1:{deapi}"
result_hosts = ["127.0.0.1"]
{local}

[sources.deepdub]
provider = "deepdub"
api_key = "{API_KEY}"
base_url = "http://127.0.0.1:{deepdub}/api/v1"
{local}

[sources.playht]
provider = "playht"
api_key = "{API_KEY}"
user_id = "somebody"
base_url = "http://127.0.0.1:{playht}/api/v2"
result_hosts = ["127.0.0.1"]
{local}
"""


def build_house(folder: Path) -> House:
    port = free_port()
    config = folder / "receiver.toml"
    said = receiver(
        "init", "--path", config, "--public-url", PUBLIC, "--app-url", f"http://127.0.0.1:{port}/hooks"
    )
    assert said.status == 0, said.err
    text = config.read_text().replace('"receiver-data"', f'"{folder}/data"')
    config.write_text(text + _sources())
    fields = tomllib.loads(config.read_text())
    basic, app = fields["sources"]["deepgram"]["basic"][0], fields["destinations"]["app"]["secrets"][0]
    return House(
        folder, port, [basic.partition(":")[2], app, fields["tokens"]["secrets"][0], DEAPI_SECRET, API_KEY]
    )
