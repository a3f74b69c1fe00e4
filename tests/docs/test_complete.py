"""Whatever a user can set, call, see or get is named in docs/, and docs/ names nothing that is not there."""

from __future__ import annotations

import ast
import json
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from receiver.app import wiring
from receiver.app.check import all_codes
from receiver.app.metrics import METRICS
from receiver.cli.app import app
from receiver.core import errors, event_json
from receiver.core.event import EVENT_TYPES, AudioFacts, EventDraft, JobError, StoredBlob, TranscriptDraft
from receiver.core.explain import Cause
from receiver.core.retry import policy
from receiver.core.work import DeliveryState, OutcomeKind, PickupKind, PickupState
from receiver.engine.relay import LEVELS
from receiver.providers import adapters
from receiver.settings.load import parse
from receiver.settings.model import ApiScope, Section
from receiver.web.api.operation import Operation
from receiver.web.api.problems import TITLES
from receiver.web.api.routes import OPERATIONS
from receiver.web.app import create_app
from receiver.web.views import shown_as
from tests.docs.reading import PACKAGE, modules, nodes, page, quoted, rows
from tests.docs.sources import models as custom_models

CONFIGURATION = page("docs/configuration.md")
OPERATING = page("docs/operating.md")
API = page("docs/api.md")
EVENTS = page("docs/events.md")
CLI = page("docs/cli.md")
PROVIDERS = page("docs/providers.md")


# ---------------------------------------------------------------- settings


