"""What `deploy/` says holds, as far as it can be known without Docker and without systemd running."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]

from receiver.__main__ import app
from receiver.app import wiring
from receiver.settings.load import parse
from receiver.settings.model import Settings
from tests.docs.deploying import DEPLOY, example, no_file, unit
from tests.docs.reading import ROOT
from tests.support.house import receiver
from tests.support.ports import free_port
from tests.support.running import running

DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("receiver-1", "receiver-2", "migrate")
VARIABLE = re.compile(r"\$\{(\w+)[^}]*\}")


def filled(text: str) -> str:
    """Put the example's values in, as Compose does."""
    return VARIABLE.sub(lambda found: example()[found[1]], text)


# ---------------------------------------------------------------- the image


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^ *#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [
        (line.split(None, 1)[0], line.split(None, 1)[1].strip())
        for line in joined.splitlines()
        if line.strip()
    ]


def last(name: str) -> str:
    """Return the arguments of the last instruction of that name: the one that counts."""
    return [argument for one, argument in instructions() if one == name][-1]


def image_environ() -> dict[str, str]:
    """Return the variables that the image sets."""
    return dict(word.split("=", 1) for word in shlex.split(last("ENV")))


def test_the_image_runs_as_nobody_special_and_gets_signals_itself() -> None:
    final = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(final)["USER"])
    assert json.loads(dict(final)["ENTRYPOINT"]) == ["receiver"]
    assert json.loads(dict(final)["CMD"])[0] == "serve"
    assert dict(final)["STOPSIGNAL"] == "SIGTERM"
    assert not [argument for name, argument in final if name == "RUN" and "pip install" in argument]


async def test_the_image_keeps_its_data_on_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any settings file all that receiver makes lies there, the journal with it, which must outlive the container."""
    [volume] = json.loads(last("VOLUME"))
    assert last("WORKDIR") == volume
    monkeypatch.chdir(tmp_path)
    made = wiring.build(parse(None, image_environ(), no_file), observers=[])
    await made.store.migrate()
    await made.store.open()
    await made.blobs.open()
    await made.journal.open()
    made.bodies.open()
    await made.blobs.close()
    await made.store.close()
    assert os.listdir(tmp_path) == ["receiver-data"]
    there = {str(path.relative_to(tmp_path / "receiver-data")) for path in tmp_path.rglob("*")}
    assert there >= {"receiver.db", "blobs", "journal", "journal/spool", "token-secret"}
    for name in ("receiver-1", "receiver-2"):
        assert [one for one in SERVICES[name]["volumes"] if one == f"{name}:{volume}"]
        assert name in COMPOSE["volumes"]


def test_the_settings_file_says_where_the_data_lies() -> None:
    """A variable of the image's own would beat it."""
    assert parse('data = "/srv/receiver"', image_environ(), no_file).data == "/srv/receiver"


def test_what_is_copied_is_there_and_let_through_and_nothing_else_is() -> None:
    """`.dockerignore` names what may leave the folder; settings, data and secrets may not."""
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] not in "#"]
    assert rules[0] == "*"
    open_ = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for name, argument in instructions()
        if name == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    }
    assert copied == open_
    assert all((ROOT / source).exists() for source in copied)
    assert not [secret for secret in ("receiver.toml", "deploy/.env", "receiver-data") if secret in open_]


def test_the_image_takes_locked_packages_alone() -> None:
    """Downloads are checked by hash, and nothing is installed but from them; the parts it names are parts of receiver."""
    runs = [argument for name, argument in instructions() if name == "RUN" and "pip " in argument]
    assert "--require-hashes" in runs[0]
    assert "-r requirements.lock" in runs[0]
    assert [run for run in runs if "pip install" in run and "--no-index" in run]
    assert not [run for run in runs if "pip install" in run and "--no-index" not in run]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = next(argument for name, argument in instructions() if argument.startswith("EXTRAS="))
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(project["optional-dependencies"])
    assert SERVICES["receiver-1"]["build"]["args"]["EXTRAS"] == extras.removeprefix("EXTRAS=")


