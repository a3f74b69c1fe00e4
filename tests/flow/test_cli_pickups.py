"""`pickup`, `pickups`, expectations and the providers that are asked, through the command line's front door."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from receiver.core.tokens import CallbackTokens
from receiver.demo.deepdub import Deepdub
from receiver.demo.serving import served
from receiver.demo.stage import clean_environment
from tests.support.house import API_KEY, House, build_house

JOB = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests, and no receiver.toml of theirs."""
    for name in set(os.environ) - set(clean_environment(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = build_house(tmp_path)
    yield built
    built.close()


def setting(house: House, source: str, name: str) -> Any:
    return tomllib.loads(Path(house.config).read_text())["sources"][source][name]


def change(house: House, old: str, new: str) -> None:
    text = Path(house.config).read_text()
    assert old in text
    Path(house.config).write_text(text.replace(old, new))


# ---------------------------------------------------------------- pickup


def test_a_pickup_is_added_before_anything_runs_and_is_known_the_second_time(house: House) -> None:
    url = f"{setting(house, 'deepdub', 'base_url')}/tts/retroactive/{JOB}.mp3"
    before = time.time()
    said = house.run("pickup", "deepdub", url, "--ref", "order-46", "--deadline", "2h", "--json")
    assert said.status == 0, said.err
    made = said.json
    assert (made["status"], made["state"], made["ref"], made["job_id"]) == (
        "added",
        "pending",
        "order-46",
        JOB,
    )
    assert made["event_type"] is None
    again = house.run("pickup", "deepdub", JOB)
    told = dict(line.split(None, 1) for line in again.out.splitlines())
    assert (told["pickup"], told["event"], told["status"]) == (made["id"], made["event_id"], "known")
    assert "already" in again.err
    assert "receiver serve" in again.err
    assert time.time() - before < 60
    awaited = house.run("events", made["event_id"])
    assert awaited.status == 1
    assert made["id"] in awaited.err
    shown = house.run("pickups", "--json").items
    assert [one["id"] for one in shown] == [made["id"]]
    one = house.run("pickups", made["id"], "--json").json
    assert one["attempts_made"] == []
    assert one["created_at"] < one["deadline_at"]
    assert "no attempt has been made yet" in house.run("pickups", made["id"]).err


def test_a_result_that_is_waited_for_is_told_with_its_event(house: House) -> None:
    standin = Deepdub(API_KEY)
    with served(standin.app, port=urlsplit(setting(house, "deepdub", "base_url")).port or 0):
        house.start("serve", "--port", "0")
        said = house.run("pickup", "deepdub", standin.submit(), "--wait", "--ref", "order-46", "--json")
        assert said.status == 0, said.err
        made = said.json
        assert (made["state"], made["event_type"]) == ("collected", "speech.completed")
        assert house.run("events", made["event_id"], "--json").json["ref"] == "order-46"
        known = house.run("pickup", "deepdub", made["job_id"])
        assert "picked up before" in known.err
        assert "speech.completed" in known.out
        gone = house.run("pickup", "deepdub", "no-id-of-deepdubs", "--wait")
        assert gone.status == 1
        assert "speech.failed" in gone.out
    table = house.run("pickups", "--state", "gone", "--source", "deepdub").out.splitlines()
    assert table[0].split()[:3] == ["id", "state", "attempts"]
    assert len(table) == 2
    lines = house.run("pickups", table[1].split()[0], "--wide").out.splitlines()
    assert lines[-1].split()[0] == "1"
    assert "gone" in lines[-1]


def test_waiting_ends_with_the_deadline_though_nobody_works(house: House) -> None:
    change(house, 'provider = "deepdub"', 'provider = "deepdub"\nattempt_seconds = 1')
    said = house.run("pickup", "deepdub", JOB, "--deadline", "0.1s", "--wait")
    assert said.status == 1
    assert "is a worker running?" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nobody", JOB], "deapi, deepdub"),
        (["deepgram", JOB], "it calls back"),
        (["deepdub", "https://elsewhere.example.com/api/v1/tts/retroactive/1"], "elsewhere.example.com"),
        (["deepdub", ""], "no id of Deepdub's"),
        (["deepdub", JOB, "--deadline", "soon"], "15m"),
        (["deepdub", JOB, "--deadline", "0s"], "above 0"),
        (["deepdub", JOB, "--deadline", "31d"], "30 days"),
        (["deepdub", JOB, "--format", "speed=2"], "sample_rate"),
        (["deepdub", JOB, "--ref", "x" * 501], "500"),
    ],
)
def test_what_cannot_be_picked_up_is_one_clear_sentence(house: House, words: list[str], told: str) -> None:
    said = house.run("pickup", *words)
    assert (said.status, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert told in said.err


@pytest.mark.parametrize("source", ["deapi", "deepdub", "playht"])
def test_a_source_without_a_key_says_which_setting_is_missing(house: House, source: str) -> None:
    change(house, f'api_key = "{API_KEY}"', "")
    if source == "playht":
        change(house, 'provider = "playht"', 'provider = "playht"\nrequire_token = true')
    said = house.run("pickup", source, JOB)
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert "api_key" in said.err


# ---------------------------------------------------------------- expectations


def test_an_expected_callback_is_watched_for_from_the_moment_its_url_is_printed(house: House) -> None:
    before = time.time() * 1000
    said = house.run("callback-url", "deepgram", "--ref", "order-9", "--expect-within", "10m", "--json")
    assert said.status == 0, said.err
    claims = CallbackTokens([house.secrets[2]]).read(said.json["token"])
    assert claims is not None
    assert claims.expect_by is not None
    assert 600_000 <= claims.expect_by - before < 660_000
    [expected] = house.run("pickups", "--json").items
    assert (expected["id"], expected["kind"], expected["ref"]) == (
        said.json["pickup_id"],
        "expected",
        "order-9",
    )
    assert expected["due_at"] == said.json["expect_by"]
    printed = house.run("callback-url", "deepgram", "--expect-within", "90s")
    assert printed.out.startswith("https://")
    assert printed.out.count("\n") == 1, "what a script reads is the URL alone"
    assert "expected by" in printed.err
    assert len(house.run("pickups", "--json").items) == 2


def test_a_url_that_is_refused_leaves_no_expectation(house: House) -> None:
    change(house, "hooks.example.com", "my_hooks.example.com")
    assert house.run("callback-url", "deepgram", "--expect-within", "10m").status == 2
    assert not (house.folder / "data" / "receiver.db").exists()


# ---------------------------------------------------------------- simulate


def test_the_providers_that_are_asked_can_be_played(house: House) -> None:
    """Each ends with the event that it should, and shows what it was asked."""
    house.start("serve", "--port", "0")
    stories: list[tuple[list[str], str, list[int]]] = [
        (["deepdub", "--not-ready", "1", "--ref", "order-1"], "speech.completed", [404, 200]),
        (["deepdub", "--not-ready", "0", "--no-content-type"], "speech.completed", [200]),
        (["deepdub", "--never", "--deadline", "1s"], "speech.failed", [404]),
        (["playht"], "speech.completed", [200, 200]),
        (["playht", "--error"], "speech.failed", [200]),
    ]
    for words, event_type, statuses in stories:
        said = house.run("simulate", *words, "--json")
        assert said.status == 0, (words, said.err)
        assert said.json["event_type"] == event_type, words
        asked = [request["status"] for request in said.json["requests"]]
        assert asked[: len(statuses)] == statuses, words
        event = house.run("events", said.json["pickup"]["event_id"], "--json").json
        assert event["ref"] == ("order-1" if "--ref" in words else None)
        assert API_KEY not in said.out
    steps = [step["what"] for step in house.run("trace", "order-1", "--json").json["steps"]]
    assert steps[:4] == ["pickup", "fetched", "fetched", "recorded"], (
        "no callback came, so no step says that one did"
    )
    plain = house.run("simulate", "deepdub", "--not-ready", "0").out.splitlines()
    assert plain[0].startswith("handed over: pku_")
    assert plain[1].startswith("GET /api/v1/tts/retroactive/")
    assert plain[2].endswith("speech.completed")


def test_deapis_result_is_fetched_by_its_link_or_by_a_fresh_one(house: House) -> None:
    house.start("serve", "--port", "0")
    words = ["simulate", "deapi", "--url", house.base, "--time-scale", "0", "--event", "completed"]
    said = house.run(*words, "--ref", "order-43")
    assert said.status == 0, said.err
    label, asked, event = said.out.splitlines()
    assert label.startswith("job.completed  try 1  200")
    assert asked.startswith("GET /results/")
    assert "signature" not in said.out
    assert event.endswith("speech.completed")
    expired = house.run(*words, "--expired-link")
    assert expired.status == 0, expired.err
    statuses = [line.split()[-1] for line in expired.out.splitlines() if line.startswith("GET ")]
    assert statuses == ["403", "200", "200"]
    stored = house.run("events", event.split()[0], "--json").json
    assert stored["data"]["audio"]["bytes"] > 1000


@pytest.mark.parametrize(
    ("provider", "old", "new", "told"),
    [
        ("deepdub", "/api/v1", "/api/v9", "base_url"),
        ("deepdub", 'allow = ["127.0.0.0/8"]', "", "allow"),
        ("deepdub", '"deepdub"', '"deapi"\nrequire_token = true', 'provider = "deepdub"'),
        ("playht", 'result_hosts = ["127.0.0.1"]', "", "result_hosts"),
        ("playht", "/api/v2", "", "base_url"),
        ("deapi", 'result_hosts = ["127.0.0.1"]', "", "result_hosts"),
        ("deapi", 'allow = ["127.0.0.0/8"]', "", "allow"),
    ],
)
def test_what_the_settings_lack_for_playing_is_shown_line_by_line(
    house: House, provider: str, old: str, new: str, told: str
) -> None:
    change(house, old, new)
    if new.startswith('"deapi"'):
        change(house, 'base_url = "', '# "')
    said = house.run("simulate", provider, "--json")
    assert said.status == 2, said.err
    reason, *lines = said.err.splitlines()
    assert told in reason
    assert lines[0].startswith("[sources.")
    assert 'allow = ["127.0.0.0/8"]' in lines


def test_playing_to_nobody_ends_with_one(house: House) -> None:
    """Nothing runs: the pickup is added, and nobody asks."""
    said = house.run("simulate", "deepdub", "--timeout", "0.3s")
    assert said.status == 1
    assert "receiver serve" in said.err


def test_a_taken_port_is_told(house: House) -> None:
    port = urlsplit(setting(house, "deepdub", "base_url")).port or 0
    with served(Deepdub(API_KEY).app, port=port):
        said = house.run("simulate", "deepdub")
    assert said.status == 2
    assert str(port) in said.err
