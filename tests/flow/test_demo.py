"""`receiver demo`: the main job, end to end, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from receiver.core.errors import ReceiverError
from receiver.demo import demo
from receiver.demo.stage import STEPS, Child, Stage, clean_environment, fresh_folder, leave
from tests.support.house import ForkedChild


def test_the_demo_plays_every_step_and_ends_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    words = ["--config", str(tmp_path / "elsewhere.toml"), "demo", "--folder", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "receiver", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=clean_environment(os.environ) | {"RECEIVER__SERVER__PORT": "1", "PORT": "2"},
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for step in range(1, STEPS + 1):
        assert f"\n{step}/{STEPS}  " in done.stdout
    assert "All of it as promised" in done.stdout
    assert "the wrong password: refused with 401" in done.stdout
    assert "SHA-256 as sent" in done.stdout
    config = folder / "receiver.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    listed = subprocess.run(
        [sys.executable, "-m", "receiver", "--config", config, "deliveries", "--json"],
        capture_output=True,
        check=True,
    )
    states = [delivery["state"] for delivery in json.loads(listed.stdout)["items"]]
    assert set(states) == {"delivered"}
    assert len(states) >= 10
    for provider in ("Deepgram", "deAPI", "Deepdub", "PlayHT"):
        assert provider in done.stdout
    fresh_folder(folder)
    assert [path.name for path in folder.iterdir()] == [".receiver-demo"], "a rerun begins afresh"


def test_a_broken_promise_is_told_and_ends_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an application that hangs on to another secret, nothing is ever delivered."""
    started: list[tuple[Child, Child]] = []

    def start_with_wrong_secret(stage: Stage) -> None:
        stage.app_secret = "whsec_" + "A" * 44
        start_app(stage)
        monkeypatch.setattr("receiver.demo.stage.TIMEOUT_SECONDS", 3.0)
        started.append((stage.receiver, stage.app))

    start_app = Stage.start_app
    monkeypatch.setattr("receiver.demo.stage.Child", ForkedChild)
    monkeypatch.setattr(Stage, "start_app", start_with_wrong_secret)
    before = signal.getsignal(signal.SIGTERM)
    assert demo.show(tmp_path / "shown", stay=False) == 1
    said = capsys.readouterr().out
    assert "Not as promised: the application never got evt_" in said
    assert "receiver.log" in said
    assert [child.status is not None for child in started[0]] == [True, True], "no process is left"
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_a_folder_that_a_demo_made_is_removed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").write_text("x")
    with pytest.raises(ReceiverError, match="was not made by the demo"):
        fresh_folder(theirs)
    link = tmp_path / "link"
    link.symlink_to(theirs)
    with pytest.raises(ReceiverError, match="is not a folder"):
        fresh_folder(link)
    with pytest.raises(ReceiverError, match="is not a folder"):
        fresh_folder(theirs / "precious")
    assert (theirs / "precious").read_text() == "x"


def test_a_folder_in_which_a_demo_runs_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    fresh_folder(folder)
    (folder / "kept").touch()
    (folder / ".receiver-demo").write_text(str(os.getppid()))
    with pytest.raises(ReceiverError, match="a demo is running"):
        fresh_folder(folder)
    assert (folder / "kept").exists()
    leave(folder)
    fresh_folder(folder)
    assert not (folder / "kept").exists()
