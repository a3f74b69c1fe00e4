"""Which destinations want an event: by source, type and fields of its data, with the rule that decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from receiver.cli.app import app
from receiver.core.event_json import fields, projected
from receiver.core.routing import Decision, Route, Router, conditions
from receiver.storage.store.sqlite import SqliteStore
from tests.contract.store_suite import recording
from tests.support.running import running, settings_text
from tests.support.senders import transcript
from tests.support.stepping import step

DATA = {"ref": "order-7", "late": False, "audio": {"duration_seconds": 12.5, "bytes": 100}, "error": None}


@pytest.mark.parametrize(
    ("field", "wanted", "holds"),
    [
        ("ref", "order-7", True),
        ("ref", "order-8", False),
        ("ref", ["order-8", "order-7"], True),
        ("late", False, True),
        ("late", 0, False),
        ("audio.bytes", 100, True),
        ("audio.bytes", True, False),
        ("audio.duration_seconds", {"min": 12.5}, True),
        ("audio.duration_seconds", {"min": 1, "max": 12}, False),
        ("audio.duration_seconds", {"max": 12.5}, True),
        ("ref", {"min": 0}, False),
        ("late", {"min": 0}, False),
        ("error.code", "x", False),
        ("ref.deeper", "order-7", False),
        ("nowhere", {"min": 0}, False),
    ],
)
def test_a_condition_holds_for_equal_values_and_within_its_range(
    field: str, wanted: Any, holds: bool
) -> None:
    assert conditions({field: wanted})[0].holds(DATA) is holds


@pytest.mark.parametrize(
    ("field", "wanted"),
    [("", "x"), ("a..b", "x"), ("a", {}), ("a", {"least": 1}), ("a", {"min": "1"}), ("a", []), ("a", [None])],
)
def test_what_is_no_condition_is_refused(field: str, wanted: Any) -> None:
    with pytest.raises(ValueError, match="write"):
        conditions({field: wanted})


def test_each_decision_names_its_rule() -> None:
    router = Router(
        [
            Route("all"),
            Route("other", sources=("deapi",)),
            Route("texts", events=("transcript.*",)),
            Route("short", where=conditions({"audio.duration_seconds": {"max": 5}})),
            Route("order", where=conditions({"ref": "order-7"})),
        ]
    )
    data = json.dumps(DATA).encode()
    assert [
        (one.destination, one.sent, one.rule) for one in router.decisions("x", "speech.completed", data)
    ] == [
        ("all", True, "sources and events fit"),
        ("other", False, "its sources do not name this source"),
        ("texts", False, "its events do not name this type"),
        ("short", False, "where.audio.duration_seconds does not hold"),
        ("order", True, "sources, events and where fit"),
    ]
    assert router.destinations("x", "speech.completed", data) == ("all", "order")


def test_events_about_destinations_go_only_where_they_are_named() -> None:
    router = Router([Route("all"), Route("ops", sources=("x",), events=("destination.*",))])
    assert router.destinations("receiver", "destination.failing") == ("ops",)


async def test_the_command_shows_each_destination_with_its_rule_and_delivery(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "receiver.db"))
    await store.prepare()
    decided = msgspec.json.encode([Decision("app", sent=True, rule="it did")])
    event_id = (await store.record(replace(recording("app"), routing=decided))).event_id
    await store.close()
    (tmp_path / "receiver.toml").write_text(
        f'data = "{tmp_path}"\n[destinations.app]\nurl = "https://a.example/"\n'
        '[destinations.long]\nurl = "https://a.example/"\ndata = ["ref"]\nwhere = {"audio.duration_seconds" = {min = 60}}\n'
    )
    import asyncio

    command = ["--config", str(tmp_path / "receiver.toml"), "route", event_id, "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert json.loads(result.output)["items"] == [
        {
            "destination": "app",
            "sent": True,
            "rule": "sources and events fit",
            "data": None,
            "delivery": "pending",
            "recorded": {"destination": "app", "sent": True, "rule": "it did"},
        },
        {
            "destination": "long",
            "sent": False,
            "rule": "where.audio.duration_seconds does not hold",
            "data": ["ref"],
            "delivery": None,
            "recorded": None,
        },
    ]


async def test_a_destination_gets_only_the_fields_that_it_names(tmp_path: Path) -> None:
    """The event itself stays whole in the store."""
    extra = (
        f'\n[destinations.part]\nkind = "file"\nurl = "file://{tmp_path}/part"\n'
        'data = ["transcript.text", "audio.url", "ref"]\n'
        f'[destinations.ids]\nkind = "file"\nurl = "file://{tmp_path}/ids"\ndata = []\n'
    )
    sent = transcript("some-job")
    async with running(tmp_path, settings_text(tmp_path, extra=extra), work=False) as up:
        answer = await up.client.post(sent.path, headers=sent.headers, content=sent.body)
        relay = up.receiver.relay
        await step(relay, up.receiver.clock())
        whole = json.loads((await up.receiver.store.event(answer.json()["event_id"])).data)
    part, ids = (json.loads((tmp_path / name).read_text())["data"] for name in ("part", "ids"))
    named = {name: whole[name] for name in ("event_id", "schema", "source", "job_id")}
    assert ids == named
    assert part == {**named, "ref": None, "audio": None, "transcript": {"text": "Your order is ready."}}
    assert whole["provider_data"]


def test_what_is_wanted_is_kept_as_far_as_it_is_there() -> None:
    wanted = fields(["audio.bytes", "audio", "error.code", "late.x", "provider_data.a.b", "nowhere"])
    data = DATA | {"provider_data": {"a": [{"b": 1}], "c": 2}}
    assert projected(data, wanted) == {"audio": DATA["audio"], "error": None, "provider_data": {}}
