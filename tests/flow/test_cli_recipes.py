"""`receiver recipes` and `receiver try`: what ships, and what a request would become, without a secret shown."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from receiver.cli.sources import proofs_wanted
from receiver.core.event import Rejection
from receiver.core.tokens import CallbackTokens
from receiver.providers.custom import CustomProvider
from receiver.providers.custom.language import CustomSettings, recipe_as_source, recipe_example, recipes
from receiver.settings.load import parse
from tests.support.golden import ROOT
from tests.support.house import House, build_house, receiver

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
    warned = {item["name"]: item["warning"] for item in listed["items"]}
    assert (warned["fal"], "no proof covers the body" in warned["kie"]) == ("", True)
    assert "Webhooks" in receiver("recipes", "elevenlabs").out
    assert receiver("recipes", "no-such").status == 2


def test_a_request_is_tried_before_the_first_start(config: Path, tmp_path: Path) -> None:
    """No token secret is there yet, and none is made."""
    config.write_text(config.read_text().partition('0123456789"]\n')[2])
    request = tmp_path / "request.http"
    request.write_bytes(recipe_example("elevenlabs"))
    said = receiver("--config", config, "try", "elevenlabs", request, "--at", AT, "--json")
    assert (said.status, said.json["verdict"]) == (0, "accepted")
    assert not list(tmp_path.rglob("token-secret"))


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
        own = recipe_as_source("elevenlabs").replace("[sources.elevenlabs", "[sources.printed")
        file.write(own.replace("env:SECRET", SECRET))
    try:
        running = house.start("serve", "--port", "0")
        words = ["simulate", "custom", "--source", "elevenlabs", "--url", house.base, "--json"]
        said = house.run(*words, "--ref", "order-9", "--duplicate")
        assert [json.loads(tried["answer"])["status"] for tried in said.json] == ["recorded", "duplicate"]
        (event,) = house.run("events", "--source", "elevenlabs", "--json").items
        assert (event["type"], event["ref"]) == ("transcript.completed", "order-9")
        refused = house.run(*words, "--wrong-credentials")
        assert (refused.status, refused.json[0]["status"]) == (0, 401)
        words = ["simulate", "custom", "--source", "printed", "--url", house.base, "--json"]
        assert json.loads(house.run(*words).json[0]["answer"])["status"] == "recorded"
        httpx.post(f"{house.base}/callbacks/elevenlabs", headers={"X-Signature": SECRET}, content=b"{}")
        assert running.stop() == 0, "what was refused is written before the end"
        _explained(house)
    finally:
        house.close()


def _explained(house: House) -> None:
    """Both rejections: the last lacks the header that the proof wants, the first had it."""
    last = house.run("try", "elevenlabs", "--rejected", "--json").json
    assert last["proofs"] == [
        {"proof": "hmac", "headers": [{"names": ["elevenlabs-signature"], "came": False}]}
    ]
    assert "x-signature" in last["rejection"]["headers"]
    said = house.run("rejections", "elevenlabs", "--json")
    newest, first = said.items
    assert newest == last["rejection"]
    text = house.run("try", "elevenlabs", "--rejected", first["id"])
    assert "elevenlabs-signature came" in text.out
    assert first["reason"] in text.out
    assert "x-signature" in house.run("rejections", "--wide").out
    assert SECRET not in said.out + text.out
    for words, status, why in (
        (
            ["elevenlabs", "--rejected", "rej_no"],
            1,
            "no rejection of the source elevenlabs has the id rej_no",
        ),
        (["printed", "--rejected"], 1, "no rejection of the source printed is kept"),
        (["elevenlabs", "--rejected", "--at", "2h"], 2, "--at goes with a request"),
        (["elevenlabs"], 2, "name a file with a request, or add --rejected"),
    ):
        said = house.run("try", *words)
        assert (said.status, why in said.err) == (status, True), said.err


def test_what_was_kept_before_names_were_is_not_said_to_lack_a_header() -> None:
    """Nor is a header whose name is not kept, as it could be a token."""
    text = f"""
[sources.acme]
provider = "custom"
secrets = ["{SECRET}"]
proof = [{{kind = "hmac", header = "X-{"a" * 30}", also = ["X-Sig"], timestamp = {{from = "header:X-Time"}}}}]
event = {{family = "transcript", id = "id", job = "id"}}
"""
    source = parse(text, {}, str).sources["acme"]
    adapter = CustomProvider.create(source, CallbackTokens(["token-secret-0123456789"]))
    bare = Rejection(
        source="acme",
        at=0,
        status=401,
        kind="wrong",
        reason="",
        method="POST",
        peer=None,
        content_type="",
        user_agent="",
    )
    for headers, came in [
        ((), [None, None]),
        (("host",), [None, False]),
        (("x-sig", "x-time"), [True, True]),
    ]:
        (proof,) = proofs_wanted(adapter, replace(bare, headers=headers))
        assert [wanted["came"] for wanted in proof["headers"]] == came


@pytest.mark.parametrize(("ending", "verdict"), [("", "accepted"), ("\n", "accepted"), ("\n\n", "refused")])
def test_a_line_feed_that_an_editor_put_behind_the_body_is_none_of_it(
    config: Path, tmp_path: Path, ending: str, verdict: str
) -> None:
    own = recipe_example("elevenlabs")
    head, _, body = own.partition(b"\r\n\r\n" if b"\r\n\r\n" in own else b"\n\n")
    request = tmp_path / "request.http"
    request.write_bytes(
        b"%b\nContent-Length: %d\n\n%b" % (head.replace(b"\r\n", b"\n"), len(body), body + ending.encode())
    )
    said = receiver("--config", config, "try", "elevenlabs", request, "--at", AT, "--json")
    assert said.json["verdict"] == verdict
    said = receiver("--config", config, "try", "elevenlabs", request, "--json")
    assert said.json["reason"].endswith("; to try it as of the time when it came, add --at")


def test_a_request_that_lacks_the_token_alone_is_shown_as_it_would_be_with_one(tmp_path: Path) -> None:
    """Who describes a provider without signatures sees the event before there is a URL for it."""
    path, request = tmp_path / "receiver.toml", tmp_path / "request.http"
    path.write_text('[tokens]\nsecrets = ["token-secret-0123456789"]\n[sources.gladia]\nrecipe = "gladia"\n')
    _, _, rest = recipe_example("gladia").partition(b"\r\n")
    request.write_bytes(b"POST /callbacks/gladia HTTP/1.1\r\n" + rest)
    said = receiver("--config", path, "try", "gladia", request, "--json")
    assert (said.status, said.json["verdict"]) == (1, "refused")
    assert said.json["reason"].endswith(
        "make one with `receiver callback-url`; with it the request would be accepted"
    )
    assert said.json["event"]["type"] == "transcript.completed"
