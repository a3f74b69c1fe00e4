"""`receiver secret rotate` puts a fresh secret beside the present ones, which sign until the overlap ends."""

from __future__ import annotations

import errno
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from receiver.cli.app import app
from receiver.core.errors import ReceiverError
from receiver.core.webhook import new_webhook_secret, webhook_key
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.load import load_settings

OLD = new_webhook_secret()
FILE = """# ours
[destinations.app]
url = "https://app.example.com/hooks"  # theirs
secrets = [
  SECRET,  # the first
  {secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz", until = 2020-01-01T00:00:00Z},
]
# after it
[destinations.other]
url = "https://other.example.com/hooks"
[destinations.archive]
kind = "stdout"
"""
HOUR = timedelta(hours=1)


def rotate(folder: Path, *arguments: str, secret: str = f'"{OLD}"', **environ: str) -> str:
    path = folder / "receiver.toml"
    if not path.exists():
        path.write_text(FILE.replace("SECRET", secret))
        path.chmod(0o640)
    command = ["--config", str(path), "secret", "rotate", *arguments]
    result = CliRunner().invoke(app, command, env={"APP_SECRET": OLD, **environ}, catch_exceptions=False)
    return result.output


def keys(folder: Path, name: str = "app", **environ: str) -> list[int]:
    """Return how many secrets sign now and after three hours, by the settings file."""
    settings = load_settings(str(folder / "receiver.toml"), {"APP_SECRET": OLD, **environ})
    signing = HttpDestination(settings.destinations[name])._keys
    now = datetime.now(UTC)
    times = [round((now + later).timestamp() * 1000) for later in (0 * HOUR, 3 * HOUR)]
    return [len(signing.headers("evt", at, b"").get("webhook-signature", "").split()) for at in times]


@pytest.mark.parametrize("pair", [False, True])
def test_the_file_is_changed_and_keeps_comments_order_and_mode(tmp_path: Path, pair: bool) -> None:
    made = json.loads(rotate(tmp_path, "app", "--overlap", "2h", "--json", *(["--pair"] if pair else [])))
    text = (tmp_path / "receiver.toml").read_text()
    before, after = FILE.split("secrets = [", maxsplit=1)[0], FILE[FILE.index("# after it") :]
    assert text.startswith(before)
    assert text.endswith(after)
    assert "# the first" in text
    assert "2020-01-01" not in text, "what has ended is left out"
    assert (tmp_path / "receiver.toml").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["receiver.toml"]
    assert keys(tmp_path) == [2, 1]
    assert (made["public_key"] or "").startswith("whpk_" if pair else "")
    assert webhook_key(made["secret"])
    assert made["secret"] in text


def test_a_secret_in_a_file_is_followed_by_a_file_for_the_same_readers(tmp_path: Path) -> None:
    (tmp_path / "app.secret").write_text(OLD)
    (tmp_path / "app.secret").chmod(0o440)
    told = rotate(tmp_path, "app", "--overlap", "2h", secret='"file:app.secret"')
    (fresh,) = tmp_path.glob("app.secret-*")
    assert fresh.stat().st_mode & 0o777 == 0o440
    assert fresh.read_text().strip() in told
    assert f"{tmp_path}/receiver.toml and {fresh}" in told
    assert keys(tmp_path) == [2, 1]
    rotate(tmp_path, "app")
    assert keys(tmp_path) == [3, 2], "once more for a day, and what was to end before does"


def test_a_secret_in_the_environment_is_told_with_the_variable_to_set(tmp_path: Path) -> None:
    told = rotate(tmp_path, "app", "--overlap", "2h", secret='"env:APP_SECRET"')
    path = tmp_path / "receiver.toml"
    assert path.read_text() == FILE.replace("SECRET", '"env:APP_SECRET"'), "nothing is changed"
    name = f"APP_SECRET_{datetime.now(UTC):%Y%m%d}"
    (fresh,) = [line.partition("=")[2] for line in told.splitlines() if line.startswith(f"{name}=")]
    setting = told[told.index("secrets = [") : told.index("]\n") + 1]
    path.write_text(f'[destinations.app]\nurl = "https://app.example.com/hooks"\n{setting}\n')
    assert keys(tmp_path, **{name: fresh}) == [2, 1]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_secret_that_stands_in_the_file_is_told_by_its_end_alone(tmp_path: Path, form: list[str]) -> None:
    told = rotate(tmp_path, "app", "--print", *form)
    assert (tmp_path / "receiver.toml").read_text() == FILE.replace("SECRET", f'"{OLD}"')
    assert OLD.removeprefix("whsec_")[:-4] not in told
    setting = json.loads(told)["setting"] if form else told
    assert f'secret = "…{OLD[-4:]}"' in setting
    assert form or "leave the secret that the file has" in told


def test_a_destination_without_secrets_gets_its_first_below_its_heading(tmp_path: Path) -> None:
    rotate(tmp_path, "other")
    text = (tmp_path / "receiver.toml").read_text()
    assert '# after it\n[destinations.other]\nsecrets = ["whsec_' in text
    assert keys(tmp_path, "other") == [1, 1]


@pytest.mark.parametrize(
    "heading",
    ["[ destinations . app ]\n", '[destinations."app"]\n', "[destinations]\napp.", "destinations.app."],
)
def test_a_destination_without_secrets_gets_its_first_however_its_heading_is_written(
    tmp_path: Path, heading: str
) -> None:
    (tmp_path / "receiver.toml").write_text(f'{heading}url = "https://app.example.com/hooks"\n')
    rotate(tmp_path, "app")
    assert keys(tmp_path) == [1, 1]


def test_where_the_owner_cannot_be_kept_no_secret_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.secret").write_text(OLD)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.chown", refuse)
    for secret in ('"file:app.secret"', f'"{OLD}"'):
        (tmp_path / "receiver.toml").unlink(missing_ok=True)
        with pytest.raises(ReceiverError, match=r"cannot be changed: Operation not permitted; --print tells"):
            rotate(tmp_path, "app", secret=secret)
        assert {path.name for path in tmp_path.iterdir()} == {"receiver.toml", "app.secret"}


def test_a_variable_that_goes_before_the_file_is_named(tmp_path: Path) -> None:
    given: Any = {"RECEIVER__DESTINATIONS__APP__SECRETS": f'["{OLD}"]'}
    assert "# In RECEIVER__DESTINATIONS__APP__SECRETS, on every machine" in rotate(tmp_path, "app", **given)


def test_what_cannot_be_rotated_says_why(tmp_path: Path) -> None:
    with pytest.raises(ReceiverError, match="no destination is named apps; there is: app, archive, other"):
        rotate(tmp_path, "apps")
    with pytest.raises(ReceiverError, match="a destination of kind stdout signs nothing"):
        rotate(tmp_path, "archive")
