"""`receiver secret rotate` prints a setting by which old and new secret both sign until the overlap ends."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from receiver.cli.app import app
from receiver.core.errors import ReceiverError
from receiver.core.webhook import new_webhook_secret, webhook_key
from receiver.outbound.destinations.http import HttpDestination
from receiver.settings.load import load_settings

OLD = new_webhook_secret()
FILE = """
[destinations.app]
url = "https://app.example.com/hooks"
secrets = ["env:APP_SECRET", {secret = "env:APP_SECRET", until = 2020-01-01T00:00:00Z}]
"""


def rotate(folder: Path, *arguments: str, file: str = FILE) -> str:
    (folder / "receiver.toml").write_text(file)
    command = ["--config", str(folder / "receiver.toml"), "secret", "rotate", *arguments]
    result = CliRunner().invoke(app, command, env={"APP_SECRET": OLD}, catch_exceptions=False)
    return result.output


@pytest.mark.parametrize("pair", [False, True])
def test_the_printed_setting_signs_with_both_and_later_with_the_new_one(tmp_path: Path, pair: bool) -> None:
    made = json.loads(rotate(tmp_path, "app", "--overlap", "2h", "--json", *(["--pair"] if pair else [])))
    assert (made["public_key"] or "").startswith("whpk_" if pair else "")
    fresh = tmp_path / "fresh.toml"
    fresh.write_text(f'[destinations.app]\nurl = "https://app.example.com/"\n{made["setting"]}\n')
    settings = load_settings(str(fresh), {"APP_SECRET": OLD}).destinations["app"]
    keys = HttpDestination(settings)._keys
    now = datetime.now(UTC)
    assert len(keys.at(round(now.timestamp() * 1000))) == 2
    (left,) = keys.at(round((now + timedelta(hours=3)).timestamp() * 1000))
    assert type(left) is type(webhook_key(made["secret"]))
    assert tomllib.loads(made["setting"])["secrets"][0]["secret"] == "env:APP_SECRET"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_secret_that_stands_in_the_file_is_told_by_its_end_alone(tmp_path: Path, form: list[str]) -> None:
    told = rotate(tmp_path, "app", *form, file=FILE.replace("env:APP_SECRET", OLD))
    assert OLD.removeprefix("whsec_")[:-4] not in told
    setting = json.loads(told)["setting"] if form else told
    assert setting.count(f'secret = "…{OLD[-4:]}"') == 2
    assert form or "leave the secret that the file has" in told


def test_an_unknown_destination_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReceiverError, match="no destination is named apps; there is: app"):
        rotate(tmp_path, "apps")
