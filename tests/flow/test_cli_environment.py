"""What commands take from the environment and from the folder they are run in, and what never."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.demo.stage import clean_environment
from tests.support.house import PUBLIC, House, build_house, receiver


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    for name in set(os.environ) - set(clean_environment(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    built = build_house(tmp_path)
    assert built.run("migrate").status == 0
    yield built
    built.close()


@pytest.mark.parametrize(
    ("command", "environ", "told"),
    [
        ("erase", {"RECEIVER_REF": "x", "RECEIVER_YES": "1"}, "name one subject"),
        ("erase", {"RECEIVER_EVENT": "evt_1", "RECEIVER_NO_JOURNAL": "1"}, "name one subject"),
        ("replay", {"RECEIVER_DEAD": "1", "RECEIVER_YES": "1"}, "name ids of deliveries or events"),
        ("replay", {"RECEIVER_TO": "app", "RECEIVER_SINCE": "1h"}, "name ids of deliveries or events"),
    ],
)
def test_what_to_erase_or_send_again_is_never_taken_from_the_environment(
    house: House, monkeypatch: pytest.MonkeyPatch, command: str, environ: dict[str, str], told: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    said = house.run(command)
    assert said.status == 2
    assert told in said.err


@pytest.mark.parametrize(
    "words", [["events"], ["deliveries"], ["pickups"], ["rejections"], ["journal", "list"]], ids=" ".join
)
def test_looking_needs_no_secret_of_a_provider_destination_or_token(house: House, words: list[str]) -> None:
    (house.folder / "data" / "journal").mkdir()
    config = Path(house.config)
    text = config.read_text().replace("[sources.deapi]", "[sources.deapi]\ncallback_note = 'env:NOT_SET'")
    secret = house.secrets[1]
    text += '\n[[api.tokens]]\nname = "app"\nsecret = "env:NOT_SET"\nscopes = ["read"]\n'
    config.write_text(text.replace(f'"{secret}"', '"env:NOT_SET"'))
    assert house.run(*words, "--json").json == {"items": [], "next": None}
    assert house.run("check", "--offline").status == 2


def test_a_path_in_the_settings_is_seen_from_the_settings_file(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever folder a command is run in, it means the same files."""
    config = Path(house.config)
    (tmp_path / "key.txt").write_text("the-secret-of-the-tokens-0123456789")
    text = config.read_text().replace(f'"{tmp_path}/data"', '"data"')
    config.write_text(text.replace(house.secrets[2], "file:key.txt"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert receiver("--config", "../receiver.toml", "events", "--json").json == {"items": [], "next": None}
    config.write_text(config.read_text() + '\n[store]\nurl = "sqlite:///data/other.db"\n')
    assert receiver("--config", "../receiver.toml", "migrate").status == 0
    assert (tmp_path / "data" / "other.db").exists()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["callback-url", "deepgram"], ["erase", "--ref", "x", "--no-journal"], ["work"], ["journal", "drain"]],
    ids=lambda words: words[0],
)
def test_only_serve_and_init_make_a_token_secret(house: House, tmp_path: Path, words: list[str]) -> None:
    """A second one, made beside the first, would sign URLs that nobody takes."""
    (tmp_path / "data" / "journal").mkdir()
    (tmp_path / "key.toml").write_text(
        f'public_url = "{PUBLIC}"\ndata = "{tmp_path}/data"\n'
        '[sources.deepgram]\nprovider = "deepgram"\nrequire_token = true\n'
    )
    said = receiver("--config", tmp_path / "key.toml", *words)
    assert said.status == 2
    assert f"there is no token secret at {tmp_path}/data/token-secret" in said.err
    assert not (tmp_path / "data" / "token-secret").exists()