async def test_the_images_health_check_tells_a_live_receiver_from_none(tmp_path: Path) -> None:
    """The very command, run as Docker would."""
    command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"

    async def asked(port: str) -> int:
        environ = {"PORT": port, "http_proxy": "http://127.0.0.1:9"}
        asking = await asyncio.create_subprocess_exec(
            sys.executable, *command[1:], env=environ, stderr=asyncio.subprocess.DEVNULL
        )
        return await asking.wait()

    async with running(tmp_path, work=False) as up:
        assert await asked(up.base.rpartition(":")[2]) == 0
    assert await asked(str(free_port())) != 0


# ---------------------------------------------------------------- compose

SERVICE_KEYS = {
    *("build", "cap_add", "cap_drop", "command", "configs", "depends_on", "deploy", "entrypoint", "env_file"),
    *("environment", "expose", "healthcheck", "hostname", "image", "init", "labels", "logging", "networks"),
    *("pids_limit", "ports", "profiles", "read_only", "restart", "secrets", "security_opt", "shm_size"),
    *("stop_grace_period", "stop_signal", "tmpfs", "ulimits", "user", "volumes", "working_dir"),
}
"""Of https://github.com/compose-spec/compose-spec/blob/main/spec.md: what a service may say, deprecated keys left out."""


def test_the_keys_are_those_of_the_compose_specification() -> None:
    tops = {"name", "services", "networks", "volumes", "configs", "secrets"}
    assert {key for key in COMPOSE if not key.startswith("x-")} <= tops
    for name, service in SERVICES.items():
        assert set(service) <= SERVICE_KEYS, name
        assert set(service.get("healthcheck", {})) <= {
            *("disable", "interval", "retries", "start_period", "test", "timeout")
        }
        assert set(service["deploy"]) == {"resources"}
        needs: dict[str, dict[str, str]] = service.get("depends_on", {})
        assert set(needs) <= set(SERVICES)
        assert {need["condition"] for need in needs.values()} <= {
            *("service_healthy", "service_completed_successfully")
        }
        assert set(service["networks"]) <= set(COMPOSE["networks"])


def test_every_container_is_held_small() -> None:
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    for name in (*OURS, "caddy"):
        assert SERVICES[name]["read_only"]
    assert not [name for name in OURS if "cap_add" in SERVICES[name] or "ports" in SERVICES[name]]
    assert COMPOSE["networks"]["back"]["internal"]


def test_what_is_waited_for_can_be_healthy() -> None:
    """A dependency on health needs a probe: the image's own, or one that is written here."""
    for service in SERVICES.values():
        for name, need in service.get("depends_on", {}).items():
            if need["condition"] == "service_healthy":
                assert name in OURS or SERVICES[name]["healthcheck"]["test"]


def test_the_files_mounted_are_there_and_what_is_mounted_is_declared() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
    assert (DEPLOY / SERVICES["receiver-1"]["build"]["context"]).resolve() == ROOT


def test_the_example_names_every_variable_that_compose_asks_for_and_holds_no_secret() -> None:
    asked = set(VARIABLE.findall((DEPLOY / "compose.yaml").read_text("utf-8")))
    assert asked == set(example())
    for name, value in example().items():
        shown = base64.b64decode(value[6:]).decode() if value.startswith("whsec_") else value
        assert re.search("example", shown, re.IGNORECASE), name
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert [line for line in ignored if fnmatch.fnmatch(".env", line)], (
        "a real deploy/.env could be committed"
    )


def settings_of(name: str) -> Settings:
    """Return the settings that one of our containers would start with."""
    environ = {key: filled(value) for key, value in SERVICES[name]["environment"].items()}
    mounted = next(one for one in SERVICES[name]["volumes"] if f":{environ['RECEIVER_CONFIG']}" in one)
    return parse((DEPLOY / mounted.split(":")[0]).read_text("utf-8"), environ, no_file)


def test_the_receivers_find_their_settings_and_share_what_they_must() -> None:
    """All of them sign alike, and trust the addresses of the network in which Caddy calls."""
    first = settings_of("receiver-1")
    assert first == settings_of("receiver-2") == settings_of("migrate")
    assert first.tokens.secrets
    subnet = COMPOSE["networks"]["edge"]["ipam"]["config"][0]["subnet"]
    assert subnet in first.server.trusted_proxies
    assert first.store.url is not None
    assert "@postgres:5432/" in first.store.url.get_secret_value()