def _sections(cls: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    for sub in cls.__subclasses__():
        if not sub.__module__.startswith("receiver.storage."):  # what an adapter makes of a section
            yield sub
            yield from _sections(sub)


def _heading(model: type[BaseModel]) -> str:
    """Return where a section's table stands, by its docstring: `[server]`, or `[sources.NAME] of provider `x``."""
    told = (model.__doc__ or "").splitlines()[0]
    if "of provider" in told:
        return f"Provider {quoted(told)[0]}"
    if "of kind" in told:
        return f"Destination {quoted(told)[0]}"
    return told.partition(": ")[0] if told.startswith("[") else "Top level"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(dict(value) if isinstance(value, Mapping) else value)}`"


def _is_setting(name: str, field: FieldInfo) -> bool:
    """`options`, and names that cannot be written, are made by the parser; a field that holds sections is a heading."""
    return (
        (name, field.metadata) != ("name", [])
        and name != "options"
        and "Settings" not in str(field.annotation)
    )


def _configured() -> list[type[BaseModel]]:
    """Return the sections in docs/configuration.md: docs/sources.md has those of `provider = "custom"`."""
    return [model for model in _sections() if model not in set(custom_models())]


@pytest.mark.parametrize("model", _configured(), ids=lambda model: model.__name__)
def test_each_setting_is_in_its_table_with_its_default(model: type[BaseModel]) -> None:
    told = {quoted(row[0])[0]: row[2] for row in rows(CONFIGURATION.section(_heading(model)))}
    fields = {name: _default(f) for name, f in model.model_fields.items() if _is_setting(name, f)}
    assert told == fields


def test_each_check_code_is_explained_under_its_title() -> None:
    told = {quoted(row[0])[0]: row[1] for row in rows(CONFIGURATION.section("Check codes"))}
    assert told == {code: all_codes()[code].title for code in all_codes()}


def test_the_retry_table_counts_the_attempts_that_are_made() -> None:
    told = {quoted(row[0])[0].strip('"'): row[1] for row in rows(CONFIGURATION.section("Retry policies"))}
    for name in ("deepgram", "standard"):
        assert told[name].startswith(f"{policy(name).attempts}:")


# ---------------------------------------------------------------- environment


def _is_environ(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "environ") or (
        isinstance(node, ast.Attribute) and node.attr == "environ"
    )


def _names_read(path: Path) -> Iterator[str]:
    for node in nodes(path):
        found: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            found = node.args[0] if _is_environ(node.func.value) else None
        elif isinstance(node, ast.Subscript) and _is_environ(node.value):
            found = node.slice
        elif isinstance(node, ast.Compare) and _is_environ(node.comparators[0]):
            found = node.left
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield found.value


def test_each_environment_variable_is_named() -> None:
    """Variables of flags are checked with their flags."""
    read = {name for path in modules() for name in _names_read(path)}
    named = {*CONFIGURATION.quoted(), *CLI.quoted()}
    assert read >= {"RECEIVER_CONFIG", "PORT", "DATABASE_URL"}
    assert not read - named
    assert "RECEIVER__SECTION__KEY" in named


# ---------------------------------------------------------------- the command line


def _commands(command: Any, path: tuple[str, ...] = ("receiver",)) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, sub in getattr(command, "commands", {}).items():
        yield from _commands(sub, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_each_command_has_a_section_and_no_other() -> None:
    told = {heading.strip("`") for heading in CLI.headings() if heading.startswith("`receiver")}
    assert told == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_and_argument_is_in_its_commands_table(name: str) -> None:
    wanted = {}
    for param in COMMANDS[name].params:
        if param.name == "help":
            continue
        flags = (*param.opts, *param.secondary_opts)
        is_flag = any(flag.startswith("-") for flag in flags)
        wanted[flags if is_flag else (param.name.upper(),)] = [param.envvar] if param.envvar else []
    told = {tuple(quoted(row[0])): quoted(row[1]) for row in rows(CLI.section(f"`{name}`"))}
    assert told == wanted


# ---------------------------------------------------------------- metrics and log


def test_each_metric_is_in_the_table_with_its_labels() -> None:
    wanted = {}
    for kind, name, labels, _ in METRICS:
        type_ = getattr(kind, "func", kind).__name__.lower()
        wanted[name + ("_total" if type_ == "counter" else "")] = (type_, labels.split())
    told = {quoted(row[0])[0]: (row[1], quoted(row[2])) for row in rows(OPERATING.section("Metrics"))}
    assert told == wanted


def _texts(found: Iterable[ast.AST]) -> list[str]:
    return [n.value for n in found if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _constants(node: ast.AST) -> list[str]:
    return _texts(ast.walk(node))


def _names_in(node: ast.AST) -> list[str]:
    return [found.id for found in ast.walk(node) if isinstance(found, ast.Name)]


def _notes(path: Path) -> Iterator[str]:
    """Yield the names of log lines that a file writes: dotted texts in calls of `note`, `_note_bug`, `warning` …"""
    writes = ("note", "_note_bug", "_line", "debug", "info", "warning", "error")
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in writes:
            for text in (text for arg in node.args[:2] for text in _constants(arg)):
                if "." in text[1:-1] and text.replace(".", "").replace("_", "").isalpha():
                    yield text


def _lane_notes() -> Iterator[str]:
    """Yield the log lines of lanes: of their stores, and those that engine/worker.py puts a lane's part before."""
    for path in modules():
        for node in nodes(path):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "StoreWatch"
            ):
                part = _constants(node.args[1])[0]
                yield from (f"{part}.store_unavailable", f"{part}.store_recovered")
            if isinstance(node, ast.Assign) and "lane_key" in _names_in(node.targets[0]):
                yield from (f"{_constants(node.value)[0]}.{name}" for name in _of_every_lane())


def _of_every_lane() -> Iterator[str]:
    for node in nodes(PACKAGE / "engine/worker.py"):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "note":
            yield from (text for arg in node.args[1:2] for text in _constants(arg) if text.isidentifier())


def _constants_of_file(name: str) -> set[str]:
    return set(_texts(nodes(PACKAGE / name)))


def test_lanes_note_what_the_documentation_is_held_to() -> None:
    """`_lane_notes` above spells two endings that engine/worker.py makes."""
    assert {".store_unavailable", ".store_recovered"} <= _constants_of_file("engine/worker.py")
    assert {"relay.claim_failed", "pickup.worker_failed", "pickup.store_recovered"} <= set(_lane_notes())


def _sender_errors() -> list[type[errors.SenderError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SenderError)]


OF_PICKUPS_ONLY = {
    OutcomeKind.COLLECTED,
    OutcomeKind.NOT_YET,
    OutcomeKind.UNUSABLE,
    OutcomeKind.NOT_STORED,
}
OF_DELIVERIES = [kind for kind in OutcomeKind if kind not in OF_PICKUPS_ONLY]
OF_PICKUPS = [kind for kind in OutcomeKind if kind not in {OutcomeKind.DELIVERED, OutcomeKind.TOO_LARGE}]
ANSWERS = (
    "recorded",
    "duplicate",
    "late",
    "parked",
    "ignored",
    "handshake",
    "journaled",
    "not_kept",
    "overloaded",
)


def test_each_log_line_is_in_the_table() -> None:
    wanted = {name for path in modules() for name in _notes(path)}
    wanted |= set(_lane_notes())
    wanted |= {f"relay.destination_{kind}" for kind in LEVELS}
    wanted |= {f"attempt.{kind.value}" for kind in OF_DELIVERIES}
    wanted |= {f"pickup.{kind.value}" for kind in OF_PICKUPS}
    wanted |= {f"callback.{answer}" for answer in ANSWERS}
    wanted |= {f"submit.{outcome}" for outcome in ("forwarded", "replayed", "refused", "not_sent", "unknown")}
    wanted |= {f"callback.{error.label}" for error in _sender_errors() if error is not errors.SenderError}
    told = {name for row in rows(OPERATING.section("Log")) for name in quoted(row[0])}
    assert told == wanted


def test_the_answers_are_those_that_the_intake_reports() -> None:
    """`ANSWERS` above and the table of answers are held to what intake.py spells."""
    spelled = _constants_of_file("engine/intake.py")
    assert {"parked", "journaled", "not_kept", "recorded"} <= spelled
    table = rows(OPERATING.section("What a callback is answered"))
    told = {(row[0], quoted(row[1])[0]) for row in table}
    wanted = {(str(e.status), e.label) for e in _sender_errors() if e is not errors.SenderError}
    assert told == wanted | {
        ("200", "recorded"),
        ("200", "duplicate"),
        ("200", "parked"),
        ("200", "ignored"),
        ("200", "handshake"),
        ("200", "journaled"),
        ("503", "unavailable"),
    }


@pytest.mark.parametrize("kind", OF_DELIVERIES)
def test_each_outcome_is_explained(kind: OutcomeKind) -> None:
    told = {quoted(row[0])[0] for row in rows(OPERATING.section("Dead letters and replay"))}
    assert kind.value in told


@pytest.mark.parametrize("kind", OF_PICKUPS)
def test_each_outcome_of_a_pickup_is_explained(kind: OutcomeKind) -> None:
    told = {quoted(row[0])[0] for row in rows(OPERATING.section("Pickups"))}
    assert kind.value in told


@pytest.mark.parametrize("word", [*PickupState, *PickupKind])
def test_each_state_and_kind_of_a_pickup_is_named(word: PickupState | PickupKind) -> None:
    assert word.value in quoted(CLI.section("`receiver pickups`"))


@pytest.mark.parametrize("state", DeliveryState)
def test_each_delivery_state_is_named(state: DeliveryState) -> None:
    assert state.value in quoted(CLI.section("`receiver deliveries`"))


# ---------------------------------------------------------------- errors, events, providers, routes


def test_each_error_class_is_named() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ReceiverError)
    }
    assert not classes - set(quoted(OPERATING.section("What a callback is answered")))


def test_each_event_type_is_explained() -> None:
    assert {quoted(row[0])[0] for row in rows(EVENTS.section("Types"))} == set(EVENT_TYPES)


def _whole_event() -> dict[str, Any]:
    """Return the `data` of an event that has every field."""
    blob = StoredBlob(key="k", uri="file:///k", content_type="audio/mpeg", size=1, sha256="0")
    draft = EventDraft(
        type="speech.completed",
        idempotency_key="k",
        occurred_at=1,
        transcript=TranscriptDraft(text="a"),
        error=JobError(message="m"),
        replaces="evt_0",
    )
    whole: dict[str, Any] = json.loads(
        event_json.compose(
            draft,
            event_id="evt_1",
            source="s",
            provider="p",
            audio=(blob, AudioFacts()),
            media=blob,
            document=blob,
        )
    )
    return whole


def test_each_field_of_an_event_is_explained() -> None:
    wanted: set[str] = set()
    data = _whole_event()
    for name, value in data.items():
        inner = value if isinstance(value, dict) and name not in ("media", "document") else {}
        wanted |= {name, *(f"{name}.{key}" for key in inner)}
    table = rows(EVENTS.section("Fields of `data`"))
    assert {quoted(row[0])[0] for row in table} == wanted
    told = {quoted(row[0])[0]: set(quoted(row[2])) for row in table}
    for name in ("media", "document"):
        assert not set(data[name]) - told[name]


def _error_codes() -> set[str]:
    """Return the codes that receiver itself gives an event's error: `code="…"` in calls of `JobError`, and "parked"."""
    found = {"parked"}
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "JobError":
                found |= {
                    code for word in node.keywords if word.arg == "code" for code in _constants(word.value)
                }
    return found


def test_each_error_code_of_ours_is_explained() -> None:
    told = {quoted(row[0])[0] for row in rows(EVENTS.section("Error codes"))}
    assert {"timed_out", "overdue"} <= told
    assert told == _error_codes()


def test_each_provider_has_its_sections() -> None:
    told = {heading.lower() for heading in PROVIDERS.headings()}
    assert not set(adapters()) - told
    for name in adapters():
        assert f"Provider {name}" in CONFIGURATION.headings()
        assert f'`provider = "{name}"`' in PROVIDERS.prose


def test_each_provider_module_is_wired_and_explained() -> None:
    """A module of `providers/` is an adapter, or one of the few that all of them share."""
    names = [module.name for module in pkgutil.iter_modules([str(PACKAGE / "providers")])]
    shared = {"documents", "pickups", "proofs", "public_keys", "results", "toolkit"}
    found = set(names) - shared
    assert found == set(adapters())


def _routes() -> set[str]:
    """Return the paths of the framework's routes, by the calls of `Route` in receiver/web/."""
    found = set()
    for path in (PACKAGE / "web").glob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and "Route" in node.func.id:
                found |= set(_constants(node.args[0]))
    return found


def test_each_route_is_in_the_table() -> None:
    told = {quoted(row[0])[-1] for row in rows(OPERATING.section("Paths"))}
    assert {path for path in told if not path.startswith("/callbacks/")} == _routes()


async def test_callback_routes_are_those_in_the_table(tmp_path: Path) -> None:
    """They are taken before the framework; GET is refused there, and unknown elsewhere."""
    told = {quoted(row[0])[-1] for row in rows(OPERATING.section("Paths"))}
    settings = parse(None, {"RECEIVER__DATA": str(tmp_path)}, str)
    app = create_app(wiring.build(settings, observers=[]))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)) as client:
        for path in ("/callbacks/{source}", "/callbacks/{source}/{token}", "/callbacks/{source}/a/b"):
            answer = await client.get("http://receiver.test" + path.format(source="deepgram", token="t"))
            assert (answer.status_code == 405) is (path in told)


def test_each_endpoint_of_the_api_is_in_the_table_with_its_scope_and_statuses() -> None:
    table = rows(API.section("Operations"))
    told = {quoted(row[0])[0]: (quoted(row[1]), row[3]) for row in table if quoted(row[0])[0][0].isupper()}
    wanted = {
        f"{one.method} {one.path}": ([one.scope], ", ".join(map(str, one.statuses))) for one in OPERATIONS
    }
    assert told == wanted


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_what_an_endpoint_takes_and_gives_is_named(operation: Operation) -> None:
    kinds = [operation.query, operation.body, shown_as(operation.gives)]
    _, found = msgspec.json.schema_components([kind for kind in kinds if isinstance(kind, type)])
    fields = {name for component in found.values() for name in component.get("properties", ())}
    assert not fields - set(API.quoted())


def test_each_problem_and_each_scope_of_the_api_is_explained() -> None:
    told = {int(text) for row in rows(API.section("Errors")) for text in row[0].split(", ")}
    assert told == set(TITLES)
    assert {quoted(row[0])[0] for row in rows(API.section("Tokens"))} == {scope.value for scope in ApiScope}


def test_each_cause_is_explained() -> None:
    assert [quoted(row[0])[0] for row in rows(API.section("Jobs"))] == [cause.value for cause in Cause]
