"""The systemd units of `deploy/`, and the shell function around one of them, as far as they can be tried without systemd running."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from receiver.settings.load import parse
from tests.docs.deploying import DEPLOY, UNITS, example, no_file, unit
from tests.docs.reading import ROOT, Page
from tests.support.ingress import Child


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
    own = {"Description", "Type", "ExecStart", "EnvironmentFile", "StandardOutput", "StandardError", "After"}
    command, *environment = run["Environment"]
    assert (command, environment) == ("COMMAND=check", service["Environment"])
    assert {n: v for n, v in run.items() if n not in {*own, "Environment"}}.items() <= service.items()
    kept = {"StartLimitIntervalSec", "KillSignal", "TimeoutStopSec", "Restart", "RestartSec", "WantedBy"}
    kept |= {"LimitNOFILE", "MemoryHigh", "ExecReload"}
    assert service.keys() - run.keys() == kept
    assert set(run["After"]) < set(service["After"])


def test_a_service_that_ends_is_started_again_whatever_its_status() -> None:
    """A clock or a name service that is wrong right after a boot ends it with status 2, as wrong settings do."""
    service = unit()
    assert (service["Restart"], service["RestartSec"]) == (["always"], ["5"])
    assert service["StartLimitIntervalSec"] == ["0"]
    assert not service.keys() & {"RestartPreventExitStatus", "SuccessExitStatus", "RestartForceExitStatus"}
    assert "time-sync.target" in service["After"]
    # systemd.special(7): who needs the time is ordered after this target, "but not pull it in".
    assert "time-sync.target" not in " ".join(service["Wants"])


def test_the_service_listens_where_the_ingress_samples_call_and_nowhere_else() -> None:
    """They are on the same machine; another one must not get past them."""
    command = shlex.split(unit()["ExecStart"][0])
    assert command[command.index("serve") :] == ["serve"]
    assert shlex.split(unit()["ExecReload"][0]) == [*command[:-1], "reload"]
    environ = example() | {"DATABASE_URL": "postgresql://receiver@127.0.0.1/receiver"}
    settings = parse((DEPLOY / "receiver.toml").read_text("utf-8"), environ, no_file)
    address = f"{settings.server.host}:{settings.server.port}"
    caddy = re.search(r"\{\$UPSTREAMS:([^}]+)\}", (DEPLOY / "Caddyfile").read_text("utf-8"))
    nginx = re.findall(r"^    server (\S+) ", (DEPLOY / "nginx.conf").read_text("utf-8"), re.MULTILINE)
    assert caddy
    assert caddy[1] == nginx[0] == address
    assert {one.partition(":")[0] for one in nginx} == {"127.0.0.1"}


STUBS = {
    "systemctl": """#!/bin/sh
echo "$*" >> {run}/called
stat --format=%a {run}/receiver-command {run}/receiver-output >> {run}/called
sed s/COMMAND=// {run}/receiver-command >> {run}/called
echo 'https://deepgram:password@hooks.example.com/callbacks/deepgram/token' > {run}/receiver-output
exit 3
""",
    "journalctl": """#!/bin/sh
test "$1" = --sync || echo 'what it warned of'
""",
}
"""What the function calls: `systemctl` does as the unit would, and ends with the command's status."""


def test_what_a_command_prints_comes_to_the_caller_alone(tmp_path: Path) -> None:
    """The function of deploy/README.md, with `/run` in a folder here: no file that others may read, and none that stays."""
    assert unit(UNITS[1])["StandardOutput"] == ["truncate:/run/receiver-output"]
    assert unit(UNITS[1])["StandardError"] == ["journal"], "it would go where stdout goes"
    path = DEPLOY / "README.md"
    shown = next(b for b in Page(path, path.read_text("utf-8")).blocks("sh") if "receiver_run() {" in b)
    function = shown[: shown.index("\n}\n") + 3].replace("/run/", f"{tmp_path}/run/")
    (tmp_path / "run").mkdir()
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text.replace("{run}", f"{tmp_path}/run"))
        (tmp_path / name).chmod(0o755)
    said = subprocess.run(
        ["sh", "-c", f"{function}receiver_run callback-url deepgram --ref order-42"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr) == (3, "what it warned of\n")
    assert said.stdout == "https://deepgram:password@hooks.example.com/callbacks/deepgram/token\n"
    called = (tmp_path / "run" / "called").read_text().splitlines()
    assert called == ["start receiver-run", "600", "600", "callback-url deepgram --ref order-42"]
    assert os.listdir(tmp_path / "run") == ["called"]


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
