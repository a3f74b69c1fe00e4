"""What `deploy/` says holds, as far as it can be known without Docker and without systemd running."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]

from receiver.cli.app import app
from receiver.config import Settings, parse
from tests.docs.reading import ROOT
from tests.support.ingress import Child
from tests.support.running import free_port, running

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("receiver-1", "receiver-2", "migrate")
VARIABLE = re.compile(r"\$\{(\w+)[^}]*\}")


def example() -> dict[str, str]:
    """Return the variables of `example.env`."""
    lines = (DEPLOY / "example.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


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


def test_the_image_runs_as_nobody_special_and_gets_signals_itself() -> None:
    final = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(final)["USER"])
    assert json.loads(dict(final)["ENTRYPOINT"]) == ["receiver"]
    assert json.loads(dict(final)["CMD"])[0] == "serve"
    assert dict(final)["STOPSIGNAL"] == "SIGTERM"
    assert not [argument for name, argument in final if name == "RUN" and "pip install" in argument]


def test_the_image_keeps_its_data_on_a_volume() -> None:
    """The journal with it, which must outlive the container."""
    [volume] = json.loads(last("VOLUME"))
    assert f"RECEIVER__DATA={volume}" in last("ENV")
    for name in ("receiver-1", "receiver-2"):
        assert [one for one in SERVICES[name]["volumes"] if one == f"{name}:{volume}"]
        assert name in COMPOSE["volumes"]


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
    return parse((DEPLOY / mounted.split(":")[0]).read_text("utf-8"), environ, _no_file)


def _no_file(path: str) -> str:
    raise FileNotFoundError(path)


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


# ---------------------------------------------------------------- commands


def lines_that_run() -> list[tuple[str, list[str]]]:
    """Return every command line of receiver in these files."""
    unit_line = shlex.split(unit()["ExecStart"][0])
    assert unit_line[0].endswith("/receiver")
    found = [("receiver.service", unit_line[1:]), ("Dockerfile", json.loads(last("CMD")))]
    found += [(f"compose.yaml {name}", s["command"]) for name, s in SERVICES.items() if name == "migrate"]
    procfile = (ROOT / "Procfile").read_text("utf-8").splitlines()
    return found + [(f"Procfile {line.split(':')[0]}", shlex.split(line)[2:]) for line in procfile]


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


# ---------------------------------------------------------------- systemd


UNITS = ("receiver.service", "receiver-run.service")


def unit(name: str = UNITS[0]) -> dict[str, list[str]]:
    """Return a unit's settings; a setting may be there more than once."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text("utf-8").splitlines():
        name, mark, value = line.partition("=")
        if mark and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_gives_every_secret_as_a_credential() -> None:
    """`receiver.toml` with the unit's environment: no variable is missing, every file read is a credential."""
    credentials = {value.split(":")[0] for value in unit()["LoadCredential"]}
    lines = [word for value in unit()["Environment"] for word in shlex.split(value)]
    environ = dict(line.replace("%d", "/creds").replace("%S", "/var/lib").split("=", 1) for line in lines)
    read: set[str] = set()

    def credential(path: str) -> str:
        name = Path(path).name
        assert str(Path(path).parent) == "/creds"
        read.add(name)
        return example()["APP_URL" if name == "app-url" else "APP_WEBHOOK_SECRET"]

    settings = parse((DEPLOY / "receiver.toml").read_text("utf-8"), environ, credential)
    assert settings.data == "/var/lib/" + unit()["StateDirectory"][0]
    assert read | {Path(environ["AWS_SHARED_CREDENTIALS_FILE"]).name} == credentials


def test_single_commands_run_as_the_service_does() -> None:
    """The same user, folder, secrets and confinement; what says how long a service lives is its own."""
    service, run = (unit(name) for name in UNITS)
    assert shlex.split(run["ExecStart"][0])[:3] == shlex.split(service["ExecStart"][0])[:3]
    own = {"Description", "Type", "ExecStart", "EnvironmentFile"}
    command, *environment = run["Environment"]
    assert (command, environment) == ("COMMAND=check", service["Environment"])
    assert {n: v for n, v in run.items() if n not in {*own, "Environment"}}.items() <= service.items()
    kept = {"StartLimitIntervalSec", "KillSignal", "TimeoutStopSec", "Restart", "RestartSec", "WantedBy"}
    kept |= {"RestartPreventExitStatus", "LimitNOFILE", "MemoryHigh"}
    assert service.keys() - run.keys() == kept


def test_a_shell_finds_the_folder_that_the_service_uses() -> None:
    """`receiver journal list` and `receiver erase` must look where the service keeps its journal."""
    told = tomllib.loads((DEPLOY / "receiver.toml").read_text("utf-8"))["data"]
    assert told == "/var/lib/" + unit()["StateDirectory"][0] == json.loads(last("VOLUME"))[0]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd's own check needs systemd")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units_and_calls_them_well_held(tmp_path: Path, name: str) -> None:
    text = (DEPLOY / name).read_text("utf-8")
    path = tmp_path / name
    path.write_text(re.sub(r"/opt/receiver/bin/receiver", sys.executable, text))
    verified = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, [x for x in verified.stderr.splitlines() if name in x]) == (
        0,
        [],
    )
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout


MDWE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) and sys.exit(77); os.execv(sys.argv[1], sys.argv[1:])"
"""Runs a program without memory that is both written and run: PR_SET_MDWE of prctl(2), since Linux 6.3."""


async def test_receiver_starts_without_memory_that_is_written_and_run(tmp_path: Path) -> None:
    """The unit's MemoryDenyWriteExecute."""
    assert unit()["MemoryDenyWriteExecute"] == ["yes"]
    serve = [sys.executable, "-m", "receiver", "serve", "--port", "0"]
    child = await Child.start(
        [sys.executable, "-c", MDWE, *serve], os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path
    )
    try:
        await child.until(
            lambda lines: any("receiver.ready" in line for line in lines) or bool(child.process.returncode)
        )
    finally:
        status = await child.stop()
    if status == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert status == 0