def seconds(text: str) -> float:
    """Return the seconds of `35s`."""
    return float(text.removesuffix("s"))


def test_who_stops_a_receiver_waits_long_enough() -> None:
    """And the ingress sees that it is stopping while it still takes callbacks."""
    server = settings_of("receiver-1").server
    needed = server.drain_seconds + server.stop_seconds
    assert seconds(SERVICES["receiver-1"]["stop_grace_period"]) > needed
    assert float(unit()["TimeoutStopSec"][0]) > needed
    caddy = (DEPLOY / "Caddyfile").read_text("utf-8")
    told = {name: seconds(value) for name, value in re.findall(r"health_(interval|timeout) (\w+)", caddy)}
    assert told["interval"] + told["timeout"] < server.drain_seconds


def test_caddy_is_told_where_the_receivers_are() -> None:
    port = re.search(r"\bPORT=(\d+)", last("ENV"))
    assert port
    assert SERVICES["caddy"]["environment"]["UPSTREAMS"].split() == [
        f"{name}:{port[1]}" for name in ("receiver-1", "receiver-2")
    ]


def test_the_update_told_is_one_rolling_deploy() -> None:
    """As docs/operating.md has it: the tables first, then one receiver after the other, each waited for."""
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    told = re.findall(r"# +docker compose -f deploy/compose\.yaml (.+)", text.partition("services:")[2])
    assert [line.split()[0] for line in told] == ["build", "run", "up", "up"]
    assert [line.split()[-1] for line in told[1:]] == ["migrate", "receiver-1", "receiver-2"]
    assert "--rm" in told[1]
    assert all({"--detach", "--no-deps", "--wait"} == set(line.split()[1:-1]) for line in told[2:])


# ---------------------------------------------------------------- commands


def lines_that_run() -> list[tuple[str, list[str]]]:
    """Return every command line of receiver in these files."""
    unit_line = shlex.split(unit()["ExecStart"][0])
    assert unit_line[0].endswith("/receiver")
    found = [("receiver.service", unit_line[1:]), ("Dockerfile", json.loads(last("CMD")))]
    found += [(f"compose.yaml {name}", s["command"]) for name, s in SERVICES.items() if name == "migrate"]
    procfile = (ROOT / "Procfile").read_text("utf-8").splitlines()
    return found + [(f"Procfile {line.split(':')[0]}", shlex.split(line)[2:]) for line in procfile]


@pytest.mark.parametrize("command", ["serve", "work"])
def test_a_port_that_kubernetes_made_up_is_no_port(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Service named `receiver` puts its address into RECEIVER_PORT of every pod; a port that a person mistyped is told."""
    words = ("--config", tmp_path / "none.toml", command)
    for link in ("tcp://10.96.0.7:8080", "udp://[fd00::7]:8080"):
        monkeypatch.setenv("RECEIVER_PORT", link)
        assert "E001" in receiver(*words).err
    monkeypatch.setenv("RECEIVER_PORT", "808O")
    assert "--port" in receiver(*words).err


def test_the_procfile_has_a_web_and_a_worker() -> None:
    procfile = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text("utf-8").splitlines())
    assert {name: line.split()[:2] for name, line in procfile.items()} == {
        "web": ["receiver", "serve"],
        "worker": ["receiver", "work"],
    }


def test_the_commands_are_receivers_with_its_flags() -> None:
    for where, words in lines_that_run():
        command: Any = typer.main.get_command(app)
        for word in words:
            if word.startswith("--"):
                assert [p for p in command.params if word in p.opts], f"{where}: {word}"
            elif word in getattr(command, "commands", {}):
                command = command.commands[word]
        assert command.name in ("serve", "work", "migrate"), where


def test_a_shell_finds_the_folder_that_the_service_uses() -> None:
    """`receiver journal list` and `receiver erase` must look where the service keeps its journal."""
    told = tomllib.loads((DEPLOY / "receiver.toml").read_text("utf-8"))["data"]
    assert told == "/var/lib/" + unit()["StateDirectory"][0] == json.loads(last("VOLUME"))[0]
