"""`receiver demo`: the main job, end to end, in processes of its own."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from receiver.core.errors import ReceiverError
from receiver.demo import demo
from receiver.demo.stage import STEPS, Child, Stage, clean_environment, fresh_folder, leave
from tests.support.forking import ForkedPopen
from tests.support.house import MAIN, ForkedChild, Said, receiver


def _whole(words: list[str], _: pytest.MonkeyPatch) -> Said:
    """Run the command as a user does."""
    done = subprocess.run([*MAIN, *words], capture_output=True, text=True, check=False, timeout=170)
    return Said(done.returncode, done.stdout, done.stderr)


def _forked(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Run it here; what it starts are processes, but without the time of their imports."""

    def call(
        stage: Stage, *words: str, capture_output: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[bytes]:
        environ = clean_environment(os.environ) | settings
        child = ForkedPopen("receiver.cli.app", ["--config", stage.config, *words], environ, errors=2)
        with child.stdout as out:
            printed = out.read()
        return subprocess.CompletedProcess(words, child.wait(60), printed, b"")

    monkeypatch.setattr("receiver.demo.stage.Child", ForkedChild)
    monkeypatch.setattr(Stage, "call", call)
    return receiver(*words)


@pytest.mark.parametrize("run", [_forked, pytest.param(_whole, marks=pytest.mark.soak)])
def test_the_demo_plays_every_step_and_ends_by_itself(
    run: Callable[[list[str], pytest.MonkeyPatch], Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shown"
    monkeypatch.setenv("RECEIVER__SERVER__PORT", "1")
    monkeypatch.setenv("PORT", "2")
    done = run(
        ["--config", str(tmp_path / "elsewhere.toml"), "demo", "--folder", str(folder), "--no-stay"],
        monkeypatch,
    )
    assert done.status == 0, done.out + done.err
    assert done.err == ""
    for step in range(1, STEPS + 1):
        assert f"\n{step}/{STEPS}  " in done.out
    assert "All of it as promised" in done.out
    assert "the wrong password: refused with 401" in done.out
    assert "SHA-256 as sent" in done.out
    config = folder / "receiver.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    monkeypatch.delenv("RECEIVER__SERVER__PORT")
    listed = receiver("--config", config, "deliveries", "--json").items
    states = [delivery["state"] for delivery in listed]
    assert set(states) == {"delivered"}
    assert len(states) >= 10
    for provider in ("Deepgram", "deAPI", "Deepdub", "PlayHT"):
        assert provider in done.out
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
