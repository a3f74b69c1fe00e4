"""`receiver replay` where nothing was owed: events that no destination wanted when they were recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.cli.opening import ask
from receiver.core.audit import COMMAND_LINE
from receiver.demo.stage import clean_environment
from receiver.settings.load import parse
from tests.support.house import House, build_house


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    for name in set(os.environ) - set(clean_environment(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    built = build_house(tmp_path)
    yield built
    built.close()


@pytest.fixture
def unwanted(house: House) -> list[str]:
    """Two events, recorded while the only destination wanted neither; since then it wants all."""
    config = Path(house.config)
    text = config.read_text()
    config.write_text(re.sub(r"\nevents = .*", '\nevents = ["transcript.*"]', text))
    running = house.start("serve", "--port", "0")
    made = [house.simulate("deepgram", "--ref", ref)["event_id"] for ref in ("one", "two")]
    refused = house.run("replay", made[0])
    assert (refused.status, refused.out) == (1, ""), "nothing was done, and that is told"
    assert "nothing was replayed" in refused.err
    assert running.stop() == 0
    config.write_text(text)
    return made


def test_an_event_is_routed_again_by_todays_settings(house: House, unwanted: list[str]) -> None:
    first, second = unwanted
    assert house.run("replay", first, "--to", "a*", "--dry-run").out == "1 delivery would be made\n"
    assert house.run("deliveries", "--json").items == []
    done = house.run("replay", first)
    assert (done.status, done.out) == (0, "1 delivery made; a running relay takes them up within a second\n")
    again = house.run("replay", first, "--to", "app")
    assert again.status == 1
    assert "still under way" in again.err

    app = house.start_app()
    house.start("serve", "--port", "0")

    def got(event_id: str) -> dict[str, Any] | None:
        return app.wait_for(
            lambda line: line.get("event_id") == event_id and line["got"] == "event", seconds=20
        )

    assert got(first)
    assert house.run("replay", second, "--json").json == {
        "found": 1,
        "replayed": 0,
        "added": 1,
        "left_alone": 0,
        "dry_run": False,
        "operations": [],
    }
    assert got(second)


def test_a_callback_that_is_read_as_before_makes_no_event(house: House, unwanted: list[str]) -> None:
    said = house.run("renormalize", unwanted[0])
    assert said.status == 1
    assert f"no more of the callback of {unwanted[0]}" in said.err
    every = house.run("renormalize", "--parked", "--yes")
    assert (every.status, every.out) == (0, "0 parked callbacks read again, 0 events made\n")
    assert "name one event, or give --parked" in house.run("renormalize").err


def test_a_new_destination_is_given_what_was_recorded_before(house: House, unwanted: list[str]) -> None:
    words = ("replay", "--to", "app", "--source", "deepgram", "--type", "speech.completed", "--since", "1h")
    told, counted = house.run(*words, "--dry-run").out.splitlines()
    assert told == "2 deliveries would be made"
    operation = counted.rpartition(" ")[2]
    assert house.run("operations", "list").out.split()[6:9] == [operation, "backfill", "planned"]
    assert house.run(*words, "--until", "1h", "--dry-run").out == "0 deliveries would be replayed\n"
    assert house.run(*words, "--type", "speech.failed", "--yes").status == 1
    refused = house.run(*words)
    assert refused.status == 2
    assert "2 deliveries would be made: add --yes" in refused.err
    assert house.run(*words, "--yes").out.startswith("2 deliveries made;")
    assert {one["event_id"] for one in house.run("deliveries", "--json").items} == set(unwanted)
    again = house.run(*words, "--yes")
    assert again.status == 1
    assert "nothing was replayed" in again.err
    resumed = house.run("operations", "resume", operation, "--rate", "5")
    assert resumed.out == f"{operation} is running, 0 of 2 done\n"
    assert house.run("operations", "stop", operation, "--json").json["state"] == "stopped"
    assert "no operation has the id op_1" in house.run("operations", "stop", "op_1").err
    settings = parse(Path(house.config).read_text(), os.environ, lambda name: "")
    acts = ask(settings, lambda store: store.acts(COMMAND_LINE, None, 9))
    assert [(one.action, one.status) for one in reversed(acts)] == [
        ("receiver replay", 200),  # of nothing
        ("receiver replay", 200),
        ("receiver operations resume", 200),
        ("receiver operations stop", 200),
        ("receiver operations stop", 422),
    ]
    assert '"destination":"app"' in acts[-2].detail


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "nobody"], "there is no destination 'nobody'; there is: app"),
        (["--to", "app", "--dead"], "choose among those there are"),
        (["evt_1", "--since", "2h"], "not both"),
        ([], "name ids of deliveries or events"),
    ],
)
def test_what_cannot_be_meant_is_told(house: House, words: list[str], told: str) -> None:
    house.run("migrate")
    said = house.run("replay", *words)
    assert said.status == 2
    assert told in said.err
