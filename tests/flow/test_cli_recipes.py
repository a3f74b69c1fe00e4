"""`receiver recipes` and `receiver try`: what ships, and what a request would become, without a secret shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from receiver.providers.custom import CustomProvider
from receiver.providers.custom.language import CustomSettings, recipe_as_source, recipe_example, recipes
from receiver.settings.load import parse
from tests.support.golden import ROOT
from tests.support.house import build_house, receiver

SECRET = "example-secret-0123456789abcdef"
AT = "2024-01-15T10:50:46Z"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "receiver.toml"
    tokens = '[tokens]\nsecrets = ["token-secret-0123456789"]\n'
    path.write_text(f'{tokens}[sources.elevenlabs]\nrecipe = "elevenlabs"\nsecrets = ["{SECRET}"]\n')
    return path


def test_each_recipe_is_listed_and_shown() -> None:
    listed = receiver("recipes", "--json").json
    assert {item["name"] for item in listed["items"]} == set(recipes())
    assert "Webhooks" in receiver("recipes", "elevenlabs").out
    assert receiver("recipes", "no-such").status == 2


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_as_a_source_means_what_the_recipe_means(name: str) -> None:
    environ = {"SECRET": SECRET, "API_KEY": "example-key-0123456789"}
    own = parse(recipe_as_source(name), environ, str).sources[name]
    keys = {key: own.options[key] for key in ("secrets", "api_key") if key in own.options}
    by_name = CustomSettings.model_validate({"recipe": name, **keys})
    assert CustomSettings.model_validate(own.options) == by_name.model_copy(update={"recipe": None})
    assert not [found for found in CustomProvider.findings(own) if found.code in ("E902", "W903")]


def test_a_recipe_is_printed_as_a_source_of_its_own() -> None:
    said = receiver("recipes", "soniox", "--toml")
    assert said.out == recipe_as_source("soniox")
    assert receiver("recipes", "--toml").status == 2


@pytest.mark.parametrize(
    ("case", "verdict", "status"),
    [("completed", "accepted", 0), ("parked", "parked", 1), ("rejected", "refused", 1)],
)
def test_a_request_is_tried_and_no_secret_is_shown(
    config: Path, tmp_path: Path, case: str, verdict: str, status: int
) -> None:
    request = tmp_path / "request.http"
    own = ROOT / "custom" / f"elevenlabs-{case}" / "request.http"
    request.write_bytes(own.read_bytes() if own.exists() else recipe_example("elevenlabs"))
    said = receiver("--config", config, "try", "elevenlabs", request, "--at", AT, "--json")
    assert (said.status, said.json["verdict"]) == (status, verdict)
    (proof,) = said.json["proofs"]
    assert (proof["proof"], proof["holds"]) == ("hmac", verdict != "refused")
    assert proof["signed"].startswith("1705315845.{")
    assert SECRET not in said.out


def test_a_request_to_another_source_is_not_tried(config: Path, tmp_path: Path) -> None:
    request = tmp_path / "request.http"
    request.write_text("POST /callbacks/other HTTP/1.1\n\n{}")
    said = receiver("--config", config, "try", "elevenlabs", request)
    assert said.status == 2
    assert "/callbacks/elevenlabs" in said.err


def test_a_recipe_is_played_against_a_running_receiver(tmp_path: Path) -> None:
    """The example of the recipe becomes an event, and somebody else is refused."""
    house = build_house(tmp_path)
    with open(house.config, "a", encoding="utf-8") as file:
        file.write(f'\n[sources.elevenlabs]\nrecipe = "elevenlabs"\nsecrets = ["{SECRET}"]\n')
    try:
        house.start("serve", "--port", "0")
        words = ["simulate", "custom", "--source", "elevenlabs", "--url", house.base, "--json"]
        said = house.run(*words, "--ref", "order-9", "--duplicate")
        assert [json.loads(tried["answer"])["status"] for tried in said.json] == ["recorded", "duplicate"]
        (event,) = house.run("events", "--source", "elevenlabs", "--json").items
        assert (event["type"], event["ref"]) == ("transcript.completed", "order-9")
        refused = house.run(*words, "--wrong-credentials")
        assert (refused.status, refused.json[0]["status"]) == (0, 401)
    finally:
        house.close()
